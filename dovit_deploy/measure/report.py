"""From what `evaluate` has counted to the report of `eval`, whose records are in eval_records.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from dovit_deploy.machine import machine_facts, package_versions
from dovit_deploy.measure.against import classification_against_fp32, segmentation_against_fp32
from dovit_deploy.measure.controls import CONTROL_SEED, CONTROLS, gate_efficiency
from dovit_deploy.measure.eval_records import (
    Bootstrap,
    ClassificationControls,
    ClassificationDynamic,
    ClassificationReport,
    ClassificationRow,
    ClassificationScores,
    Comparison,
    EvalReport,
    ImageMacs,
    ImageRow,
    ImageTokens,
    SegmentationControl,
    SegmentationControls,
    SegmentationDynamic,
    SegmentationQuality,
    SegmentationReport,
    SegmentationRow,
    SegmentationScores,
    SmallerClassification,
    SmallerSegmentation,
    Spread,
    Spreads,
)
from dovit_deploy.measure.evaluate import ClassificationTally, EvalPlan, Measured, SegmentationTally, Tally
from dovit_deploy.measure.intervals import RESAMPLES, SEED, Blocks
from dovit_deploy.measure.metrics import ClassCounts, accuracy
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import short_thresholds

TOP = 5
"""Classes among which the right one counts for `top5`."""

T = TypeVar("T", bound=Tally)


def segmentation_report(measured: Measured[SegmentationTally], session: Session, plan: EvalPlan) -> SegmentationReport:
    """The report of a segmentation bundle, from what was measured with `session` and `plan`."""
    names = [entry.name for entry in session.bundle.manifest.classes]
    # `dict` of a Record keeps the records in it; `model_dump` would turn them into dicts, too.
    return SegmentationReport(
        **dict(_base(measured, session, plan)),
        dense=None if measured.dense is None else _segmentation_quality(measured.dense, names),
        dynamic=_segmentation_dynamic(measured, names),
        against_fp32=segmentation_against_fp32(measured, unique_names(names)),
        controls=None if measured.controls is None else _segmentation_controls(measured, measured.controls),
        per_image=_segmentation_rows(measured),
    )


def classification_report(
    measured: Measured[ClassificationTally], session: Session, plan: EvalPlan
) -> ClassificationReport:
    """The report of a classifier, from what was measured with `session` and `plan`."""
    return ClassificationReport(
        **dict(_base(measured, session, plan)),
        dense=None if measured.dense is None else _classification_scores(measured.dense),
        dynamic=_classification_dynamic(measured),
        against_fp32=classification_against_fp32(measured),
        controls=None if measured.controls is None else _classification_controls(measured),
        per_image=_classification_rows(measured),
    )


def _base(measured: Measured[T], session: Session, plan: EvalPlan) -> EvalReport:
    return EvalReport(
        images=len(measured.stems),
        dataset=plan.dataset,
        split=plan.split,
        bundle=str(session.bundle.path),
        source_sha256=session.bundle.manifest.provenance.source_sha256,
        engine=session.backend.name,
        precision=session.backend.precision,
        thresholds=short_thresholds(plan.settings.thresholds),
        machine=machine_facts(),
        versions=package_versions(),
        bootstrap=_bootstrap(measured.blocks),
        data=plan.data,
    )


def _bootstrap(blocks: Blocks) -> Bootstrap:
    return Bootstrap(
        blocks=blocks.count,
        seconds_per_block=blocks.seconds,
        images_per_block=blocks.longest,
        resamples=RESAMPLES,
        seed=SEED,
    )


def _comparison(measured: Measured[T], tally: T) -> Comparison:
    dense = measured.dense
    return Comparison(
        # Of sums, not a mean of ratios: images of different sizes cost differently.
        flops_saved=1 - sum(tally.gmacs) / sum(measured.dense_gmacs),
        drop=None if dense is None else dense.score - tally.score,
        drop_interval=None if dense is None else tally.drop_interval(dense, measured.blocks),
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


def _segmentation_dynamic(measured: Measured[SegmentationTally], names: Sequence[str]) -> SegmentationDynamic:
    dense, dynamic = measured.dense, measured.dynamic
    worst_class, worst_class_drop, boundary_drop = None, None, None
    if dense is not None:
        # A class without an IoU on either side cannot be the one that lost most.
        losses = np.nan_to_num(dense.counts.total().iou - dynamic.counts.total().iou, nan=-np.inf)
        worst_class, worst_class_drop = names[int(losses.argmax())], float(losses.max())
        boundary_drop = dense.boundary_counts.miou - dynamic.boundary_counts.miou
    return SegmentationDynamic(
        **dict(_segmentation_quality(dynamic, names)),
        **dict(_comparison(measured, dynamic)),
        boundary_drop=boundary_drop,
        worst_class_drop=worst_class_drop,
        worst_class=worst_class,
        spread=_spreads(measured),
    )


def _segmentation_controls(
    measured: Measured[SegmentationTally], tallies: dict[str, SegmentationTally]
) -> SegmentationControls:
    rule, stop_map = measured.dynamic, measured.stop_map

    def control(tally: SegmentationTally) -> SegmentationControl:
        return SegmentationControl(
            **dict(_segmentation_scores(tally)),
            **dict(_comparison(measured, tally)),
            rule_gain=rule.score - tally.score,
            rule_gain_interval=tally.drop_interval(rule, measured.blocks),
        )

    results = {name: control(tally) for name, tally in tallies.items()}
    efficiency = gate_efficiency(rule=rule.score, random=results["random"].miou, oracle=results["oracle"].miou)
    return SegmentationControls(
        **{name: results.get(name) for name in CONTROLS},
        gate_efficiency=efficiency,
        smaller_input=tuple(
            SmallerSegmentation(**dict(control(run.tally)), size=run.size, engine=run.engine)
            for run in measured.smaller
        ),
        seed=CONTROL_SEED,
        position_from=None if stop_map is None else stop_map.name,
        position_images=None if stop_map is None else stop_map.images,
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
    return {key: number_or_none(value) for key, value in zip(unique_names(names), counts.total().iou, strict=True)}


def unique_names(names: Sequence[str]) -> list[str]:
    """As keys of JSON, which must be unique: a name that occurs twice gets its number."""
    return [name if list(names).count(name) == 1 else f"{name} {number}" for number, name in enumerate(names)]


def number_or_none(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else float(value)


def _classification_scores(tally: ClassificationTally) -> ClassificationScores:
    return ClassificationScores(top1=tally.score, top5=accuracy(tally.hits(top=TOP)), gmacs=float(np.mean(tally.gmacs)))


def _classification_dynamic(measured: Measured[ClassificationTally]) -> ClassificationDynamic:
    dense, dynamic = measured.dense, measured.dynamic
    own = _classification_scores(dynamic)
    top5_drop, agreement = None, None
    if dense is not None:
        top5_drop = _classification_scores(dense).top5 - own.top5
        same = [first[0] == second[0] for first, second in zip(dense.ranked, dynamic.ranked, strict=True)]
        agreement = 100.0 * float(np.mean(same))
    return ClassificationDynamic(
        **dict(own),
        **dict(_comparison(measured, dynamic)),
        top5_drop=top5_drop,
        agreement=agreement,
        spread=_spreads(measured),
    )


def _classification_controls(measured: Measured[ClassificationTally]) -> ClassificationControls:
    return ClassificationControls(
        smaller_input=tuple(
            SmallerClassification(
                **dict(_classification_scores(run.tally)),
                **dict(_comparison(measured, run.tally)),
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
