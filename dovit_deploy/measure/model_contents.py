"""A network in words and numbers: what a bundle and a checkpoint have in common."""

from __future__ import annotations

from collections.abc import Sequence

from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.bundle.model_spec import ModelSpec
from dovit_deploy.bundle.spec import Noun, head_text
from dovit_deploy.cost.flop_report import FlopReport
from dovit_deploy.cost.model import cost_model

Rows = tuple[tuple[str, str], ...]

MOST_NAMES, FEW_NAMES = 200, 5
"""Of more classes than the first, only so many as the second are named."""


class CostRow(Noun):
    """10^9 MACs of one image, by part."""

    case: str
    stem: float
    layers: float
    gates: float
    head: float
    total: float


def cost_row(case: str, report: FlopReport) -> CostRow:
    """A cost in 10^9 MACs."""
    return CostRow(
        case=case,
        stem=report.stem / 1e9,
        layers=report.layers / 1e9,
        gates=report.gates / 1e9,
        head=report.head / 1e9,
        total=report.total / 1e9,
    )


def cost_rows(spec: ModelSpec, counts: Sequence[int] | None) -> tuple[CostRow, ...]:
    """Cost of the dense network; for models with gates, with nothing stopped and at `counts` tokens per stage."""
    model = cost_model(spec)
    rows = [cost_row("dense", model.dense())]
    if spec.gates:
        rows.append(cost_row("nothing stopped", model.actual(spec.counts)))
        if counts is not None:
            rows.append(cost_row("typical", model.actual(counts)))
    elif len(spec.counts) > 1:
        rows.append(cost_row("every image", model.actual(spec.counts)))
    return tuple(rows)


def network_rows(spec: ModelSpec) -> Rows:
    """Family, size and shape of a network."""
    rows, columns = spec.grid
    return (
        ("family", spec.family),
        ("size", f"{spec.size[0]}x{spec.size[1]} pixels, {rows}x{columns} patches of {spec.patch}"),
        *spec.parts,
    )


def gate_rows(spec: ModelSpec, thresholds: Sequence[Sequence[float]], floor: float) -> Rows:
    """Where tokens stop: a row per gate, then the floor where it is on."""
    rows = [
        (f"gate {number}", f"before layer {gate.layer}, {head_text(gate.head)}, threshold {_limits(row)}")
        for number, (gate, row) in enumerate(zip(spec.gates, thresholds, strict=True))
    ]
    if not spec.gates:
        return (("gates", "none: a dense model" if len(spec.counts) == 1 else "none: token counts are fixed"),)
    return (*rows, *((("floor", f"{floor:g}"),) if floor else ()))


def _limits(row: Sequence[float]) -> str:
    """One number where all classes share it."""
    if len(set(row)) == 1:
        return f"{row[0]:g}"
    return f"{min(row):g} to {max(row):g} by class"


def picture_rows(preprocessing: Preprocessing, classes: Sequence[ClassEntry]) -> Rows:
    """What happens to pictures, and what they are cut into."""
    origin = " (assumed: ImageNet's)" if preprocessing.assumed else ""
    return (
        ("mean, std", f"{_triple(preprocessing.mean)}; {_triple(preprocessing.std)}{origin}"),
        _fitting_row(preprocessing),
        ("classes", _class_text(classes)),
    )


def _fitting_row(preprocessing: Preprocessing) -> tuple[str, str]:
    """How a picture gets the size of the model."""
    crop, stride = preprocessing.crop, preprocessing.stride
    if crop is not None:
        return "images", f"shorter side resized to {crop.shorter} ({crop.filter}), the centre is seen"
    return "larger images", "are resized" if stride is None else f"slide by {stride[0]}x{stride[1]}"


def _class_text(classes: Sequence[ClassEntry]) -> str:
    """How many, and their names; of many the first few."""
    names = [entry.name for entry in classes]
    if not names:
        return "none: a backbone without a head"
    shown = names if len(names) <= MOST_NAMES else [*names[:FEW_NAMES], "..."]
    return f"{len(names)}: {', '.join(shown)}"


def _triple(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
