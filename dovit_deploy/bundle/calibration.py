"""Calibration: what `calibration.json` says about where a bundle's thresholds come from, with the whole curve."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from dovit_deploy.record import Record

BudgetKind = Literal["max-drop", "flops", "latency-ms", "max-disagree"]
PartName = Literal["search", "check", "all"]
UnitKind = Literal["image", "block", "drive"]
UNIT_KINDS: tuple[UnitKind, ...] = get_args(UnitKind)
UnitSource = Literal["user", "data set", "nobody"]


class BudgetEntry(Record):
    """The budget that the thresholds keep to."""

    kind: BudgetKind
    limit: float
    """mIoU points, a fraction of the dense MACs, milliseconds, or a fraction of the pixels."""
    confidence: float | None = None
    """Of the bound on disagreement."""
    text: str
    """The limit as a sentence, for reports."""


class Prediction(Record):
    """What the recording predicts for thresholds, without a run."""

    flops_saved: float
    risk: float
    """Share of the pixels, every class weighing the same, whose token stops with another class than the dense one."""


class CurvePoint(Record):
    """One setting of the predicted curve, from cautious to bold."""

    thresholds: tuple[float, ...]
    """Per gate, the same for all classes."""
    predicted: Prediction


class Interval(Record):
    """95 % interval of a paired block bootstrap."""

    low: float
    high: float


class MeasuredPoint(Record):
    """One setting that was really run on the deployed bundle."""

    part: PartName
    thresholds: tuple[float, ...]
    images: int
    predicted: Prediction
    flops_saved: float
    """1 - actual / dense MACs of the whole model, over all images of the part."""
    gmacs: float
    """Mean per image, in 10^9 MACs."""
    kept: tuple[float, ...]
    """Mean tokens entering each stage."""
    differing: float
    """Share of the pixels whose class is not the dense answer's, mean over the images."""
    miou: float | None
    """In percent; None without labels."""
    drop: float | None
    """Dense mIoU - mIoU, in points."""
    drop_interval: Interval | None
    model_ms: float
    """Median of the model step, in ms."""
    judged: float
    """What is compared with the budget's limit, in its unit."""
    met: bool


class SequenceStep(Record):
    """One setting of the sequence that was tested on held-out images."""

    thresholds: tuple[float, ...]
    """Per gate."""
    flops_saved: float
    differing: float
    """Mean over the units of the share of differing pixels."""
    bet: float
    """Chosen on the images of the search; docs/decisions/0017."""
    p_value: float
    """Of the hypothesis that the limit is exceeded on images like these."""
    bound: float
    """The largest share that is not excluded with the confidence."""
    shown: bool
    """That the limit is kept: the p-value is at most 1 - confidence."""


class SequenceTest(Record):
    """The test behind a promise: a fixed sequence of settings, on units that the choice of the sequence did not see."""

    max_disagree: float
    """E: the share of the pixels that may differ from the dense answer."""
    confidence: float
    """C."""
    unit: UnitKind
    """What is counted as independent: images, blocks of ten seconds of recording, or drives."""
    unit_said_by: UnitSource
    units_searched: int
    """That the sequence was chosen on."""
    units: int
    """That it was tested on."""
    least_units: int
    """Of fewer no test shows as much, even if no pixel differs."""
    sequence: tuple[SequenceStep, ...]
    """From cautious to bold, up to the first that is not shown: what is behind that was not tested."""
    stopped_at: int | None
    """The number of that one in `sequence`; None: all are shown."""
    boldest: int
    """The number of the last one that is shown: the chosen thresholds."""


class PartEntry(Record):
    """The images of one part of the data set."""

    part: PartName
    images: tuple[str, ...]
    blocks: int
    """Groups of neighbouring images that were kept together."""
    dense_miou: float | None
    dense_gmacs: float
    """Mean per image, in 10^9 MACs."""


class HeldOutClass(Record):
    """A class on the held-out images, IoU in percent; None where it neither occurs nor is predicted."""

    name: str
    dense: float | None
    chosen: float | None
    """At the chosen thresholds."""


class HeldOutImage(Record):
    """A held-out image at the chosen thresholds."""

    image: str
    differing: float
    """Share of its pixels whose class is not the dense answer's."""
    flops_saved: float
    dense_miou: float | None
    """In percent, of this image alone; None without a label."""
    miou: float | None


class ControlPoint(Record):
    """Another way to spend as much, or less, on the held-out images."""

    flops_saved: float
    """Against the dense bundle at its own size."""
    gmacs: float
    """Mean per image, in 10^9 MACs."""
    miou: float
    """In percent."""
    drop: float
    """Dense mIoU - mIoU, in points."""
    drop_interval: Interval | None
    """None for fewer than 8 blocks."""
    rule_gain: float | None = None
    """mIoU at the chosen thresholds less that of this, in points; None in files of versions that did not say."""
    rule_gain_interval: Interval | None = None
    """None for fewer than 8 blocks, too."""


class SmallerPoint(ControlPoint):
    """The same weights, dense, at a smaller input size."""

    size: tuple[int, int]
    """Height and width in pixels."""
    engine: str


class ChoiceControls(Record):
    """What the chosen thresholds must beat; measured after the choice, on the held-out images."""

    random: ControlPoint
    """At each gate of each image, as many tokens stop as at the chosen thresholds, drawn at random."""
    oracle: ControlPoint
    """The same numbers, but tokens that have their final class already stop first."""
    position: ControlPoint | None = None
    """The same numbers, those first that the chosen thresholds stop most often on the images of the search; None in
    files of versions without this, likewise the next."""
    other: ControlPoint | None = None
    """The same numbers, in the order in which they stop in another held-out image."""
    smaller_input: tuple[SmallerPoint, ...]
    left_out: str | None
    """Why there is nothing at smaller inputs."""
    seed: int
    """Of the draw."""


class Calibration(Record):
    """The contents of `calibration.json`."""

    version: Literal[1] = 1
    tool: str
    dataset: str
    split: str | None
    seed: int
    engine: str
    precision: str
    budget: BudgetEntry
    thresholds: tuple[tuple[float, ...], ...]
    """The chosen ones, per gate and class."""
    floor: float = Field(ge=0, le=1)
    parts: tuple[PartEntry, ...]
    curve: tuple[CurvePoint, ...]
    measured: tuple[MeasuredPoint, ...]
    chosen: MeasuredPoint
    """The chosen thresholds on the held-out images."""
    chosen_on_all: MeasuredPoint
    """The chosen thresholds on the images of both parts together."""
    passes: int
    """How often a part was really run, dense runs included, controls not."""
    test: SequenceTest | None = None
    """None for budgets other than "max-disagree", and in files of versions that had no such test."""
    classes: tuple[HeldOutClass, ...] = ()
    """None without labels, and in files of versions that did not say; likewise the next without the former."""
    held_out: tuple[HeldOutImage, ...] = ()
    """The images of the part "check"."""
    controls: ChoiceControls | None = None
    """None without labels, and in files of versions that had no controls."""
