"""WeightsFile: named tensors of a published checkpoint, what was stored beside them, and the file's digest.

A .safetensors file holds nothing but tensors. A .pth file is a pickle: it is read without running code from it, which
allows tensors, plain containers and NumPy numbers, and nothing else.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dovit_deploy.bundle.bundle import file_entry
from dovit_deploy.errors import CheckpointMismatch, InputError, PickleRefused

_WRAPPING = re.compile(r"(?:module\.|student\.)+")
"""What training wrappers put in front of every name."""
_OTHER_NETWORKS = ("teacher.", "generation.")
"""Distillation checkpoints carry these networks beside the student."""


@dataclass(frozen=True)
class WeightsFile:
    """What one file of weights holds."""

    name: str
    sha256: str
    state: Mapping[str, Tensor]
    """Official names without wrapping prefixes; types as stored."""
    meta: Mapping[str, object]


def weights_from_file(path: Path, *, allow_pickle: bool) -> WeightsFile:
    """Read a .safetensors file, or anything that torch.save wrote.

    Raises:
        InputError: the file is absent, unreadable or holds no state dict.
        PickleRefused: see `contents_of_pickle`.
        CheckpointMismatch: an entry is no tensor, or two have one name.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    try:
        state, meta = _state_and_meta(path, allow_pickle=allow_pickle)
    except PermissionError as error:
        raise InputError(f"{path} may not be read: permission denied") from error
    return WeightsFile(path.name, file_entry(path).sha256, _own_network(state, path.name), meta)


def tensors_from_safetensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file.

    Raises:
        InputError: it is not one, or is cut short.
    """
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error


def _state_and_meta(path: Path, *, allow_pickle: bool) -> tuple[Mapping[Any, object], Mapping[str, object]]:
    if path.suffix == ".safetensors":
        return tensors_from_safetensors(path), {}
    contents = contents_of_pickle(path, allow_pickle=allow_pickle)
    if not isinstance(contents, Mapping):
        raise InputError(f"{path} holds a {type(contents).__name__}, not a dict with 'state_dict' or 'model'")
    meta = contents.get("meta")
    # `model` is what Segmenter, DeiT, LeViT and Swin write; mmsegmentation and its like write `state_dict`.
    for key in ("state_dict", "model"):
        if isinstance(contents.get(key), Mapping):
            return contents[key], meta if isinstance(meta, Mapping) else {}
    if contents and all(isinstance(value, Tensor) for value in contents.values()):
        return contents, {}
    raise InputError(f"{path} has neither 'state_dict' (mmsegmentation) nor 'model' (Segmenter, DeiT) at its top level")


def _own_network(state: Mapping[Any, object], source: str) -> dict[str, Tensor]:
    """The entries of the network itself: wrapping prefixes taken off, other networks' entries left out."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        wrapping = _WRAPPING.match(str(key))
        name = str(key)[wrapping.end() :] if wrapping else str(key)
        if name.startswith(_OTHER_NETWORKS):
            continue
        if not isinstance(value, Tensor):
            raise CheckpointMismatch(f"{source}: entry '{key}' is a {type(value).__name__}, not a tensor")
        if name in result:
            raise CheckpointMismatch(f"{source}: '{name}' is there twice, with and without a prefix")
        result[name] = value
    return result


# Pickles.

_NUMBERS = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
_FOREIGN = (AttributeError, ImportError, pickle.UnpicklingError)
"""What loading raises when a pickle needs a class that is not installed or not as it was."""
_BROKEN = (
    *(RuntimeError, AssertionError, EOFError, ValueError, KeyError, IndexError, TypeError, OverflowError, OSError),
    *(MemoryError, struct.error),
)
"""What loading raises on a file that was cut short or is none of torch's."""


def contents_of_pickle(path: Path, *, allow_pickle: bool) -> object:
    """What torch.save wrote to `path`, on the CPU.

    Raises:
        InputError: the file is not one of torch's, or is cut short.
        PickleRefused: it names anything beyond `allowed_globals` and `allow_pickle` is False.
    """
    if not _looks_like_pickle(path):
        raise InputError(f"{path} is not a checkpoint: neither safetensors nor a file of torch.save")
    try:
        if allow_pickle:
            return torch.load(path, map_location="cpu", weights_only=False)
        with torch.serialization.safe_globals(allowed_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _FOREIGN as error:
        raise PickleRefused(_refusal(path, error, allow_pickle=allow_pickle)) from error
    except _BROKEN as error:
        # torch has no class of its own for this one.
        if "TorchScript" in str(error):
            raise PickleRefused(f"{path} is a TorchScript program, not a state dict; give the checkpoint") from error
        raise InputError(f"{path} cannot be read; it is cut short or damaged ({_first_line(error)})") from error


def allowed_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What a pickle may name besides torch's own short list (tensors, OrderedDict): NumPy numbers and arrays.

    mmsegmentation stores best scores as NumPy scalars and palettes as arrays.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    array: Any = np.zeros(1).__reduce__()[0]
    # NumPy 2 renamed `core` to `_core`; a file names whichever wrote it.
    spelled: list[tuple[Callable[..., Any], str]] = [
        (function, f"numpy.{core}.multiarray.{name}")
        for function, name in ((scalar, "scalar"), (array, "_reconstruct"))
        for core in ("core", "_core")
    ]
    types = {type(np.dtype(name)) for name in _NUMBERS}
    return [*spelled, np.dtype, np.ndarray, *types]


def _looks_like_pickle(path: Path) -> bool:
    """The file is a zip archive or begins as a binary pickle does."""
    # torch.save writes zip archives since 1.6. Before, it wrote pickles of protocol 2, and those begin with 0x80.
    with path.open("rb") as file:
        return file.read(1) == b"\x80" or zipfile.is_zipfile(path)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _refusal(path: Path, error: BaseException, *, allow_pickle: bool) -> str:
    if allow_pickle:
        return f"{path} cannot be unpickled here: {_first_line(error)}"
    # torch's message names what it refused: "Unsupported global: GLOBAL module.Class was not ...".
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f" ({named.group(1)})" if named else ""
    return (
        f"{path} holds pickled objects beyond tensors{what} and reading it could run code; nothing was run.\n"
        "Convert it to safetensors, or give --allow-pickle if you trust whoever made it."
    )
