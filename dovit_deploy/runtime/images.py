"""Decode one image file into upright 8-bit RGB.

The header is read first, so that a file that claims more pixels than allowed is refused before a
byte of it is decoded.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.errors import SourceError
from dovit_deploy.runtime.orientation import EXIF_ORIENTATION_TAG, UPRIGHT, upright
from dovit_deploy.runtime.results import RGB

DEFAULT_MAX_PIXELS = 150_000_000
"""Largest width * height that is decoded unless `--max-pixels` says otherwise: 450 MB of RGB."""

IMAGE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".dib",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    }
)

# What Pillow's many decoders are known to raise on damaged bytes.
_UNDECODABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)

_PILLOW_LIMIT_LOCK = threading.Lock()


def read_image(path: Path | str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> RGB:
    """Decode the image at `path`: (H, W, 3) uint8, red first, upright, contiguous, writable.

    Alpha is dropped, grey and palette become RGB, CMYK is converted, 16 bits become 8 by their high
    byte, the EXIF orientation is applied. Of an animation the first picture is read.

    Raises:
        SourceError: missing, not an image, truncated, or more than `max_pixels` pixels.
        PackageMissing: Pillow is not installed.
    """
    pillow = packages.pillow()
    try:
        with _opened(pillow, path) as image:
            check_pixels(str(path), width=image.width, height=image.height, max_pixels=max_pixels)
            image.load()
            return upright(_rgb_from_image(image, path), _orientation(image))
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file") from error
    except _UNDECODABLE as error:
        raise SourceError(f"{path}: not an image that can be decoded ({_first_line(error)})") from error


def is_image(path: Path) -> bool:
    """Whether the file's first bytes are those of an image format, whatever its name says."""
    try:
        with _opened(packages.pillow(), path):
            return True
    except _UNDECODABLE:
        return False


def check_pixels(name: str, *, width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture that is larger than allowed, before memory is taken for it.

    Raises:
        SourceError: `width * height` exceeds `max_pixels`.
    """
    if width * height > max_pixels:
        raise SourceError(
            f"{name}: {width}x{height} is {width * height} pixels, more than the {max_pixels} allowed; "
            f"if it is meant, add --max-pixels {width * height}"
        )


@contextmanager
def _opened(pillow: Any, path: Path | str) -> Iterator[Any]:  # noqa: ANN401
    """Pillow's lazily opened image, its own pixel limit lifted for this one call.

    Pillow refuses large headers by a limit of its own, without their size, and warns on stderr below
    it; ours takes its place. The limit is a global of the process, hence the lock and the way back.
    """
    with _PILLOW_LIMIT_LOCK:
        before, pillow.MAX_IMAGE_PIXELS = pillow.MAX_IMAGE_PIXELS, None
        try:
            image = pillow.open(path)
        finally:
            pillow.MAX_IMAGE_PIXELS = before
    with image:
        yield image


def _orientation(image: Any) -> int:  # noqa: ANN401
    """EXIF orientation of a loaded image; damaged EXIF counts as none, the pixels being sound."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION_TAG, UPRIGHT))
    except _UNDECODABLE:
        return UPRIGHT


def _rgb_from_image(image: Any, path: Path | str) -> RGB:  # noqa: ANN401
    """(H, W, 3) uint8 of a loaded Pillow image of any mode, not yet turned."""
    if image.mode.startswith("I;16"):
        return _grey_to_rgb(np.asarray(image) >> 8)
    if image.mode in ("I", "F"):
        return _grey_to_rgb(_eight_bits(np.asarray(image), path))
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "RGBa" or (image.mode == "P" and "transparency" in image.info):
        # Premultiplied colours are divided by alpha, and transparent entries of a palette keep their colour.
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _eight_bits(values: npt.NDArray[Any], path: Path | str) -> npt.NDArray[Any]:
    """Scale 32-bit integers or floats, whose range no header states, by the range they stay in."""
    low, high = values.min(), values.max()
    if low < 0 or not np.isfinite(high):
        raise SourceError(f"{path}: values from {low} to {high} are no brightness; save it with 8 or 16 bits")
    if values.dtype.kind == "f":
        # The two usual conventions: 0..1, and 0..255 kept as floats.
        return np.rint(values * 255.0 if high <= 1.0 else np.minimum(values, 255.0))
    return values >> 8 if high <= 0xFFFF else values >> 23


def _grey_to_rgb(grey: npt.NDArray[Any]) -> RGB:
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def _first_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0]
