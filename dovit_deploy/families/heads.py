"""Heads: tokens in, class logits out. Per-token heads serve as gates on any subset of tokens.

A decode head is called with all patches and the grid that they form: no head keeps a grid, so that crops of any size
go through the same one in training.

Sources: mmsegmentation 0.30 (FCNHead, SETRUPHead, SegmenterMaskTransformerHead), rstrudel/segmenter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from dovit_deploy.families.folding import conv_norm, linear_norm
from dovit_deploy.families.layers import Attend, Block, attention
from dovit_deploy.families.parts import AnyHead, FcnHead, LightHead, LinearHead, MaskHead, QueryHead, SetrHead
from dovit_deploy.families.spec import Grid


def grid_from_tokens(tokens: Tensor, grid: Grid) -> Tensor:
    """Patch tokens (N, C) or (B, N, C) in raster order -> (B, C, h, w), B = 1 for (N, C)."""
    return tokens.transpose(-2, -1).reshape(-1, tokens.shape[-1], *grid)


def finer_grid_from_tokens(tokens: Tensor, grid: Grid) -> Tensor:
    """(N, 4c) or (B, N, 4c), each token's 2x2 positions row by row with c channels each -> (B, c, 2h, 2w)."""
    rows, columns = grid
    channels = tokens.shape[-1] // 4
    # In one step from tokens to a grid: two (to a grid, then apart) would copy all of it twice.
    apart = tokens.reshape(-1, rows, columns, 2, 2, channels).permute(0, 5, 1, 3, 2, 4)
    return apart.reshape(-1, channels, 2 * rows, 2 * columns)


