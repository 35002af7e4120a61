"""Does an ONNX graph look for its weights where its weights file holds them? Read without any ONNX package.

A tensor of external data names a file, an offset and a length in it. A graph and weights of two exports, or hostile
ones, would have other numbers read as weights; a runtime checks at most that they lie within the file.

The graph is protobuf: a message is fields, each a number, a kind, and a value. Only what leads to the tensors is read:
ModelProto.graph, GraphProto.initializer, and of TensorProto name, dims, type and external data (onnx.proto).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dovit_deploy.bundle.weights import WIDTHS, TensorSpan, spans_from_file
from dovit_deploy.errors import GraphMismatch, shown

GRAPH, INITIALIZER = 7, 5
DIMS, DATA_TYPE, NAME, EXTERNAL = 1, 2, 8, 13
KEY, VALUE = 1, 2
"""Numbers of fields."""

DTYPES = {
    1: "F32",
    2: "U8",
    3: "I8",
    4: "U16",
    5: "I16",
    6: "I32",
    7: "I64",
    9: "BOOL",
    10: "F16",
    11: "F64",
    16: "BF16",
}
"""TensorProto.DataType -> safetensors' name."""


class _NotProtobuf(ValueError):
    """Bytes that are no message."""


@dataclass(frozen=True)
class WeightPointer:
    """Where a graph looks for one of its weights."""

    name: str
    location: str
    """Name of the file."""
    start: int
    length: int
    """In bytes."""
    dtype: str | None
    """As safetensors calls it; None: a type that no weights file holds."""
    elements: int

    def is_of(self, span: TensorSpan) -> bool:
        """Whether it means the whole tensor that lies there, as the type that it has."""
        needed = WIDTHS.get(self.dtype or "", 0) * self.elements
        stated = (self.dtype, self.start, self.length, needed)
        return stated == (span.dtype, span.start, span.length, span.length)


def check_pointers(graph: str, content: bytes, held: Mapping[str, Mapping[str, TensorSpan]]) -> None:
    """Raise GraphMismatch unless the graph `content` finds each of its weights where `held` has it.

    Args:
        graph: what it is called in errors.
        content: of the file.
        held: file name -> its tensors by name.
    """
    try:
        pointers = list(weight_pointers(content))
    except _NotProtobuf as error:
        raise GraphMismatch(f"{graph} is no ONNX graph ({error})") from error
    for pointer in pointers:
        span = held.get(pointer.location, {}).get(pointer.name)
        if span is None or not pointer.is_of(span):
            raise GraphMismatch(f"{graph} looks for the weight '{shown(pointer.name)}' where it is not; export again")


def check_pointers_of_files(graph: Path, weights: Sequence[Path]) -> None:
    """`check_pointers` of the file `graph` and the files of `weights`."""
    check_pointers(graph.name, graph.read_bytes(), {file.name: spans_from_file(file) for file in weights})


def weight_pointers(content: bytes) -> Iterator[WeightPointer]:
    """The external data of the graph's initializers."""
    for graph in _messages(memoryview(content), GRAPH):
        for tensor in _messages(graph, INITIALIZER):
            external = dict(map(_entry, _messages(tensor, EXTERNAL)))
            if external:
                yield _pointer(tensor, external)


def _pointer(tensor: memoryview, external: Mapping[str, str]) -> WeightPointer:
    name, kind, dims = "", 0, list[int]()
    for number, value in _fields(tensor):
        if number == NAME and isinstance(value, memoryview):
            name = _text(value)
        elif number == DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == DIMS:
            # Packed into one field, or a field each.
            dims += [value] if isinstance(value, int) else _varints(value)
    start, length = _number(external, "offset"), _number(external, "length")
    return WeightPointer(name, external.get("location", ""), start, length, DTYPES.get(kind), math.prod(dims))


def _number(external: Mapping[str, str], key: str) -> int:
    """What was written of `key`; -1, which nothing equals, where that is no number."""
    text = external.get(key, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1


def _entry(entry: memoryview) -> tuple[str, str]:
    parts = {number: _text(value) for number, value in _fields(entry) if isinstance(value, memoryview)}
    return parts.get(KEY, ""), parts.get(VALUE, "")


def _text(value: memoryview) -> str:
    return bytes(value).decode(errors="replace")


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    return (value for number, value in _fields(message) if number == wanted and isinstance(value, memoryview))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: a number, or bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        value: int | memoryview
        if kind == 0:
            value, position = _varint(message, position)
        else:
            # 64 bits, length-delimited, 32 bits; groups (3, 4) are in no ONNX file.
            length, position = _varint(message, position) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), position)
            if not 0 <= length <= len(message) - position:
                raise _NotProtobuf(f"a field of kind {kind} does not end within it")
            value, position = message[position : position + length], position + length
        yield number, value


def _varints(packed: memoryview) -> list[int]:
    found, position = list[int](), 0
    while position < len(packed):
        value, position = _varint(packed, position)
        found.append(value)
    return found


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The number that begins at `position`, seven bits a byte, and where it ends."""
    value, shift = 0, 0
    while position < len(message) and shift < 70:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise _NotProtobuf("a number does not end within it")
