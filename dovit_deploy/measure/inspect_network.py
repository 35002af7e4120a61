"""What is said of a network, whether a bundle or a checkpoint holds it: its shape, its gates, its input, its cost?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.macs import FlopReport
from dovit_deploy.families.parts import head_text
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.measure.inspect_files import Facts
from dovit_deploy.record import Record

if TYPE_CHECKING:
    pass

MOST_NAMES, FEW_NAMES = 200, 5
"""Of more classes than the first, only so many as the second are named."""


class CostRow(Record):
    """10^9 MACs of one image, by part."""

    case: str
    stem: float
    layers: float
    gates: float
    head: float
    total: float


def cost_rows(spec: ModelSpec, counts: Sequence[int] | None) -> tuple[CostRow, ...]:
    """Cost of the dense network; for models with gates, with nothing stopped and at `counts` tokens per stage."""
    model = cost_model(spec)
    costs = {"dense": model.dense()}
    if spec.gates:
        costs["nothing stopped"] = model.actual(spec.counts)
        if counts is not None:
            costs["typical"] = model.actual(counts)
    elif len(spec.counts) > 1:
        costs["every image"] = model.actual(spec.counts)
    return tuple(_cost_row(case, cost) for case, cost in costs.items())


def _cost_row(case: str, cost: FlopReport) -> CostRow:
    return CostRow(
        case=case,
        stem=cost.stem / 1e9,
        layers=cost.layers / 1e9,
        gates=cost.gates / 1e9,
        head=cost.head / 1e9,
        total=cost.total / 1e9,
    )


def network_facts(spec: ModelSpec) -> Facts:
    """Family, size and shape of a network."""
    rows, columns = spec.grid
    return (
        ("family", spec.family),
        ("size", f"{spec.size[0]}x{spec.size[1]} pixels, {rows}x{columns} patches of {spec.patch}"),
        *spec.parts,
    )


def gate_facts(spec: ModelSpec, thresholds: Sequence[Sequence[float]], floor: float) -> Facts:
    """Where tokens stop: a row per gate, then the floor where it is on."""
    rows = [
        (f"gate {number}", f"before layer {gate.layer}, {head_text(gate.head)}, threshold {_limits(row)}")
        for number, (gate, row) in enumerate(zip(spec.gates, thresholds, strict=True))
    ]
    if not spec.gates:
        return (("gates", "none: a dense model" if len(spec.counts) == 1 else "none: token counts are fixed"),)
    return (*rows, *((("floor", f"{floor:g}"),) if floor else ()))


def _limits(row: Sequence[float]) -> str:
    # A gate has a threshold for each class, in most bundles the same.
    if len(set(row)) == 1:
        return f"{row[0]:g}"
    return f"{min(row):g} to {max(row):g} by class"


def input_facts(preprocessing: Preprocessing, classes: Sequence[ClassEntry]) -> Facts:
    """How images are prepared, and which classes they are divided into."""
    origin = " (assumed: ImageNet's)" if preprocessing.assumed else ""
    return (
        ("mean, std", f"{_triple(preprocessing.mean)}; {_triple(preprocessing.std)}{origin}"),
        _fitting_fact(preprocessing),
        ("classes", _class_text(classes)),
    )


def _fitting_fact(preprocessing: Preprocessing) -> tuple[str, str]:
    """How an image gets the size of the model."""
    crop, stride = preprocessing.crop, preprocessing.stride
    if crop is not None:
        return "images", f"shorter side resized to {crop.shorter} ({crop.filter}), the centre is cropped"
    return "larger images", "are resized" if stride is None else f"slide by {stride[0]}x{stride[1]}"


def _class_text(classes: Sequence[ClassEntry]) -> str:
    """How many, and their names; of many the first few."""
    names = [entry.name for entry in classes]
    if not names:
        return "none: a backbone without a head"
    # ImageNet's thousand names would bury everything else; ADE20K's 150 are still read.
    shown = names if len(names) <= MOST_NAMES else [*names[:FEW_NAMES], "..."]
    return f"{len(names)}: {', '.join(shown)}"


def _triple(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
