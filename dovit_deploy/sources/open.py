"""What SOURCE means: an image, a folder, a glob, a video, a camera index or a stream's address."""

from __future__ import annotations

import glob
import re
from fractions import Fraction
from pathlib import Path
from urllib.parse import urlsplit

from dovit_deploy import packages, signatures
from dovit_deploy.credentials import masked
from dovit_deploy.errors import SourceError, UsageError, shown
from dovit_deploy.sources.folders import VIDEO_SUFFIXES, images_matching, images_of_folder
from dovit_deploy.sources.images import (
    DEFAULT_MAX_PIXELS,
    HEIF_SUFFIXES,
    IMAGE_SUFFIXES,
    ImageSource,
    SingleImage,
    heif_refusal,
    is_image,
)
from dovit_deploy.sources.opencv import CameraSource, OpencvVideoReader
from dovit_deploy.sources.source import FrameSelection, Source
from dovit_deploy.sources.video import VideoReader

STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp", "srt", "rtp")
MOST_CAMERA_DIGITS = 9


def open_source(
    text: str,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    every: int = 1,
    max_frames: int | None = None,
    start: float | Fraction | None = None,
    end: float | Fraction | None = None,
    recursive: bool = False,
) -> Source:
    """Open what the user named; `start` and `end` in seconds, [start, end).

    A name that exists as a file or folder is that; then digits are a camera, `scheme://` a stream,
    and anything with `*`, `?` or `[` a glob. `recursive` also takes the images in the folders below a folder.

    Raises:
        SourceError: it is missing, empty, does not open, or cannot be decoded.
        UsageError: the selection makes no sense for it.
        PackageMissing: neither PyAV nor OpenCV, or no Pillow, is installed.
    """
    selection = FrameSelection(every=every, max_frames=max_frames, start=exact_seconds(start), end=exact_seconds(end))
    # What exists comes first: a folder may well be called "0" or "night[2]".
    path = Path(text)
    if path.is_file():
        return _open_file(path, text, selection=selection, max_pixels=max_pixels)
    if path.is_dir():
        _refuse_span(text, selection)
        paths = images_of_folder(path, recursive=recursive)
        return ImageSource(paths, name=text, selection=selection, max_pixels=max_pixels, root=path)
    if text.isdecimal():
        # More digits are more than OpenCV takes.
        if len(text) > MOST_CAMERA_DIGITS:
            raise SourceError(f"{shown(text)}: no file or folder, and no camera has such a number")
        return CameraSource(int(text), selection=selection, max_pixels=max_pixels)
    # The letters that RFC 3986 allows in a scheme.
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme is not None:
        return _open_stream(text, scheme[1].lower(), selection=selection, max_pixels=max_pixels)
    if glob.has_magic(text):
        _refuse_span(text, selection)
        return ImageSource(images_matching(text), name=text, selection=selection, max_pixels=max_pixels)
    raise SourceError(f"{masked(text)}: no such file or folder, nor a camera index, a glob or a stream's address")


def _open_file(path: Path, text: str, *, selection: FrameSelection, max_pixels: int) -> Source:
    suffix = path.suffix.lower()
    # An unknown suffix says nothing, so the first bytes decide; so they do where an image was saved as a video.
    by_bytes = signatures.is_still_image(path) if suffix in VIDEO_SUFFIXES else is_image(path)
    if suffix in IMAGE_SUFFIXES or by_bytes or signatures.is_heif(path):
        _refuse_span(text, selection)
        return SingleImage(path, name=text, selection=selection, max_pixels=max_pixels)
    placeholder = signatures.placeholder_for(path)
    if placeholder is not None:
        raise SourceError(f"{text}: {placeholder}")
    return _open_video(text, path, selection=selection, max_pixels=max_pixels)


def _open_stream(text: str, scheme: str, *, selection: FrameSelection, max_pixels: int) -> Source:
    if scheme not in STREAM_SCHEMES:
        raise SourceError(f"{masked(text)}: streams are read from {', '.join(STREAM_SCHEMES)}, not from {scheme}://")
    try:
        path = urlsplit(text).path
    except ValueError as error:
        raise SourceError(f"{masked(text)}: no address that can be read ({error})") from error
    if path.lower().endswith(HEIF_SUFFIXES):
        raise SourceError(heif_refusal(masked(text)))
    return _open_video(text, None, selection=selection, max_pixels=max_pixels)


def _open_video(text: str, path: Path | None, *, selection: FrameSelection, max_pixels: int) -> Source:
    av = packages.pyav()
    if av is None:
        return OpencvVideoReader(text, path=path, selection=selection, max_pixels=max_pixels)
    return VideoReader(av, text, path=path, selection=selection, max_pixels=max_pixels)


def _refuse_span(text: str, selection: FrameSelection) -> None:
    if selection.start is not None or selection.end is not None:
        raise UsageError(
            f"{text}: images have no time, so --start and --end cannot be given; use --every, --max-frames"
        )


def exact_seconds(value: float | Fraction | None) -> Fraction | None:
    """The decimal number that was typed: 0.1 is one tenth, not the nearest binary fraction.

    Raises:
        UsageError: not a finite number.
    """
    if value is None or isinstance(value, Fraction):
        return value
    try:
        return Fraction(str(value))
    except ValueError as error:
        raise UsageError(f"--start and --end are seconds, not {value}") from error
