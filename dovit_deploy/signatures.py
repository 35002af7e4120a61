"""What is a file really, by its first bytes, where its name promises something else?

Downloads and clones often leave a few lines of text under the name of an image, a video or a checkpoint, and phones
leave HEIF under the name of a JPEG. A decoder would only say that it cannot read them.
"""

from __future__ import annotations

from pathlib import Path

HEAD_BYTES = 1024
"""How much of a file is looked at; a pointer is shorter, and a page names itself within it."""

_LFS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_ANNEX = b"/annex/objects/"
_PAGE = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# Brands of ISO/IEC 23008-12 whose images are HEVC's, and those that leave the codec open.
_HEVC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_OPEN_BRANDS = frozenset({b"mif1", b"mif2", b"msf1"})
_AV1_BRANDS = frozenset({b"avif", b"avis"})
_BRANDS_AT = 16
"""Offset of the compatible brands in an `ftyp` box, behind the main brand and its version."""

_STILL_IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def placeholder_for(path: Path | str) -> str | None:
    """What lies at `path` in place of the file, with the remedy, as "a Git LFS pointer, ..."; None for anything else.

    Also None where nothing can be read: whoever reads the file next says why.
    """
    head = head_of(path)
    if head.startswith(_LFS):
        return "a Git LFS pointer, not the file; fetch it with git lfs pull"
    if head.startswith(_ANNEX):
        return "a git-annex pointer, not the file; fetch it with git annex get"
    text = head.removeprefix(_BYTE_ORDER_MARK).lstrip().lower()
    if text.startswith(_PAGE) or (text.startswith(b"<?xml") and b"<html" in text):
        return "an HTML page, not the file; download it again, from the address of the file itself"
    if text.startswith(b"<?xml") and b"<error>" in text:
        return "a server's error message, not the file; download it again"
    return None


def is_heif(path: Path | str) -> bool:
    """Whether the file is an image of HEVC in HEIF, as phones store photographs, whatever its name says."""
    head = head_of(path)
    return head[4:8] == b"ftyp" and is_heif_brand(head[8:12], head[_BRANDS_AT : int.from_bytes(head[:4])])


def is_heif_brand(main: bytes, compatible: bytes) -> bool:
    """Whether these brands of an `ftyp` box, the compatible ones joined, are those of HEIF and not of AVIF."""
    others = {compatible[start : start + 4] for start in range(0, len(compatible), 4)}
    return main in _HEVC_BRANDS or (main in _OPEN_BRANDS and not others & _AV1_BRANDS)


def is_still_image(path: Path | str) -> bool:
    """Whether the file is a JPEG, PNG, WebP or AVIF: what a download may have named as a video."""
    head = head_of(path)
    return head.startswith(_STILL_IMAGES) or head[4:12] == b"ftypavif" or head[:4] + head[8:12] == b"RIFFWEBP"


def head_of(path: Path | str) -> bytes:
    """The first bytes of the file at `path`; none where it cannot be read or is no ordinary file."""
    try:
        # A pipe would wait for whoever writes to it.
        if not Path(path).is_file():
            return b""
        with Path(path).open("rb") as file:
            return file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return b""
