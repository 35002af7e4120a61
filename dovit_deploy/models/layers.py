"""The transformer block, on tokens (n, C) or batches of them (B, n, C).

Query, key and value are three linear layers: on two-dimensional tokens each becomes one Gemm, the fastest form in
ONNX Runtime, and every form of a graph can share one copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]

_LIBRARY = torch.library.Library("dovit", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("attention(Tensor query, Tensor key, Tensor value, int heads) -> Tensor")  # type: ignore[no-untyped-call]


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    def split(tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:-1], heads, tokens.shape[-1] // heads).transpose(-3, -2)

    mixed = functional.scaled_dot_product_attention(split(query), split(key), split(value))
    return mixed.transpose(-3, -2).flatten(-2)


# Composite: autograd and the FLOP counter look inside, while the exporter sees one node that it can lower
# to standard operators or to a runtime's fused kernel.
_LIBRARY.impl("attention", _attention, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of (..., n, C) queries over (..., m, C) keys and values; scale (C / heads)^-0.5."""
    return torch.ops.dovit.attention(query, key, value, heads)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention with separate query, key and value projections and an output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, attend: Attend = attention) -> Tensor:
        return self.output(attend(self.query(x), self.key(x), self.value(x), self.heads))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(functional.gelu(self.expand(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm block: x += attention(norm1(x)); x += mlp(norm2(x))."""

    def __init__(self, width: int, heads: int, hidden: int, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor, attend: Attend = attention) -> Tensor:
        x = x + self.attention(self.norm1(x), attend)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]
