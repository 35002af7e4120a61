"""From one recording: what any thresholds would keep, save and put at risk, without running the model again.

The recording pass runs every image once with nothing stopped. Thresholds are inputs at run time and a gate's head is
evaluated on running tokens, so that this one run shows every gate's confidence and label for every token, and its
logits are the dense answer.

What is approximated: confidences and labels are those of the run that stopped nothing, and they move a little when
other tokens stop; a stopped token is taken to keep the class its gate saw, while the decode head decides in the end.
So predictions only rank candidates; whatever is chosen is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dovit_deploy.bundle.calibration import CurvePoint, Prediction
from dovit_deploy.bundle.interface import CONFIDENCE, LABEL, LOGITS
from dovit_deploy.engines.base import as_float32
from dovit_deploy.errors import UsageError
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.runtime import transforms
from dovit_deploy.runtime.results import RunTiming, TokenReport
from dovit_deploy.runtime.settings import RunSettings, index_from_keep

if TYPE_CHECKING:
    from dovit_deploy.runtime.session import Session


MOST_WINDOWS = 512
"""Recorded at most, which bounds memory and time of the search; images beyond them only give their dense answer."""

LEVELS = 32
"""Thresholds tried per gate: quantiles of its confidences, and 1 (nothing stops)."""
PRICES = 40
"""Prices of risk, at each of which the thresholds of all gates are found together."""
MOST_POINTS = 48
"""Most points of the curve: 1 to 2 % of the MACs apart."""
CAUTION = (0.0, 0.25, 0.5, 0.75)
"""Parts of the way from 1 (nothing stops) down to the most cautious predicted thresholds."""
ROUNDS = 4
"""Rounds of coordinate descent at one price; it converges in two or three."""


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
    """A `RunsOne` that runs `session` with nothing stopped and records what the gates find of every token."""

    def __init__(self, session: Session) -> None:
        self.session, self.bundle = session, session.bundle
        self.recording = Recording(session.bundle.manifest.spec)

    def run_one(
        self, pixels: npt.NDArray[np.float32], settings: RunSettings
    ) -> tuple[npt.NDArray[np.float32], TokenReport]:
        """Logits (1, K, h, w) of one window with nothing stopped, whatever `settings` are, and its report."""
        del settings
        session, spec = self.session, self.bundle.manifest.spec
        everything = index_from_keep([np.ones(spec.grid, dtype=bool)] * len(spec.gates), spec)
        confidence, label = [], []
        # Replayed, so that not even a confidence that rounding lifts above 1 can stop a token.
        for outputs, index in session.stages(pixels, RunSettings.stop_nothing(spec, replay=everything)):
            if index is not None:
                confidence.append(as_float32(session.backend.download(outputs[CONFIDENCE])))
                label.append(np.asarray(session.backend.download(outputs[LABEL]), dtype=np.int64))
        logits = as_float32(session.backend.download(outputs[LOGITS]))
        if len(self.recording.windows) < MOST_WINDOWS:
            histogram = self._histogram(logits[0])
            self.recording.windows.append(WindowRecord(np.stack(confidence), np.stack(label), histogram))
        # A predictor expects a report; costs and times of a recording are not used, so they are placeholders.
        return logits, TokenReport((spec.tokens,) * (len(spec.gates) + 1), 1.0, 1.0, (), (), RunTiming(0.0, ()))

    def _histogram(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
        spec, cover = self.bundle.manifest.spec, self.bundle.manifest.preprocessing.logits_cover
        answer = transforms.to_class_map(logits, spec.size, spec.size, cover=cover, patch=spec.patch)
        return class_histogram(answer, spec)


def class_histogram(answer: npt.NDArray[np.uint8], spec: ModelSpec) -> npt.NDArray[np.uint16]:
    """(N, K): how many pixels of each patch of `answer` (H, W), at the model's size, have each class."""
    sides = zip(answer.shape, spec.pads_before, strict=True)
    rows, columns = ((np.arange(side) + before) // spec.patch for side, before in sides)
    token = rows[:, None] * spec.grid[1] + columns[None, :]
    flat = token.astype(np.int64) * spec.classes + answer
    counted = np.bincount(flat.ravel(), minlength=spec.patches * spec.classes)
    # uint16 holds the pixels of any patch up to 255 x 255, and takes a quarter of the memory of int64.
    return counted.reshape(spec.patches, spec.classes).astype(np.uint16)


class Surrogate:
    """Predicts from a recording what any thresholds would save and risk.

    Raises:
        UsageError: the model has no gates, or nothing was recorded.
    """

    def __init__(self, recording: Recording, *, floor: float) -> None:
        spec = recording.spec
        if not spec.gates or not recording.windows:
            raise UsageError("a model without gates has no thresholds to calibrate")
        self.spec, self.floor = spec, np.float32(floor)
        self._confidence = np.stack([window.confidence for window in recording.windows], axis=1)
        self._risk = _risks(recording)
        self._macs = _stage_macs(spec)
        self._dense = cost_model(spec).dense().total
        self.levels = tuple(_levels(gate) for gate in self._confidence)

    def predict(self, thresholds: Sequence[float]) -> Prediction:
        """`thresholds`: one per gate."""
        running = np.ones(self._confidence.shape[1:], dtype=bool)
        risk, macs = 0.0, self._macs[0, self.spec.tokens] * len(running)
        for gate, threshold in enumerate(thresholds):
            confidence = self._confidence[gate]
            # In float32, as the graph compares.
            stop = running & ((confidence > np.float32(threshold)) | (confidence < self.floor))
            risk += float(self._risk[gate][stop].sum())
            running &= ~stop
            kept = running.sum(axis=1) + self.spec.extra_tokens
            macs += self._macs[gate + 1, kept].sum()
        return Prediction(flops_saved=1.0 - float(macs) / (self._dense * len(running)), risk=risk)

    def curve(self) -> tuple[CurvePoint, ...]:
        """Settings from cautious to bold, each with the least risk found at what it saves; at least two.

        For every price of risk the thresholds of all gates are found together by coordinate descent on
        risk - price * saved, starting from the previous price's. A price only finds corners of the trade-off, so
        whatever was tried on the way, and equal shares of every gate's tokens, can be on the curve, too.
        """
        gates = len(self.levels)
        seen = dict[tuple[float, ...], Prediction]()
        for number in range(LEVELS):
            # Levels are quantiles: those of one number stop an equal share of every gate's tokens.
            self._see([float(levels[min(number, len(levels) - 1)]) for levels in self.levels], seen)
        # Everything stops at the first gate, at the risk by which prices are scaled.
        bold = self._see([0.0] * gates, seen)
        start = [1.0] * gates
        # Not scaled by a risk of 0: all prices would then find the same setting.
        for price in max(bold.risk, 1e-6) * np.geomspace(1e-4, 10.0, PRICES):
            start = self._descend(start, float(price), seen)
        front = _front([CurvePoint(thresholds=values, predicted=answer) for values, answer in seen.items()])
        return (*self._cautious(front[0]), *_thinned(front))

    def neighbours(self, thresholds: Sequence[float]) -> list[CurvePoint]:
        """Every setting one level away at one gate, or at two gates in opposite directions."""
        numbers = [int(np.abs(level - own).argmin()) for level, own in zip(self.levels, thresholds, strict=True)]
        moves: list[tuple[int, ...]] = []
        gates = len(numbers)
        for gate in range(gates):
            for step in (-1, 1):
                single = [0] * gates
                single[gate] = step
                moves.append(tuple(single))
                for other in range(gates):
                    if other != gate:
                        pair = list(single)
                        pair[other] = -step
                        moves.append(tuple(pair))
        found = {}
        for move in moves:
            moved = [number + step for number, step in zip(numbers, move, strict=True)]
            if all(0 <= number < len(level) for number, level in zip(moved, self.levels, strict=True)):
                values = tuple(float(level[number]) for number, level in zip(moved, self.levels, strict=True))
                found[values] = self._point(values)
        found.pop(tuple(thresholds), None)
        return list(found.values())

    def _point(self, thresholds: Sequence[float]) -> CurvePoint:
        return CurvePoint(thresholds=tuple(thresholds), predicted=self.predict(thresholds))

    def _see(self, thresholds: Sequence[float], seen: dict[tuple[float, ...], Prediction]) -> Prediction:
        key = tuple(thresholds)
        if key not in seen:
            seen[key] = self.predict(key)
        return seen[key]

    def _cautious(self, first: CurvePoint) -> list[CurvePoint]:
        """Settings below `first`, down to nothing stopped: a setting without predicted risk can still do harm."""
        points = [self._point([1.0 - (1.0 - value) * part for value in first.thresholds]) for part in CAUTION]
        return [point for point in points if point.predicted.flops_saved < first.predicted.flops_saved]

    def _descend(self, start: Sequence[float], price: float, seen: dict[tuple[float, ...], Prediction]) -> list[float]:
        current = list(start)
        for _ in range(ROUNDS):
            before = list(current)
            for gate, levels in enumerate(self.levels):
                trials = [[*current[:gate], float(level), *current[gate + 1 :]] for level in levels]
                answers = [self._see(trial, seen) for trial in trials]
                costs = [answer.risk - price * answer.flops_saved for answer in answers]
                current = trials[int(np.argmin(costs))]
            if current == before:
                break
        return current


def _thinned(front: Sequence[CurvePoint]) -> list[CurvePoint]:
    """At most `MOST_POINTS` of `front`, evenly spread over what they save, both ends among them."""
    saved = np.array([point.predicted.flops_saved for point in front])
    wanted = np.linspace(saved[0], saved[-1], MOST_POINTS)
    return [front[number] for number in np.unique(np.abs(saved[None, :] - wanted[:, None]).argmin(axis=1))]


def _levels(confidence: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Rising thresholds: quantiles of `confidence`, rounded so that they read well, 0 and 1 among them."""
    # The ends of the quantiles are replaced by 0 and 1, at which everything or nothing stops.
    quantiles = np.quantile(confidence, np.linspace(0.0, 1.0, LEVELS)[1:-1])
    return np.unique(np.clip([0.0, *np.round(quantiles, 5), 1.0], 0.0, 1.0))


def _risks(recording: Recording) -> npt.NDArray[np.float64]:
    """(gates, windows, N): weighted pixels of a token whose dense class is not the label that its gate saw.

    Every class weighs the same, as in mIoU; all weights sum to 1, so a sum of risks is a share.
    """
    histogram = np.stack([window.histogram for window in recording.windows]).astype(np.float64)
    pixels = histogram.sum(axis=(0, 1))
    weight = np.divide(1.0, pixels * np.count_nonzero(pixels), out=np.zeros_like(pixels), where=pixels > 0)
    weighted = histogram * weight
    label = np.stack([window.label for window in recording.windows], axis=1)
    whole = weighted.sum(axis=2)
    same = [np.take_along_axis(weighted, gate[:, :, None], axis=2)[:, :, 0] for gate in label]
    return np.stack([whole - part for part in same])


def _stage_macs(spec: ModelSpec) -> npt.NDArray[np.int64]:
    """(stages, tokens + 1): MACs that a stage costs with that many tokens; what is always paid is in stage 0.

    `CostModel.actual` is a sum over stages, so its differences are each stage's own.
    """
    cost, stages = cost_model(spec), len(spec.counts)
    none = [0] * stages
    # What no token count changes (the patch embedding, the decode head) is counted once, in stage 0.
    base = cost.actual(none).total
    table = np.zeros((stages, spec.tokens + 1), dtype=np.int64)
    for stage in range(stages):
        for kept in range(spec.extra_tokens, spec.tokens + 1):
            table[stage, kept] = cost.actual([*none[:stage], kept, *none[stage + 1 :]]).total - base
    table[0] += base
    return table


def _front(points: Sequence[CurvePoint]) -> tuple[CurvePoint, ...]:
    """Those that no other beats in both, from the least saved (and least risk) to the most."""
    ranked = sorted(points, key=lambda point: (point.predicted.risk, -point.predicted.flops_saved))
    front: list[CurvePoint] = []
    for point in ranked:
        if not front or point.predicted.flops_saved > front[-1].predicted.flops_saved:
            front.append(point)
    return tuple(front)
