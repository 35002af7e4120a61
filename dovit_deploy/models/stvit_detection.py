"""STViT-R's backbone for detection and dense prediction. Source: changsn/STViT-R-Object-Detection (mmdet)."""

from __future__ import annotations

from torch import Tensor, nn

from dovit_deploy.bundle.stvit_spec import StvitBackboneSpec
from dovit_deploy.models.family import Family
from dovit_deploy.models.static_stage import no_dense, static_stages
from dovit_deploy.models.stvit_trunk import StvitTrunk
from dovit_deploy.models.weights_at_size import unchanged_weights


class StvitBackbone(StvitTrunk):
    """(B, 3, H, W) normalised pixels -> a feature map a stage, (B, C_i, h_i, w_i), each normed on its own."""

    def __init__(self, spec: StvitBackboneSpec, *, trainable: bool = False) -> None:
        super().__init__(spec, trainable=trainable)
        self.spec = spec
        self.norms = nn.ModuleList(
            nn.LayerNorm(spec.stage_width(stage), eps=spec.norm_eps) for stage in range(len(spec.depths))
        )

    def decode(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(n, C) or (B, n, C) tokens of the first grid -> the feature maps, B = 1 for (n, C)."""
        left = self.walk(tokens)
        return tuple(
            norm(x).transpose(-2, -1).reshape(-1, x.shape[-1], *self.spec.stage_grid(stage))
            for stage, (norm, x) in enumerate(zip(self.norms, left, strict=True))
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self.decode(self.embed(pixels))


STVIT_BACKBONE = Family(
    spec=StvitBackboneSpec,
    build=StvitBackbone,
    stages=static_stages,
    dense=no_dense,
    state_at_size=unchanged_weights(StvitBackbone),
)
