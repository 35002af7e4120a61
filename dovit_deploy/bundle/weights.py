"""Which tensors does a safetensors file hold, where in it, and are they numbers? Asked before any of them is loaded.

The file: 8 bytes of header length (little-endian), a JSON header, then the raw little-endian tensors without gaps.
Whoever wrote it states lengths, shapes and offsets; none is believed that does not fit the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TypeGuard

from dovit_deploy.documents import NotData, data_from_json

LENGTH = struct.Struct("<Q")
MOST_HEADER = 2**25
"""Bytes; the header of a model of a thousand layers has two hundred thousand."""
WIDTHS = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
"""Bytes of an element, by the format's name of its type."""
CHUNK = 2**22
"""Bytes that are looked at in one go."""


class NotWeights(ValueError):
    """The file is no safetensors file, is cut short, or contradicts itself; the message is one short line."""


@dataclass(frozen=True)
class TensorSpan:
    """A tensor as the header states it, found to fit the file."""

    dtype: str
    """As safetensors calls it: "F32", "BF16"."""
    shape: tuple[int, ...]
    start: int
    """Bytes from the start of the file."""
    length: int
    """In bytes."""


def spans_from_file(path: Path) -> dict[str, TensorSpan]:
    """Every tensor of the safetensors file at `path`, by name, in the order of the file.

    Raises:
        NotWeights: it is none, is cut short, or its tensors overlap, leave gaps or differ in size from what they state.
    """
    with path.open("rb") as file:
        return _spans(file, path.stat().st_size)


def spans_from_bytes(content: bytes) -> dict[str, TensorSpan]:
    """`spans_from_file` of a file's content."""
    return _spans(BytesIO(content), len(content))


def _spans(file: IO[bytes], size: int) -> dict[str, TensorSpan]:
    """Of a file of `size` bytes."""
    first = file.read(LENGTH.size)
    if len(first) < LENGTH.size:
        raise NotWeights("it is too short for a header")
    (length,) = LENGTH.unpack(first)
    if length > min(MOST_HEADER, size - LENGTH.size):
        raise NotWeights(f"it states a header of {length:,} bytes")
    text = file.read(length)
    try:
        header = data_from_json(text)
    except NotData as error:
        raise NotWeights(f"its header is not JSON that is read here: {error}") from error
    if not isinstance(header, dict):
        raise NotWeights("its header is no table of tensors")
    # The format's one key that is no tensor.
    header.pop("__metadata__", None)
    start = LENGTH.size + length
    spans = sorted(
        (_span(name, entry, start) for name, entry in header.items()), key=lambda pair: (pair[1].start, pair[1].length)
    )
    end = start
    for name, span in spans:
        if span.start != end:
            raise NotWeights(f"its tensors overlap or leave gaps at {name[:80]!r}")
        end += span.length
    if end != size:
        raise NotWeights(f"its tensors end at byte {end:,} of {size:,}")
    return dict(spans)


def _span(name: str, entry: object, start: int) -> tuple[str, TensorSpan]:
    parts = entry if isinstance(entry, Mapping) else {}
    dtype, shape, offsets = (parts.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in WIDTHS or not _numbers(shape) or not _numbers(offsets):
        raise NotWeights(f"its header does not describe {name[:80]!r} as a tensor")
    if len(offsets) != 2 or math.prod(shape) * WIDTHS[dtype] != offsets[1] - offsets[0]:
        raise NotWeights(f"{name[:80]!r} does not take the bytes that its shape needs")
    return name, TensorSpan(dtype, tuple(shape), start + offsets[0], offsets[1] - offsets[0])


def _numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(part) is int and 0 <= part < 2**63 for part in value)


def first_not_finite(path: Path, spans: Mapping[str, TensorSpan]) -> str | None:
    """The first tensor of `spans` that holds NaN or Inf; None: there is none. Read in pieces, never mapped."""
    with path.open("rb") as file:
        return next((name for name, span in spans.items() if not _finite(file, span)), None)


EXPONENTS = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""Type -> how its bits are read, and the bits that are all set in NaN and Inf, and in no other number."""


def _finite(file: IO[bytes], span: TensorSpan) -> bool:
    if span.dtype not in EXPONENTS:
        return True
    # Here, because whoever only wants to know what a bundle is called needs no NumPy.
    import numpy as np

    kind, bits = EXPONENTS[span.dtype]
    file.seek(span.start)
    left = span.length
    while left:
        piece = file.read(min(CHUNK, left))
        if not piece:
            # Cut short meanwhile, which the digest says better.
            return True
        left -= len(piece)
        words = np.frombuffer(piece[: len(piece) - len(piece) % np.dtype(kind).itemsize], kind)
        if ((words & bits) == bits).any():
            return False
    return True
