"""Where in a checkpoint is the state dict, and what did training tools put in front of its names?

Tools wrap a network (`module.`, `_orig_mod.`), store several of them (a teacher, a moving average) and call the
dictionary that holds them what they like. The names of the network itself are what remains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dovit_deploy.checkpoints.keys import listed, shown
from dovit_deploy.checkpoints.pickles import SPECIAL_TENSORS, Placeholder, kind_of
from dovit_deploy.errors import CheckpointMismatch, InputError, PickleRefused

TOP_KEYS = (
    *("state_dict", "model", "model_state_dict", "net", "module", "weights", "network", "model_state", "params"),
    *("student", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema", "params_ema", "teacher"),
)
"""Where the state dict may lie, inside each other, too; the first that is there is read. Where none of them is there, a
single dictionary of tensors is taken, whatever it is called."""
_DEEPEST = 4
"""How many of them may lie inside each other; nobody wraps as often."""
_ANYWHERE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that compiling, sharding and recomputing put in front of any module, so in the middle of names too."""
_OWN = frozenset({"module", "model", "student", "net", "network"})
"""First parts of names that wrap the network itself."""
_AVERAGES = frozenset({"ema", "ema_model", "model_ema", "module_ema", "averaged_model"})
_OTHERS = ("teacher", "generation")
"""Distillation checkpoints carry these networks beside the student."""
_COUNTERS = frozenset({"n_averaged", "steps"})
"""What moving averages count beside the weights."""
_TRAINING = re.compile(r"(criterion|loss(es|_fn|_func)?|metrics?|\w+_(loss|metrics?|acc|accuracy|iou))")
"""First parts of names that a training module has beside its network: they belong to its losses and metrics."""


@dataclass(frozen=True)
class Unwrapped:
    """The network's own entries."""

    state: dict[str, Tensor]
    remarks: tuple[str, ...]
    """What was taken off, chosen and left out; for the curious."""


def state_dict_in(contents: object, source: str) -> tuple[Mapping[object, object], tuple[str, ...]]:
    """The state dict in what a file holds, and the keys that led to it.

    Args:
        contents: of the whole file.
        source: its path, for messages.

    Raises:
        InputError: there is none.
        PickleRefused: a pickled object stands where it must be.
    """
    path: tuple[str, ...] = ()
    while True:
        _refuse_object(contents, source, path)
        # There are objects at all only because the user allowed them.
        if isinstance(contents, nn.Module):
            contents = contents.state_dict()
        if not isinstance(contents, Mapping):
            raise InputError(f"{source} holds a {kind_of(contents)}, not a dict with 'state_dict' or 'model'")
        key = _inner_key(contents)
        if key is None or len(path) == _DEEPEST:
            break
        path, contents = (*path, key), contents[key]
    if path or _has_tensors(contents):
        return contents, path
    raise InputError(
        f"{source} holds no state dict; at its top level is: {listed(map(str, contents)) or 'nothing'}.",
        f"Read are a state dict alone or one called {', '.join(repr(name) for name in TOP_KEYS[:6])}.",
    )


def _inner_key(contents: Mapping[Any, object]) -> str | None:
    """Under which key the state dict lies further in; None where it does not."""
    known = (key for key in TOP_KEYS if isinstance(contents.get(key), Mapping | Placeholder | nn.Module))
    usual = next(known, None)
    if usual is not None or _has_tensors(contents):
        return usual
    others = [key for key, value in contents.items() if isinstance(value, Mapping) and _is_wrapped(value)]
    # Of several, nobody knows which is the network.
    return others[0] if len(others) == 1 and isinstance(others[0], str) else None


def _has_tensors(contents: Mapping[Any, object]) -> bool:
    return any(isinstance(value, Tensor) for value in contents.values())


def _is_wrapped(contents: Mapping[Any, object]) -> bool:
    """It is, or holds under a usual key, tensors by name."""
    named = any(isinstance(key, str) and isinstance(value, Tensor) for key, value in contents.items())
    return named or any(isinstance(contents.get(key), Mapping) for key in TOP_KEYS)


