"""Batch norm in training, none in deployment: a projection with its norm, and folding the one into the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS = 1e-5
"""Of every batch norm in the supported sources."""


class NormedLinear(nn.Module):
    """Linear layer without bias, then batch norm over the last axis of (M, C)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.projection = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.projection(x))  # type: ignore[no-any-return]


class NormedConv(nn.Module):
    """Convolution without bias, then batch norm over the channels of (B, C, h, w)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.projection = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=(kernel - 1) // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.projection(x))  # type: ignore[no-any-return]


def linear_norm(inputs: int, outputs: int, *, trainable: bool) -> nn.Module:
    """A `NormedLinear`, or in deployment form the plain linear layer that it folds into."""
    return NormedLinear(inputs, outputs) if trainable else nn.Linear(inputs, outputs)


def conv_norm(inputs: int, outputs: int, kernel: int, *, trainable: bool, stride: int = 1) -> nn.Module:
    """A `NormedConv`, or in deployment form the plain convolution that it folds into."""
    if trainable:
        return NormedConv(inputs, outputs, kernel, stride)
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=(kernel - 1) // 2)


def folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with every `X.projection` + `X.norm` (a batch norm) replaced by `X.weight` and `X.bias`.

    Computed in double precision; a state dict in deployment form comes back unchanged.
    """
    prefixes = [name.removesuffix(".norm.running_var") for name in state if name.endswith(".norm.running_var")]
    result = dict(state)
    for prefix in prefixes:
        weight = result.pop(f"{prefix}.projection.weight").double()
        entries = {
            entry: result.pop(f"{prefix}.norm.{entry}").double()
            for entry in ("weight", "bias", "running_mean", "running_var")
        }
        result.pop(f"{prefix}.norm.num_batches_tracked", None)
        scale = entries["weight"] / torch.sqrt(entries["running_var"] + EPS)
        result[f"{prefix}.weight"] = (weight * scale.reshape(-1, *[1] * (weight.dim() - 1))).float()
        result[f"{prefix}.bias"] = (entries["bias"] - entries["running_mean"] * scale).float()
    return result
