"""How is a PNG read whose text or colour profile is larger than Pillow takes?

Pillow refuses the whole image for it. Pixels do not depend on such notes, so the large ones are left out, without ever
being unpacked as a whole; small ones stay, because some hold the orientation.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NOTES = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
_LARGEST_NOTE = 1 << 19
"""Unpacked bytes of one note; Pillow takes 1 MiB."""
_LARGEST_SUM = 1 << 25
"""Unpacked bytes of all notes that stay; Pillow takes 64 MiB."""
_IN_MEMORY = 1 << 26
"""Bytes of a copy without its notes beyond which it is kept on disk."""


@dataclass(frozen=True)
class _Chunk:
    """A chunk of a PNG file: length, kind, data, check sum."""

    kind: bytes
    start: int
    """Offset of its length field."""
    size: int
    """Bytes of its data."""

    @property
    def end(self) -> int:
        """Offset behind its check sum."""
        return self.start + 12 + self.size


@contextmanager
def without_large_notes(path: Path | str) -> Iterator[Path | str | BinaryIO]:
    """`path` itself, or a copy of the PNG file there without its large notes."""
    with Path(path).open("rb") as file:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            yield path
            return
        chunks = list(_chunks(file))
        large = _large_notes(file, chunks)
        if not large:
            yield path
            return
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as copy:
            file.seek(0)
            copy.write(file.read(len(SIGNATURE)))
            for chunk in chunks:
                if chunk not in large:
                    file.seek(chunk.start)
                    copy.write(file.read(chunk.size + 12))
            copy.seek(0)
            # Typed as what it wraps: it has everything that a binary file has.
            yield copy  # type: ignore[misc]


def _chunks(file: BinaryIO) -> Iterator[_Chunk]:
    """The chunks from the current position on, as far as their headers are whole."""
    start = file.tell()
    while len(header := file.read(8)) == 8:
        chunk = _Chunk(header[4:], start, int.from_bytes(header[:4]))
        yield chunk
        start = chunk.end
        file.seek(start)


def _large_notes(file: BinaryIO, chunks: list[_Chunk]) -> set[_Chunk]:
    """The notes that are too large, each or together with those before."""
    large: set[_Chunk] = set()
    total = 0
    for chunk in chunks:
        if chunk.kind in _NOTES:
            size = _unpacked_size(file, chunk)
            total += size
            if size > _LARGEST_NOTE or total > _LARGEST_SUM:
                large.add(chunk)
    return large


def _unpacked_size(file: BinaryIO, chunk: _Chunk) -> int:
    """Bytes of a note once unpacked, counted up to just above the limit."""
    if chunk.size > _LARGEST_NOTE:
        return chunk.size
    file.seek(chunk.start + 8)
    data = file.read(chunk.size)
    keyword, _, rest = data.partition(b"\0")
    if chunk.kind == b"iTXt":
        # A flag and a method, then the language and the translated keyword, each with its zero.
        packed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        packed = chunk.kind != b"tEXt"
        rest = rest[1:]
    if not packed:
        return chunk.size
    try:
        return len(keyword) + len(zlib.decompressobj().decompress(rest, _LARGEST_NOTE + 1))
    except zlib.error:
        # Damaged notes are Pillow's to judge.
        return chunk.size
