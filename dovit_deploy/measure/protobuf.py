"""The wire format of Protocol Buffers, as far as ONNX files need it: tagged fields of integers and bytes.

Reading and writing the few fields that matter takes no package, loads no weights, and runs nothing of the file.
Source: the encoding guide of Protocol Buffers.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; groups (3, 4) are obsolete and occur in no ONNX file."""

LONGEST_VARINT = 10
"""Bytes of a 64-bit integer at 7 bits a byte."""


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message: integers as int, everything else as its bytes.

    Raises:
        ValueError: these bytes are no message, or are cut short.
    """
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("field number 0")
        if wire == VARINT:
            value, place = _varint(message, place)
            yield number, value
            continue
        if wire == BYTES:
            length, place = _varint(message, place)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if place + length > len(message):
            raise ValueError("cut short")
        yield number, message[place : place + length]
        place += length


def bytes_of(message: memoryview, number: int) -> list[memoryview]:
    """The values of the field `number` that are bytes: text, messages, packed numbers."""
    return [value for found, value in fields(message) if found == number and isinstance(value, memoryview)]


def integers_of(message: memoryview, number: int) -> list[int]:
    """The values of the integer field `number`, written one by one or packed, as signed 64-bit integers."""
    values: list[int] = []
    for found, value in fields(message):
        if found != number:
            continue
        if isinstance(value, int):
            values.append(value)
            continue
        place = 0
        while place < len(value):
            entry, place = _varint(value, place)
            values.append(entry)
    return [value - (1 << 64) if value >> 63 else value for value in values]


def text_of(message: memoryview, number: int) -> str:
    """The text in field `number`; empty when it is absent, and the last one when it is repeated."""
    found = bytes_of(message, number)
    return bytes(found[-1]).decode("utf-8", errors="replace") if found else ""


def integer(number: int, value: int) -> bytes:
    """Field `number` holding a non-negative integer."""
    return _encoded(number << 3 | VARINT) + _encoded(value)


def chunk(number: int, content: bytes | str) -> bytes:
    """Field `number` holding text or a message."""
    raw = content.encode() if isinstance(content, str) else content
    return _encoded(number << 3 | BYTES) + _encoded(len(raw)) + raw


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """The integer at `place` and the place after it."""
    value = 0
    for count, byte in enumerate(message[place : place + LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value & (1 << 64) - 1, place + count + 1
    raise ValueError("an integer that does not end")


def _encoded(value: int) -> bytes:
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
