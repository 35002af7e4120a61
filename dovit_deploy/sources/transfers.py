"""Is an image or a video HDR, by what its file says, and what is said of it?

Models are trained on SDR. PQ and HLG put the same brightness at other values, so what is read from them looks flat;
what is converted (newer FFmpeg inside OpenCV does it, after seconds of preparation) looks as the decoder sees fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dovit_deploy.sources.parameter_sets import transfer_of_avcc, transfer_of_hvcc

_TRANSFERS = {16: "PQ", 18: "HLG"}
"""Transfer characteristics of HDR, by their numbers in ITU-T H.273."""

_PNG, _MATROSKA = b"\x89PNG\r\n\x1a\n", b"\x1a\x45\xdf\xa3"
_LARGEST_HEADER = 1 << 24
"""Bytes of a header that are searched."""
_MATROSKA_TRANSFER = b"\x55\xba\x81"
"""TransferCharacteristics, one byte long (RFC 9559, 5.1.4.1.28.16); it lies within the first tracks' headers."""
_MATROSKA_HEADER = 1 << 18


def hdr_remark(name: str, transfer: int | None, *, how: str = "read as if it were SDR") -> str | None:
    """What to say of an image or a video with this transfer characteristic (ITU-T H.273); None for SDR.

    `how`: what the decoder makes of it.
    """
    if transfer not in _TRANSFERS:
        return None
    return (
        f"{name}: HDR ({_TRANSFERS[transfer]}), {how}, so its colours differ from those that models are trained on; "
        "tone-map it first (FFmpeg's filters zscale and tonemap)"
    )


def transfer_of_file(path: Path) -> int | None:
    """The transfer characteristic (ITU-T H.273) that a file's header states; None where none is found.

    Of PNG (`cICP`), of AVIF, MP4 and MOV (`colr`, else what the codec's own header says), and of Matroska.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if head == _PNG:
                return _of_png(file)
            if head[:4] == _MATROSKA:
                return _after(file.read(_MATROSKA_HEADER), _MATROSKA_TRANSFER, 0, 1)
            return _of_boxes(file) if head[4:] == b"ftyp" else None
    except OSError:
        return None


def _of_png(file: BinaryIO) -> int | None:
    """Of the chunks before the pixels, behind which none counts."""
    while len(header := file.read(8)) == 8 and header[4:] != b"IDAT":
        if header[4:] == b"cICP":
            return _after(file.read(4), b"", 1, 1)
        file.seek(int.from_bytes(header[:4]) + 4, 1)
    return None


def _of_boxes(file: BinaryIO) -> int | None:
    for kind, size in _top_boxes(file):
        if kind not in (b"moov", b"meta"):
            continue
        header = file.read(min(size, _LARGEST_HEADER))
        for mark in (b"colrnclx", b"colrnclc"):
            stated = _after(header, mark, 2, 2)
            if stated is not None:
                return stated
        avcc, hvcc = (header.partition(mark)[2] for mark in (b"avcC", b"hvcC"))
        return transfer_of_avcc(avcc) if avcc else transfer_of_hvcc(hvcc)
    return None


def _top_boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and size of each box, the file standing at its content."""
    start = 0
    while True:
        file.seek(start)
        header = file.read(8)
        size, length = int.from_bytes(header[:4]), 8
        if size == 1:
            # Longer than 4 GiB: the size follows.
            size, length = int.from_bytes(file.read(8)), 16
        # 0: up to the end of the file.
        size = size or (1 << 62)
        if len(header) < 8 or size < length:
            return
        yield header[4:], size - length
        start += size


def _after(data: bytes, mark: bytes, skipped: int, length: int) -> int | None:
    """The number of `length` bytes that begins `skipped` bytes behind `mark`; None where either is missing."""
    found = data.find(mark)
    value = data[found + len(mark) + skipped :][:length] if found >= 0 else b""
    return int.from_bytes(value) if len(value) == length else None
