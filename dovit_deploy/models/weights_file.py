"""WeightsFile: named tensors of a published checkpoint, what was stored beside them, and the file's digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dovit_deploy.errors import CheckpointMismatch, InputError
from dovit_deploy.models.pickle_file import contents_of_pickle

_WRAPPING = re.compile(r"(?:module\.|student\.)+")
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


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    return WeightsFile(path.name, sha256_of(path), own_network(state, path.name), meta)


def _state_and_meta(path: Path, *, allow_pickle: bool) -> tuple[Mapping[Any, object], Mapping[str, object]]:
    if path.suffix == ".safetensors":
        return tensors_from_safetensors(path), {}
    contents = contents_of_pickle(path, allow_pickle=allow_pickle)
    if not isinstance(contents, Mapping):
        raise InputError(f"{path} holds a {type(contents).__name__}, not a dict with 'state_dict' or 'model'")
    meta = contents.get("meta")
    for key in ("state_dict", "model"):
        if isinstance(contents.get(key), Mapping):
            return contents[key], meta if isinstance(meta, Mapping) else {}
    if contents and all(isinstance(value, Tensor) for value in contents.values()):
        return contents, {}
    raise InputError(f"{path} has neither 'state_dict' (mmsegmentation) nor 'model' (Segmenter) at its top level")


def tensors_from_safetensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file.

    Raises:
        InputError: it is not one, or is cut short.
    """
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error


def own_network(state: Mapping[Any, object], source: str) -> dict[str, Tensor]:
    """The entries of the network itself: `module.` and `student.` taken off, the teacher's entries left out."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _WRAPPING.sub("", str(key), count=1) if _WRAPPING.match(str(key)) else str(key)
        if name.startswith(_OTHER_NETWORKS):
            continue
        if not isinstance(value, Tensor):
            raise CheckpointMismatch(f"{source}: entry '{key}' is a {type(value).__name__}, not a tensor")
        if name in result:
            raise CheckpointMismatch(f"{source}: '{name}' is there twice, with and without a prefix")
        result[name] = value
    return result
