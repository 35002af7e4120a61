"""A camera as a source, through OpenCV; frames are timed by the clock as they arrive."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction

from dovit_deploy import packages
from dovit_deploy.errors import SourceError
from dovit_deploy.runtime.closing import Closing
from dovit_deploy.runtime.frame_source import Choice, Kind, Selection, Selector, VideoInfo
from dovit_deploy.runtime.images import check_pixels
from dovit_deploy.runtime.opencv_capture import opened_capture, rate_from_capture
from dovit_deploy.runtime.results import RGB, Frame

CLOCK_TICK = Fraction(1, 1_000_000)


class Camera(Closing):
    """Frames of camera `index` until it stops or the user does.

    Raises:
        SourceError: there is no such camera, or it gives no picture (drivers wait 10 s at most).
        PackageMissing: OpenCV is not installed.
    """

    kind: Kind = "live"

    def __init__(self, index: int, *, selection: Selection, max_pixels: int) -> None:
        self.name = f"camera {index}"
        self.warnings: list[str] = []
        self.ended_early: str | None = None
        self.count = selection.max_frames
        self._selection = selection
        self._cv2 = packages.opencv()
        self._capture = opened_capture(self._cv2, index)
        self._first = self._read() if self._capture.isOpened() else None
        if self._first is None:
            self.close()
            raise SourceError(f"{self.name}: does not open or gives no picture; is it connected, and free?")
        height, width = self._first.shape[:2]
        check_pixels(self.name, width=width, height=height, max_pixels=max_pixels)
        rate = rate_from_capture(self._cv2, self._capture)
        self.video = VideoInfo((height, width), rate, CLOCK_TICK, has_audio=False, path=None)

    def __iter__(self) -> Iterator[Frame]:
        selector = Selector(self._selection)
        for index, (time_s, rgb, decode_ms) in enumerate(self._timed()):
            choice = selector.judge(time_s)
            if choice is Choice.STOP:
                return
            if choice is Choice.TAKE:
                yield Frame(rgb=rgb, index=index, source=self.name, time_s=time_s, decode_ms=decode_ms)
            if selector.done:
                return
        self.ended_early = "the camera stopped giving pictures"

    def close(self) -> None:
        """Give the camera back; may be called twice."""
        self._capture.release()

    def _timed(self) -> Iterator[tuple[Fraction, RGB, float]]:
        """(seconds since the first frame, picture, milliseconds to get it) until the camera stops."""
        began = time.perf_counter()
        rgb, decode_ms = self._first, 0.0
        while rgb is not None:
            yield round(Fraction(time.perf_counter() - began), 6), rgb, decode_ms
            asked = time.perf_counter()
            rgb = self._read()
            decode_ms = (time.perf_counter() - asked) * 1e3

    def _read(self) -> RGB | None:
        good, bgr = self._capture.read()
        return self._cv2.cvtColor(bgr, self._cv2.COLOR_BGR2RGB) if good else None
