"""The trade-off as a picture: accuracy against MACs of what was run, the dense model and the chosen setting."""

from __future__ import annotations

from pathlib import Path

from dovit_deploy import packages
from dovit_deploy.bundle.calibration import Calibration, MeasuredPoint, PartEntry
from dovit_deploy.errors import InputError

COLOURS = {"search": "#9aa5b1", "check": "#1f6feb", "all": "#57606a"}
NAMES = {"search": "images of the search", "check": "held-back images", "all": "all images"}


def save_plot(calibration: Calibration, path: Path) -> None:
    """Write the Pareto plot of `calibration` as PNG: mIoU, or agreement with the dense model where there are no labels.

    Raises:
        PackageMissing: matplotlib is not installed.
        InputError: the file cannot be written.
    """
    figure = packages.matplotlib_figure().Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    for part in calibration.parts:
        points = sorted((p.gmacs, _height(p)) for p in calibration.measured if p.part == part.part)
        colour = COLOURS[part.part]
        name = NAMES[part.part]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
        axes.plot([part.dense_gmacs], [_dense_height(part)], "s", color=colour, label=f"dense, {name}")
    chosen = calibration.chosen
    axes.plot([chosen.gmacs], [_height(chosen)], "*", markersize=16, color="#d1242f", label="chosen")
    axes.set_xlabel("10$^9$ MACs per image, whole model")
    axes.set_ylabel("agreement with the dense model, % of pixels" if chosen.miou is None else "mIoU, %")
    axes.set_title(calibration.budget.text, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _height(point: MeasuredPoint) -> float:
    return 100.0 * (1.0 - point.differing) if point.miou is None else point.miou


def _dense_height(part: PartEntry) -> float:
    return 100.0 if part.dense_miou is None else part.dense_miou
