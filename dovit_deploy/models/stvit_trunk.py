"""STViT-R for any picture size: what its backbone and its segmenter have in common.

Source: changsn/STViT-R-Object-Detection (mmdet). It differs from the classifier in more than its padding: semantic
tokens look twice at growing neighbourhoods, and image tokens at the semantic ones around them.
"""

from __future__ import annotations

from torch import Tensor, nn

from dovit_deploy.bundle.stvit_spec import REDUCED_STAGE, SAMPLES, UNIT
from dovit_deploy.models.neighbourhoods import AnySize, pooling_placement, recovery_placement
from dovit_deploy.models.semantic_blocks import CrossAttention, CrossBlock, raster_order, semantic_pooling
from dovit_deploy.models.stem import padded
from dovit_deploy.models.swin import PatchMerging, SwinBlock, SwinStage, block_shape, stem_from_shape
from dovit_deploy.models.window_attention import BlockShape, PlacedAttention, window_placement
from dovit_deploy.models.windows import with_empty


class UnitPlacements:
    """Where the tokens of a unit's blocks lie; the units of a stage share one."""

    def __init__(self, spec: AnySize) -> None:
        grid = spec.stage_grid(REDUCED_STAGE)
        self.entry = window_placement(grid, spec.window)
        self.pooling = pooling_placement(spec, spec.neighbourhoods[0])
        self.exchange = pooling_placement(spec, spec.neighbourhoods[1])
        self.local = window_placement(spec.semantic_grid, SAMPLES)
        self.recovery = recovery_placement(spec)


class WideSemanticUnit(nn.Module):
    """Six blocks: image tokens (..., n, C) make semantic ones, which look at them, at each other, and are looked at."""

    def __init__(self, spec: AnySize, shape: BlockShape, places: UnitPlacements) -> None:
        super().__init__()
        grid = spec.stage_grid(REDUCED_STAGE)
        self.entry = SwinBlock(shape, spec.window, places.entry)
        self.pool = semantic_pooling(grid, spec.window, convolved=shape.width if spec.local_convolution else 0)
        self.pooling = CrossBlock(shape, PlacedAttention(shape, places.pooling))
        self.exchange = CrossBlock(shape, PlacedAttention(shape, places.exchange))
        self.raster = raster_order(spec.semantic_grid, SAMPLES)
        self.local = CrossBlock(shape, PlacedAttention(shape, places.local))
        self.everywhere = CrossBlock(shape, CrossAttention(shape))
        self.recovery = CrossBlock(shape, PlacedAttention(shape, places.recovery))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        # The source pads before the norm, so that what lies outside is a key of its own.
        filled = with_empty(x)
        semantic = self.exchange(self.pooling(self.pool(x), filled), filled)
        semantic = self.everywhere(self.local(self.raster(semantic)))
        return self.recovery(x, with_empty(semantic))  # type: ignore[no-any-return]


class WideSemanticStage(nn.Module):
    """Units one after another: (..., n, C) -> (..., n, C)."""

    def __init__(self, spec: AnySize, *, trainable: bool) -> None:
        super().__init__()
        places, shape = UnitPlacements(spec), block_shape(spec, REDUCED_STAGE, trainable=trainable)
        self.units = nn.ModuleList(
            WideSemanticUnit(spec, shape, places) for _ in range(spec.depths[REDUCED_STAGE] // UNIT)
        )

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x)
        return x


class StvitTrunk(nn.Module):
    """Stem, stages and merges for any size; `forward` gives what every stage makes, before it is merged."""

    def __init__(self, spec: AnySize, *, trainable: bool) -> None:
        super().__init__()
        self.stem = stem_from_shape(spec, trainable=trainable)
        stages = range(len(spec.depths))
        self.stages = nn.ModuleList(
            WideSemanticStage(spec, trainable=trainable)
            if stage == REDUCED_STAGE
            else SwinStage(spec, stage, window=spec.window, shifted=True, trainable=trainable)
            for stage in stages
        )
        self.merges = nn.ModuleList(
            PatchMerging(spec.stage_width(stage), spec.stage_grid(stage), spec.norm_eps) for stage in stages[:-1]
        )
        self.patch = spec.patch

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, n, C), padded right and bottom to whole patches."""
        return self.stem(padded(pixels, self.patch)).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def walk(self, tokens: Tensor) -> list[Tensor]:
        """(..., n, C) of the first grid -> what leaves each stage, (..., n_i, C_i)."""
        left = []
        for number, stage in enumerate(self.stages):
            tokens = stage(self.merges[number - 1](tokens) if number else tokens)
            left.append(tokens)
        return left
