"""How do answers that workers computed become those of a run, frame after frame?

The driver reads the source as a run does, and gives each frame the answer that lies in the parts; so everything that a
run writes is written by what writes it in a run. That the pixels are those that were answered, a hash of each shows.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from dovit_deploy import packages
from dovit_deploy.batch.parts import Answered, Bits, FailedEntry, FrameEntry, WindowEntry, pixel_digest
from dovit_deploy.batch.rows import changed_message
from dovit_deploy.errors import Interrupted, SourceError
from dovit_deploy.runtime.audit import Audited
from dovit_deploy.runtime.classification import ClassificationResult
from dovit_deploy.runtime.frame_answers import FrameAnswers
from dovit_deploy.runtime.results import (
    ClassScore,
    FrameTiming,
    FrameTokens,
    Palette,
    Region,
    RunTiming,
    TokenReport,
    Window,
)
from dovit_deploy.runtime.segmentation import SegmentationResult
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.tasks import ImageResult
from dovit_deploy.runtime.workers import Workers
from dovit_deploy.sources.source import RGB, FailedFrame, Frame


class NotAsRecorded(SourceError):
    """A source gives other frames than those that were answered."""

    def __init__(self, name: str) -> None:
        super().__init__(changed_message(name))


@dataclass(frozen=True)
class RecordedSegmentation(SegmentationResult):
    """A segmentation that was computed before; its mask is there as a file already."""

    mask: bytes = field(default=b"", repr=False)

    def png(self) -> bytes:
        """What the worker wrote."""
        return self.mask


class RecordedAnswers(FrameAnswers):
    """The answers of a source's parts, in their order.

    Args:
        session: of the bundle that answered; it computes nothing.
        settings, at_once: with which they were computed.
        answered: all of them, failed frames too.
    """

    def __init__(self, session: Session, settings: RunSettings, at_once: Workers, answered: Iterable[Answered]) -> None:
        super().__init__(session, settings, at_once)
        self._answered = iter(answered)
        self._last: FrameEntry | None = None
        classes = session.bundle.manifest.classes
        colors = np.array([entry.color for entry in classes], dtype=np.uint8).reshape(-1, 3)
        self._palette = Palette(tuple(entry.name for entry in classes), colors)
        self._gates = tuple(gate.layer for gate in session.bundle.manifest.spec.gates)

    def __call__(self, frame: Frame) -> ImageResult:
        answered = next((one for one in self._answered if not isinstance(one.entry, FailedEntry)), None)
        if answered is None or not isinstance(answered.entry, FrameEntry):
            raise NotAsRecorded(frame.source)
        entry = answered.entry
        if entry.index != frame.index or entry.digest != pixel_digest(frame.rgb):
            raise NotAsRecorded(frame.source)
        self._last = entry
        return self._result(frame.rgb, entry, answered)

    def against(self, frame: Frame, result: ImageResult, dense: RunSettings) -> Audited:
        """What the worker found when it ran the frame dense."""
        del result, dense
        if self._last is None or self._last.audited is None:
            raise NotAsRecorded(frame.source)
        return Audited(*self._last.audited)

    def _result(self, rgb: RGB, entry: FrameEntry, answered: Answered) -> ImageResult:
        tokens, timing = _tokens(entry, answered.keep), FrameTiming(*entry.timing)
        if entry.scores is not None:
            scores = tuple(ClassScore(*score) for score in entry.scores)
            return ClassificationResult(rgb, tokens, timing, scores, np.zeros(0))
        with packages.pillow().open(io.BytesIO(answered.mask)) as image:
            class_map = np.asarray(image, dtype=np.uint8)
        return RecordedSegmentation(rgb, tokens, timing, class_map, self._palette, self._gates, answered.mask)


def _tokens(entry: FrameEntry, keep: Bits | None) -> FrameTokens:
    bits = np.zeros(0, dtype=np.uint8) if keep is None else np.unpackbits(keep)
    position, windows = 0, []
    for window in entry.windows:
        grids = []
        for height, width in window.grids:
            grids.append(bits[position : position + height * width].reshape(height, width).astype(bool))
            position += height * width
        windows.append(_window(window, tuple(grids)))
    region = None if entry.region is None else Region(*entry.region)
    return FrameTokens(tuple(windows), entry.input_size, entry.patch, entry.pads, region, entry.still)


def _window(entry: WindowEntry, keep: tuple[np.ndarray[tuple[int, ...], np.dtype[np.bool_]], ...]) -> Window:
    # The time of each stage and the confidences are in nothing that a run writes.
    report = TokenReport(
        entry.kept, entry.dense, entry.actual, keep, (), RunTiming(0.0, ()), entry.capped, entry.compiled
    )
    return Window(*entry.corner, report)


def frames_as_recorded(
    frames: Iterable[Frame | FailedFrame], *, name: str, expected: int, stop: threading.Event
) -> Iterator[Frame | FailedFrame]:
    """The frames of a source; an error where they are not as many as were answered.

    Raises:
        NotAsRecorded: they are not.
        Interrupted: `stop` is set: half of a source is no result, and the parts are kept.
    """
    count = 0
    for frame in frames:
        if stop.is_set():
            raise Interrupted("stopped")
        count += isinstance(frame, Frame)
        yield frame
    if count != expected:
        raise NotAsRecorded(name)
