"""WeightsFile: named tensors of a published checkpoint, what was stored beside them, and the file's digest.

A .safetensors file holds nothing but tensors. A .pth file is a pickle: it is read without running code from it
(`pickles.py`), and of what it holds tensors, plain containers and NumPy numbers are taken.
"""

from __future__ import annotations

import os
import pickle
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dovit_deploy.bundle.bundle import file_entry
from dovit_deploy.checkpoints import pickles
from dovit_deploy.checkpoints.formats import format_of
from dovit_deploy.checkpoints.wrapping import own_network, state_dict_in
from dovit_deploy.errors import InputError, PickleRefused


@dataclass(frozen=True)
class WeightsFile:
    """What one file of weights holds."""

    name: str
    sha256: str
    state: Mapping[str, Tensor]
    """Official names without wrapping prefixes; types as stored."""
    meta: Mapping[str, object]
    remarks: tuple[str, ...] = ()
    """How the network's entries were found in it."""


def weights_from_file(path: Path, *, allow_pickle: bool) -> WeightsFile:
    """Read a .safetensors file, or anything that torch.save wrote.

    Raises:
        InputError: the file is absent, unreadable or holds no state dict.
        PickleRefused: a weight, or all of them, is a pickled object.
        CheckpointMismatch: an entry is no tensor, or two have one name.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    try:
        state, meta, keys = _state_and_meta(path, allow_pickle=allow_pickle)
    except PermissionError as error:
        raise InputError(f"{path} may not be read: permission denied") from error
    weights = unwrapped_weights(path.name, file_entry(path).sha256, state, meta)
    found = (f"the state dict is '{'.'.join(keys)}'",) if keys else ()
    return replace(weights, remarks=(*found, *weights.remarks))


def unwrapped_weights(
    name: str, sha256: str, state: Mapping[Any, object], meta: Mapping[str, object] | None = None
) -> WeightsFile:
    """The network's own entries of `state`, which came from the file or files called `name`.

    Raises:
        PickleRefused: a weight is a pickled object.
        CheckpointMismatch: an entry is no tensor, or two have one name.
    """
    unwrapped = own_network(state, name)
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in unwrapped.state.values())
    stored = ", ".join(f"{name} ({count})" for name, count in types.most_common())
    remarks = (f"stored as {stored}",) if types.keys() - {"float32"} else ()
    return WeightsFile(name, sha256, unwrapped.state, meta or {}, (*remarks, *unwrapped.remarks))


def state_in(path: Path, *, allow_pickle: bool) -> dict[str, object]:
    """The entries of a file as they are stored, whatever they are wrapped in; raises as `weights_from_file`."""
    state, _, _ = _state_and_meta(path, allow_pickle=allow_pickle)
    return {str(name): value for name, value in state.items()}


def tensors_from_safetensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file.

    Raises:
        InputError: it is not one, or is cut short.
    """
    if format_of(path) != "safetensors":
        raise InputError(f"{path} is a file of torch.save, not safetensors")
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error


def _state_and_meta(
    path: Path, *, allow_pickle: bool
) -> tuple[Mapping[Any, object], Mapping[str, object], tuple[str, ...]]:
    if format_of(path) == "safetensors":
        return tensors_from_safetensors(path), {}, ()
    contents = contents_of_pickle(path, allow_pickle=allow_pickle)
    state, keys = state_dict_in(contents, str(path))
    meta = contents.get("meta") if isinstance(contents, Mapping) else None
    return state, meta if isinstance(meta, Mapping) else {}, keys


# Pickles.

_FOREIGN = (AttributeError, ImportError, pickle.UnpicklingError)
"""What loading raises when a pickle needs a class that is not installed or not as it was."""
_BROKEN = (
    *(RuntimeError, AssertionError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, OSError),
    *(MemoryError, struct.error),
)
"""What loading raises on a file that was cut short or is none of torch's."""
_FORCED, _FREED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Variables by which torch itself is told how strictly to read."""


def contents_of_pickle(path: Path, *, allow_pickle: bool) -> object:
    """What torch.save wrote to `path`, on the CPU; unless `allow_pickle`, nothing in it is run (`pickles.py`).

    Where the environment forbids torch to run pickles, `allow_pickle` changes nothing.

    Raises:
        InputError: the file is not one of torch's, or is cut short.
        PickleRefused: it is a program, a pickle with odd instructions, or needs what is not installed.
    """
    if format_of(path) != "torch":
        raise InputError(f"{path} is a safetensors file, not one of torch.save")
    forbidden = allow_pickle and os.environ.get(_FORCED, "").lower() in ("1", "y", "yes", "true")
    try:
        return _loaded(path, allow_pickle=allow_pickle and not forbidden)
    except _FOREIGN as error:
        # A fault of the old format: it writes types that it has no storage for, and torch cannot read them either.
        if "UntypedStorage" in str(error):
            raise InputError(
                f"{path} holds tensors of a type that torch's old file format cannot carry; where it was made, save it "
                "again without _use_new_zipfile_serialization=False"
            ) from error
        if allow_pickle and not forbidden:
            raise PickleRefused(f"{path} cannot be unpickled here: {_first_line(error)}") from error
        remedy = "give --allow-pickle if you trust whoever made it"
        if forbidden:
            remedy = f"take {_FORCED} out of the environment, which forbids --allow-pickle"
        raise PickleRefused(
            f"{path} holds what no checkpoint needs ({_first_line(error)}); nothing was run.",
            f"Convert it to safetensors, or {remedy}.",
        ) from error
    except _BROKEN as error:
        if "magic number" in str(error):
            raise InputError(
                f"{path} is a plain pickle, not a file of torch.save; "
                "where it was made: torch.save(state_dict, 'weights.pth')"
            ) from error
        raise InputError(f"{path} cannot be read; it is cut short or damaged ({_first_line(error)})") from error


def _loaded(path: Path, *, allow_pickle: bool) -> Any:  # noqa: ANN401  whatever the file holds
    # torch warns of old formats and of classes whose source it cannot find; neither changes the weights.
    with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
        if allow_pickle:
            return torch.load(file, map_location="cpu", weights_only=False)
        # Our own reader is stricter than torch's strictest, which would not let it read.
        with _without(_FORCED, _FREED):
            return torch.load(file, map_location="cpu", weights_only=False, pickle_module=pickles)


@contextmanager
def _without(*variables: str) -> Iterator[None]:
    """The environment without these variables."""
    taken = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
