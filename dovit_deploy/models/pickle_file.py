"""A .pth file read without running code from it: tensors, plain containers and NumPy numbers, nothing else."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dovit_deploy.errors import InputError, PickleRefused

_NUMBERS = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
)
_FOREIGN = (AttributeError, ImportError, pickle.UnpicklingError)
"""What loading raises when a pickle needs a class that is not installed or not as it was."""
_BROKEN = (
    RuntimeError,
    AssertionError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    OSError,
    MemoryError,
    struct.error,
)
"""What loading raises on a file that was cut short or is none of torch's."""


def allowed_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What a pickle may name besides torch's own short list (tensors, OrderedDict): NumPy numbers and arrays.

    mmsegmentation stores best scores as NumPy scalars and palettes as arrays.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    array: Any = np.zeros(1).__reduce__()[0]
    spelled: list[tuple[Callable[..., Any], str]] = [
        (function, f"numpy.{core}.multiarray.{name}")
        for function, name in ((scalar, "scalar"), (array, "_reconstruct"))
        for core in ("core", "_core")
    ]
    types = {type(np.dtype(name)) for name in _NUMBERS}
    return [*spelled, np.dtype, np.ndarray, *types]


def contents_of_pickle(path: Path, *, allow_pickle: bool) -> object:
    """What torch.save wrote to `path`, on the CPU.

    Raises:
        InputError: the file is not one of torch's, or is cut short.
        PickleRefused: it names anything beyond `allowed_globals` and `allow_pickle` is False.
    """
    if not looks_like_pickle(path):
        raise InputError(f"{path} is not a checkpoint: neither safetensors nor a file of torch.save")
    try:
        if allow_pickle:
            return torch.load(path, map_location="cpu", weights_only=False)
        with torch.serialization.safe_globals(allowed_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _FOREIGN as error:
        raise PickleRefused(_refusal(path, error, allow_pickle=allow_pickle)) from error
    except _BROKEN as error:
        if "TorchScript" in str(error):
            raise PickleRefused(f"{path} is a TorchScript program, not a state dict; give the checkpoint") from error
        raise InputError(f"{path} cannot be read; it is cut short or damaged ({_first_line(error)})") from error


def looks_like_pickle(path: Path) -> bool:
    """The file is a zip archive or begins as a binary pickle does."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80" or zipfile.is_zipfile(path)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _refusal(path: Path, error: BaseException, *, allow_pickle: bool) -> str:
    if allow_pickle:
        return f"{path} cannot be unpickled here: {_first_line(error)}"
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f" ({named.group(1)})" if named else ""
    return (
        f"{path} holds pickled objects beyond tensors{what} and reading it could run code; nothing was run.\n"
        "Convert it to safetensors, or give --allow-pickle if you trust whoever made it."
    )
