"""An official state dict carried over to our names, or refused with a list of what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dovit_deploy.bundle.model_spec import ModelSpec
from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.models.deployment_form import deployed
from dovit_deploy.models.families import family_of
from dovit_deploy.models.official_keys import Rule

_SHOWN = 4
"""Names shown in a message before only their number is told."""


def shapes_of(spec: ModelSpec, *, trainable: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of every entry of the network's state dict, without allocating it."""
    with torch.device("meta"):
        model = family_of(spec).build(spec, trainable=trainable)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def listed(names: Iterable[str]) -> str:
    """The first few of `names`, and how many more there are."""
    ordered = list(names)
    rest = len(ordered) - _SHOWN
    return ", ".join(ordered[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def refuse_faults(faults: Mapping[str, list[str]], source: str) -> None:
    """Raise CheckpointMismatch if any list of `faults` (kind -> entries) is not empty."""
    told = "; ".join(f"{kind}: {listed(names)}" for kind, names in faults.items() if names)
    if told:
        raise CheckpointMismatch(f"{source} is not a complete checkpoint of its configuration; {told}")


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the entries that hold a NaN or an infinity."""
    return [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]


def ours_from_official(
    state: Mapping[str, Tensor], rules: list[Rule], spec: ModelSpec, *, unused: re.Pattern[str], source: str
) -> dict[str, Tensor]:
    """The state dict of the network of `spec` in deployment form, fp32.

    Args:
        state: official names -> tensors of any floating type.
        rules: from `official_keys`, for `spec`.
        spec: the architecture at its training size.
        unused: entries that may be there and are not needed.
        source: the file's name, for messages.

    Raises:
        CheckpointMismatch: missing, unexpected, misshaped, not floating or not finite entries.
    """
    wanted = {name: rule for rule in rules for name in rule.sources}
    present = {name: tensor for name, tensor in state.items() if name in wanted}
    misshaped = [
        f"{name} {list(tensor.shape)} instead of {list(wanted[name].shape)}"
        for name, tensor in present.items()
        if tuple(tensor.shape) != wanted[name].shape
    ]
    integer = [name for name, tensor in present.items() if not tensor.is_floating_point()]
    present = {name: tensor.float() for name, tensor in present.items()}
    faults = {
        "missing": [n for n, rule in wanted.items() if n not in state and not rule.zero_if_absent],
        "unexpected": [n for n in state if n not in wanted and not unused.fullmatch(n)],
        "wrong shape": misshaped,
        "not floating point": integer,
        "NaN or Inf": not_finite(present),
    }
    refuse_faults(faults, source)
    shapes = shapes_of(spec, trainable=True)
    training = {name: part for rule in rules for name, part in _parts(rule, present, shapes)}
    ours = deployed(training)
    # A negative running variance is finite and still makes no number.
    refuse_faults({"NaN or Inf after folding": not_finite(ours)}, source)
    return ours


def _parts(rule: Rule, state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, Tensor]]:
    blank = torch.zeros(rule.shape)
    whole = torch.cat([state.get(name, blank) for name in rule.sources])
    if rule.change == "transposed":
        whole = whole.T
    elif rule.change == "without_first":
        whole = whole[:, 1:]
    pieces = _by_head(whole, rule, shapes) if rule.heads else whole.chunk(len(rule.targets))
    return [
        (name, piece.reshape(shapes[name]).contiguous().clone())
        for name, piece in zip(rule.targets, pieces, strict=True)
    ]


def _by_head(whole: Tensor, rule: Rule, shapes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
    """Rows (heads * (a + b + ...), ...) -> (heads * a, ...), (heads * b, ...), ..."""
    shares = [shapes[name][0] // rule.heads for name in rule.targets]
    by_head = whole.reshape(rule.heads, -1, *whole.shape[1:])
    return [piece.flatten(0, 1) for piece in torch.split(by_head, shares, dim=1)]
