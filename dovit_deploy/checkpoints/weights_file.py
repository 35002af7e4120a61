"""WeightsFile: named tensors of a published checkpoint, what was stored beside them, and the file's digest.

A .safetensors file holds nothing but tensors. A .pth file is a pickle: it is read without running code from it
(`pickles.py`), and of what it holds tensors, plain containers and NumPy numbers are taken.
"""

from __future__ import annotations

import pickle
import struct
import tarfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dovit_deploy.bundle.bundle import file_entry
from dovit_deploy.checkpoints import pickles
from dovit_deploy.checkpoints.wrapping import own_network, state_dict_in
from dovit_deploy.errors import InputError, PickleRefused
from dovit_deploy.signatures import placeholder_for


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
    unwrapped = own_network(state, path.name)
    found = (f"the state dict is '{'.'.join(keys)}'",) if keys else ()
    return WeightsFile(path.name, file_entry(path).sha256, unwrapped.state, meta, (*found, *unwrapped.remarks))


def tensors_from_safetensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file.

    Raises:
        InputError: it is not one, or is cut short.
    """
    _refuse_placeholder(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error


def _state_and_meta(
    path: Path, *, allow_pickle: bool
) -> tuple[Mapping[Any, object], Mapping[str, object], tuple[str, ...]]:
    if path.suffix == ".safetensors":
        return tensors_from_safetensors(path), {}, ()
    contents = contents_of_pickle(path, allow_pickle=allow_pickle)
    state, keys = state_dict_in(contents, str(path))
    meta = contents.get("meta") if isinstance(contents, Mapping) else None
    return state, meta if isinstance(meta, Mapping) else {}, keys


def _refuse_placeholder(path: Path) -> None:
    """Raise InputError where a clone or download left something else under the name of the weights."""
    placeholder = placeholder_for(path)
    if placeholder is not None:
        raise InputError(f"{path}: {placeholder}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty")


# Pickles.

_FOREIGN = (AttributeError, ImportError, pickle.UnpicklingError)
"""What loading raises when a pickle needs a class that is not installed or not as it was."""
_BROKEN = (
    *(RuntimeError, AssertionError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, OSError),
    *(MemoryError, struct.error),
)
"""What loading raises on a file that was cut short or is none of torch's."""
_ARCHIVE = b"PK\x03\x04"
_BINARY_PICKLE = b"\x80"


def contents_of_pickle(path: Path, *, allow_pickle: bool) -> object:
    """What torch.save wrote to `path`, on the CPU; unless `allow_pickle`, nothing in it is run (`pickles.py`).

    Raises:
        InputError: the file is not one of torch's, or is cut short.
        PickleRefused: it is a program, a pickle with odd instructions, or needs what is not installed.
    """
    _refuse_placeholder(path)
    try:
        with path.open("rb") as file:
            _refuse_other_formats(file, path)
            # torch warns of old formats and of classes whose source it cannot find; neither changes the weights.
            with warnings.catch_warnings(action="ignore"):
                if allow_pickle:
                    return torch.load(file, map_location="cpu", weights_only=False)
                return torch.load(file, map_location="cpu", weights_only=False, pickle_module=pickles)
    except _FOREIGN as error:
        if allow_pickle:
            raise PickleRefused(f"{path} cannot be unpickled here: {_first_line(error)}") from error
        raise PickleRefused(
            f"{path} holds what no checkpoint needs ({_first_line(error)}); nothing was run.",
            "Convert it to safetensors, or give --allow-pickle if you trust whoever made it.",
        ) from error
    except _BROKEN as error:
        raise InputError(f"{path} cannot be read; it is cut short or damaged ({_first_line(error)})") from error


def _refuse_other_formats(file: IO[bytes], path: Path) -> None:
    """Refuse what torch would read in other ways than as a pickle; `file` is at its start before and after."""
    start = file.read(len(_ARCHIVE))
    file.seek(0)
    if start == _ARCHIVE:
        # Asked of torch's own reader, because another one may see other names in a file that was made to deceive.
        reader = torch._C.PyTorchFileReader(file)
        file.seek(0)
        if "constants.pkl" in reader.get_all_records():
            raise PickleRefused(f"{path} is a TorchScript program, not a state dict; give the checkpoint")
    elif start[:1] != _BINARY_PICKLE or tarfile.is_tarfile(path):
        raise InputError(f"{path} is not a checkpoint: neither safetensors nor a file of torch.save")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