def _refuse_object(contents: object, source: str, path: tuple[str, ...]) -> None:
    """A module with all its code, or another object, in place of the weights."""
    if not isinstance(contents, Placeholder):
        return
    where = f" in '{'.'.join(path)}'" if path else ""
    if contents.is_module:
        raise PickleRefused(
            f"{source} holds a pickled module ({contents.name}){where}, not a state dict; reading it would run its "
            "code, and nothing was run.",
            "Where it was made: torch.save(model.state_dict(), 'weights.pth')",
        )
    raise PickleRefused(
        f"{source} holds a pickled {contents.name}{where} in place of the weights; reading it could run code, and "
        "nothing was run.",
        "Convert it to safetensors, or give --allow-pickle if you trust whoever made it.",
    )


def own_network(state: Mapping[object, object], source: str) -> Unwrapped:
    """The entries of the network itself: wrapping prefixes taken off, other networks' entries left out.

    Raises:
        CheckpointMismatch: an entry is no tensor, or two have one name.
        PickleRefused: a pickled object stands where a tensor must be.
    """
    networks: dict[str, dict[str, str]] = {}
    off: set[str] = set()
    for key in map(str, state):
        network, name, prefix = _parted(key)
        names = networks.setdefault(network, {})
        if name in names:
            raise CheckpointMismatch(f"{source}: '{shown(name)}' is there twice, with and without a prefix")
        names[name] = key
        off.update(prefix)
    # A file of nothing but an average, or a teacher, is that network.
    chosen = next((network for network in ("", "average", *_OTHERS) if networks.get(network)), "")
    texts = {str(key): value for key, value in state.items()}
    result = {name: _tensor(texts[key], key, source) for name, key in networks.get(chosen, {}).items()}
    remarks = [f"taken off the names: {', '.join(sorted(off))}"] if off else []
    left = sorted(network for network in networks if network != chosen)
    remarks += [f"left out: the entries of {', '.join(left) or 'others'}"] if left else []
    return Unwrapped(result, tuple(remarks))


def _parted(key: str) -> tuple[str, str, list[str]]:
    """Whose entry it is ("" for the network itself), its name there, and the prefixes that were taken off."""
    parts, network = key.split("."), ""
    off = [f"{part}." for part in parts[:-1] if part in _ANYWHERE]
    parts = [part for part in parts[:-1] if part not in _ANYWHERE] + parts[-1:]
    while len(parts) > 1 and (parts[0] in _OWN or parts[0] in _AVERAGES or parts[0] in _OTHERS):
        if parts[0] in _AVERAGES:
            network = network or "average"
        elif parts[0] in _OTHERS:
            network = parts[0]
        off.append(f"{parts.pop(0)}.")
    # mmcv's moving averages are buffers whose names have no dots: `ema_backbone_cls_token`.
    if len(parts) == 1 and (parts[0] in _COUNTERS or parts[0].startswith("ema_")):
        network = "bookkeeping"
    elif len(parts) > 1 and _TRAINING.fullmatch(parts[0]):
        network = "losses and metrics"
    return network, ".".join(parts), off


def _tensor(value: object, key: str, source: str) -> Tensor:
    kind = kind_of(value)
    if kind in SPECIAL_TENSORS:
        raise PickleRefused(
            f"{source}: entry '{shown(key)}' is {kind}; only plain tensors are read.",
            "Give the checkpoint as training wrote it, before anything was quantised, pruned or moved.",
        )
    if isinstance(value, Placeholder):
        raise PickleRefused(
            f"{source}: entry '{shown(key)}' is {kind}, not a plain tensor; nothing was run.",
            "Store plain tensors, or give --allow-pickle if you trust whoever made it.",
        )
    if not isinstance(value, Tensor):
        raise CheckpointMismatch(
            f"{source}: entry '{shown(key)}' is a {kind}, not a tensor; store tensors alone in the state dict"
        )
    return value
