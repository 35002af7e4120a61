"""The contents of `eval --json`: how right a deployed bundle is, dense and dynamic, with the controls beside it.

One family of records: what every task reports stands in the base classes, and each task adds its metrics. Metrics are
percent, drops are points of the task's score (mIoU, top-1) lost against the dense run, MACs are in 10^9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from dovit_deploy.datasets.summary import DataSummary
from dovit_deploy.machine import machine_facts, package_versions
from dovit_deploy.measure.controls import CONTROL_SEED, gate_efficiency
from dovit_deploy.measure.evaluate import ClassificationTally, EvalPlan, Measured, SegmentationTally, Tally
from dovit_deploy.measure.intervals import RESAMPLES, SEED, Blocks
from dovit_deploy.measure.metrics import ClassCounts, accuracy
from dovit_deploy.record import Record
from dovit_deploy.runtime.run import short_thresholds
from dovit_deploy.runtime.session import Session

TOP = 5
"""Classes among which the right one counts for `top5`."""

T = TypeVar("T", bound=Tally)

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
    """95 %, paired bootstrap; None also where there is only one block to draw."""


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


class SmallerSegmentation(SegmentationControl, AtSize):
    """The same weights, dense, at a smaller input size."""


class SegmentationControls(Record):
    """What the rule must beat."""

    random: SegmentationControl
    """The same number of tokens stopped at the same gates of each image, drawn."""
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


class SegmentationRow(ImageRow):
    """mIoU of the image alone; None where it has no label, or was not run so."""

    miou_dense: float | None
    miou_dynamic: float | None


class SegmentationReport(EvalReport):
    """`eval --json` of a segmentation bundle."""

    dense: SegmentationQuality | None
    dynamic: SegmentationDynamic
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
    """What the selection must beat: without gates there is nothing to replay, so the first four are always None."""

    random: None = None
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
    controls: ClassificationControls | None
    per_image: tuple[ClassificationRow, ...]


# From what was measured to the report.


def segmentation_report(measured: Measured[SegmentationTally], session: Session, plan: EvalPlan) -> SegmentationReport:
    """The report of a segmentation bundle, from what was measured with `session` and `plan`."""
    names = [entry.name for entry in session.bundle.manifest.classes]
    blocks = measured.dynamic.blocks(measured.stems)
    # `dict` of a Record keeps the records in it; `model_dump` would turn them into dicts, too.
    return SegmentationReport(
        **dict(_base(measured, session, plan, blocks)),
        dense=None if measured.dense is None else _segmentation_quality(measured.dense, names),
        dynamic=_segmentation_dynamic(measured, names, blocks),
        controls=None if measured.controls is None else _segmentation_controls(measured, measured.controls, blocks),
        per_image=_segmentation_rows(measured),
    )


def classification_report(
    measured: Measured[ClassificationTally], session: Session, plan: EvalPlan
) -> ClassificationReport:
    """The report of a classifier, from what was measured with `session` and `plan`."""
    blocks = measured.dynamic.blocks(measured.stems)
    return ClassificationReport(
        **dict(_base(measured, session, plan, blocks)),
        dense=None if measured.dense is None else _classification_scores(measured.dense),
        dynamic=_classification_dynamic(measured, blocks),
        controls=None if measured.controls is None else _classification_controls(measured, blocks),
        per_image=_classification_rows(measured),
    )


def _base(measured: Measured[T], session: Session, plan: EvalPlan, blocks: Blocks) -> EvalReport:
    return EvalReport(
        images=len(measured.stems),
        dataset=plan.dataset,
        split=plan.split,
        bundle=str(session.bundle.path),
        engine=session.backend.name,
        precision=session.backend.precision,
        thresholds=short_thresholds(plan.settings.thresholds),
        machine=machine_facts(),
        versions=package_versions(),
        bootstrap=Bootstrap(blocks=blocks.count, images_per_block=blocks.longest, resamples=RESAMPLES, seed=SEED),
        data=plan.data,
    )


def _comparison(measured: Measured[T], tally: T, blocks: Blocks) -> Comparison:
    dense = measured.dense
    return Comparison(
        # Of sums, not a mean of ratios: images of different sizes cost differently.
        flops_saved=1 - sum(tally.gmacs) / sum(measured.dense_gmacs),
        drop=None if dense is None else dense.score - tally.score,
        drop_interval=None if dense is None else tally.drop_interval(dense, blocks),
    )


def _spreads(measured: Measured[T]) -> Spreads:
    dynamic = measured.dynamic
    # Columns are stages: `kept` has one row per image.
    saved = [1 - actual / full for actual, full in zip(dynamic.gmacs, measured.dense_gmacs, strict=True)]
    stages = tuple(_spread(column) for column in zip(*dynamic.kept, strict=True))
    return {"flops_saved": _spread(saved), "gmacs": _spread(dynamic.gmacs), "tokens": stages}


def _spread(values: Sequence[float]) -> Spread:
    array = np.asarray(values, dtype=np.float64)
    p10, p90 = np.percentile(array, [10, 90])
    return Spread(
        mean=float(array.mean()), min=float(array.min()), p10=float(p10), p90=float(p90), max=float(array.max())
    )


def _image_rows(measured: Measured[T]) -> list[ImageRow]:
    dynamic = measured.dynamic
    return [
        ImageRow(
            image=stem,
            tokens=ImageTokens(total=kept[0], kept=kept),
            gmacs=ImageMacs(dense=full, actual=actual),
            flops_saved=1 - actual / full,
        )
        for stem, kept, full, actual in zip(
            measured.stems, dynamic.kept, measured.dense_gmacs, dynamic.gmacs, strict=True
        )
    ]


def _segmentation_scores(tally: SegmentationTally) -> SegmentationScores:
    return SegmentationScores(
        miou=tally.counts.miou,
        boundary_iou=tally.boundary_counts.miou,
        pixel_accuracy=tally.counts.pixel_accuracy,
        gmacs=float(np.mean(tally.gmacs)),
    )


def _segmentation_quality(tally: SegmentationTally, names: Sequence[str]) -> SegmentationQuality:
    return SegmentationQuality(**dict(_segmentation_scores(tally)), iou=iou_by_name(tally.counts, names))


def _segmentation_dynamic(
    measured: Measured[SegmentationTally], names: Sequence[str], blocks: Blocks
) -> SegmentationDynamic:
    dense, dynamic = measured.dense, measured.dynamic
    worst_class, worst_class_drop, boundary_drop = None, None, None
    if dense is not None:
        # A class without an IoU on either side cannot be the one that lost most.
        losses = np.nan_to_num(dense.counts.total().iou - dynamic.counts.total().iou, nan=-np.inf)
        worst_class, worst_class_drop = names[int(losses.argmax())], float(losses.max())
        boundary_drop = dense.boundary_counts.miou - dynamic.boundary_counts.miou
    return SegmentationDynamic(
        **dict(_segmentation_quality(dynamic, names)),
        **dict(_comparison(measured, dynamic, blocks)),
        boundary_drop=boundary_drop,
        worst_class_drop=worst_class_drop,
        worst_class=worst_class,
        spread=_spreads(measured),
    )


def _segmentation_controls(
    measured: Measured[SegmentationTally], tallies: dict[str, SegmentationTally], blocks: Blocks
) -> SegmentationControls:
    def control(tally: SegmentationTally) -> SegmentationControl:
        return SegmentationControl(**dict(_segmentation_scores(tally)), **dict(_comparison(measured, tally, blocks)))

    results = {name: control(tally) for name, tally in tallies.items()}
    efficiency = gate_efficiency(
        rule=measured.dynamic.score, random=results["random"].miou, oracle=results["oracle"].miou
    )
    return SegmentationControls(
        **results,
        gate_efficiency=efficiency,
        smaller_input=tuple(
            SmallerSegmentation(**dict(control(run.tally)), size=run.size, engine=run.engine)
            for run in measured.smaller
        ),
        seed=CONTROL_SEED,
    )


def _segmentation_rows(measured: Measured[SegmentationTally]) -> tuple[SegmentationRow, ...]:
    rows, dense = _image_rows(measured), measured.dense
    before = [None] * len(rows) if dense is None else [number_or_none(value) for value in dense.counts.mious]
    after = [number_or_none(value) for value in measured.dynamic.counts.mious]
    return tuple(
        SegmentationRow(**dict(row), miou_dense=first, miou_dynamic=second)
        for row, first, second in zip(rows, before, after, strict=True)
    )


def iou_by_name(counts: ClassCounts, names: Sequence[str]) -> dict[str, float | None]:
    """IoU of each class by its name; a name that occurs twice gets its number."""
    # A key of JSON must be unique.
    keys = [name if list(names).count(name) == 1 else f"{name} {number}" for number, name in enumerate(names)]
    return {key: number_or_none(value) for key, value in zip(keys, counts.total().iou, strict=True)}


def number_or_none(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else float(value)


def _classification_scores(tally: ClassificationTally) -> ClassificationScores:
    return ClassificationScores(top1=tally.score, top5=accuracy(tally.hits(top=TOP)), gmacs=float(np.mean(tally.gmacs)))


def _classification_dynamic(measured: Measured[ClassificationTally], blocks: Blocks) -> ClassificationDynamic:
    dense, dynamic = measured.dense, measured.dynamic
    own = _classification_scores(dynamic)
    top5_drop, agreement = None, None
    if dense is not None:
        top5_drop = _classification_scores(dense).top5 - own.top5
        same = [first[0] == second[0] for first, second in zip(dense.ranked, dynamic.ranked, strict=True)]
        agreement = 100.0 * float(np.mean(same))
    return ClassificationDynamic(
        **dict(own),
        **dict(_comparison(measured, dynamic, blocks)),
        top5_drop=top5_drop,
        agreement=agreement,
        spread=_spreads(measured),
    )


def _classification_controls(measured: Measured[ClassificationTally], blocks: Blocks) -> ClassificationControls:
    return ClassificationControls(
        smaller_input=tuple(
            SmallerClassification(
                **dict(_classification_scores(run.tally)),
                **dict(_comparison(measured, run.tally, blocks)),
                size=run.size,
                engine=run.engine,
            )
            for run in measured.smaller
        )
    )


def _classification_rows(measured: Measured[ClassificationTally]) -> tuple[ClassificationRow, ...]:
    dense, dynamic = measured.dense, measured.dynamic
    return tuple(
        ClassificationRow(
            **dict(row),
            label=dynamic.labels[number],
            top_dense=None if dense is None else dense.ranked[number],
            top_dynamic=dynamic.ranked[number],
        )
        for number, row in enumerate(_image_rows(measured))
    )
