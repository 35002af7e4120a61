"""The recording pass: every image once with nothing stopped, and what each gate would have said of each token.

Thresholds are run-time inputs and a gate's head is evaluated on running tokens, so one run that stops nothing shows
every gate's confidence and label for every token, and its logits are the dense answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from dovit_deploy.bundle.model_spec import ModelSpec
from dovit_deploy.engines.base import as_float32
from dovit_deploy.errors import UsageError
from dovit_deploy.runtime import transforms
from dovit_deploy.runtime.gate_inputs import Keep, Thresholds, index_from_keep
from dovit_deploy.runtime.predictor import Predictor
from dovit_deploy.runtime.results import RGB, RunTiming, TokenReport

if TYPE_CHECKING:
    from dovit_deploy.runtime.session import Session

MOST_WINDOWS = 512
"""Kept for the prediction; images beyond that only give their dense answer. Bounds memory and time of the search."""


@dataclass(frozen=True)
class WindowRecord:
    """One window of an image with nothing stopped."""

    confidence: npt.NDArray[np.float32]
    """(gates, N)."""
    label: npt.NDArray[np.int64]
    """(gates, N)."""
    histogram: npt.NDArray[np.uint16]
    """(N, K): pixels of each patch by the class of the dense answer."""


@dataclass
class Recording:
    """The windows of all recorded images."""

    spec: ModelSpec
    windows: list[WindowRecord] = field(default_factory=list)


class RecordingSession:
    """What a `Predictor` needs of a session; runs `session` with nothing stopped and writes down what the gates say."""

    def __init__(self, session: Session) -> None:
        self.session, self.bundle = session, session.bundle
        self.recording = Recording(session.bundle.manifest.spec)

    def run_one(
        self,
        pixels: npt.NDArray[np.float32],
        *,
        thresholds: Thresholds | None = None,
        floor: float | None = None,
        keep: Keep | None = None,
        dense: bool = False,
    ) -> tuple[npt.NDArray[np.float32], TokenReport]:
        """Logits (1, K, h, w) of one window with nothing stopped, and its report."""
        if not (thresholds is None and floor is None and keep is None) or dense:
            raise UsageError("a recording stops nothing: it takes no thresholds, floor, keep or dense")
        session, spec = self.session, self.bundle.manifest.spec
        everything = index_from_keep([np.ones(spec.grid, dtype=bool)] * len(spec.gates), spec)
        confidence, label = [], []
        ones = np.ones((len(spec.gates), spec.classes), dtype=np.float32)
        # Replayed, so that not even a confidence that rounding lifts above 1 can stop a token.
        for outputs, index in session.stages(pixels, thresholds=ones, floor=np.float32(0), replay=everything):
            if index is not None:
                confidence.append(as_float32(session.backend.download(outputs["confidence"])))
                label.append(np.asarray(session.backend.download(outputs["label"]), dtype=np.int64))
        logits = as_float32(session.backend.download(outputs["logits"]))
        if len(self.recording.windows) < MOST_WINDOWS:
            histogram = self._histogram(logits[0])
            self.recording.windows.append(WindowRecord(np.stack(confidence), np.stack(label), histogram))
        return logits, TokenReport((spec.tokens,) * (len(spec.gates) + 1), 1.0, 1.0, (), (), RunTiming(0.0, ()))

    def _histogram(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
        spec, cover = self.bundle.manifest.spec, self.bundle.manifest.preprocessing.logits_cover
        answer = transforms.to_class_map(logits, spec.size, spec.size, cover=cover, patch=spec.patch)
        return class_histogram(answer, spec)


def class_histogram(answer: npt.NDArray[np.uint8], spec: ModelSpec) -> npt.NDArray[np.uint16]:
    """(N, K): how many pixels of each patch of `answer` (H, W), at the model's size, have each class."""
    rows, columns = (np.arange(side) // spec.patch for side in answer.shape)
    token = rows[:, None] * spec.grid[1] + columns[None, :]
    flat = token.astype(np.int64) * spec.classes + answer
    counted = np.bincount(flat.ravel(), minlength=spec.patches * spec.classes)
    return counted.reshape(spec.patches, spec.classes).astype(np.uint16)


def recorded_answer(recorder: RecordingSession, rgb: RGB) -> npt.NDArray[np.uint8]:
    """The dense class map (H, W) uint8 of one picture; its windows join the recording."""
    predictor = Predictor(cast("Session", recorder))
    return predictor.predict(rgb).class_map
