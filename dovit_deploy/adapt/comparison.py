"""Is token passing worth it here? The rule beside everything that is simpler, at equal MACs, on held-out images.

Random stopping costs what the rule costs by construction. A shallower network (everything stops at one gate) and a
smaller input cost what they cost: the rule is run at other thresholds of its curve, at which it saves as much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dovit_deploy.adapt.report import RuleBeside, TableEntry, WayEntry
from dovit_deploy.bundle.calibration import Calibration, CurvePoint, Interval
from dovit_deploy.calibrate.images import CalibrationImages
from dovit_deploy.families.cost import cost_model
from dovit_deploy.measure.controls import Steering
from dovit_deploy.measure.intervals import Blocks, mean_interval, miou_drop_interval
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.runtime.results import ClassMap
from dovit_deploy.runtime.segmentation import Predictor, SegmentationResult
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings

Thresholds = tuple[float, ...]


@dataclass
class _Tally:
    """One way to spend MACs, image by image."""

    gmacs: list[float] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    """Share of the pixels that have the class of the network as it was given."""
    counts: list[ClassCounts] = field(default_factory=list)
    """(K,) of each image; empty without labels."""


@dataclass(frozen=True)
class ComparedWith:
    """What the rule is compared with, and what of the rule."""

    chosen: Thresholds | None
    """None: no thresholds are good enough."""
    curve: Sequence[CurvePoint]
    """Of the rule, from cautious to bold; empty where none was found."""
    smaller: Sequence[Session]
    """The network as it was given at smaller inputs, run dense."""
    left_out: str | None
    """Why there are none of these."""
    original: Session | None = None
    """The network as it was given, where the bundle's own is another one by now."""

    @classmethod
    def of(
        cls,
        calibration: Calibration | None,
        *,
        smaller: Sequence[Session],
        left_out: str | None,
        original: Session | None = None,
    ) -> ComparedWith:
        """Those of thresholds that were chosen; None: nothing stops."""
        if calibration is None:
            return cls(None, (), smaller, left_out, original)
        return cls(calibration.chosen.thresholds, calibration.curve, smaller, left_out, original)


def table_of(
    session: Session,
    images: CalibrationImages,
    indices: Sequence[int],
    rivals: ComparedWith,
    *,
    advance: Callable[[], None],
) -> TableEntry:
    """Run every way on the images numbered `indices`, and set them side by side.

    Args:
        session: of the adapted bundle.
        images: with labels, where mIoU is wanted, too.
        indices: of those that nothing was fitted to.
        rivals: what is run.
        advance: called after each image.
    """
    runs = _Runs(session, rivals)
    for index in indices:
        image = images.image(index)
        runs.add(image.rgb, image.label, number=index)
        advance()
    return runs.entry(images.name, images.blocks.of(indices))


