"""How long does a run take, by the tokens that enter its stages? A model of one machine, engine and precision.

    time = outside + sum over stages of (constant + linear * n + quadratic * n^2)

n is what the engine computes: an engine that pads computes the next of its sizes. `runtime/latency_fit.py` measures it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from dovit_deploy.record import Record

Milliseconds = npt.NDArray[np.float64]
ClockName = Literal["cpu", "wall"]


class StageTime(Record):
    """What one stage takes, in milliseconds."""

    constant: float = Field(ge=0)
    linear: float = Field(ge=0)
    """A token."""
    quadratic: float = Field(ge=0)
    """A pair of tokens."""
    sizes: tuple[int, ...] = ()
    """Those in which the engine runs the stage, rising; empty: it runs every count as it is."""

    def at(self, counts: npt.ArrayLike) -> Milliseconds:
        """Milliseconds for numbers of tokens; never falling."""
        computed = np.asarray(counts, dtype=np.float64)
        if self.sizes:
            position = np.searchsorted(self.sizes, computed).clip(max=len(self.sizes) - 1)
            computed = np.asarray(self.sizes, dtype=np.float64)[position]
        return np.asarray(self.constant + computed * (self.linear + computed * self.quadratic))


class LatencyModel(Record):
    """Milliseconds of a model step, from the tokens that enter each stage."""

    bundle: str
    """Its name."""
    engine: str
    precision: str
    threads: int | None
    """Of one run; None: the engine's own choice."""
    clock: ClockName
    """What was measured: processor time of all threads, or wall time."""
    outside_ms: float = Field(ge=0)
    """Beside the stages: making the report."""
    stages: tuple[StageTime, ...]
    error: float
    """Median relative error on patterns of tokens that the fit did not see."""
    slow: float = Field(gt=0)
    """What 19 of 20 single runs of these took at most, over what is predicted of them."""
    held_out: int
    """How many of these there were."""
    runs: int
    """Timed, to fit it and to check it."""
    seconds: float
    """That measuring took."""
    date: str
    """UTC, to the second."""

    def milliseconds(self, kept: Sequence[int]) -> float:
        """Of a run in which `kept` tokens enter the stages, extra tokens included."""
        return self.outside_ms + sum(float(stage.at(count)) for stage, count in zip(self.stages, kept, strict=True))


def fitted_stage(sizes: Sequence[int], milliseconds: Sequence[float], *, padded: tuple[int, ...] = ()) -> StageTime:
    """The stage whose relative errors have the smallest squares; no part of it is negative.

    Args:
        sizes: what the engine computed, of each measurement.
        milliseconds: what it took, above 0.
        padded: the sizes in which the engine runs the stage.
    """
    count, taken = np.asarray(sizes, dtype=np.float64), np.asarray(milliseconds, dtype=np.float64)
    # In units of the largest, so that the columns are alike.
    unit = count.max()
    columns = np.stack([np.ones_like(count), count / unit, (count / unit) ** 2], axis=1) / taken[:, None]
    # With three parts there are few sets of them that are positive: all are tried.
    best, smallest = np.zeros(3), np.inf
    for parts in itertools.chain.from_iterable(itertools.combinations(range(3), size) for size in (1, 2, 3)):
        chosen = list(parts)
        solution = np.linalg.lstsq(columns[:, chosen], np.ones_like(taken), rcond=None)[0]
        found = np.zeros(3)
        found[chosen] = solution
        squares = float(((columns @ found - 1) ** 2).sum())
        # A further part must earn its keep: of one size alone all three explain the same.
        if (solution >= 0).all() and squares < smallest - 1e-12:
            best, smallest = found, squares
    return StageTime(constant=best[0], linear=best[1] / unit, quadratic=best[2] / unit**2, sizes=padded)