class LinearTokenHead(nn.Module):
    """One linear layer per token: (..., C) -> (..., K)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classifier(tokens)  # type: ignore[no-any-return]


class FcnTokenHead(nn.Module):
    """Linear, batch norm, ReLU, linear per token: (M, C) -> (M, K)."""

    def __init__(self, spec: FcnHead, width: int, classes: int, *, trainable: bool) -> None:
        super().__init__()
        self.hidden = linear_norm(width, spec.channels, trainable=trainable)
        self.classifier = nn.Linear(spec.channels, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classifier(functional.relu(self.hidden(tokens)))  # type: ignore[no-any-return]


class SetrUpHead(nn.Module):
    """LayerNorm, then convolution, batch norm, ReLU and bilinear up-sampling, then a 1x1 classifier.

    (N, C) or (B, N, C) -> (B, K, h * scale, w * scale). It mixes neighbours, so it needs the full grid.
    """

    def __init__(self, spec: SetrHead, width: int, classes: int, *, trainable: bool) -> None:
        super().__init__()
        self.up_scale = spec.up_scale
        self.norm = nn.LayerNorm(width, eps=spec.norm_eps)
        # Only the first convolution sees the backbone's width.
        inputs = [width, *[spec.channels] * (spec.convs - 1)]
        self.up = nn.ModuleList(conv_norm(before, spec.channels, spec.kernel, trainable=trainable) for before in inputs)
        self.classifier = nn.Conv2d(spec.channels, classes, 1)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        x = grid_from_tokens(self.norm(tokens), grid)
        for conv in self.up:
            x = functional.relu(conv(x))
            size = (x.shape[-2] * self.up_scale, x.shape[-1] * self.up_scale)
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return self.classifier(x)  # type: ignore[no-any-return]


class LightUpHead(nn.Module):
    """Each token is spread over 2x2 positions, which one 3x3 convolution mixes, then a 1x1 classifier.

    (N, C) or (B, N, C) -> (B, K, 2h, 2w).
    """

    def __init__(self, spec: LightHead, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=spec.norm_eps)
        self.expand = nn.Linear(width, 4 * spec.channels)
        self.conv = nn.Conv2d(spec.channels, spec.channels, 3, padding=1)
        self.classifier = nn.Conv2d(spec.channels, classes, 1)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        # Before the tokens are spread, where runtimes compute it together with the linear layer.
        spread = functional.gelu(self.expand(self.norm(tokens)))
        mixed = functional.gelu(self.conv(finer_grid_from_tokens(spread, grid)))
        return self.classifier(mixed)  # type: ignore[no-any-return]


class MaskTransformerHead(nn.Module):
    """Segmenter's decoder: class embeddings, joined behind the patches, attend with them; masks are products.

    (N, C) or (B, N, C) -> (B, K, h, w).
    """

    def __init__(self, spec: MaskHead, width: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.embed = nn.Linear(width, spec.width)
        self.class_tokens = nn.Parameter(torch.zeros(classes, spec.width))
        self.blocks = nn.ModuleList(
            Block(spec.width, spec.heads, 4 * spec.width, spec.norm_eps) for _ in range(spec.layers)
        )
        self.norm = nn.LayerNorm(spec.width, eps=spec.norm_eps)
        self.patch_projection = nn.Linear(spec.width, spec.width, bias=False)
        self.class_projection = nn.Linear(spec.width, spec.width, bias=False)
        self.mask_norm = nn.LayerNorm(classes, eps=spec.norm_eps)

    def forward(self, tokens: Tensor, grid: Grid, attend: Attend = attention) -> Tensor:
        classes: Tensor = self.class_tokens
        # All images of a batch share the class embeddings; one image alone stays two-dimensional.
        if tokens.dim() > 2:
            classes = classes.expand(*tokens.shape[:-2], -1, -1)
        x = torch.cat([self.embed(tokens), classes], dim=-2)
        for block in self.blocks:
            x = block(x, attend)
        x = self.norm(x)
        # Counted from the end, so that any number of patches may stand before the classes.
        patches = functional.normalize(self.patch_projection(x[..., : -self.classes, :]), dim=-1)
        prototypes = functional.normalize(self.class_projection(x[..., -self.classes :, :]), dim=-1)
        masks = self.mask_norm(patches @ prototypes.transpose(-2, -1))
        return grid_from_tokens(masks, grid)


class Doubling(nn.Module):
    """Each position is spread over 2x2, which a 3x3 convolution mixes within every channel: (hw, C) -> (4hw, C).

    Its source spreads with a transposed convolution of stride 2, which on tokens is a linear layer.
    """

    def __init__(self, width: int, norm_eps: float) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        spread = finer_grid_from_tokens(functional.gelu(self.expand(tokens)), grid)
        return self.norm(self.conv(spread)[0].flatten(1).transpose(0, 1))  # type: ignore[no-any-return]


class MaskQueries(nn.Module):
    """What queries and patches of one image become: each query has a class and a mask, and an answer is the sum over
    queries of mask times class (EoMT)."""

    def __init__(self, spec: QueryHead, width: int, classes: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(spec.queries, width))
        self.doublings = nn.ModuleList(Doubling(width, spec.norm_eps) for _ in range(spec.doublings))
        self.mask = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        # The last class is that of no object, and is left out of the answer.
        self.classifier = nn.Linear(width, classes + 1)

    def forward(self, queries: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        """`queries` (Q, C) and `patches` (N, C), both normed -> (1, K, h * scale, w * scale)."""
        classes = self.classifier(queries).softmax(-1)[:, :-1]
        first, second, last = self.mask
        makers = last(functional.gelu(second(functional.gelu(first(queries)))))
        for doubling in self.doublings:
            patches = doubling(patches, grid)
            grid = (2 * grid[0], 2 * grid[1])
        masks = (patches @ makers.transpose(0, 1)).sigmoid()
        return grid_from_tokens(masks @ classes, grid)


class TokenLogitsHead(nn.Module):
    """A per-token head as decode head: (N, C) or (B, N, C) -> (B, K, h, w)."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        if tokens.dim() == 2:
            return grid_from_tokens(self.head(tokens), grid)
        # Batch norm, which a per-token head may hold, wants a list of tokens.
        logits = self.head(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return grid_from_tokens(logits, grid)


def token_head_from_spec(head: LinearHead | FcnHead, width: int, classes: int, *, trainable: bool) -> nn.Module:
    """The per-token head that `head` describes."""
    if isinstance(head, FcnHead):
        return FcnTokenHead(head, width, classes, trainable=trainable)
    return LinearTokenHead(width, classes)


def decode_head_from_spec(head: AnyHead, width: int, classes: int, *, trainable: bool) -> nn.Module:
    """The decode head that `head` describes: patch tokens (N, C) and their grid -> logits (1, K, h', w').

    One of queries takes these before the patches.
    """
    if isinstance(head, QueryHead):
        return MaskQueries(head, width, classes)
    if isinstance(head, MaskHead):
        return MaskTransformerHead(head, width, classes)
    if isinstance(head, SetrHead):
        return SetrUpHead(head, width, classes, trainable=trainable)
    if isinstance(head, LightHead):
        return LightUpHead(head, width, classes)
    return TokenLogitsHead(token_head_from_spec(head, width, classes, trainable=trainable))
