"""How an image file becomes upright 8-bit RGB, and image files a source.

The header is read first, so that a file that claims more pixels than allowed is refused before any of it is decoded.
"""

from __future__ import annotations

import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages, signatures
from dovit_deploy.errors import SourceError
from dovit_deploy.sources.png_notes import without_large_notes
from dovit_deploy.sources.source import RGB, Closing, FailedFrame, Frame, FrameSelection, SourceKind
from dovit_deploy.sources.transfers import hdr_remark, transfer_of_file

EXIF_ORIENTATION_TAG = 0x0112
UPRIGHT = 1
_TRANSPOSED = (5, 6, 7, 8)

DEFAULT_MAX_PIXELS = 150_000_000
"""Largest width * height that is decoded unless `--max-pixels` says otherwise: 450 MB of RGB."""

IMAGE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".dib",
        ".heic",
        ".heif",
        ".hif",
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
"""HEIF is among them to be refused by its name: passed over in silence, a phone's photographs would just be missing."""

HEIF_SUFFIXES = (".heic", ".heif", ".hif")

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""What Pillow may decode, by its own names; of its other decoders some start programs (EPS starts Ghostscript)."""

# What Pillow's many decoders are known to raise on damaged bytes.
_UNDECODABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    # AVIF's decoder.
    RuntimeError,
    struct.error,
    zlib.error,
)

_PILLOW_LIMIT_LOCK = threading.Lock()


def read_image(path: Path | str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> RGB:
    """Decode the image at `path`: (H, W, 3) uint8, red first, upright, contiguous, writable.

    Alpha is dropped, grey and palette become RGB, CMYK is converted, 16 bits become 8 by their high
    byte, the EXIF orientation is applied. Of an animation the first image is read.

    Raises:
        SourceError: missing, not an image, truncated, or more than `max_pixels` pixels.
        PackageMissing: Pillow is not installed.
    """
    with opened_image(path, max_pixels=max_pixels) as image:
        image.load()
        return upright(_rgb_from_image(image, path), _orientation(image))


def rgb_from_pillow(image: Any) -> RGB:  # noqa: ANN401  Pillow is optional
    """A Pillow image of the caller's own, as `read_image` gives it.

    Raises:
        SourceError: it cannot be decoded.
    """
    name = str(getattr(image, "filename", "") or "Pillow image")
    try:
        image.load()
        return upright(_rgb_from_image(image, name), _orientation(image))
    except _UNDECODABLE as error:
        raise SourceError(f"{name}: cannot be decoded as an image ({_first_line(error)})") from error


@contextmanager
def opened_image(path: Path | str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Iterator[Any]:
    """Pillow's image at `path`, decoded when it is first used.

    Raises:
        SourceError, PackageMissing: as `read_image`; also when the block fails as decoders fail.
    """
    pillow = packages.pillow()
    _refuse_by_signature(path)
    try:
        with without_large_notes(path) as readable, _opened(pillow, readable) as image:
            check_pixels(str(path), width=image.width, height=image.height, max_pixels=max_pixels)
            yield image
    except FileNotFoundError as error:
        link = " (a link to nothing)" if Path(path).is_symlink() else ""
        raise SourceError(f"{path}: no such file{link}") from error
    except pillow.UnidentifiedImageError as error:
        raise SourceError(
            f"{path}: cannot be decoded as an image; formats that are read: {', '.join(FORMATS)}"
        ) from error
    except _UNDECODABLE as error:
        # What the system refuses has a number; what Pillow says of the content has none.
        if isinstance(error, OSError) and error.errno is not None:
            raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
        raise SourceError(f"{path}: cannot be decoded as an image ({_first_line(error)})") from error


def is_image(path: Path) -> bool:
    """Whether the file's first bytes are those of an image format, whatever its name says."""
    try:
        with _opened(packages.pillow(), path):
            return True
    except _UNDECODABLE:
        return False


def _refuse_by_signature(path: Path | str) -> None:
    """Refuse what no decoder here reads, under its right name and with what helps."""
    placeholder = signatures.placeholder_for(path)
    if placeholder is not None:
        raise SourceError(f"{path}: {placeholder}")
    if signatures.is_heif(path):
        raise SourceError(heif_refusal(str(path)))


def heif_refusal(name: str) -> str:
    """What to say of a HEIF image."""
    # One of FFmpeg's frames would be a single tile of it.
    return f"{name}: a HEIF image (HEIC), which is not read; convert it to JPEG or PNG (heif-convert, ImageMagick)"


def check_pixels(name: str, *, width: int, height: int, max_pixels: int) -> None:
    """Refuse an image that is larger than allowed, before memory is taken for it.

    Raises:
        SourceError: `width * height` exceeds `max_pixels`.
    """
    if width * height > max_pixels:
        raise SourceError(
            f"{name}: {width}x{height} is {width * height} pixels, more than the {max_pixels} allowed; "
            f"make it smaller, or add --max-pixels {width * height} where the command has that option"
        )


