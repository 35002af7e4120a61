"""The parts of LeViT that Evo-ViT keeps: convolutional stem, attention with wide values, subsampling, MLP, heads.

Tokens are (n, C), the class token first. Every projection has a batch norm, folded in deployment form.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from dovit_deploy.bundle.levit_spec import LevitStage, LevitSubsample
from dovit_deploy.models.batch_norm import conv_norm, linear_norm, norm_linear
from dovit_deploy.models.class_attention import class_scores
from dovit_deploy.models.layers import attention


class LevitStem(nn.Module):
    """Four 3x3 convolutions of stride 2 with Hardswish between them: (1, 3, H, W) -> (1, C, H / 16, W / 16)."""

    def __init__(self, width: int, *, trainable: bool) -> None:
        super().__init__()
        widths = (3, width // 8, width // 4, width // 2, width)
        self.down = nn.ModuleList(
            conv_norm(before, after, 3, stride=2, trainable=trainable) for before, after in itertools.pairwise(widths)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.down[0](pixels)
        for conv in self.down[1:]:
            x = conv(functional.hardswish(x))
        return x  # type: ignore[no-any-return]


class LevitAttention(nn.Module):
    """Attention whose values are wider than its queries and keys, with Hardswish before the output projection.

    Queries (m, C) of `asking`, keys and values of `tokens` (n, C) -> (m, C'), and the class token's attention to every
    token, the mean over heads (n,).
    """

    def __init__(
        self, part: LevitStage | LevitSubsample, inputs: int, outputs: int, *, learned: bool, trainable: bool
    ) -> None:
        super().__init__()
        self.heads = part.heads
        wide = part.heads * part.value
        self.query = linear_norm(inputs, part.heads * part.key, trainable=trainable)
        self.key = linear_norm(inputs, part.heads * part.key, trainable=trainable)
        self.value = linear_norm(inputs, wide, trainable=trainable)
        self.output = linear_norm(wide, outputs, trainable=trainable)
        if learned:
            self.tradeoff = nn.Parameter(torch.zeros(1))

    def forward(self, asking: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        query, key = self.query(asking), self.key(tokens)
        seen = attention(query, key, self.value(tokens), self.heads)
        scores = class_scores(query, key, self.heads) / self.heads
        return self.output(functional.hardswish(seen)), scores


class LevitMlp(nn.Module):
    """Linear, Hardswish, linear; what it adds to its input."""

    def __init__(self, width: int, hidden: int, *, trainable: bool) -> None:
        super().__init__()
        self.expand = linear_norm(width, hidden, trainable=trainable)
        self.contract = linear_norm(hidden, width, trainable=trainable)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.contract(functional.hardswish(self.expand(tokens)))  # type: ignore[no-any-return]


class LevitLayer(nn.Module):
    """One layer's attention and MLP, each a residual that the caller adds."""

    def __init__(self, stage: LevitStage, *, learned: bool, trainable: bool) -> None:
        super().__init__()
        self.attention = LevitAttention(stage, stage.width, stage.width, learned=learned, trainable=trainable)
        self.mlp = LevitMlp(stage.width, stage.hidden, trainable=trainable)


class LevitDown(nn.Module):
    """Attention from every `stride`-th row and column of the grid to all of it, then an MLP: tokens in raster order.

    (1 + N, C) -> (1 + N', C'), and the class token's attention to all N patches, mean over heads (N,).
    """

    def __init__(
        self,
        subsample: LevitSubsample,
        inputs: int,
        outputs: int,
        grid: tuple[int, int],
        *,
        learned: bool,
        trainable: bool,
    ) -> None:
        super().__init__()
        self.grid, self.stride = grid, subsample.stride
        self.positions = nn.Parameter(torch.zeros(1 + grid[0] * grid[1], inputs))
        self.attention = LevitAttention(subsample, inputs, outputs, learned=learned, trainable=trainable)
        self.mlp = LevitMlp(outputs, subsample.hidden, trainable=trainable)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = tokens + self.positions
        asking = torch.cat([tokens[:1], self.thinned(tokens[1:])])
        fewer, scores = self.attention(asking, tokens)
        return fewer + self.mlp(fewer), scores[1:]

    def thinned(self, patches: Tensor) -> Tensor:
        """(N, ...) in raster order -> (N', ...): every `stride`-th row and column."""
        laid_out = patches.reshape(*self.grid, *patches.shape[1:])
        return laid_out[:: self.stride, :: self.stride].flatten(0, 1)


class LevitHead(nn.Module):
    """Batch norm and linear layer on the mean of the patches (1, C); the mean of two of them after distillation."""

    def __init__(self, width: int, classes: int, *, distilled: bool, trainable: bool) -> None:
        super().__init__()
        self.classifier = norm_linear(width, classes, trainable=trainable)
        if distilled:
            self.distilled = norm_linear(width, classes, trainable=trainable)
        self.two = distilled

    def forward(self, mean: Tensor) -> Tensor:
        if not self.two:
            return self.classifier(mean)  # type: ignore[no-any-return]
        return (self.classifier(mean) + self.distilled(mean)) / 2  # type: ignore[no-any-return]