class _Runs:
    """All ways on all images."""

    def __init__(self, session: Session, rivals: ComparedWith) -> None:
        self.session, self.rivals = session, rivals
        self.manifest, self.spec = session.bundle.manifest, session.bundle.manifest.spec
        self.predictor, self.steering = Predictor(session), Steering(session)
        self.original = None if rivals.original is None else Predictor(rivals.original)
        self.smaller = [Predictor(small) for small in rivals.smaller]
        self.dense, self.tuned, self.random = _Tally(), _Tally(), _Tally()
        self.static = [_Tally() for _ in self.spec.gates]
        self.small = [_Tally() for _ in self.smaller]
        dense = cost_model(self.spec).dense().total
        self.saved_static = [1 - macs / dense for macs in map(self._static_macs, range(len(self.spec.gates)))]
        self.saved_small = [1 - cost_model(small.spec).dense().total / dense for small in self.smaller]
        self.beside = {saved: beside(rivals.curve, saved) for saved in (*self.saved_static, *self.saved_small)}
        wanted = [*([rivals.chosen] if rivals.chosen else []), *filter(None, self.beside.values())]
        self.rule: dict[Thresholds, _Tally] = {values: _Tally() for values in wanted}
        self.settings = {values: RunSettings.resolve(self.manifest, thresholds=values) for values in self.rule}
        self.confidence: list[float] = []

    def _static_macs(self, gate: int) -> int:
        """Of a network that ends at this gate: without the gates before it, whose answers nobody asks for."""
        alone = type(self.spec).model_validate(
            {**self.spec.model_dump(), "gates": [self.spec.gates[gate].model_dump()], "context": "none"}
        )
        return cost_model(alone).actual((self.spec.tokens, self.spec.extra_tokens)).total

    def add(self, rgb: ClassMap, label: ClassMap | None, *, number: int) -> None:
        """Run every way on one image."""
        # What all are held to is the network as it was given.
        dense = _dense(self.original or self.predictor, rgb)
        windows = len(dense.tokens.windows)

        def note(tally: _Tally, result: SegmentationResult, gmacs: float) -> None:
            tally.gmacs.append(gmacs)
            tally.agreement.append(1 - result.differing(dense))
            if label is not None:
                tally.counts.append(ClassCounts.of(label, result.class_map, classes=self.spec.classes))

        note(self.dense, dense, dense.tokens.gmacs_dense)
        if self.original is not None:
            tuned = _dense(self.predictor, rgb)
            note(self.tuned, tuned, tuned.tokens.gmacs_dense)
        for values, tally in self.rule.items():
            result = self.predictor.run(rgb, self.settings[values])
            note(tally, result, result.tokens.gmacs_actual)
            if values == self.rivals.chosen:
                drawn = self.steering.random(rgb, result.tokens, number=number)
                note(self.random, drawn, drawn.tokens.gmacs_actual)
        for gate, tally in enumerate(self.static):
            result = self.steering.at_gate(rgb, gate)
            note(tally, result, windows * self._static_macs(gate) / 1e9)
            if gate == 0:
                seen = [np.nanmean(window.report.confidence[0]) for window in result.tokens.windows]
                self.confidence.append(float(np.mean(seen)))
        for small, tally in zip(self.smaller, self.small, strict=True):
            result = _dense(small, rgb)
            note(tally, result, result.tokens.gmacs_dense)

    def entry(self, name: str, blocks: Blocks) -> TableEntry:
        """What was measured, with intervals by `blocks`."""
        chosen = None if self.rivals.chosen is None else self.rule[self.rivals.chosen]
        ways = []
        if self.original is not None:
            ways.append(self._way("nothing stopped", "dense", self.tuned, blocks))
        if chosen is not None:
            ways.append(self._way("rule", "rule", chosen, blocks, thresholds=self.rivals.chosen))
            ways.append(self._way("random, same counts", "random", self.random, blocks, rule=chosen))
        for gate, tally, saved in zip(self.spec.gates, self.static, self.saved_static, strict=True):
            ways.append(self._rival(f"everything at gate {gate.layer}", "static", tally, saved, blocks))
        for small, tally, saved in zip(self.smaller, self.small, self.saved_small, strict=True):
            size = "x".join(map(str, small.spec.size))
            ways.append(self._rival(f"dense at {size}", "smaller-input", tally, saved, blocks))
        return TableEntry(
            name=name,
            images=len(self.dense.gmacs),
            blocks=blocks.count,
            labelled=bool(self.dense.counts),
            dense_gmacs=float(np.mean(self.dense.gmacs)),
            dense_miou=ClassCounts.stacked(self.dense.counts).miou if self.dense.counts else None,
            ways=tuple(ways),
            left_out=self.rivals.left_out,
            confidence=float(np.mean(self.confidence)),
        )

    def _rival(self, name: str, kind: str, tally: _Tally, saved: float, blocks: Blocks) -> WayEntry:
        values = self.beside[saved]
        return self._way(name, kind, tally, blocks, rule=None if values is None else self.rule[values], beside=values)

    def _way(
        self,
        name: str,
        kind: str,
        tally: _Tally,
        blocks: Blocks,
        *,
        thresholds: Thresholds | None = None,
        rule: _Tally | None = None,
        beside: Thresholds | None = None,
    ) -> WayEntry:
        counts = ClassCounts.stacked(tally.counts) if tally.counts else None
        dense = ClassCounts.stacked(self.dense.counts) if self.dense.counts else None
        chosen = None if self.rivals.chosen is None else self.rule[self.rivals.chosen]
        return WayEntry.model_validate(
            {
                "name": name,
                "kind": kind,
                "thresholds": thresholds,
                "gmacs": float(np.mean(tally.gmacs)),
                "flops_saved": self._saved(tally),
                "agreement": float(np.mean(tally.agreement)),
                "agreement_interval": _interval(mean_interval(tally.agreement, blocks)),
                "miou": None if counts is None else counts.miou,
                "drop": None if counts is None or dense is None else dense.miou - counts.miou,
                "drop_interval": None
                if counts is None or dense is None
                else _interval(miou_drop_interval(dense, counts, blocks)),
                "rule": None if rule is None else self._beside(rule, tally, blocks, beside),
                "chosen": None
                if chosen is None or kind in ("rule", "dense")
                else self._beside(chosen, tally, blocks, None),
            }
        )

    def _saved(self, tally: _Tally) -> float:
        return 1 - sum(tally.gmacs) / sum(self.dense.gmacs)

    def _beside(self, rule: _Tally, rival: _Tally, blocks: Blocks, thresholds: Thresholds | None) -> RuleBeside:
        """The rule beside a rival, image by image."""
        gains = [100 * (mine - theirs) for mine, theirs in zip(rule.agreement, rival.agreement, strict=True)]
        gain, ends = float(np.mean(gains)), mean_interval(gains, blocks)
        mious = None
        if rule.counts:
            mine, theirs = ClassCounts.stacked(rule.counts), ClassCounts.stacked(rival.counts)
            mious = mine.miou
            gain, ends = mine.miou - theirs.miou, miou_drop_interval(mine, theirs, blocks)
        return RuleBeside(
            thresholds=thresholds or self.rivals.chosen or (),
            flops_saved=self._saved(rule),
            agreement=float(np.mean(rule.agreement)),
            miou=mious,
            gain=gain,
            gain_interval=_interval(ends),
        )


def beside(curve: Sequence[CurvePoint], saved: float) -> Thresholds | None:
    """The most cautious thresholds of `curve` that are predicted to save as much; None: none does, or only those at
    which everything stops, too."""
    for point in curve:
        if point.predicted.flops_saved >= saved:
            return point.thresholds if any(point.thresholds) else None
    return None


def _dense(predictor: Predictor, rgb: ClassMap) -> SegmentationResult:
    return predictor.run(rgb, RunSettings.resolve(predictor.session.bundle.manifest, dense=True))


def _interval(ends: tuple[float, float] | None) -> Interval | None:
    return None if ends is None else Interval(low=ends[0], high=ends[1])