class ImageSource(Closing):
    """Image files; a bad one becomes a FailedFrame and does not stop the rest.

    `root` is the folder that they were looked for in; None: they were named one by one.
    """

    kind: SourceKind = "images"
    video = None
    ended_early = None

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        name: str,
        selection: FrameSelection,
        max_pixels: int,
        root: Path | None = None,
    ) -> None:
        self.name, self.root = name, root
        self.warnings: list[str] = []
        self.count = selection.thin(len(paths))
        self._max_pixels = max_pixels
        self.wanted = list(enumerate(paths))[:: selection.every][: selection.max_frames]
        """Each file that is read, with its position in the source."""
        self.paths = tuple(path for _, path in self.wanted)

    def __iter__(self) -> Iterator[Frame | FailedFrame]:
        for index, path in self.wanted:
            try:
                frame = _frame_from_file(path, index=index, max_pixels=self._max_pixels)
                self._note_hdr(path)
                yield frame
            except SourceError as error:
                yield FailedFrame(source=str(path), message=str(error), index=index)

    def close(self) -> None:
        """Nothing is held open between images."""

    def _note_hdr(self, path: Path) -> None:
        """Warn of the first HDR image; a folder of them need not say it of each."""
        if not self.warnings:
            remark = hdr_remark(str(path), transfer_of_file(path))
            self.warnings += [] if remark is None else [remark]


class SingleImage(ImageSource):
    """One image, decoded at once: where it is all there is, a bad file must be known before anything starts.

    Raises:
        SourceError: the image cannot be read.
    """

    def __init__(self, path: Path, *, name: str, selection: FrameSelection, max_pixels: int) -> None:
        super().__init__([path], name=name, selection=selection, max_pixels=max_pixels)
        self._frame = _frame_from_file(path, index=0, max_pixels=max_pixels)
        self._note_hdr(path)

    def __iter__(self) -> Iterator[Frame | FailedFrame]:
        yield self._frame


def upright(rgb: RGB, orientation: int) -> RGB:
    """Turn (H, W, 3) as the EXIF number says; contiguous; (W, H, 3) for 5 to 8.

    Cameras store the sensor's rows as they come and note beside them how to turn them: as the EXIF tag "Orientation"
    (1..8) in photographs, as a display matrix in videos. Both mean the same eight turns, so both are brought to the
    EXIF number.

    Numbers outside 1..8 mean nothing and leave the image as it is, as viewers do.
    """
    # Transposed first: the flips are those of the transposed image.
    if orientation in _TRANSPOSED:
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


def upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """(height, width) after the turn."""
    return (width, height) if orientation in _TRANSPOSED else (height, width)


def orientation_from_matrix(a: int, b: int, c: int, d: int) -> int:
    """EXIF number of a display matrix that maps a pixel (x, y) to (a*x + c*y, b*x + d*y).

    Signs decide; a turn that is not a multiple of 90 degrees is taken to the nearest that is.
    Source: `libavutil/display.h`; ISO/IEC 14496-12, 8.3.2 (`tkhd`).
    """
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return {(False, False): 1, (True, False): 2, (True, True): 3, (False, True): 4}[a < 0, d < 0]
    return {(False, False): 5, (True, False): 6, (True, True): 7, (False, True): 8}[c < 0, b < 0]


def _frame_from_file(path: Path, *, index: int, max_pixels: int) -> Frame:
    began = time.perf_counter()
    rgb = read_image(path, max_pixels=max_pixels)
    decode_ms = (time.perf_counter() - began) * 1e3
    return Frame(rgb=rgb, index=index, source=str(path), time_s=Fraction(0), decode_ms=decode_ms)


@contextmanager
def _opened(pillow: Any, path: Path | str | BinaryIO) -> Iterator[Any]:  # noqa: ANN401
    """Pillow's lazily opened image of one of `FORMATS`, its own pixel limit lifted for this one call.

    Pillow refuses large headers by a limit of its own, without their size, and warns on stderr below
    it; ours takes its place. The limit is a global of the process, hence the lock, and the old value put back.
    """
    with _PILLOW_LIMIT_LOCK:
        before, pillow.MAX_IMAGE_PIXELS = pillow.MAX_IMAGE_PIXELS, None
        try:
            image = pillow.open(path, formats=FORMATS)
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
    # Pillow would clip 16 bits at 255 instead of scaling them.
    if image.mode.startswith("I;16"):
        return _grey_to_rgb(np.asarray(image) >> 8)
    if image.mode in ("I", "F"):
        return _grey_to_rgb(_eight_bits(np.asarray(image), path))
    # Pillow converts premultiplied grey to nothing but "LA".
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
    # 16 bits kept in 32, or the whole positive range of 32.
    return values >> 8 if high <= 0xFFFF else values >> 23


def _grey_to_rgb(grey: npt.NDArray[Any]) -> RGB:
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def _first_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0]
