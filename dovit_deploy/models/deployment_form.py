"""From the form that is trained to the form that is deployed, by the names of the parameters, and back.

Batch norms and layer scales are folded into the layer before them; biases by relative position are laid out for every
pair of places. A state dict in deployment form comes back unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from dovit_deploy.models.batch_norm import folded, unfolded
from dovit_deploy.models.window_attention import laid_out
from dovit_deploy.models.windows import relative_places

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
