"""What may FFmpeg open, and what does a container say of how its frames are to be seen?

FFmpeg recognises formats by content, and some of them are instructions: lists of other files (ffconcat), playlists of
addresses (HLS, DASH), devices. A video from elsewhere could make it read this machine's files or ask other machines. So
it gets the list of formats that hold frames themselves, and of the protocols that belong to what the user named.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from dovit_deploy import signatures
from dovit_deploy.errors import SourceError
from dovit_deploy.sources.images import UPRIGHT, heif_refusal, orientation_from_matrix

OPEN_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 15.0

FORMATS = (
    *("mov", "matroska", "webm", "avi", "flv", "live_flv", "kux", "mpegts", "mpeg", "asf", "asf_o", "ogg", "rm", "nut"),
    *(
        "mxf",
        "gxf",
        "wtv",
        "nsv",
        "dhav",
        "amv",
        "dv",
        "ivf",
        "gif",
        "apng",
        "yuv4mpegpipe",
        "mjpeg",
        "mpjpeg",
        "smjpeg",
    ),
    *("h261", "h263", "h264", "hevc", "vvc", "av1", "obu", "evc", "vc1", "m4v", "mpegvideo", "dirac", "cavsvideo"),
    *(
        "avs2",
        "avs3",
        "mjpeg_2000",
        "jpeg_pipe",
        "png_pipe",
        "webp_pipe",
        "bmp_pipe",
        "tiff_pipe",
        "gif_pipe",
        "ppm_pipe",
    ),
    # Sound alone, to be called so.
    *("wav", "mp3", "flac", "aac"),
)
"""FFmpeg's demuxers that hold frames themselves."""
# "image2" takes some names for patterns, so it reads no files here; it is what a JPEG from a server is to FFmpeg.
_STREAM_FORMATS = ("rtsp", "rtp", "rtp_mpegts", "image2")
_PLAYLIST_FORMATS = ("hls", "dash", "webvtt")
_STREAM_PROTOCOLS = (
    *("http", "https", "httpproxy", "tcp", "tls", "udp", "rtp", "srtp", "crypto", "srt"),
    *("rtmp", "rtmpe", "rtmps", "rtmpt", "rtmpte", "rtmpts", "ffrtmphttp", "ffrtmpcrypt"),
)
# Never "file": what comes over the network has no business with this machine's files.
_PLAYLIST_ADDRESS = re.compile(r"https?://[^?#]*\.(?:m3u8?|mpd)(?:[?#].*)?", re.IGNORECASE | re.DOTALL)
_PLAYLIST_HEADS = (b"ffconcat", b"#extm3u", b"<mpd", b"v=0", b"[playlist]")
_OPENCV_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"

_STRONGEST_STRETCH = 8
"""Pixels longer than this many times their width are a damaged header."""


def opened_container(av: Any, address: str, *, name: str, path: Path | None) -> Any:  # noqa: ANN401
    """PyAV's container of the file at `path`, or of the stream `address` where that is None.

    Raises:
        SourceError: it does not open in time, or is of no format that is read; its message calls it `name`.
    """
    try:
        return av.open(
            # An absolute path cannot be taken for one of FFmpeg's protocols ("concat:...").
            address if path is None else str(path.absolute()),
            mode="r",
            options=ffmpeg_options(address, is_file=path is not None),
            timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S) if path is None else None,
            # Titles of old cameras are not UTF-8.
            metadata_errors="replace",
        )
    except av.FFmpegError as error:
        what = "this stream does not open" if path is None else "not a video that can be read"
        raise SourceError(f"{name}: {what} ({_why(error, path)})") from error


def ffmpeg_options(address: str, *, is_file: bool) -> dict[str, str]:
    """FFmpeg's options for opening what the user named."""
    if is_file:
        return {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    # A playlist is followed where the user asks for one by its address.
    playlist = _PLAYLIST_FORMATS if _PLAYLIST_ADDRESS.fullmatch(address) else ()
    return {
        "format_whitelist": ",".join((*FORMATS, *_STREAM_FORMATS, *playlist)),
        "protocol_whitelist": ",".join(_STREAM_PROTOCOLS),
        # Without TCP, packets lost on the way become grey frames.
        "rtsp_transport": "tcp",
    }


@contextmanager
def opencv_options(address: str, *, is_file: bool) -> Iterator[None]:
    """The same options for the FFmpeg inside OpenCV, which reads them from the environment; the user's own stay."""
    if _OPENCV_OPTIONS in os.environ:
        yield
        return
    options = ffmpeg_options(address, is_file=is_file)
    os.environ[_OPENCV_OPTIONS] = "|".join(f"{key};{value}" for key, value in options.items())
    try:
        yield
    finally:
        os.environ.pop(_OPENCV_OPTIONS, None)


def refuse_heif(container: Any, name: str) -> None:  # noqa: ANN401
    """Raise SourceError for a HEIF image, of which FFmpeg would give a single tile."""
    brands = [container.metadata.get(key, "").encode() for key in ("major_brand", "compatible_brands")]
    if signatures.is_heif_brand(*brands):
        raise SourceError(heif_refusal(name))


def orientation(frame: Any) -> int:  # noqa: ANN401
    """EXIF number of the display matrix that FFmpeg hands on with each frame."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return UPRIGHT
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    return orientation_from_matrix(a, b, c, d)


def size_as_seen(height: int, width: int, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """(height, width) with square pixels, of a frame whose pixels are `pixel_aspect` times as wide as high.

    The side that is too short grows, so that no pixel is lost.
    """
    if not pixel_aspect or not Fraction(1, _STRONGEST_STRETCH) <= pixel_aspect <= _STRONGEST_STRETCH:
        return height, width
    if pixel_aspect >= 1:
        return height, round(width * pixel_aspect)
    return round(height / pixel_aspect), width


def reason(error: Exception) -> str:
    """FFmpeg's words without its number and the address, which the message names already."""
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def _why(error: Exception, path: Path | None) -> str:
    """Why it does not open, in the user's terms."""
    if path is not None and signatures.head_of(path).lstrip(b"\xef\xbb\xbf \r\n").lower().startswith(_PLAYLIST_HEADS):
        return "a playlist of other files or addresses, which is not followed; give the video itself"
    # What FFmpeg calls a format that is not on its list.
    if getattr(error, "errno", None) == errno.EINVAL:
        more = "" if path is not None else "; a playlist is followed from an address that ends in .m3u8 or .mpd"
        return f"its format is not one that is read{more}"
    return reason(error)
