"""STViT's blocks: image tokens are pooled to a few semantic ones, those look at the image, and the image back at them.

Sources: changsn/STViT-R, changsn/STViT-R-Object-Detection. Everything is on tokens (..., n, C).
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from dovit_deploy.families.layers import Mlp, attention
from dovit_deploy.families.stvit.attention import BlockShape
from dovit_deploy.families.stvit.spec import SAMPLES
from dovit_deploy.families.stvit.swin import scale_from
from dovit_deploy.families.stvit.windows import Grid, Rows, Table, pooling_table, return_table, window_table, with_empty


class CrossAttention(nn.Module):
    """Every query (..., n, C) over every key (..., m, C)."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query = nn.Linear(shape.width, shape.width)
        self.key = nn.Linear(shape.width, shape.width)
        self.value = nn.Linear(shape.width, shape.width)
        self.output = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mixed = attention(self.query(x), self.key(y), self.value(y), self.heads)
        return self.output(mixed)  # type: ignore[no-any-return]


class CrossBlock(nn.Module):
    """Pre-norm block whose queries look at other tokens: x += scale1 * attention(x, y); x += scale2 * mlp(x).

    Args:
        shape: of the block; queries and keys share the first norm.
        attention: called with normed queries and normed keys.
        residual: False: what attention gives replaces x instead of being added to it.
    """

    def __init__(self, shape: BlockShape, attention: nn.Module, *, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.norm1 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.attention = attention
        self.scale1 = scale_from(shape)
        self.norm2 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.mlp = Mlp(shape.width, shape.hidden)
        self.scale2 = scale_from(shape)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        queries = self.norm1(x)
        mixed = self.scale1(self.attention(queries, queries if y is None else self.norm1(y)))
        x = x + mixed if self.residual else mixed
        return x + self.scale2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class WindowPooling(nn.Module):
    """The largest value in each bin of each window: (..., n, C) -> (..., windows * samples^2, C), window by window.

    Where windows reach outside the grid, zeros take part.

    Args:
        windows: (windows, places), the tokens of each; `windows.window_table`.
        count: how many tokens there are.
        bins: (samples^2, largest), the places of a window that each bin looks at; `windows.pooling_table`.
        convolved: width of a depthwise 3x3 convolution that is added inside each window; 0 for none.
    """

    def __init__(self, windows: Table, count: int, bins: Table, *, convolved: int = 0) -> None:
        super().__init__()
        self.side, self.largest = math.isqrt(len(bins)), bins.shape[1]
        self.rows = Rows(windows[:, bins], count)
        self.convolution = nn.Conv2d(convolved, convolved, 3, padding=1, groups=convolved) if convolved else None

    def forward(self, x: Tensor) -> Tensor:
        places = self.rows(with_empty(x, needed=self.rows.outside))
        shape = (*places.shape[:-2], places.shape[-2] // self.largest, self.largest, places.shape[-1])
        pooled: Tensor = places.reshape(shape).amax(-2)
        if self.convolution is None:
            return pooled
        image: Tensor = pooled.reshape(-1, self.side, self.side, pooled.shape[-1]).permute(0, 3, 1, 2)
        image = image + self.convolution(image)
        return image.permute(0, 2, 3, 1).reshape(pooled.shape)


def semantic_pooling(grid: Grid, window: int, *, convolved: int) -> WindowPooling:
    """STViT-R's: three by three from each window."""
    bins = pooling_table((window, window), SAMPLES)
    return WindowPooling(window_table(grid, window), grid[0] * grid[1], bins, convolved=convolved)


def raster_order(grid: Grid, window: int) -> Rows:
    """From window after window to the raster order of `grid`, which is made of whole windows."""
    count = grid[0] * grid[1]
    return Rows(return_table(window_table(grid, window), count), count)
