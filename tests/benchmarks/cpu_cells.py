"""Cells of `benchmarks/cpu.py` on a tiny bundle, and results as they would be measured."""

from __future__ import annotations

from on_cpu.frames import FrameChoice
from on_cpu.models import CaseFiles
from on_cpu.result import (
    DEFAULT,
    OWN,
    CellAccuracy,
    CellEffort,
    CellRow,
    CpuCase,
    CpuCell,
    CpuReport,
    CpuSettings,
    CpuWay,
)
from report import circumstances

LITTLE = CellEffort(seconds=0.0, fewest=1, timed_frames=2, limit_s=60.0)
FRAMES = FrameChoice(frames=None, dataset=None, split="val", count=2)


def cell_of(files: CaseFiles, runs: str, engine: str = "onnxruntime", precision: str = "fp32", **more) -> CpuCell:
    profile = OWN if runs in ("tokens", "merging") else ""
    way = CpuWay(runs=runs, engine=engine, precision=precision, profile=profile)
    return CpuCell(case=files.case, way=way, **more)


def row_of(
    runs: str, engine: str, precision: str, ratio: float, agreement: float, miou: float | None = None
) -> CellRow:
    """Of the default model alone."""
    profile = OWN if runs == "tokens" else ""
    way = CpuWay(runs=runs, engine=engine, precision=precision, profile=profile)
    cell = CpuCell(case=CpuCase(model=DEFAULT, size=(32, 48)), way=way)
    found = CellAccuracy(frames=3, agreement=agreement, miou=miou, drop=None if miou is None else 62.0 - miou)
    times = {"p50": 5.0, "p99": 6.0, "first": 50.0, "cpu": 5.0, "low": ratio, "high": ratio, "pairs": 4}
    return CellRow(cell=cell, ratio=ratio, accuracy=found, macs_saved=0.0, **times)


def report_of(*rows: CellRow) -> CpuReport:
    settings = CpuSettings(bundle="x.dovit", frames="rendered streets", count=3, effort=LITTLE)
    return CpuReport.model_validate(
        {**circumstances("python benchmarks/cpu.py"), "features": ("avx2",), "settings": settings, "rows": rows}
    )


ROWS = (
    row_of("dense", "onnxruntime", "fp32", 1.0, 1.0),
    row_of("tokens", "onnxruntime", "fp32", 1.7, 0.97),
    row_of("dense", "openvino", "bf16", 1.9, 0.998),
    row_of("tokens", "openvino", "bf16", 3.0, 0.972),
    row_of("nncf", "openvino", "int8", 2.5, 0.96),
)
