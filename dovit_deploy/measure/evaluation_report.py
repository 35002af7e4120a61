"""From counts per image to the report: metrics over the set, drops with their intervals, spread over the images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.machine import machine_facts, package_versions
from dovit_deploy.measure.bootstrap import RESAMPLES, Blocks, blocks_from_stems, drop_interval
from dovit_deploy.measure.bootstrap import SEED as BOOT_SEED
from dovit_deploy.measure.controls import gate_efficiency
from dovit_deploy.measure.evaluate import Measured, Tally
from dovit_deploy.measure.evaluation import (
    Bootstrap,
    ControlResult,
    Controls,
    Dynamic,
    EvalReport,
    ImageMacs,
    ImageRow,
    ImageTokens,
    Quality,
    SmallerInput,
    Spread,
    iou_by_name,
    number_or_none,
    spread,
)
from dovit_deploy.measure.steering import SEED
from dovit_deploy.runtime.job import short_thresholds
from dovit_deploy.runtime.session import Session


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
        bootstrap=Bootstrap(blocks=blocks.count, images_per_block=blocks.longest, resamples=RESAMPLES, seed=BOOT_SEED),
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
        seed=SEED,
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
