"""A video file, a stream or a camera as a source, through OpenCV.

Cameras always; files and streams where PyAV is not installed. OpenCV turns rotated video upright by itself. It reads no
sound, gives times as floats and cannot seek exactly, so frames before `--start` are decoded and thrown away.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from dovit_deploy import packages
from dovit_deploy.credentials import masked
from dovit_deploy.errors import SourceError
from dovit_deploy.sources.containers import opencv_options, size_as_seen
from dovit_deploy.sources.images import check_pixels
from dovit_deploy.sources.source import (
    ASSUMED_RATE,
    CLOCK_TICK,
    RGB,
    Closing,
    Frame,
    FrameClock,
    FrameSelection,
    Selector,
    SourceKind,
    VideoInfo,
)
from dovit_deploy.sources.transfers import hdr_remark, transfer_of_file

OPEN_TIMEOUT_MS = 10_000
READ_TIMEOUT_MS = 15_000
_NTSC_DENOMINATOR = 1001
# OpenCV's milliseconds come from a product of floats; finer digits are noise.
_TICK = Fraction(1, 90_000)
_SLACK_FRAMES = 2


class OpencvVideoReader(Closing):
    """A file ("video") or a stream ("live").

    Raises:
        SourceError: it does not open, is no video, is too large, or has not a single frame;
            while iterating: no frame lies in the selected span.
        PackageMissing: OpenCV is not installed either.
    """

    def __init__(self, address: str, *, path: Path | None, selection: FrameSelection, max_pixels: int) -> None:
        self.name = masked(address)
        self.warnings = [
            f"{self.name}: read with OpenCV, because PyAV is not installed: sound, if there is any, is lost; "
            "for sound and exact times: pip install 'dovit-deploy[video]'"
        ]
        transfer = None if path is None else transfer_of_file(path)
        remark = hdr_remark(self.name, transfer, how="converted as OpenCV sees fit")
        self.warnings += [] if remark is None else [remark]
        self.ended_early: str | None = None
        self._selection = selection
        self._cv2 = packages.opencv()
        self._capture = self._opened(address, path)
        try:
            self._describe(path, max_pixels=max_pixels)
        except SourceError:
            self.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        selector = Selector(self._selection)
        began = time.perf_counter()
        for index, time_s, _ in selector.select(self._grabbed()):
            rgb = self._rgb()
            decode_ms = (time.perf_counter() - began) * 1e3
            yield Frame(rgb=rgb, index=index, source=self.name, time_s=time_s, decode_ms=decode_ms)
            began = time.perf_counter()
        if selector.exhausted:
            self.ended_early = self._shortfall(selector.seen)
        if not selector.taken:
            raise SourceError(f"{self.name}: no frame lies in the span that --start and --end select")

    def close(self) -> None:
        """Close the file or connection; may be called twice."""
        self._capture.release()

    def _opened(self, address: str, path: Path | None) -> Any:  # noqa: ANN401
        with opencv_options(address, is_file=path is not None):
            return opened_capture(self._cv2, address if path is None else str(path.absolute()))

    def _describe(self, path: Path | None, *, max_pixels: int) -> None:
        """Read the properties and the first frame, which stays grabbed for the iteration."""
        cv2, capture = self._cv2, self._capture
        if not capture.isOpened():
            what = "this stream does not open" if path is None else "not a video that can be read"
            raise SourceError(f"{self.name}: {what}")
        width, height = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        check_pixels(self.name, width=width, height=height, max_pixels=max_pixels)
        # A container can open and still hold nothing that decodes.
        if not capture.grab():
            raise SourceError(f"{self.name}: not one frame of this video can be decoded")
        # Of a stream OpenCV gives 0 or a negative number.
        self._total = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None
        rate = rate_from_capture(cv2, capture)
        base = FrameClock(tick=_TICK, first=0, rate=rate, constant_rate=True).time_base
        # Taken from the frame itself, which OpenCV has turned upright.
        size = self._rgb().shape
        check_pixels(self.name, width=size[1], height=size[0], max_pixels=max_pixels)
        self.video = VideoInfo((size[0], size[1]), rate, base, has_audio=False, path=path)
        self.kind: SourceKind = "live" if path is None and self._total is None else "video"
        self.count = self._selection.expected(self._total, rate)

    def _grabbed(self) -> Iterator[tuple[int, Fraction, None]]:
        """Index and seconds of each frame, grabbed and not yet decoded; the first one was grabbed at the opening."""
        clock = FrameClock(tick=_TICK, first=None, rate=self.video.rate, constant_rate=True)
        index = 0
        while index == 0 or self._capture.grab():
            yield index, clock.time(self._stamp(), index=index), None
            index += 1

    def _stamp(self) -> int:
        """Time of the grabbed frame in ticks."""
        milliseconds: float = self._capture.get(self._cv2.CAP_PROP_POS_MSEC)
        return round(milliseconds / 1000 / _TICK)

    def _rgb(self) -> RGB:
        """(H, W, 3) of the grabbed frame, with square pixels."""
        _, bgr = self._capture.retrieve()
        rgb: RGB = self._cv2.cvtColor(bgr, self._cv2.COLOR_BGR2RGB)
        height, width = size_as_seen(rgb.shape[0], rgb.shape[1], self._pixel_aspect())
        return rgb if rgb.shape[:2] == (height, width) else self._cv2.resize(rgb, (width, height))

    def _pixel_aspect(self) -> Fraction | None:
        """Width of a pixel by its height, in frames that OpenCV has turned already."""
        cv2, get = self._cv2, self._capture.get
        above, below = (int(get(key)) for key in (cv2.CAP_PROP_SAR_NUM, cv2.CAP_PROP_SAR_DEN))
        if above <= 0 or below <= 0:
            return None
        lying = int(get(cv2.CAP_PROP_ORIENTATION_META)) % 180 == 90
        return Fraction(below, above) if lying else Fraction(above, below)

    def _shortfall(self, given: int) -> str | None:
        if self._total is None or given + _SLACK_FRAMES >= self._total:
            return None
        return f"it ends after {given} of {self._total} frames"


class CameraSource(Closing):
    """Frames of camera `index` until it stops or the user does.

    Raises:
        SourceError: there is no such camera, or it gives no frame (drivers wait 10 s at most).
        PackageMissing: OpenCV is not installed.
    """

    kind: SourceKind = "live"

    def __init__(self, index: int, *, selection: FrameSelection, max_pixels: int) -> None:
        self.name = f"camera {index}"
        self.warnings: list[str] = []
        self.ended_early: str | None = None
        self.count = selection.max_frames
        self._selection = selection
        self._cv2 = packages.opencv()
        self._capture = opened_capture(self._cv2, index)
        # Some drivers open and never give a frame, so the first one is waited for here.
        self._first = self._read() if self._capture.isOpened() else None
        if self._first is None:
            self.close()
            raise SourceError(f"{self.name}: does not open or gives no frame; is it connected, and free?")
        height, width = self._first.shape[:2]
        check_pixels(self.name, width=width, height=height, max_pixels=max_pixels)
        rate = rate_from_capture(self._cv2, self._capture)
        self.video = VideoInfo((height, width), rate, CLOCK_TICK, has_audio=False, path=None)

    def __iter__(self) -> Iterator[Frame]:
        selector = Selector(self._selection)
        for index, time_s, (rgb, decode_ms) in selector.select(self._timed()):
            yield Frame(rgb=rgb, index=index, source=self.name, time_s=time_s, decode_ms=decode_ms)
        if selector.exhausted:
            self.ended_early = "the camera stopped giving frames"

    def close(self) -> None:
        """Release the camera; may be called twice."""
        self._capture.release()

    def _timed(self) -> Iterator[tuple[int, Fraction, tuple[RGB, float]]]:
        """Index, seconds since the first frame, and (frame, ms that it took) until the camera stops."""
        began = time.perf_counter()
        rgb, decode_ms = self._first, 0.0
        for index in itertools.count():
            if rgb is None:
                return
            yield index, round(Fraction(time.perf_counter() - began), 6), (rgb, decode_ms)
            asked = time.perf_counter()
            rgb = self._read()
            decode_ms = (time.perf_counter() - asked) * 1e3

    def _read(self) -> RGB | None:
        good, bgr = self._capture.read()
        return self._cv2.cvtColor(bgr, self._cv2.COLOR_BGR2RGB) if good else None


def opened_capture(cv2: Any, what: str | int) -> Any:  # noqa: ANN401
    """`cv2.VideoCapture` of an address or camera index, in bounded time; `isOpened()` says whether it worked.

    OpenCV writes lines of its own to stderr when it does not; our error says it once (`packages` silences the FFmpeg
    inside).
    """
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        if isinstance(what, int):
            return cv2.VideoCapture(what)
        timeouts = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS),
        ]
        # FFmpeg by name: most other backends do not know the timeouts.
        return cv2.VideoCapture(what, cv2.CAP_FFMPEG, timeouts)
    finally:
        cv2.utils.logging.setLogLevel(level)


def rate_from_capture(cv2: Any, capture: Any) -> Fraction:  # noqa: ANN401
    """Frames per second; OpenCV gives a float, of which 30000/1001 and its like are recovered."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    if not 0 < rate < 1e6:
        return ASSUMED_RATE
    # NTSC rates are n / 1001; no usual rate has a larger denominator.
    return Fraction(rate).limit_denominator(_NTSC_DENOMINATOR)
