"""RunSettings: thresholds, floor, replayed decisions and `dense` of one run, resolved and checked in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.families.parts import SetrHead
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.printing import plural
from dovit_deploy.runtime.deadline import Deadline
from dovit_deploy.runtime.given import described, number_within
from dovit_deploy.runtime.results import Answer, Pixels, TokenReport

Thresholds = float | Sequence[float] | npt.NDArray[np.floating]
"""One number, one per gate, or (gates, K)."""
Keep = Sequence[npt.NDArray[np.bool_]]
"""Per gate a grid (h, w): the tokens that run on."""


@dataclass(frozen=True)
class RunSettings:
    """What decides in a run which tokens stop. `resolve` makes it from what a caller gave, once."""

    thresholds: npt.NDArray[np.float32]
    """(gates, K): a token stops whose confidence is strictly above the threshold of its most likely class."""
    floor: np.float32
    """A token less confident than this stops too; 0 is off."""
    replay: Sequence[npt.NDArray[np.int64]] | None = None
    """Per gate, the index (kept,) of the tokens that run on, instead of the gate's own decision."""
    dense: bool = False
    """Run the dense network, which has no gates."""
    deadline: Deadline | None = None
    """Of each frame: where it needs more time, the gates' surest tokens stop too. Not of a replay or a dense run."""

    @classmethod
    def resolve(
        cls,
        manifest: Manifest,
        *,
        thresholds: Thresholds | None = None,
        floor: float | None = None,
        keep: Keep | None = None,
        dense: bool = False,
    ) -> Self:
        """What `Session.run` takes, checked against a bundle; None is the bundle's own.

        Raises:
            UsageError: thresholds or floor out of range, or together with `dense`; `dense` of a model without a dense
                network of its weights.
            InputError: a replay that is impossible.
        """
        if not isinstance(dense, bool | np.bool_):
            raise UsageError(f"dense: {described(dense)} given, True or False needed")
        if not dense:
            replay = None if keep is None else index_from_keep(keep, manifest.spec)
            return cls(thresholds_from(thresholds, manifest), floor_from(floor, manifest), replay)
        if not (thresholds is None and floor is None and keep is None):
            raise UsageError("dense means no gates: it takes no thresholds, floor or keep")
        if not manifest.spec.has_dense:
            raise UsageError(f"{manifest.name} has no dense network of its weights; run it without dense")
        return cls.stop_nothing(manifest.spec, dense=True)

    @classmethod
    def stop_nothing(
        cls, spec: ModelSpec, *, replay: Sequence[npt.NDArray[np.int64]] | None = None, dense: bool = False
    ) -> Self:
        """No confidence is above 1, and none below 0: every token runs on, but for what `replay` leaves out."""
        return cls(np.ones((len(spec.gates), spec.classes), dtype=np.float32), np.float32(0), replay, dense)


def session_from(given: RunsOne, taker: str) -> RunsOne:
    """A session, or what stands in for one; raises UsageError for anything else that `taker` is given."""
    if not callable(getattr(given, "run_one", None)) or not isinstance(getattr(given, "bundle", None), Bundle):
        raise UsageError(f"{taker}: {described(given)} given, a Session is needed: {taker}(Session(bundle))")
    return given


class RunsOne(Protocol):
    """What a predictor needs of a `Session`, so that one that records, steers or times can stand in for it."""

    bundle: Bundle

    def run_one(self, pixels: Pixels, settings: RunSettings) -> tuple[Answer, TokenReport]:
        """One image or window (1, 3, H, W) float32 -> logits (1, K, h, w) and what was done to reach them."""


def thresholds_from(value: Thresholds | None, manifest: Manifest) -> npt.NDArray[np.float32]:
    """`value` as (gates, K) float32; None takes the bundle's own.

    Args:
        value: one number, one per gate, or (gates, K).

    Raises:
        UsageError: a wrong number of values, a value outside [0, 1], or unequal values for an up-sampling gate.
    """
    spec = manifest.spec
    gates, classes = len(spec.gates), spec.classes
    if value is None:
        return np.asarray(manifest.defaults.thresholds, dtype=np.float32).reshape(gates, classes)
    if gates == 0:
        raise UsageError(f"{manifest.name} is a model without gates; it takes no thresholds")
    # In float32, as the graph compares: a threshold must not change its side by rounding later.
    allowed = f"one number, {plural(gates, 'number')}, or ({gates}, {classes})"
    given = _numbers(value, allowed)
    if given.ndim == 0:
        full = np.full((gates, classes), given, dtype=np.float32)
    elif given.shape == (gates,):
        full = np.repeat(given[:, None], classes, axis=1)
    elif given.shape == (gates, classes):
        full = given
    else:
        raise UsageError(
            f"thresholds of shape {given.shape} for {plural(gates, 'gate')} and {plural(classes, 'class', 'classes')}; "
            f"allowed: {allowed}"
        )
    _check_range(full, spec)
    return np.ascontiguousarray(full)


