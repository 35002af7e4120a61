"""The contents of `eval --json` for a classifier, and how they follow from the answers to the pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.bundle.spec import Noun
from dovit_deploy.machine import machine_facts, package_versions
from dovit_deploy.measure.accuracy import accuracy, accuracy_drop_interval
from dovit_deploy.measure.bootstrap import RESAMPLES, SEED
from dovit_deploy.measure.classifier_evaluation import TOP, AnswerTally, MeasuredPictures
from dovit_deploy.measure.evaluation import Bootstrap, ImageMacs, ImageTokens, Spread, spread
from dovit_deploy.runtime.job import short_thresholds
from dovit_deploy.runtime.session import Session


class Accuracy(Noun):
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


class ClassifierControls(Noun):
    """What the selection must beat: without gates there is nothing to replay, so the first four are always None."""

    random: None = None
    first_gate: None = None
    oracle: None = None
    gate_efficiency: None = None
    smaller_input: tuple[SmallerAccuracy, ...]


class PictureRow(Noun):
    """One picture."""

    image: str
    label: int
    tokens: ImageTokens
    gmacs: ImageMacs
    flops_saved: float
    top_dense: tuple[int, ...] | None
    top_dynamic: tuple[int, ...]
    """Ids of the most probable classes, the most probable first."""


class ClassifierReport(Noun):
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
        flops_saved=_saved(measured, dynamic),
        drop=drop,
        drop_interval=interval,
        top5_drop=None if dense is None else _accuracy(dense, labels).top5 - own.top5,
        agreement=None if first is None else 100.0 * float(np.mean(first)),
        spread=_spreads(measured),
    )


def _drop(measured: MeasuredPictures, tally: AnswerTally) -> tuple[float | None, tuple[float, float] | None]:
    """Points of top-1 that `tally` loses against the dense run, and their interval."""
    if measured.dense is None:
        return None, None
    before, after = (each.hits(measured.labels, top=1) for each in (measured.dense, tally))
    return accuracy(before) - accuracy(after), accuracy_drop_interval(before, after)


def _saved(measured: MeasuredPictures, tally: AnswerTally) -> float:
    return 1 - sum(tally.gmacs) / sum(measured.dense_gmacs)


def _spreads(measured: MeasuredPictures) -> dict[str, Spread | tuple[Spread, ...]]:
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
                flops_saved=_saved(measured, tally),
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
