"""Which layers must stay in float32? All are in 8 bits where that costs little enough, else the worst are left out.

How much a unit costs is measured with it alone in 8 bits, on a few images, by the dense logits: those of float32
against those of ONNX Runtime's form. With labels points of mIoU count, without them classes that change. Twice as many
of the worst are left out each time, until enough is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import onnx_ir as ir

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import LOGITS, PIXELS
from dovit_deploy.engines.base import Array
from dovit_deploy.engines.onnxruntime import PROVIDER, session_options
from dovit_deploy.errors import CheckError
from dovit_deploy.export.quantise import (
    TRIED,
    Loss,
    Quantisation,
    QuantisePlan,
    Unit,
    classes_changed,
    reference_graph,
    write_quantised,
)
from dovit_deploy.graphs.forms import quantised_passes
from dovit_deploy.graphs.passes import Pass, applied
from dovit_deploy.graphs.weights import widened
from dovit_deploy.progress import StepProgress
from dovit_deploy.runtime.results import Pixels
from dovit_deploy.runtime.transforms import to_input


def quantised_bundle(bundle: Bundle, plan: QuantisePlan, *, progress: StepProgress) -> Bundle:
    """`bundle` with forms in 8 bits written into its folder; its manifest does not list the files yet.

    Raises:
        CheckError: no layer can be computed in 8 bits within what is allowed.
    """
    progress.begin("measure ranges for int8", len(plan.images), unit="images")
    quantisation = Quantisation.observed(bundle, partial(plan.drive, advance=progress.advance))
    progress.begin("try int8")
    trial = UnitTrial(bundle, quantisation, _pixels(bundle, plan), lost=plan.lost)
    units = units_within(trial, quantisation.units, allowed=plan.allowed, progress=progress)
    progress.begin("write int8")
    return write_quantised(bundle, quantisation.table(units))


def _pixels(bundle: Bundle, plan: QuantisePlan) -> list[Pixels]:
    """A few of the plan's images as the dense network takes them: whole, though windows may slide over them later."""
    whole = bundle.manifest.preprocessing.model_copy(update={"stride": None})
    return [to_input(rgb, whole, bundle.manifest.spec.size) for rgb in itertools.islice(plan.images, TRIED)]


@dataclass(frozen=True)
class Cost:
    """What some units in 8 bits cost."""

    lost: float
    """Points."""
    distance: float
    """Root mean square of the logits' change: it ranks where nothing is lost."""


class UnitCosts(Protocol):
    """A dense network with any of its units in 8 bits, against float32."""

    def cost(self, units: Collection[Unit]) -> Cost:
        """Of `units` alone in 8 bits."""


def units_within(
    trial: UnitCosts, units: tuple[Unit, ...], *, allowed: float, progress: StepProgress
) -> tuple[Unit, ...]:
    """Those of `units` that can be in 8 bits together.

    Args:
        trial: of the network.
        units: all that it has.
        allowed: points that may be lost.
        progress: is told of each step.

    Raises:
        CheckError: not even one unit can.
    """
    if trial.cost(units).lost <= allowed:
        return units
    progress.begin("measure each part in int8", len(units), unit="parts")
    costs = {}
    for unit in units:
        costs[unit] = trial.cost([unit])
        progress.advance()
    progress.begin("leave out the worst parts")
    worst = sorted(units, key=lambda unit: (costs[unit].lost, costs[unit].distance), reverse=True)
    left_out = 1
    while left_out < len(units):
        kept = tuple(unit for unit in units if unit not in worst[:left_out])
        if trial.cost(kept).lost <= allowed:
            return kept
        left_out *= 2
    raise CheckError(
        f"int8 loses more than {allowed:g} points in the dense network, whichever layers stay in fp32; leave it out, "
        "or allow more with --max-drop"
    )


class UnitTrial:
    """The `UnitCosts` of a bundle's network.

    Args:
        bundle: in fp32.
        quantisation: of it.
        pixels: a few images (1, 3, H, W), normalised.
        lost: by what is judged.
    """

    def __init__(
        self, bundle: Bundle, quantisation: Quantisation, pixels: Sequence[Pixels], *, lost: Loss = classes_changed
    ) -> None:
        self._model = widened(ir.load(bundle.graph(reference_graph(bundle), fast=True))).model
        self._quantisation, self._pixels, self._lost = quantisation, pixels, lost
        self._wanted = self._answers(())

    def cost(self, units: Collection[Unit]) -> Cost:
        """Of `units` alone in 8 bits."""
        found = self._answers(quantised_passes(self._quantisation.table(units), fast=True))
        lost = self._lost(self._wanted, found)
        if lost is None:
            lost = classes_changed(self._wanted, found)
        distances = [float(np.square(want - got).mean()) for want, got in zip(self._wanted, found, strict=True)]
        return Cost(lost, float(np.sqrt(np.mean(distances))))

    def _answers(self, passes: Sequence[Pass]) -> list[Array]:
        runtime = packages.onnxruntime()
        options = session_options(runtime, threads=None)
        with TemporaryDirectory(prefix="dovit-") as folder:
            path = Path(folder) / "graph.onnx"
            ir.save(applied(self._model, passes).model, path, external_data="graph.data")
            session = runtime.InferenceSession(str(path), options, providers=[PROVIDER])
            return [session.run([LOGITS], {PIXELS: image})[0] for image in self._pixels]
