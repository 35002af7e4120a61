"""What chosen thresholds must beat, on the held-back images: random and oracle at their counts, dense and smaller.

Run after the choice, which therefore cannot have been made by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dovit_deploy import packages
from dovit_deploy.bundle.calibration import (
    Calibration,
    ChoiceControls,
    ControlPoint,
    MeasuredPoint,
    PartEntry,
    SmallerPoint,
)
from dovit_deploy.calibrate.budgets import drop_with_interval
from dovit_deploy.calibrate.calibrate import halves
from dovit_deploy.calibrate.trial import DensePart, Picture, Pictures, Trial
from dovit_deploy.errors import DatasetError, InputError
from dovit_deploy.measure.controls import CONTROL_SEED, Steering
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.runtime.segmentation import Predictor, SegmentationResult
from dovit_deploy.runtime.session import Session


def controls_of_choice(
    session: Session,
    pictures: Pictures,
    calibration: Calibration,
    *,
    smaller: Sequence[Session],
    left_out: str | None,
    advance: Callable[[], None],
) -> ChoiceControls:
    """The controls of `calibration.chosen`.

    Args:
        session, pictures: that `calibration` was made with.
        smaller: sessions of the same network at other input sizes, run dense.
        left_out: why there are none of them.
        advance: told after every picture.

    Raises:
        DatasetError: the pictures have no labels.
    """
    if not pictures.labelled:
        raise DatasetError(f"{pictures.name} has no labels; accuracy cannot be compared without")
    runner = _Controls(session, calibration.chosen.thresholds, smaller)
    parts = halves(pictures.stems, seed=calibration.seed)
    dense = DensePart(parts.check, parts.blocks_of(parts.check))
    for place, index in enumerate(parts.check):
        runner.run(dense, pictures.picture(index), place)
        advance()
    sizes = zip(smaller, runner.smaller, strict=True)
    return ChoiceControls(
        random=_point(dense, runner.random),
        oracle=_point(dense, runner.oracle),
        smaller_input=tuple(
            SmallerPoint(**dict(_point(dense, trial)), size=small.bundle.manifest.spec.size, engine=small.backend.name)
            for small, trial in sizes
        ),
        left_out=left_out,
        seed=CONTROL_SEED,
    )


class _Controls:
    """Every control on one picture after the other."""

    def __init__(self, session: Session, thresholds: tuple[float, ...], smaller: Sequence[Session]) -> None:
        self.thresholds, self.classes = thresholds, session.bundle.manifest.spec.classes
        self.rule, self.steering = Predictor(session), Steering(session)
        self.predictors = [Predictor(small) for small in smaller]
        self.random, self.oracle = Trial(thresholds), Trial(thresholds)
        self.smaller = [Trial(()) for _ in smaller]

    def run(self, part: DensePart, picture: Picture, place: int) -> None:
        """Count the answers to the picture at `place` of `part`."""
        rgb = picture.rgb
        dense, logits = self.steering.dense(rgb)
        tokens = self.rule.predict(rgb, thresholds=self.thresholds).tokens
        results = [self.steering.random(rgb, tokens, number=place), self.steering.oracle(rgb, tokens, logits)]
        results += [predictor.predict(rgb, dense=True) for predictor in self.predictors]
        part.counts.append(self._counts(picture, dense))
        for trial, result in zip((self.random, self.oracle, *self.smaller), results, strict=True):
            trial.counts.append(self._counts(picture, result))
            trial.gmacs.append(result.tokens.gmacs_actual)
            trial.gmacs_dense.append(dense.tokens.gmacs_dense)

    def _counts(self, picture: Picture, result: SegmentationResult) -> ClassCounts:
        assert picture.label is not None
        return ClassCounts.of(picture.label, result.class_map, classes=self.classes)


def _point(dense: DensePart, trial: Trial) -> ControlPoint:
    drop = drop_with_interval(dense, trial)
    return ControlPoint(
        flops_saved=trial.flops_saved,
        gmacs=float(np.mean(trial.gmacs)),
        miou=ClassCounts.stacked(trial.counts).miou,
        drop=drop.drop,
        drop_interval=drop.interval,
    )


# The trade-off as a picture: accuracy against MACs of what was run, the chosen setting, and what it must beat.

NAMES = {"check": "held-back images", "all": "all images", "search": "images of the search"}
COLOURS = {"check": "C0", "all": "0.5", "search": "0.8"}


def save_plot(calibration: Calibration, path: Path) -> None:
    """Write the Pareto plot of `calibration` as PNG: mIoU, or agreement with the dense model where there are no labels.

    Raises:
        PackageMissing: matplotlib is not installed.
        InputError: the file cannot be written.
    """
    figure = packages.matplotlib_figure().Figure(figsize=(8.0, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    draw_plot(axes, calibration)
    figure.legend(loc="outside right upper", fontsize="small")
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


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
    """All of the held-back images; hollow, so that they do not hide the chosen point beside them."""
    style: dict[str, Any] = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.5, "zorder": 5}
    for marker, colour, point, name in (
        ("^", "C2", controls.oracle, "oracle, same counts"),
        ("v", "C1", controls.random, "random, same counts"),
    ):
        axes.plot([point.gmacs], [point.miou], marker, color=colour, label=name, **style)
    for number, small in enumerate(controls.smaller_input):
        name = "dense at smaller inputs" if number == 0 else "_unlisted"
        axes.plot([small.gmacs], [small.miou], "D", color="C4", label=name, zorder=3)
        place = {"xytext": (7, -3), "textcoords": "offset points", "fontsize": "small"}
        axes.annotate(f"{small.size[0]}x{small.size[1]}", (small.gmacs, small.miou), **place)
    if controls.left_out is not None:
        axes.plot([], [], " ", label="dense at smaller inputs: left out")


def _height(point: MeasuredPoint) -> float:
    return 100.0 * (1.0 - point.differing) if point.miou is None else point.miou


def _dense_height(part: PartEntry) -> float:
    return 100.0 if part.dense_miou is None else part.dense_miou
