"""The contents of `eval --json`: how right a deployed bundle is, dense and dynamic, with the controls beside it.

One family of records: what every task reports stands in the base classes, and each task adds its metrics. Metrics are
percent, drops are points of the task's score (mIoU, top-1) lost against the dense run, MACs are in 10^9.
"""

from __future__ import annotations

from dovit_deploy.datasets.summary import DataSummary
from dovit_deploy.measure.against import ClassificationAgainstFp32, SegmentationAgainstFp32
from dovit_deploy.record import Record

# What every task reports.


class Spread(Record):
    """How a number differs from image to image."""

    mean: float
    min: float
    p10: float
    p90: float
    max: float


class Comparison(Record):
    """One way of running against the dense one; drops are None where the bundle has no dense form."""

    flops_saved: float
    """1 - actual / dense MACs of the whole set."""
    drop: float | None
    drop_interval: tuple[float, float] | None
    """95 %, paired bootstrap; None also for fewer than 8 blocks."""


class AtSize(Record):
    """Which smaller input the same weights were run at, dense, and in which engine."""

    size: tuple[int, int]
    """Height and width in pixels."""
    engine: str


class ImageTokens(Record):
    """Tokens of one image, as in `frames.jsonl`."""

    total: int
    kept: tuple[int, ...]


class ImageMacs(Record):
    """MACs of one image."""

    dense: float
    actual: float


class ImageRow(Record):
    """One image."""

    image: str
    tokens: ImageTokens
    gmacs: ImageMacs
    flops_saved: float


class Bootstrap(Record):
    """How the intervals were drawn."""

    blocks: int
    seconds_per_block: float | None
    """Of recording, counted from the first image of each drive; None: independent images, each a block."""
    images_per_block: int
    """Of the longest block."""
    resamples: int
    seed: int


class EvalReport(Record):
    """What was measured, and on what; each task adds `dense`, `dynamic`, `controls` and `per_image`."""

    images: int
    dataset: str
    split: str
    bundle: str
    source_sha256: str
    """Of the weights that the bundle was made of, as its manifest has it."""
    engine: str
    precision: str
    thresholds: list[float] | list[list[float]]
    machine: dict[str, str | int]
    versions: dict[str, str]
    bootstrap: Bootstrap
    data: DataSummary | None
    """What was found in the data set when it was opened."""


Spreads = dict[str, Spread | tuple[Spread, ...]]
"""`flops_saved`, `gmacs`, and `tokens` with one entry per stage (or count of `kept`)."""


# Segmentation.


class SegmentationScores(Record):
    """One way of running over the whole set."""

    miou: float
    boundary_iou: float
    """Mean over the classes, of a band of 3 pixels inside their contours."""
    pixel_accuracy: float
    gmacs: float
    """Mean over the images."""


class SegmentationQuality(SegmentationScores):
    """The same, class by class."""

    iou: dict[str, float | None]
    """None for a class that neither occurs nor is predicted."""


class SegmentationDynamic(SegmentationQuality, Comparison):
    """The bundle as it is deployed."""

    boundary_drop: float | None
    worst_class_drop: float | None
    worst_class: str | None
    spread: Spreads


class SegmentationControl(SegmentationScores, Comparison):
    """Other decisions on the same images."""

    rule_gain: float
    """mIoU of the rule less that of this, in points."""
    rule_gain_interval: tuple[float, float] | None
    """95 %, paired as that of a drop."""


class SmallerSegmentation(SegmentationControl, AtSize):
    """The same weights, dense, at a smaller input size."""


class SegmentationControls(Record):
    """What the rule must beat."""

    random: SegmentationControl
    """The same number of tokens stopped at the same gates of each image, drawn."""
    position: SegmentationControl | None
    """The same numbers, those first that the rule stops most often on other images; None where there is no other."""
    other: SegmentationControl | None
    """The same numbers, in the order in which they stopped in another image; None where there is no other."""
    first_gate: SegmentationControl
    """Everything stopped at the first gate."""
    oracle: SegmentationControl
    """The same number of tokens stopped at the same gates, those first that have the final dense class already."""
    oracle_unlimited: SegmentationControl
    """Every token stopped whose gate's class is the final dense class, at whatever cost that is."""
    gate_efficiency: float | None
    """(rule - random) / (oracle - random) in mIoU, three runs of equal cost; None where the oracle is no better than
    chance."""
    smaller_input: tuple[SmallerSegmentation, ...]
    seed: int
    position_from: str | None
    """The images that positions were learned from; where they are the evaluated ones, each was left out of its own."""
    position_images: int | None
    """How many they are."""


class SegmentationRow(ImageRow):
    """mIoU of the image alone; None where it has no label, or was not run so."""

    miou_dense: float | None
    miou_dynamic: float | None


class SegmentationReport(EvalReport):
    """`eval --json` of a segmentation bundle."""

    dense: SegmentationQuality | None
    dynamic: SegmentationDynamic
    against_fp32: SegmentationAgainstFp32 | None
    controls: SegmentationControls | None
    per_image: tuple[SegmentationRow, ...]


# Classification.


class ClassificationScores(Record):
    """One way of running over the whole set."""

    top1: float
    """Images whose most probable class is theirs."""
    top5: float
    """Images whose class is among the five most probable."""
    gmacs: float
    """Mean over the images."""


class ClassificationDynamic(ClassificationScores, Comparison):
    """The bundle as it is deployed."""

    top5_drop: float | None
    agreement: float | None
    """Percent of the images that get the dense run's class."""
    spread: Spreads


class SmallerClassification(ClassificationScores, Comparison, AtSize):
    """The same weights, dense, at a smaller input size."""


class ClassificationControls(Record):
    """What the selection must beat: without gates there is nothing to replay, so all but the last are always None."""

    random: None = None
    position: None = None
    other: None = None
    first_gate: None = None
    oracle: None = None
    gate_efficiency: None = None
    smaller_input: tuple[SmallerClassification, ...]


class ClassificationRow(ImageRow):
    """The label and the answers: ids of the most probable classes, the most probable first."""

    label: int
    top_dense: tuple[int, ...] | None
    top_dynamic: tuple[int, ...]


class ClassificationReport(EvalReport):
    """`eval --json` of a classifier."""

    dense: ClassificationScores | None
    dynamic: ClassificationDynamic
    against_fp32: ClassificationAgainstFp32 | None
    controls: ClassificationControls | None
    per_image: tuple[ClassificationRow, ...]
