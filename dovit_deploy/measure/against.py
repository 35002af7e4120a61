"""What does a bundle lose against its dense network in fp32? Stopped tokens and a lower precision, counted together.

The drop that `eval` reports from dense to dynamic is that of one engine and precision: it says what stopping costs.
Whoever replaces the exact, dense answer by a fast one loses this instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dovit_deploy.measure.agreement import Agreement
from dovit_deploy.measure.evaluate import ClassificationTally, Measured, SegmentationTally
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.record import Record


class AgainstFp32(Record):
    """The bundle as it is deployed against the dense network in fp32; drops in points, with their 95 % intervals."""

    engine: str
    """In which the dense network ran."""
    drop: float
    drop_interval: tuple[float, float] | None
    agreement: float
    """Percent of the pixels (images) that get the class which dense fp32 finds."""


class SegmentationAgainstFp32(AgainstFp32):
    """The same of class maps."""

    miou: float
    """Of the dense network in fp32; the next one likewise."""
    boundary_iou: float
    boundary_drop: float
    boundary_drop_interval: tuple[float, float] | None
    agreement_at_boundaries: float | None
    """Of the pixels within 3 pixels of a contour of dense fp32; None where there is none."""
    agreement_by_class: dict[str, float | None]
    """Of the pixels where dense fp32 finds the class; None where it never does."""


class ClassificationAgainstFp32(AgainstFp32):
    """The same of a classifier."""

    top1: float
    """Of the dense network in fp32."""


def segmentation_against_fp32(
    measured: Measured[SegmentationTally], keys: Sequence[str]
) -> SegmentationAgainstFp32 | None:
    """Of a segmentation bundle with classes called `keys`; None where dense fp32 did not run."""
    exact, own = measured.exact, measured.dynamic
    if exact is None:
        return None
    along = ClassCounts.stacked(measured.agreement.along_contours).pixel_accuracy
    shares = _percent(ClassCounts.stacked(measured.agreement.everywhere).total())
    return SegmentationAgainstFp32(
        engine=measured.exact_engine,
        drop=exact.score - own.score,
        drop_interval=own.drop_interval(exact, measured.blocks),
        agreement=_overall(measured.agreement),
        miou=exact.score,
        boundary_iou=exact.boundary_counts.miou,
        boundary_drop=exact.boundary_counts.miou - own.boundary_counts.miou,
        boundary_drop_interval=own.boundary_drop_interval(exact, measured.blocks),
        agreement_at_boundaries=None if np.isnan(along) else along,
        agreement_by_class=dict(zip(keys, shares, strict=True)),
    )


def classification_against_fp32(measured: Measured[ClassificationTally]) -> ClassificationAgainstFp32 | None:
    """Of a classifier; None where dense fp32 did not run."""
    exact, own = measured.exact, measured.dynamic
    if exact is None:
        return None
    return ClassificationAgainstFp32(
        engine=measured.exact_engine,
        drop=exact.score - own.score,
        drop_interval=own.drop_interval(exact, measured.blocks),
        agreement=_overall(measured.agreement),
        top1=exact.score,
    )


def _overall(agreement: Agreement) -> float:
    return ClassCounts.stacked(agreement.everywhere).pixel_accuracy


def _percent(counts: ClassCounts) -> list[float | None]:
    return [100.0 * int(hit) / int(true) if true else None for hit, true in zip(counts.hit, counts.true, strict=True)]
