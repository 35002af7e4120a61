"""The contents of `eval --json`: how right a deployed bundle is, dense and dynamic, and the controls beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.machine import machine_facts, package_versions
from dovit_deploy.measure.controls import CONTROL_SEED, gate_efficiency
from dovit_deploy.measure.evaluate import TOP, AnswerTally, Measured, MeasuredPictures, Tally
from dovit_deploy.measure.intervals import (
    RESAMPLES,
    SEED,
    Blocks,
    accuracy,
    accuracy_drop_interval,
    blocks_from_stems,
    drop_interval,
)
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.record import Record
from dovit_deploy.runtime.run import short_thresholds
from dovit_deploy.runtime.session import Session


class Spread(Record):
    """How a number differs from image to image."""

    mean: float
    min: float
    p10: float
    p90: float
    max: float


class Quality(Record):
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


class ControlResult(Record):
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


class Controls(Record):
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


class ImageTokens(Record):
    """As in `frames.jsonl`."""

    total: int
    kept: tuple[int, ...]


class ImageMacs(Record):
    """10^9 MACs."""

    dense: float
    actual: float


class ImageRow(Record):
    """One image."""

    image: str
    tokens: ImageTokens
    gmacs: ImageMacs
    flops_saved: float
    miou_dense: float | None
    miou_dynamic: float | None
    """Of the image alone; None where it has no label."""


class Bootstrap(Record):
    """How the intervals were drawn."""

    blocks: int
    images_per_block: int
    """At most."""
    resamples: int
    seed: int


class EvalReport(Record):
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


# From counts per image to the report: metrics over the set, drops with their intervals, spread over the images.


def report_from_measured(
    measured: Measured,
    session: Session,
    *,
    dataset: str,
    split: str,
    thresholds: NDArray[np.float32],
    controls: bool,
    smaller: Sequence[Session],
) -> EvalReport:
    """The whole report.

    Args:
        session: that `measured` was measured with; `smaller` likewise.
        dataset: as the user named it.
        thresholds: (gates, K), that were used.
        controls: whether they were measured.
    """
    manifest, blocks = session.bundle.manifest, blocks_from_stems(measured.stems)
    return EvalReport(
        images=len(measured.stems),
        dataset=dataset,
        split=split,
        bundle=str(session.bundle.path),
        engine=session.backend.name,
        precision=session.backend.precision,
        thresholds=short_thresholds(thresholds),
        machine=machine_facts(),
        versions=package_versions(),
        bootstrap=Bootstrap(blocks=blocks.count, images_per_block=blocks.longest, resamples=RESAMPLES, seed=SEED),
        dense=quality_from_tally(measured.dense, [entry.name for entry in manifest.classes]),
        dynamic=dynamic_from_measured(measured, manifest, blocks),
        controls=controls_from_measured(measured, blocks, smaller) if controls else None,
        per_image=image_rows(measured),
    )


def quality_from_tally(tally: Tally, names: Sequence[str]) -> Quality:
    """Metrics of one way of running."""
    return Quality(
        miou=tally.counts.miou,
        boundary_iou=tally.boundary_counts.miou,
        pixel_accuracy=tally.counts.pixel_accuracy,
        iou=iou_by_name(tally.counts, names),
        gmacs=float(np.mean(tally.gmacs)),
    )


def dynamic_from_measured(measured: Measured, manifest: Manifest, blocks: Blocks) -> Dynamic:
    """The gates' own run, against the dense one."""
    names = [entry.name for entry in manifest.classes]
    dense, dynamic = measured.dense, measured.dynamic
    quality = quality_from_tally(dynamic, names)
    losses = np.nan_to_num(dense.counts.total().iou - dynamic.counts.total().iou, nan=-np.inf)
    worst = int(losses.argmax())
    return Dynamic(
        **dict(quality),
        flops_saved=_saved(dense, dynamic),
        drop=dense.counts.miou - dynamic.counts.miou,
        drop_interval=drop_interval(dense.counts, dynamic.counts, blocks),
        boundary_drop=dense.boundary_counts.miou - dynamic.boundary_counts.miou,
        worst_class_drop=float(losses[worst]),
        worst_class=names[worst],
        spread=_spreads(dense, dynamic),
    )


def _spreads(dense: Tally, dynamic: Tally) -> dict[str, Spread | tuple[Spread, ...]]:
    saved = [1 - actual / full for actual, full in zip(dynamic.gmacs, dense.gmacs, strict=True)]
    stages = tuple(spread(column) for column in zip(*dynamic.kept, strict=True))
    return {"flops_saved": spread(saved), "gmacs": spread(dynamic.gmacs), "tokens": stages}