def _numbers(value: object, allowed: str) -> npt.NDArray[np.float32]:
    try:
        array = np.asarray(value)
    # Lists of unequal length, and whatever an object's own conversion raises.
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"thresholds: {described(value)} given; allowed: {allowed}") from error
    if array.dtype.kind not in "fiu":
        raise UsageError(f"thresholds: {described(value)} given; allowed: {allowed}")
    # What overflows becomes infinite, which is out of range.
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _check_range(thresholds: npt.NDArray[np.float32], spec: ModelSpec) -> None:
    # Written so that NaN is refused too.
    if not ((thresholds >= 0) & (thresholds <= 1)).all():
        bad = thresholds[~((thresholds >= 0) & (thresholds <= 1))][0]
        raise UsageError(f"threshold {bad:g} is outside [0, 1]")
    for number, (gate, row) in enumerate(zip(spec.gates, thresholds, strict=True)):
        # Its confidence is a mean over positions that may differ in class: no class's threshold applies to it.
        if isinstance(gate.head, SetrHead) and (row != row[0]).any():
            raise UsageError(f"gate {number} has an up-sampling head: its thresholds must be equal for all classes")


def floor_from(value: float | None, manifest: Manifest) -> np.float32:
    """`value` as float32; None takes the bundle's own.

    Raises:
        UsageError: outside [0, 1], or given to a model without gates.
    """
    if value is None:
        return np.float32(manifest.defaults.floor)
    if not manifest.spec.gates:
        raise UsageError(f"{manifest.name} is a model without gates; it takes no floor")
    return np.float32(number_within(value, "floor", 0, 1))


def index_from_keep(keep: Keep, spec: ModelSpec) -> list[npt.NDArray[np.int64]]:
    """Per gate, the tokens that run on: extra tokens, then the true cells of `keep` in raster order.

    Args:
        keep: one boolean grid (h, w) per gate.

    Raises:
        InputError: a wrong number, shape or type of grids, or a token that resumes after it stopped.
    """
    if not isinstance(keep, list | tuple) and not (isinstance(keep, np.ndarray) and keep.ndim):
        raise InputError(f"keep: {described(keep)} given, a list of one boolean grid per gate needed")
    if len(keep) != len(spec.gates):
        raise InputError(f"keep: {plural(len(keep), 'grid')} given, the model has {plural(len(spec.gates), 'gate')}")
    before = np.ones(spec.grid, dtype=bool)
    indices = []
    for number, cells in enumerate(keep):
        if not isinstance(cells, np.ndarray) or cells.shape != spec.grid or cells.dtype != np.bool_:
            raise InputError(f"keep[{number}]: {described(cells)} given, booleans of shape {spec.grid} needed")
        # A stopped token keeps the value it had: the layers in between have not updated it, so it cannot run on later.
        if (cells & ~before).any():
            raise InputError(f"keep[{number}]: {int((cells & ~before).sum())} tokens resume; a stopped token stays so")
        before = cells
        # Raster order, as in the order that a gate gives: a replay is then bit-equal to the run.
        extra = np.arange(spec.extra_tokens, dtype=np.int64)
        indices.append(np.concatenate([extra, spec.extra_tokens + np.flatnonzero(cells)]).astype(np.int64))
    return indices


def short_thresholds(thresholds: npt.NDArray[np.float32]) -> list[Any]:
    """Thresholds (gates, K) as JSON: one number per gate where all classes share it, else one per gate and class."""
    # float32 of 0.85 reads 0.8500000238; 7 digits give back what was typed.
    rows = np.round(thresholds.astype(np.float64), 7)
    if rows.size and (rows == rows[:, :1]).all():
        return [float(row[0]) for row in rows]
    return [[float(value) for value in row] for row in rows]
