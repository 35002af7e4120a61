"""Training form and deployment form: projections with their batch norms, and how the one becomes the other.

It goes by the names of parameters. Batch norms and layer scales are folded into the layer beside them; biases by
relative position are expanded for every pair of positions in a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dovit_deploy.families.stvit.attention import expanded_bias
from dovit_deploy.families.stvit.windows import relative_table

State = dict[str, Tensor]
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


def folded(state: State) -> State:
    """A state dict with every projection's batch norm folded in: `X.projection` with `X.norm` behind or `X.prior`
    before it becomes `X.weight` and `X.bias`.

    Computed in double precision; a state dict in deployment form comes back unchanged.
    """
    result = dict(state)
    # LayerNorms are called `norm`, too; only a batch norm has a running variance.
    for prefix in _prefixes(state, ".norm.running_var"):
        weight = result.pop(f"{prefix}.projection.weight").double()
        scale, shift = _affine(result, f"{prefix}.norm")
        # One scale for each output: the first axis of a linear layer and of a convolution.
        result[f"{prefix}.weight"] = (weight * scale.reshape(-1, *[1] * (weight.dim() - 1))).float()
        result[f"{prefix}.bias"] = shift.float()
    for prefix in _prefixes(state, ".prior.running_var"):
        # W (s x + b) + c = (W s) x + (W b + c)
        weight, offset = (result.pop(f"{prefix}.projection.{entry}").double() for entry in ("weight", "bias"))
        scale, shift = _affine(result, f"{prefix}.prior")
        result[f"{prefix}.weight"] = (weight * scale).float()
        result[f"{prefix}.bias"] = (offset + weight @ shift).float()
    return result


def _prefixes(state: State, end: str) -> list[str]:
    return [name.removesuffix(end) for name in state if name.endswith(end)]


def _affine(state: State, norm: str) -> tuple[Tensor, Tensor]:
    """The batch norm called `norm`, taken out of `state`, as x -> scale * x + shift."""
    entries = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, variance = (state.pop(f"{norm}.{entry}").double() for entry in entries)
    # A counter, which some files leave out.
    state.pop(f"{norm}.num_batches_tracked", None)
    scale = weight / torch.sqrt(variance + EPS)
    return scale, bias - mean * scale


def unfolded(state: State, training_names: Iterable[str]) -> State:
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


SCALED = {".scale1.factor": ".attention.output", ".scale2.factor": ".mlp.contract"}
"""End of a layer scale's name -> the layer beside it that it is folded into."""
TABLE, VALUES = ".bias.table", ".bias.values"


def deployed(state: State) -> State:
    """`state`, in training form, for the same network in deployment form; unchanged where it is in that form."""
    result = folded(state)
    for name in list(result):
        if name.endswith(TABLE):
            table = result.pop(name)
            # (2 window - 1)^2 rows.
            index = torch.from_numpy(relative_table((math.isqrt(len(table)) + 1) // 2))
            result[name.removesuffix(TABLE) + VALUES] = expanded_bias(table, index).contiguous()
        # A layer scale multiplies what the layer puts out, weight and bias alike.
        end = next((end for end in SCALED if name.endswith(end)), None)
        if end is not None:
            factor, layer = result.pop(name), name.removesuffix(end) + SCALED[end]
            result[f"{layer}.weight"] = result[f"{layer}.weight"] * factor[:, None]
            result[f"{layer}.bias"] = result[f"{layer}.bias"] * factor
    return result


def trainable(state: State, training_names: Iterable[str]) -> State:
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
    """(heads, window^2, window^2) -> ((2 window - 1)^2, heads): every pair at one distance has one bias."""
    window = math.isqrt(values.shape[-1])
    index = torch.from_numpy(relative_table(window)).reshape(-1)
    table = values.new_zeros((2 * window - 1) ** 2, values.shape[0])
    table[index] = values.flatten(1).T
    return table