def _saved(dense: Tally, other: Tally) -> float:
    return 1 - sum(other.gmacs) / sum(dense.gmacs)


def controls_from_measured(measured: Measured, blocks: Blocks, smaller: Sequence[Session]) -> Controls:
    """The controls, against the dense run."""
    results = {
        name: _control(measured.dense, tally, blocks)
        for name, tally in (
            ("random", measured.random),
            ("first_gate", measured.first_gate),
            ("oracle", measured.oracle),
            ("oracle_unlimited", measured.oracle_unlimited),
        )
    }
    sizes = tuple(
        SmallerInput(
            **dict(_control(measured.dense, tally, blocks)),
            size=session.bundle.manifest.spec.size,
            engine=session.backend.name,
        )
        for session, tally in zip(smaller, measured.smaller, strict=True)
    )
    efficiency = gate_efficiency(
        rule=measured.dynamic.counts.miou, random=results["random"].miou, oracle=results["oracle"].miou
    )
    return Controls(
        random=results["random"],
        first_gate=results["first_gate"],
        oracle=results["oracle"],
        oracle_unlimited=results["oracle_unlimited"],
        gate_efficiency=efficiency,
        smaller_input=sizes,
        seed=CONTROL_SEED,
    )


def _control(dense: Tally, tally: Tally, blocks: Blocks) -> ControlResult:
    return ControlResult(
        miou=tally.counts.miou,
        boundary_iou=tally.boundary_counts.miou,
        pixel_accuracy=tally.counts.pixel_accuracy,
        drop=dense.counts.miou - tally.counts.miou,
        drop_interval=drop_interval(dense.counts, tally.counts, blocks),
        flops_saved=_saved(dense, tally),
        gmacs=float(np.mean(tally.gmacs)),
    )


def image_rows(measured: Measured) -> tuple[ImageRow, ...]:
    """One row per image."""
    dense, dynamic = measured.dense, measured.dynamic
    pairs = zip(dense.counts.mious, dynamic.counts.mious, strict=True)
    return tuple(
        ImageRow(
            image=stem,
            tokens=ImageTokens(total=kept[0], kept=kept),
            gmacs=ImageMacs(dense=full, actual=actual),
            flops_saved=1 - actual / full,
            miou_dense=number_or_none(float(before)),
            miou_dynamic=number_or_none(float(after)),
        )
        for stem, kept, full, actual, (before, after) in zip(
            measured.stems, dynamic.kept, dense.gmacs, dynamic.gmacs, pairs, strict=True
        )
    )


# The contents of `eval --json` for a classifier, and how they follow from the answers to the pictures.


class Accuracy(Record):
    """One way of running the bundle over the whole set."""

    top1: float
    """Percent of the pictures whose most probable class is theirs."""
    top5: float
    """Percent of those whose class is among the five most probable."""
    gmacs: float
    """10^9 MACs, mean over the pictures."""


class DynamicAccuracy(Accuracy):
    """The bundle as it is deployed; what compares it with the dense run is None where there is none."""

    flops_saved: float
    """1 - actual / dense MACs of the whole set."""
    drop: float | None
    """Points of top-1 lost against dense."""
    drop_interval: tuple[float, float] | None
    """95 %, paired bootstrap over pictures; None also for one picture."""
    top5_drop: float | None
    agreement: float | None
    """Percent of the pictures that get the dense run's class."""
    spread: dict[str, Spread | tuple[Spread, ...]]
    """`flops_saved`, `gmacs`, and `tokens` with one entry per count of `kept`."""


class SmallerAccuracy(Accuracy):
    """The same weights, dense, at a smaller input size."""

    size: tuple[int, int]
    """Height and width in pixels."""
    engine: str
    flops_saved: float
    """Against the dense bundle."""
    drop: float | None
    drop_interval: tuple[float, float] | None


class ClassifierControls(Record):
    """What the selection must beat: without gates there is nothing to replay, so the first four are always None."""

    random: None = None
    first_gate: None = None
    oracle: None = None
    gate_efficiency: None = None
    smaller_input: tuple[SmallerAccuracy, ...]


class PictureRow(Record):
    """One picture."""

    image: str
    label: int
    tokens: ImageTokens
    gmacs: ImageMacs
    flops_saved: float
    top_dense: tuple[int, ...] | None
    top_dynamic: tuple[int, ...]
    """Ids of the most probable classes, the most probable first."""


class ClassifierReport(Record):
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
    dense: Accuracy | None
    """None: the bundle has no dense form."""
    dynamic: DynamicAccuracy
    controls: ClassifierControls | None
    per_image: tuple[PictureRow, ...]


