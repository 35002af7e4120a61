"""Batch norm in training, none in deployment: a projection with its norm, and folding the one into the other."""

from __future__ import annotations

from collections.abc import Iterable

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


class NormThenLinear(nn.Module):
    """Batch norm over the last axis of (M, C), then a linear layer with bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.prior = nn.BatchNorm1d(inputs, eps=EPS)
        self.projection = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.prior(x))  # type: ignore[no-any-return]


def norm_linear(inputs: int, outputs: int, *, trainable: bool) -> nn.Module:
    """A `NormThenLinear`, or in deployment form the plain linear layer that it folds into."""
    return NormThenLinear(inputs, outputs) if trainable else nn.Linear(inputs, outputs)


def linear_norm(inputs: int, outputs: int, *, trainable: bool) -> nn.Module:
    """A `NormedLinear`, or in deployment form the plain linear layer that it folds into."""
    return NormedLinear(inputs, outputs) if trainable else nn.Linear(inputs, outputs)


def conv_norm(inputs: int, outputs: int, kernel: int, *, trainable: bool, stride: int = 1) -> nn.Module:
    """A `NormedConv`, or in deployment form the plain convolution that it folds into."""
    if trainable:
        return NormedConv(inputs, outputs, kernel, stride)
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=(kernel - 1) // 2)


def folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with every projection's batch norm folded in: `X.projection` with `X.norm` behind or `X.prior`
    before it becomes `X.weight` and `X.bias`.

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
    return _folded_priors(result)


def _folded_priors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same for batch norms in front of their projection: W (s x + b) + c = (W s) x + (W b + c)."""
    prefixes = [name.removesuffix(".prior.running_var") for name in state if name.endswith(".prior.running_var")]
    result = dict(state)
    for prefix in prefixes:
        weight = result.pop(f"{prefix}.projection.weight").double()
        offset = result.pop(f"{prefix}.projection.bias").double()
        entries = {
            entry: result.pop(f"{prefix}.prior.{entry}").double()
            for entry in ("weight", "bias", "running_mean", "running_var")
        }
        result.pop(f"{prefix}.prior.num_batches_tracked", None)
        scale = entries["weight"] / torch.sqrt(entries["running_var"] + EPS)
        shift = entries["bias"] - entries["running_mean"] * scale
        result[f"{prefix}.weight"] = (weight * scale).float()
        result[f"{prefix}.bias"] = (offset + weight @ shift).float()
    return result


def unfolded(state: dict[str, Tensor], training_names: Iterable[str]) -> dict[str, Tensor]:
    """The opposite of `folded`: a state dict for a network whose entries are `training_names`.

    Each folded projection gets a batch norm that only adds its bias, so that in evaluation mode the network computes
    what it did. Entries that the network does not norm come back unchanged.
    """
    result = dict(state)
    for name in training_names:
        prefix = name.removesuffix(".norm.running_var")
        if prefix == name or f"{prefix}.weight" not in result:
            continue
        result[f"{prefix}.projection.weight"] = result.pop(f"{prefix}.weight")
        bias = result.pop(f"{prefix}.bias")
        result[f"{prefix}.norm.bias"] = bias
        result[f"{prefix}.norm.weight"] = torch.ones_like(bias)
        result[f"{prefix}.norm.running_mean"] = torch.zeros_like(bias)
        # The norm divides by sqrt(variance + EPS), which is 1 then.
        result[f"{prefix}.norm.running_var"] = torch.full_like(bias, 1.0 - EPS)
        result[f"{prefix}.norm.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    return result
