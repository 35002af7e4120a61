"""Is a published state dict complete, and what is it under our names? Carried over, or refused with what is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from dovit_deploy.checkpoints.keys import COUNTER, KeyMap, Rule, matches, not_finite, refuse_faults
from dovit_deploy.families.folding import deployed
from dovit_deploy.families.registry import family_of
from dovit_deploy.families.spec import ModelSpec


def ours_from_official(
    state: Mapping[str, Tensor], key_map: KeyMap, spec: ModelSpec, *, source: str
) -> dict[str, Tensor]:
    """The state dict of the network of `spec` in deployment form, fp32.

    Args:
        state: official names -> tensors of any floating type.
        key_map: of the project that wrote them.
        spec: the architecture at its training size.
        source: the file's name, for messages.

    Raises:
        CheckpointMismatch: missing, unexpected, misshaped, not floating or not finite entries.
    """
    shapes = key_map.training_shapes(spec)
    rules = {rule.official: rule for rule in key_map.rules(shapes)}
    # In fp32 before the values are looked at: torch has no isfinite for fp8.
    present = {name: _as_fp32(tensor) for name, tensor in state.items() if name in rules}
    faults = _faults(state, present, rules, key_map)
    refuse_faults(faults, source, remedy=_remedy(faults, state))
    # Zeros, which is what an entry that may be absent stands for.
    training = {name: torch.zeros(shape) for name, shape in shapes.items() if not name.endswith(COUNTER)}
    for name, tensor in present.items():
        rules[name].fill(training, tensor)
    family, ours = family_of(spec), {**deployed(training), **key_map.given}
    if family.derived and family.resized is not None:
        # What follows from the entries and the size, here the training size.
        ours = family.resized(ours, spec, spec)
    # A negative running variance is finite and still makes no number.
    refuse_faults({"NaN or Inf after folding": not_finite(ours)}, source)
    return ours


def _remedy(faults: Mapping[str, list[str]], state: Mapping[str, Tensor]) -> str:
    """What to do about the first kind of fault; empty where its names say it all."""
    if len(faults["missing"]) > 1:
        parts = [name.split(".") for name in faults["missing"]]
        # What the first and the last in order share, all share.
        pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(parts), max(parts), strict=False))
        part = ".".join(first for first, _ in pairs)
        gone = bool(part) and not any(name.startswith(f"{part}.") for name in state)
        nothing = f"Nothing of '{part}' is in the file: give" if gone else "Give"
        return f"{nothing} the whole checkpoint, as training wrote it, with the configuration of that training"
    if faults["unexpected"] or faults["wrong shape"]:
        return "Give the configuration that it was trained with (--config)"
    if faults["NaN or Inf"]:
        return "The training diverged: give an earlier checkpoint"
    return ""


def unneeded(state: Mapping[str, Tensor], key_map: KeyMap, spec: ModelSpec) -> list[str]:
    """Official names in `state` that the network of `spec` does not take."""
    rules = {rule.official for rule in key_map.rules(key_map.training_shapes(spec))}
    return [name for name in state if name not in rules]


def _as_fp32(tensor: Tensor) -> Tensor:
    """`tensor` in fp32; complex numbers, which would lose a part and are refused next, as they are."""
    return tensor if tensor.is_complex() else tensor.float()


def _faults(
    state: Mapping[str, Tensor], present: Mapping[str, Tensor], rules: Mapping[str, Rule], key_map: KeyMap
) -> dict[str, list[str]]:
    """What is wrong with `state`; `present`: those of its entries that `rules` ask for, in fp32."""
    return {
        "missing": [name for name in rules if name not in state and not matches(name, key_map.zero_if_absent)],
        "unexpected": [name for name in state if name not in rules and not matches(name, key_map.unused)],
        "wrong shape": [
            f"{name} {list(tensor.shape)} instead of {list(rules[name].shape)}"
            for name, tensor in present.items()
            if tuple(tensor.shape) != rules[name].shape
        ],
        "not floating point": [name for name in present if not state[name].is_floating_point()],
        "NaN or Inf": not_finite(present),
    }
