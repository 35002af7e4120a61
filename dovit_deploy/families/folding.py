"""Batch norm in training, none in deployment: a projection with its norm, and folding the one into the other."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dovit_deploy.families.stvit.attention import laid_out
from dovit_deploy.families.stvit.windows import relative_places

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


# From the form that is trained to the form that is deployed, by the names of the parameters, and back.
#
# Batch norms and layer scales are folded into the layer before them; biases by relative position are laid out for every
# pair of places. A state dict in deployment form comes back unchanged.

SCALED = {".scale1.factor": ".attention.output", ".scale2.factor": ".mlp.contract"}
"""End of a layer scale's name -> the layer beside it that it is folded into."""
TABLE, VALUES = ".bias.table", ".bias.values"


def deployed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state`, of a network in training form, for the same network in deployment form."""
    result = folded(state)
    for name in list(result):
        if name.endswith(TABLE):
            table = result.pop(name)
            places = torch.from_numpy(relative_places((math.isqrt(len(table)) + 1) // 2))
            result[name.removesuffix(TABLE) + VALUES] = laid_out(table, places).contiguous()
        end = next((end for end in SCALED if name.endswith(end)), None)
        if end is not None:
            factor, layer = result.pop(name), name.removesuffix(end) + SCALED[end]
            result[f"{layer}.weight"] = result[f"{layer}.weight"] * factor[:, None]
            result[f"{layer}.bias"] = result[f"{layer}.bias"] * factor
    return result


def trainable(state: dict[str, Tensor], training_names: Iterable[str]) -> dict[str, Tensor]:
    """The opposite: `state`, in deployment form, for a network whose entries are `training_names`.

    Folded norms and scales are those that change nothing, so that in evaluation mode the network computes what it did.
    """
    names = list(training_names)
    result = unfolded(state, names)
    for name in names:
        values = name.removesuffix(TABLE) + VALUES
        if name.endswith(TABLE) and values in result:
            result[name] = _table(result.pop(values))
        end = next((end for end in SCALED if name.endswith(end)), None)
        if end is not None and name not in result:
            result[name] = torch.ones(len(result[name.removesuffix(end) + SCALED[end] + ".bias"]))
    return result


def _table(values: Tensor) -> Tensor:
    """(heads, window^2, window^2) -> ((2 window - 1)^2, heads): every pair of places at one distance has one bias."""
    window = math.isqrt(values.shape[-1])
    places = torch.from_numpy(relative_places(window)).reshape(-1)
    table = values.new_zeros((2 * window - 1) ** 2, values.shape[0])
    table[places] = values.flatten(1).T
    return table
