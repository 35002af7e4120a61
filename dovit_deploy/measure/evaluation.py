"""The contents of `eval --json`: how right a deployed bundle is, dense and dynamic, and the controls beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dovit_deploy.bundle.spec import Noun
from dovit_deploy.measure.metrics import ClassCounts


class Spread(Noun):
    """How a number differs from image to image."""

    mean: float
    min: float
    p10: float
    p90: float
    max: float


class Quality(Noun):
    """One way of running the bundle over the whole set; metrics in percent."""

    miou: float
    boundary_iou: float
    """Mean over the classes, of a band of 3 pixels inside their contours."""
    pixel_accuracy: float
    iou: dict[str, float | None]
    """Per class; None for one that neither occurs nor is called."""
    gmacs: float
    """10^9 MACs, mean over the images."""


class Dynamic(Quality):
    """The bundle with its gates."""

    flops_saved: float
    """1 - actual / dense MACs of the whole set."""
    drop: float
    """Points of mIoU lost against dense."""
    drop_interval: tuple[float, float] | None
    """95 %, paired block bootstrap; None for sets of one block."""
    boundary_drop: float
    worst_class_drop: float
    worst_class: str
    spread: dict[str, Spread | tuple[Spread, ...]]
    """`flops_saved`, `gmacs`, and `tokens` with one entry per stage."""


class ControlResult(Noun):
    """A control: other decisions, or a smaller input, on the same images."""

    miou: float
    boundary_iou: float
    pixel_accuracy: float
    drop: float
    """Points of mIoU lost against dense."""
    drop_interval: tuple[float, float] | None
    flops_saved: float
    """Against the dense bundle."""
    gmacs: float


class SmallerInput(ControlResult):
    """The same weights, dense, at a smaller input size."""

    size: tuple[int, int]
    """Height and width in pixels."""
    engine: str


class Controls(Noun):
    """What the rule must beat."""

    random: ControlResult
    """The same number of tokens stopped at the same gates of each image, drawn."""
    first_gate: ControlResult
    """Everything stopped at the first gate."""
    oracle: ControlResult
    """The same number of tokens stopped at the same gates, those first that have the final dense class already."""
    oracle_unlimited: ControlResult
    """Every token stopped whose gate's class is the final dense class, at whatever cost that is."""
    gate_efficiency: float | None
    """(rule - random) / (oracle - random) in mIoU, three runs of equal cost; None where the oracle is no better than
    chance."""
    smaller_input: tuple[SmallerInput, ...]
    seed: int


class ImageTokens(Noun):
    """As in `frames.jsonl`."""

    total: int
    kept: tuple[int, ...]


class ImageMacs(Noun):
    """10^9 MACs."""

    dense: float
    actual: float


class ImageRow(Noun):
    """One image."""

    image: str
    tokens: ImageTokens
    gmacs: ImageMacs
    flops_saved: float
    miou_dense: float | None
    miou_dynamic: float | None
    """Of the image alone; None where it has no label."""


class Bootstrap(Noun):
    """How the intervals were drawn."""

    blocks: int
    images_per_block: int
    """At most."""
    resamples: int
    seed: int


class EvalReport(Noun):
    """The contents of `eval --json`."""

    images: int
    dataset: str
    split: str
    bundle: str
    engine: str
    precision: str
    thresholds: list[float] | list[list[float]]
    machine: dict[str, str | int]
    versions: dict[str, str]
    bootstrap: Bootstrap
    dense: Quality
    dynamic: Dynamic
    controls: Controls | None
    per_image: tuple[ImageRow, ...]


def spread(values: Sequence[float]) -> Spread:
    """Mean, smallest, 10th and 90th percentile, largest of at least one value."""
    array = np.asarray(values, dtype=np.float64)
    p10, p90 = np.percentile(array, [10, 90])
    return Spread(
        mean=float(array.mean()), min=float(array.min()), p10=float(p10), p90=float(p90), max=float(array.max())
    )


def iou_by_name(counts: ClassCounts, names: Sequence[str]) -> dict[str, float | None]:
    """IoU of each class by its name; a name that comes twice gets its number."""
    keys = [name if list(names).count(name) == 1 else f"{name} {number}" for number, name in enumerate(names)]
    return {key: number_or_none(float(value)) for key, value in zip(keys, counts.total().iou, strict=True)}


def number_or_none(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value
