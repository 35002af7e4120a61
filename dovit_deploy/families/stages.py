"""The only stage of a network whose token counts are fixed: `pixels` -> its results, and the counts as a constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Network(Protocol):
    """A network that looks at one image as tokens (n, C)."""

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, n, C)."""

    def decode(self, tokens: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(n, C) -> results with a batch axis of 1."""


class StaticStage(nn.Module):
    """`pixels` (1, 3, H, W) -> `logits` or `out0`, ..., and `kept` (len(counts),) int64."""

    def __init__(self, network: nn.Module, counts: Sequence[int]) -> None:
        super().__init__()
        self.network = OneImage(network)
        self.counts = list(counts)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        results = self.network(pixels)
        kept = torch.tensor(self.counts, dtype=torch.int64)
        return (*results, kept) if isinstance(results, tuple) else (results, kept)


class OneImage(nn.Module):
    """`pixels` (1, 3, H, W) -> the results: the image's tokens are two-dimensional, the fastest form to deploy."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        network: Network = self.model  # type: ignore[assignment]
        return network.decode(network.embed(pixels)[0])


def static_stages(model: Any) -> list[nn.Module]:  # noqa: ANN401  any network with a spec
    """The one stage of `model`."""
    return [StaticStage(model, model.spec.counts)]


def no_dense(model: nn.Module) -> nn.Module:
    """There is no dense network of these weights."""
    raise TypeError(f"{type(model).__name__} has no dense network")
