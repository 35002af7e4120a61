"""LeViT: a convolutional stem, then layers of attention and MLP on ever smaller grids.

First the parts that Evo-ViT on LeViT keeps, whose tokens (n, C) begin with a class token; then LeViT itself, the dense
baseline, which has attention with a bias by distance instead of class token and positions. Every projection has a batch
norm, folded in deployment form. Source: facebookresearch/LeViT.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from dovit_deploy.families.evovit.selection import class_scores
from dovit_deploy.families.evovit.spec import LevitSpec, LevitStage, LevitSubsample
from dovit_deploy.families.folding import conv_norm, linear_norm, norm_linear
from dovit_deploy.families.layers import attention
from dovit_deploy.families.registry import Family
from dovit_deploy.families.spec import Grid
from dovit_deploy.families.stages import ImageOutput


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


class LevitProjections(nn.Module):
    """What both attentions of LeViT project: values are wider than queries and keys."""

    def __init__(self, part: LevitStage | LevitSubsample, inputs: int, outputs: int, *, trainable: bool) -> None:
        super().__init__()
        keys, values = part.heads * part.key, part.heads * part.value
        self.query = linear_norm(inputs, keys, trainable=trainable)
        self.key = linear_norm(inputs, keys, trainable=trainable)
        self.value = linear_norm(inputs, values, trainable=trainable)
        self.output = linear_norm(values, outputs, trainable=trainable)


class LevitAttention(LevitProjections):
    """Attention without biases, with Hardswish before the output projection, as Evo-ViT has it.

    `queries` (m, C) look at `tokens` (n, C) -> (m, C'), and the class token's attention to every
    token, the mean over heads (n,).
    """

    def __init__(
        self, part: LevitStage | LevitSubsample, inputs: int, outputs: int, *, learned: bool, trainable: bool
    ) -> None:
        super().__init__(part, inputs, outputs, trainable=trainable)
        self.heads = part.heads
        if learned:
            self.tradeoff = nn.Parameter(torch.zeros(1))

    def forward(self, queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        query, key = self.query(queries), self.key(tokens)
        seen = attention(query, key, self.value(tokens), self.heads)
        # DeiT's scores are a sum over heads: a constant factor does not change an order, but LeViT also mixes stages
        # of different numbers of heads.
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
        grid: Grid,
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
        # Evo-ViT has no biases by distance, and so embeds positions anew on every grid.
        tokens = tokens + self.positions
        queries = torch.cat([tokens[:1], self.thinned(tokens[1:])])
        fewer, scores = self.attention(queries, tokens)
        return fewer + self.mlp(fewer), scores[1:]

    def thinned(self, patches: Tensor) -> Tensor:
        """(N, ...) in raster order -> (N', ...): what is left on the next grid."""
        return every_stride(patches, self.grid, self.stride)


def every_stride(patches: Tensor, grid: Grid, stride: int) -> Tensor:
    """(N, ...) in raster order on `grid` -> (N', ...): every `stride`-th row and column."""
    return patches.reshape(*grid, *patches.shape[1:])[::stride, ::stride].flatten(0, 1)


class LevitHead(nn.Module):
    """Batch norm and linear layer on the mean of the patches (1, C); the mean of two of them after distillation."""

    def __init__(self, width: int, classes: int, *, distilled: bool, trainable: bool) -> None:
        super().__init__()
        self.classifier = norm_linear(width, classes, trainable=trainable)
        self.distilled = norm_linear(width, classes, trainable=trainable) if distilled else None

    def forward(self, mean: Tensor) -> Tensor:
        if self.distilled is None:
            return self.classifier(mean)  # type: ignore[no-any-return]
        return (self.classifier(mean) + self.distilled(mean)) / 2  # type: ignore[no-any-return]


def distance_index(grid: Grid, stride: int) -> Tensor:
    """(N', N) int64: for a query at every `stride`-th row and column and each key, rows apart * width + columns apart.

    That is the index of their bias in the source's table, which lists distances in raster order.
    """
    rows, columns = torch.arange(grid[0]), torch.arange(grid[1])
    down = (rows[::stride, None] - rows[None, :]).abs()
    across = (columns[::stride, None] - columns[None, :]).abs()
    apart = down[:, None, :, None] * grid[1] + across[None, :, None, :]
    return apart.reshape(-1, grid[0] * grid[1])


class BiasedAttention(LevitProjections):
    """LeViT's own attention of `queries` (m, C) over `tokens` (n, C), with a bias for every head and distance."""

    def __init__(
        self,
        part: LevitStage | LevitSubsample,
        inputs: int,
        outputs: int,
        grid: Grid,
        *,
        stride: int,
        trainable: bool,
    ) -> None:
        super().__init__(part, inputs, outputs, trainable=trainable)
        self.part, self.grid, self.stride = part, grid, stride
        self.biases = nn.Parameter(torch.zeros(part.heads, grid[0] * grid[1]))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        heads = self.part.heads
        query = self.query(queries).reshape(-1, heads, self.part.key).transpose(0, 1) * self.part.key**-0.5
        key = self.key(tokens).reshape(-1, heads, self.part.key).permute(1, 2, 0)
        value = self.value(tokens).reshape(-1, heads, self.part.value).transpose(0, 1)
        # Computed from the grid where it is used, so that no table of indices is a weight.
        index = distance_index(self.grid, self.stride)
        biases = self.biases.index_select(1, index.flatten()).reshape(heads, *index.shape)
        seen = ((query @ key + biases).softmax(-1) @ value).transpose(0, 1).flatten(1)
        return self.output(functional.hardswish(seen))  # type: ignore[no-any-return]


class BiasedLayer(nn.Module):
    """Attention and MLP, each added to its input."""

    def __init__(self, stage: LevitStage, grid: Grid, *, trainable: bool) -> None:
        super().__init__()
        self.attention = BiasedAttention(stage, stage.width, stage.width, grid, stride=1, trainable=trainable)
        self.mlp = LevitMlp(stage.width, stage.hidden, trainable=trainable)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(tokens, tokens)
        return tokens + self.mlp(tokens)  # type: ignore[no-any-return]


class BiasedDown(nn.Module):
    """Attention from every `stride`-th row and column to all tokens, then an MLP added: (N, C) -> (N', C')."""

    def __init__(self, subsample: LevitSubsample, inputs: int, outputs: int, grid: Grid, *, trainable: bool) -> None:
        super().__init__()
        self.grid, self.stride = grid, subsample.stride
        self.attention = BiasedAttention(subsample, inputs, outputs, grid, stride=subsample.stride, trainable=trainable)
        self.mlp = LevitMlp(outputs, subsample.hidden, trainable=trainable)

    def forward(self, tokens: Tensor) -> Tensor:
        fewer = self.attention(every_stride(tokens, self.grid, self.stride), tokens)
        return fewer + self.mlp(fewer)  # type: ignore[no-any-return]


class Levit(nn.Module):
    """The network of `spec`: `pixels` (1, 3, H, W) -> `logits` (1, K).

    Args:
        spec: the architecture.
        trainable: keep batch norms apart; otherwise they are folded into their projections.
    """

    def __init__(self, spec: LevitSpec, *, trainable: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.stem = LevitStem(spec.width, trainable=trainable)
        self.layers = nn.ModuleList(
            BiasedLayer(stage, grid, trainable=trainable)
            for stage, grid in zip(spec.stages, spec.stage_grids, strict=True)
            for _ in range(stage.depth)
        )
        self.downs = nn.ModuleList(
            BiasedDown(subsample, before.width, after.width, grid, trainable=trainable)
            for subsample, before, after, grid in zip(
                spec.subsamples, spec.stages[:-1], spec.stages[1:], spec.stage_grids[:-1], strict=True
            )
        )
        last = spec.stages[-1]
        self.head = LevitHead(last.width, spec.classes, distilled=spec.distilled, trainable=trainable)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.stem(pixels).flatten(2)[0].transpose(0, 1)
        for number, (first, last) in enumerate(self.spec.stage_layers):
            if number:
                tokens = self.downs[number - 1](tokens)
            for layer in self.layers[first:last]:
                tokens = layer(tokens)
        return self.head(tokens.mean(0, keepdim=True))  # type: ignore[no-any-return]

    def one_image(self, pixels: Tensor, *, dense: bool) -> ImageOutput:
        del dense
        return ImageOutput((self(pixels),))


FAMILY = Family(build=Levit)
