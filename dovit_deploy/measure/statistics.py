"""Percentiles and paired ratios: how many timings become few numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dovit_deploy.bundle.spec import Noun
from dovit_deploy.runtime.run_report import distribution


class Percentiles(Noun):
    """A distribution in four numbers; percentiles interpolate linearly between samples."""

    mean: float
    p50: float
    p90: float
    p99: float


def percentiles(values: Sequence[float]) -> Percentiles:
    """Mean, median, 90th and 99th percentile of at least one value."""
    return Percentiles.model_validate(distribution(np.asarray(values, dtype=np.float64)))


def median(values: Sequence[float]) -> float:
    """The median of at least one value."""
    return float(np.median(values))


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of values that were measured side by side.

    A machine that slows down for a while slows both halves of a pair, so their ratio hardly moves; the ratio of two
    medians would.
    """
    return median([above / below for above, below in zip(numerators, denominators, strict=True)])
