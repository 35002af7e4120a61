"""The trade-off drawn: accuracy against MACs of what was run, the chosen setting, and what it must beat.

Accuracy is mIoU, or agreement with the dense model where there are no labels.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from dovit_deploy import packages, signatures
from dovit_deploy.bundle.calibration import Calibration, ChoiceControls, MeasuredPoint, PartEntry
from dovit_deploy.claims import name_that_fits
from dovit_deploy.files import file_written_aside

SOFTWARE = "dovit-deploy, calibration"
"""What our plots state as the program that made them."""

NAMES = {"check": "held-out images", "all": "all images", "search": "images of the search"}
COLOURS = {"check": "C0", "all": "0.5", "search": "0.8"}


def save_plot(calibration: Calibration, path: Path) -> None:
    """Write the plot of `calibration` as PNG.

    Raises:
        PackageMissing: matplotlib is not installed.
        OutputFailed: the file cannot be written.
    """
    figure = packages.matplotlib_figure().Figure(figsize=(8.0, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    draw_plot(axes, calibration)
    figure.legend(loc="outside right upper", fontsize="small")
    with file_written_aside(path) as aside:
        # Whose it is, so that the next calibration may replace it.
        figure.savefig(aside, format="png", metadata={"Software": SOFTWARE})


def plot_path(bundle: Path) -> Path:
    """Where the plot of a bundle goes: `NAME-calibration.png` beside it, numbered where that is not ours to replace."""
    for number in itertools.count(1):
        path = bundle.with_name(name_that_fits(bundle.stem, f"-calibration{'' if number == 1 else f'-{number}'}.png"))
        if not os.path.lexists(path) or _is_ours(path):
            return path
    raise AssertionError("the numbers do not end")


def _is_ours(path: Path) -> bool:
    """A plot of `save_plot`, and no link to one."""
    # The notes stand before the pixels.
    return not path.is_symlink() and f"Software\0{SOFTWARE}".encode() in signatures.head_of(path)


def draw_plot(axes: Any, calibration: Calibration) -> None:  # noqa: ANN401
    """Draw everything but the legend on matplotlib's `axes`."""
    parts = {part.part: part for part in calibration.parts}
    # In the order of the legend: what the choice was judged by comes first.
    shown = [parts[name] for name in NAMES if name in parts]
    _draw_part(axes, calibration, shown[0])
    _draw_chosen(axes, calibration.chosen)
    if calibration.controls is not None:
        _draw_controls(axes, calibration.controls)
    for part in shown[1:]:
        _draw_part(axes, calibration, part)
    axes.set_xlabel("GMACs per image, whole model")
    axes.set_ylabel("pixels as in the dense answer (%)" if calibration.chosen.miou is None else "mIoU (%)")
    axes.set_title(calibration.budget.text, fontsize="medium")
    axes.grid(alpha=0.3)


def _draw_part(axes: Any, calibration: Calibration, part: PartEntry) -> None:  # noqa: ANN401
    points = sorted((p.gmacs, _height(p)) for p in calibration.measured if p.part == part.part)
    style = {"color": COLOURS[part.part], "zorder": 3 if part.part == "check" else 2}
    name = NAMES[part.part]
    axes.plot(*zip(*points, strict=True), "o-", linewidth=0.8, markersize=4, label=f"thresholds, {name}", **style)
    axes.plot([part.dense_gmacs], [_dense_height(part)], "s", label=f"dense, {name}", **style)


def _draw_chosen(axes: Any, chosen: MeasuredPoint) -> None:  # noqa: ANN401
    style: dict[str, Any] = {"fmt": "*", "markersize": 12, "color": "C3", "capsize": 4, "zorder": 4}
    if chosen.miou is None or chosen.drop is None or chosen.drop_interval is None:
        axes.errorbar([chosen.gmacs], [_height(chosen)], label="chosen", **style)
        return
    # What is uncertain is the drop from dense on the same images, so a larger drop is a lower mIoU.
    below, above = chosen.drop_interval.high - chosen.drop, chosen.drop - chosen.drop_interval.low
    ends = [[max(below, 0.0)], [max(above, 0.0)]]
    axes.errorbar([chosen.gmacs], [chosen.miou], yerr=ends, label="chosen, 95 % interval of its drop", **style)


def _draw_controls(axes: Any, controls: ChoiceControls) -> None:  # noqa: ANN401
    # Hollow, so that they do not hide the chosen point beside them.
    style: dict[str, Any] = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.5, "zorder": 5}
    for marker, colour, point, name in (
        ("^", "C2", controls.oracle, "oracle, same counts"),
        ("v", "C1", controls.random, "random, same counts"),
        ("<", "C6", controls.position, "position, same counts"),
        (">", "C8", controls.other, "another image's, same counts"),
    ):
        if point is None:
            continue
        axes.plot([point.gmacs], [point.miou], marker, color=colour, label=name, **style)
    for number, small in enumerate(controls.smaller_input):
        name = "dense at smaller inputs" if number == 0 else "_unlisted"
        axes.plot([small.gmacs], [small.miou], "D", color="C4", label=name, zorder=3)
        offset = {"xytext": (7, -3), "textcoords": "offset points", "fontsize": "small"}
        axes.annotate(f"{small.size[0]}x{small.size[1]}", (small.gmacs, small.miou), **offset)
    if controls.left_out is not None:
        axes.plot([], [], " ", label="dense at smaller inputs: left out")


def _height(point: MeasuredPoint) -> float:
    return 100.0 * (1.0 - point.differing) if point.miou is None else point.miou


def _dense_height(part: PartEntry) -> float:
    return 100.0 if part.dense_miou is None else part.dense_miou
