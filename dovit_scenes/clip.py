"""A rendered drive as a video file: H.264 in MP4 through PyAV, else MPEG-4 through OpenCV."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_scenes import packages
from dovit_scenes.errors import SceneArgumentError, SceneEnvironmentError
from dovit_scenes.render import SceneFrame

QUALITY = "19"
"""Constant rate factor of x264; lower is better and larger."""

Progress = Callable[[int], None]
"""Called with the number of frames done."""


def write_clip(
    path: Path,
    frames: Iterable[SceneFrame],
    *,
    size: tuple[int, int],
    fps: Fraction,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write `frames` of `size` (height, width) to the MP4 file `path`; returns how many there were.

    The file appears under its name only when it is complete.

    Raises:
        SceneArgumentError: the file exists and is not to be overwritten, its folder does not exist, its name does not
            end in .mp4, or a side of the image is odd (H.264 halves the resolution of colour).
        SceneEnvironmentError: neither PyAV nor OpenCV can encode video here.
    """
    _check_target(path, size, overwrite=overwrite)
    # Beside the target, so that the rename at the end stays on one disk.
    partial = path.with_name(path.name + ".partial")
    av = packages.pyav()
    count = 0
    try:
        with _PyavSink(av, partial, size, fps) if av else _OpencvSink(partial, size, fps) as sink:
            for frame in frames:
                sink.write(frame.rgb)
                count += 1
                if progress:
                    progress(count)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _check_target(path: Path, size: tuple[int, int], *, overwrite: bool) -> None:
    if path.suffix.lower() != ".mp4":
        raise SceneArgumentError(f"a clip is written as .mp4; {path.name!r} has another ending")
    if not path.parent.is_dir():
        raise SceneArgumentError(f"there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise SceneArgumentError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise SceneArgumentError(f"{path} exists; name another file or pass --overwrite")
    if size[0] % 2 or size[1] % 2:
        raise SceneArgumentError(f"a clip needs an even width and height; {size[1]}x{size[0]} was given")


class _PyavSink:
    """H.264 through PyAV, or MPEG-4 where its build has no H.264 encoder."""

    def __init__(self, av: Any, path: Path, size: tuple[int, int], fps: Fraction) -> None:  # noqa: ANN401
        self._av = av
        self._container = av.open(str(path), "w", format="mp4")
        # Some builds of PyAV leave x264 out for its licence.
        h264 = "libx264" in av.codecs_available
        self._stream = self._container.add_stream("libx264" if h264 else "mpeg4", rate=fps)
        self._stream.height, self._stream.width = size
        # The only pixel format that every player and browser shows.
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": QUALITY, "preset": "medium"} if h264 else {"qscale": "3"}

    def __enter__(self) -> _PyavSink:
        return self

    def __exit__(self, *_: object) -> None:
        # Without a frame `encode` flushes those that the encoder still holds.
        self._container.mux(self._stream.encode())
        self._container.close()

    def write(self, rgb: npt.NDArray[np.uint8]) -> None:
        frame = self._av.VideoFrame.from_ndarray(rgb, format="rgb24")
        self._container.mux(self._stream.encode(frame))


class _OpencvSink:
    """MPEG-4 through OpenCV."""

    def __init__(self, path: Path, size: tuple[int, int], fps: Fraction) -> None:
        self._cv2 = packages.opencv()
        # OpenCV chooses the container by the ending, so the temporary name keeps it.
        self._path, self._target = path.with_name(path.name + ".mp4"), path
        self._written = 0
        code = self._cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = self._cv2.VideoWriter(str(self._path), code, float(fps), (size[1], size[0]))
        if not self._writer.isOpened():
            self._path.unlink(missing_ok=True)
            raise SceneEnvironmentError("OpenCV cannot write video here; install PyAV with: pip install av")

    def __enter__(self) -> _OpencvSink:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._writer.release()
        if kind is None:
            self._check()
        self._path.replace(self._target)

    def _check(self) -> None:
        """Raise SceneEnvironmentError unless the file holds every frame: OpenCV itself never says so."""
        capture = self._cv2.VideoCapture(str(self._path))
        found = int(capture.get(self._cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        if found < self._written:
            self._path.unlink(missing_ok=True)
            raise SceneEnvironmentError(f"OpenCV wrote {found} of {self._written} frames; is the disk full?")

    def write(self, rgb: npt.NDArray[np.uint8]) -> None:
        self._written += 1
        # OpenCV takes blue first.
        self._writer.write(np.ascontiguousarray(rgb[..., ::-1]))
