"""The transformer block, on tokens (n, C) or batches of them (B, n, C); stems, positions, and all of it put together.

Query, key and value are three linear layers: on two-dimensional tokens each becomes one Gemm, the fastest form in
ONNX Runtime, and every form of a graph can share one copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from dovit_deploy.families.evovit.spec import EvoDeitSpec
from dovit_deploy.families.folding import State, conv_norm
from dovit_deploy.families.parts import ConvStem, MlpKind, Padding, PositionMode, Stem
from dovit_deploy.families.rotary import COSINES, PERIODS, SINES, RotaryPositions, Rotations, rotated, rotation_tables
from dovit_deploy.families.spec import Grid
from dovit_deploy.families.vit.spec import VisionTransformerSpec

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Query, key, value and the number of heads -> the mixed values; as `attention` takes and gives them."""

_LIBRARY = torch.library.Library("dovit", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("attention(Tensor query, Tensor key, Tensor value, int heads) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define("attention_with_bias(Tensor query, Tensor key, Tensor value, Tensor bias, int heads) -> Tensor")  # type: ignore[no-untyped-call]


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    return _attention_with_bias(query, key, value, None, heads)


def _attention_with_bias(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    def split(tokens: Tensor) -> Tensor:
        # (..., n, C) -> (..., heads, n, C / heads)
        return tokens.reshape(*tokens.shape[:-1], heads, tokens.shape[-1] // heads).transpose(-3, -2)

    added = None if bias is None else bias[None]
    mixed = functional.scaled_dot_product_attention(split(query), split(key), split(value), attn_mask=added)
    return mixed.transpose(-3, -2).flatten(-2)


# Composite: autograd and the FLOP counter look inside, while the exporter sees one node that it can lower
# to standard operators or to a runtime's fused kernel.
_LIBRARY.impl("attention", _attention, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("attention_with_bias", _attention_with_bias, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of (..., n, C) queries over (..., m, C) keys and values; scale (C / heads)^-0.5."""
    return torch.ops.dovit.attention(query, key, value, heads)  # type: ignore[no-any-return]


def attention_with_bias(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, heads: int) -> Tensor:
    """`attention` of (n, C) queries over (m, C) keys and values, with `bias` (m,) added to the scores of each key."""
    return torch.ops.dovit.attention_with_bias(query, key, value, bias, heads)  # type: ignore[no-any-return]


def attend_turned(rotations: Rotations, attend: Attend = attention) -> Attend:
    """`attend` with queries and keys turned by the `rotations` of the tokens that attend."""

    def turned(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        return attend(rotated(query, rotations, heads), rotated(key, rotations, heads), value, heads)

    return turned


class AttentionProjections(nn.Module):
    """Separate query, key and value projections, and an output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)


class Attention(AttentionProjections):
    """Self-attention: every token over every other."""

    def forward(self, x: Tensor, attend: Attend = attention) -> Tensor:
        return self.output(attend(self.query(x), self.key(x), self.value(x), self.heads))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        # The tanh approximation that some runtimes prefer is off by up to 5e-4, more than parity allows.
        return self.contract(functional.gelu(self.expand(x)))  # type: ignore[no-any-return]


class GatedMlp(nn.Module):
    """SwiGLU: a linear layer, each value of it times the SiLU of a gate of its own, then linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(functional.silu(self.gate(x)) * self.expand(x))  # type: ignore[no-any-return]


MLPS: dict[MlpKind, type[Mlp | GatedMlp]] = {"gelu": Mlp, "swiglu": GatedMlp}


class Block(nn.Module):
    """Pre-norm block: x += attention(norm1(x)); x += mlp(norm2(x))."""

    def __init__(self, width: int, heads: int, hidden: int, norm_eps: float, mlp: MlpKind = "gelu") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = MLPS[mlp](width, hidden)

    def forward(self, x: Tensor, attend: Attend = attention) -> Tensor:
        x = x + self.attention(self.norm1(x), attend)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def resized_positions(positions: Tensor, extra: int, grid: Grid, target: Grid, mode: PositionMode) -> Tensor:
    """Position embeddings (E + N, C) for `grid` -> (E + N', C) for `target`, as the published codes do it.

    Some sources resize only when the *number* of tokens changes: 4x16 tokens take the embeddings of 8x8 as they are.
    """
    by_number = mode in ("bicubic", "bilinear")
    if grid == target or (by_number and target[0] * target[1] == positions.shape[0] - extra):
        return positions
    return interpolated_positions(positions, extra, grid, target, mode)


def interpolated_positions(positions: Tensor, extra: int, grid: Grid, target: Grid, mode: PositionMode) -> Tensor:
    """(E + N, C) for `grid` -> (E + N', C) for `target`; corners not aligned, no antialiasing unless `mode` says so."""
    image = positions[extra:].T.reshape(1, -1, *grid)
    kind = "bilinear" if mode == "bilinear" else "bicubic"
    if mode == "scale":
        # The source adds 0.1 so that rounding never loses a row; its sample points are those of this factor.
        factor = tuple((side + 0.1) / before for side, before in zip(target, grid, strict=True))
        resized = functional.interpolate(image, scale_factor=factor, mode=kind, align_corners=False)
    else:
        smooth = mode == "antialias"
        resized = functional.interpolate(image, size=target, mode=kind, align_corners=False, antialias=smooth)
    # A transposed view cannot be written to safetensors.
    return torch.cat([positions[:extra], resized.flatten(2)[0].T]).contiguous()


class PatchEmbedding(nn.Module):
    """The published stem: one convolution whose kernel and stride are the patch."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projection(pixels)  # type: ignore[no-any-return]


class ResidualConv(nn.Module):
    """x + a 3x3 convolution with batch norm, then ReLU."""

    def __init__(self, width: int, *, trainable: bool) -> None:
        super().__init__()
        self.conv = conv_norm(width, width, 3, trainable=trainable)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.conv(x))


class ConvEmbedding(nn.Module):
    """3x3 stride-2 convolutions with ReLU, residual blocks after all but the first, a 2x2 stride-2 projection."""

    def __init__(self, stem: ConvStem, width: int, *, trainable: bool) -> None:
        super().__init__()
        inputs = (3, *stem.widths[:-1])
        self.down = nn.ModuleList(
            conv_norm(before, after, 3, stride=2, trainable=trainable)
            for before, after in zip(inputs, stem.widths, strict=True)
        )
        self.residual = nn.ModuleList(ResidualConv(width, trainable=trainable) for width in stem.widths[1:])
        self.projection = nn.Conv2d(stem.widths[-1], width, 2, stride=2)

    def forward(self, pixels: Tensor) -> Tensor:
        # The first convolution has no residual block behind it, on the largest grid of all.
        x = functional.relu(self.down[0](pixels))
        for down, residual in zip(self.down[1:], self.residual, strict=True):
            x = residual(functional.relu(down(x)))
        return self.projection(x)  # type: ignore[no-any-return]


def stem_from_spec(stem: Stem, *, width: int, patch: int, trainable: bool) -> nn.Module:
    """From pixels to patches: (B, 3, H, W), H and W multiples of the patch -> (B, C, h, w)."""
    if isinstance(stem, ConvStem):
        return ConvEmbedding(stem, width, trainable=trainable)
    return PatchEmbedding(width, patch)


def padded(pixels: Tensor, patch: int, padding: Padding = "end") -> Tensor:
    """Zeros (the mean colour, since pixels are normalised) added up to whole patches."""
    # `%` of a negative number is what is missing to the next multiple: -70 % 16 = 10.
    down, right = (-side % patch for side in pixels.shape[-2:])
    # Of an odd number the end gets the greater half.
    top, left = (down // 2, right // 2) if padding == "centre" else (0, 0)
    return functional.pad(pixels, (left, right - left, top, down - top))


class PatchTransformer(nn.Module):
    """What a plain transformer on patches has up to its last norm: DoViT, Segmenter and SETR, Evo-ViT on DeiT.

    Args:
        spec: the architecture.
        final_norm: a norm follows the last block.
        trainable: keep the stem's batch norms apart.
        mlp: of every block.
        padding: where pixels are padded to whole patches.
        rotary: queries and keys are turned by their position; none is added to a token.
    """

    spec: VisionTransformerSpec | EvoDeitSpec

    def __init__(
        self,
        spec: VisionTransformerSpec | EvoDeitSpec,
        *,
        final_norm: bool,
        trainable: bool,
        mlp: MlpKind = "gelu",
        padding: Padding = "end",
        rotary: bool = False,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.padding = padding
        self.stem = stem_from_spec(spec.stem, width=spec.width, patch=spec.patch, trainable=trainable)
        # An empty parameter would be an entry of the weights that no checkpoint has.
        if spec.extra_tokens:
            self.extra_tokens = nn.Parameter(torch.zeros(spec.extra_tokens, spec.width))
        self.rotary = RotaryPositions(spec.width // spec.heads, spec.extra_tokens, spec.grid) if rotary else None
        if not rotary:
            self.positions = nn.Parameter(torch.zeros(spec.tokens, spec.width))
        self.blocks = nn.ModuleList(
            Block(spec.width, spec.heads, spec.hidden, spec.norm_eps, mlp) for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(spec.width, eps=spec.norm_eps) if final_norm else nn.Identity()

    def patch_grid(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w), padded to whole patches."""
        return self.stem(padded(pixels, self.spec.patch, self.padding))  # type: ignore[no-any-return]

    def embed(self, pixels: Tensor) -> Tensor:
        """(1, 3, H, W) -> (E + N, C): extra tokens first, position embeddings added where there are any."""
        patches = self.patch_grid(pixels).flatten(2)[0].transpose(0, 1)
        tokens = torch.cat([self.extra_tokens, patches]) if self.spec.extra_tokens else patches
        return tokens if self.rotary is not None else tokens + self.positions

    def attend_at(self, index: Tensor | None = None, attend: Attend = attention) -> Attend:
        """The attention of the tokens `index` (n,), each turned by its own position; of all tokens without it.

        `attend` is what mixes them then.
        """
        if self.rotary is None:
            return attend
        tables = self.rotary.tables
        return attend_turned(tables if index is None else tables.at(index), attend)


def positions_at_size(
    state: State, spec: VisionTransformerSpec | EvoDeitSpec, target: VisionTransformerSpec | EvoDeitSpec
) -> State:
    """Position embeddings resized to the grid of `target`, or its rotations; every other weight serves at any size."""
    if PERIODS in state:
        tables = rotation_tables(state[PERIODS], target.extra_tokens, target.grid)
        return {**state, COSINES: tables.cosines, SINES: tables.sines}
    positions = resized_positions(state["positions"], spec.extra_tokens, spec.grid, target.grid, spec.position_mode)
    return {**state, "positions": positions}
