"""Does a benchmark keep within a limit? `--fail-if EXPR`, as `p90>50`: what must be true of no result."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dovit_deploy.errors import CheckError, UsageError
from dovit_deploy.measure.bench_records import BenchResult

PERCENTILES = ("p50", "p90", "p99", "mean")
"""Milliseconds of the dynamic model step."""
FIGURES = (*PERCENTILES, "speedup", "flops_saved")
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
RELATIONS = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class FailIf:
    """A figure that fails where it stands in this relation to a value."""

    figure: str
    relation: str
    value: float

    def __str__(self) -> str:
        return f"{self.figure}{self.relation}{self.value:g}"

    def fault(self, result: BenchResult) -> str | None:
        """Why `result` fails; None: it does not."""
        name, figure = f"{result.engine} {result.precision}", self._measured(result)
        if figure is None:
            return f"{self.figure} of {name} is not known: the bundle has no dense form to compare with"
        if not RELATIONS[self.relation](figure, self.value):
            return None
        unit = " ms" if self.figure in PERCENTILES else ""
        return f"{self.figure} of {name} is {figure:.4g}{unit}"

    def _measured(self, result: BenchResult) -> float | None:
        if self.figure in PERCENTILES:
            return float(getattr(result.dynamic.latency_ms, self.figure))
        return result.speedup if self.figure == "speedup" else result.flops_saved


def fail_if(text: str) -> FailIf:
    """ "p90>50" as what it means.

    Raises:
        UsageError: it is no such expression.
    """
    relations = "|".join(sorted(RELATIONS, key=len, reverse=True))
    found = re.fullmatch(rf"\s*({'|'.join(FIGURES)})\s*({relations})\s*({NUMBER})\s*", text)
    if found is None or not math.isfinite(value := float(found[3])):
        raise UsageError(
            f"--fail-if: '{text}' given; needed: one of {', '.join(FIGURES)}, then one of {', '.join(RELATIONS)}, then "
            "a number, as 'p90>50' (in quotes)"
        )
    return FailIf(found[1], found[2], value)


def check_limit(limit: FailIf | None, results: Sequence[BenchResult]) -> None:
    """Raise CheckError where `limit` is true of one of the results, or is not known."""
    faults = [] if limit is None else [fault for fault in map(limit.fault, results) if fault is not None]
    if faults:
        raise CheckError(f"--fail-if {limit}: {'; '.join(faults)}")