def report_from_pictures(
    measured: MeasuredPictures,
    session: Session,
    *,
    dataset: str,
    split: str,
    thresholds: NDArray[np.float32],
    controls: bool,
    smaller: Sequence[Session],
) -> ClassifierReport:
    """The whole report.

    Args:
        session: that `measured` was measured with; `smaller` likewise.
        dataset: as the user named it.
        thresholds: (gates, K), that were used.
        controls: whether they were asked for.
    """
    number = len(measured.stems)
    return ClassifierReport(
        images=number,
        dataset=dataset,
        split=split,
        bundle=str(session.bundle.path),
        engine=session.backend.name,
        precision=session.backend.precision,
        thresholds=short_thresholds(thresholds),
        machine=machine_facts(),
        versions=package_versions(),
        bootstrap=Bootstrap(blocks=number, images_per_block=1, resamples=RESAMPLES, seed=SEED),
        dense=None if measured.dense is None else _accuracy(measured.dense, measured.labels),
        dynamic=_dynamic(measured),
        controls=_controls(measured, smaller) if controls else None,
        per_image=_rows(measured),
    )


def _accuracy(tally: AnswerTally, labels: Sequence[int]) -> Accuracy:
    return Accuracy(
        top1=accuracy(tally.hits(labels, top=1)),
        top5=accuracy(tally.hits(labels, top=TOP)),
        gmacs=float(np.mean(tally.gmacs)),
    )


def _dynamic(measured: MeasuredPictures) -> DynamicAccuracy:
    dense, dynamic, labels = measured.dense, measured.dynamic, measured.labels
    own = _accuracy(dynamic, labels)
    drop, interval = _drop(measured, dynamic)
    first = None if dense is None else [a[0] == b[0] for a, b in zip(dense.ranked, dynamic.ranked, strict=True)]
    return DynamicAccuracy(
        **dict(own),
        flops_saved=_classifier_report_saved(measured, dynamic),
        drop=drop,
        drop_interval=interval,
        top5_drop=None if dense is None else _accuracy(dense, labels).top5 - own.top5,
        agreement=None if first is None else 100.0 * float(np.mean(first)),
        spread=_classifier_report_spreads(measured),
    )


def _drop(measured: MeasuredPictures, tally: AnswerTally) -> tuple[float | None, tuple[float, float] | None]:
    """Points of top-1 that `tally` loses against the dense run, and their interval."""
    if measured.dense is None:
        return None, None
    before, after = (each.hits(measured.labels, top=1) for each in (measured.dense, tally))
    return accuracy(before) - accuracy(after), accuracy_drop_interval(before, after)


def _classifier_report_saved(measured: MeasuredPictures, tally: AnswerTally) -> float:
    return 1 - sum(tally.gmacs) / sum(measured.dense_gmacs)


def _classifier_report_spreads(measured: MeasuredPictures) -> dict[str, Spread | tuple[Spread, ...]]:
    dynamic = measured.dynamic
    saved = [1 - actual / full for actual, full in zip(dynamic.gmacs, measured.dense_gmacs, strict=True)]
    stages = tuple(spread(column) for column in zip(*dynamic.kept, strict=True))
    return {"flops_saved": spread(saved), "gmacs": spread(dynamic.gmacs), "tokens": stages}


def _controls(measured: MeasuredPictures, smaller: Sequence[Session]) -> ClassifierControls:
    entries = []
    for session, tally in zip(smaller, measured.smaller, strict=True):
        drop, interval = _drop(measured, tally)
        entries.append(
            SmallerAccuracy(
                **dict(_accuracy(tally, measured.labels)),
                size=session.bundle.manifest.spec.size,
                engine=session.backend.name,
                flops_saved=_classifier_report_saved(measured, tally),
                drop=drop,
                drop_interval=interval,
            )
        )
    return ClassifierControls(smaller_input=tuple(entries))


def _rows(measured: MeasuredPictures) -> tuple[PictureRow, ...]:
    dense, dynamic = measured.dense, measured.dynamic
    return tuple(
        PictureRow(
            image=stem,
            label=measured.labels[number],
            tokens=ImageTokens(total=dynamic.kept[number][0], kept=dynamic.kept[number]),
            gmacs=ImageMacs(dense=measured.dense_gmacs[number], actual=dynamic.gmacs[number]),
            flops_saved=1 - dynamic.gmacs[number] / measured.dense_gmacs[number],
            top_dense=None if dense is None else dense.ranked[number],
            top_dynamic=dynamic.ranked[number],
        )
        for number, stem in enumerate(measured.stems)
    )
