"""What is in a safetensors file, from its header alone: no tensor is loaded.

Source: the format's specification: 8 bytes little-endian length, a JSON header of that length, then the data.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from dovit_deploy.errors import InputError
from dovit_deploy.record import Record

LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""


class TensorEntry(Record):
    """A tensor as the header lists it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class SafetensorsContents(Record):
    """A safetensors file."""

    kind: Literal["safetensors"] = "safetensors"
    path: str
    bytes: int
    parameters: int
    dtypes: dict[str, int]
    """How many tensors of each type."""
    metadata: dict[str, str]
    tensors: tuple[TensorEntry, ...]

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """What a user reads: label and text."""
        types = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        return (
            ("tensors", f"{len(self.tensors)} ({types})" if self.tensors else "none"),
            ("parameters", f"{self.parameters:,}"),
            *(("metadata", f"{key} = {value}") for key, value in self.metadata.items()),
            *(("tensor", f"{entry.name} {entry.dtype} {entry.shape}") for entry in self.tensors[:SHOWN]),
            *(
                (("tensor", f"... {len(self.tensors) - SHOWN} more: all with --json"),)
                if len(self.tensors) > SHOWN
                else ()
            ),
        )


SHOWN = 12
"""Tensors that the text lists; the report lists all."""


class _Entry(BaseModel):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


_ENTRIES = TypeAdapter(dict[str, _Entry])
_METADATA = TypeAdapter(dict[str, str])


def safetensors_contents(path: Path) -> SafetensorsContents:
    """Read the header of the safetensors file at `path`.

    Raises:
        InputError: it is not one, or is cut short.
    """
    size = path.stat().st_size
    header, start = _header(path, size)
    try:
        metadata = _METADATA.validate_python(header.pop("__metadata__", {}))
        entries = _ENTRIES.validate_python(header)
    except ValidationError as error:
        raise InputError(f"{path} is not a safetensors file: its header is malformed") from error
    promised = start + max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if promised != size:
        raise InputError(f"{path} is cut short or damaged: its header promises {promised} bytes, it has {size}")
    ordered = sorted(entries.items(), key=lambda item: item[1].data_offsets)
    return SafetensorsContents(
        path=str(path),
        bytes=size,
        parameters=sum(math.prod(entry.shape) for entry in entries.values()),
        dtypes=dict(Counter(entry.dtype for entry in entries.values()).most_common()),
        metadata=metadata,
        tensors=tuple(TensorEntry(name=name, dtype=entry.dtype, shape=entry.shape) for name, entry in ordered),
    )


def _header(path: Path, size: int) -> tuple[dict[str, object], int]:
    """The header, and where the data start."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, LONGEST_HEADER):
            raise InputError(f"{path} is not a safetensors file: it does not begin with the length of a header")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise InputError(f"{path} is not a safetensors file: its header is no object")
    return header, 8 + length
