"""What does a run look like? Loss, tokens, what its thresholds trade, and a few of its answers, in one plot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dovit_deploy import packages
from dovit_deploy.bundle.manifest import ClassEntry
from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.runtime.paint import colored
from dovit_deploy.sources.source import RGB
from dovit_deploy.train.config import Scaling
from dovit_deploy.train.forward import TrainableNetwork
from dovit_deploy.train.masked import uniform_passing
from dovit_deploy.train.result import ThresholdPoint
from dovit_deploy.train.state import write_run_file
from dovit_deploy.train.validation import answered, spread_order

SMOOTH = 50
"""Steps that a point of a curve averages at most."""
SAMPLES = 2
"""Validation images whose answers are shown."""


@dataclass(frozen=True)
class SampleAnswer:
    """A validation image, its label and what the trained network says of it."""

    rgb: RGB
    label: NDArray[np.uint8]
    """(H, W); numbers of no class are void."""
    dense: NDArray[np.uint8]
    stopped: NDArray[np.uint8]
    """With tokens stopped at the chosen threshold."""


@torch.no_grad()
def sample_answers(
    model: TrainableNetwork, data: Dataset, *, threshold: float, scaling: Scaling
) -> tuple[SampleAnswer, ...]:
    """The answers to `SAMPLES` images of `data` that are spread evenly, in evaluation mode; its mode is restored."""
    was_training = model.training
    model.eval()
    answers, passings = [], (None, uniform_passing(model.spec, threshold) if model.spec.gates else None)
    for number in spread_order(len(data))[:SAMPLES]:
        sample = data.sample(number)
        dense, stopped = (
            answered(model, sample.rgb, sample.label.shape, passing=passing, scaling=scaling)[1] for passing in passings
        )
        answers.append(SampleAnswer(sample.rgb, sample.label, dense, stopped))
    model.train(was_training)
    return tuple(answers)


def write_plot(
    path: Path,
    rows: Sequence[dict[str, Any]],
    curve: Sequence[ThresholdPoint],
    samples: Sequence[SampleAnswer],
    classes: Sequence[ClassEntry],
) -> None:
    """Draw the log's `rows`, the threshold `curve` and the `samples` to the PNG file `path`.

    Raises:
        PackageMissing: matplotlib is not installed.
        OutputFailed: the file cannot be written.
    """
    height = 4.2 + 2.7 * len(samples)
    figure = packages.matplotlib_figure().Figure(figsize=(14, height), layout="constrained")
    above, *below = figure.subfigures(1 + len(samples), 1, height_ratios=[4.2, *[2.7] * len(samples)], squeeze=False)[
        :, 0
    ]
    losses, tokens, trade = above.subplots(1, 3)
    steps = [row for row in rows if "loss" in row]
    _losses(losses, steps, [row for row in rows if "miou" in row])
    _tokens(tokens, steps)
    _trade(trade, curve)
    for part, sample in zip(below, samples, strict=True):
        _sample(part, sample, np.array([entry.color for entry in classes], dtype=np.uint8))
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_run_file(path, content.getvalue())


def _smoothed(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[int], NDArray[np.float64]]:
    """Steps, and the mean of `name` over the steps before each."""
    # A tenth of a short run, so that its curve keeps a shape.
    width = max(1, min(SMOOTH, len(rows) // 10))
    values = np.convolve([row[name] for row in rows], np.ones(width) / width, "valid") if rows else np.zeros(0)
    return [row["step"] for row in rows][width - 1 :], values


def _losses(axes: Any, steps: list[dict[str, Any]], looks: list[dict[str, Any]]) -> None:  # noqa: ANN401
    axes.set_title("loss of the decode head" + ("; mIoU of the validation images" if looks else ""))
    axes.set_xlabel("step")
    axes.plot(*_smoothed(steps, "loss"), color="tab:blue")
    axes.set_ylabel("loss", color="tab:blue")
    axes.grid(alpha=0.3)
    if looks:
        other = axes.twinx()
        other.plot([row["step"] for row in looks], [row["miou"] for row in looks], "o-", color="tab:orange")
        other.set_ylabel("mIoU, %", color="tab:orange")


def _tokens(axes: Any, steps: list[dict[str, Any]]) -> None:  # noqa: ANN401
    axes.set_title("share of tokens running after each gate, mean")
    axes.set_xlabel("step that stops tokens")
    passing = [row for row in steps if row.get("threshold", 0) < 1]
    for name in sorted(key for key in (steps[0] if steps else {}) if key.startswith("kept")):
        axes.plot(*_smoothed(passing, name), label=f"gate {name[4:]}")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, frameon=False)


def _trade(axes: Any, curve: Sequence[ThresholdPoint]) -> None:  # noqa: ANN401
    axes.set_title("mIoU against MACs saved, by threshold")
    axes.set_xlabel("MACs of the whole model saved, %")
    axes.set_ylabel("mIoU, %")
    axes.grid(alpha=0.3)
    curve = sorted(curve, key=lambda point: point.flops_saved)
    axes.plot([100 * point.flops_saved for point in curve], [point.miou for point in curve], "o-")
    for number, point in enumerate(curve):
        name = "dense" if point.threshold is None else f"{point.threshold:g}"
        # Neighbours lie close together: one label above the line, the next below.
        place = (0, 9) if number % 2 == 0 else (0, -16)
        where = (100 * point.flops_saved, point.miou)
        axes.annotate(name, where, xytext=place, textcoords="offset points", ha="center", fontsize=8)
    axes.margins(0.08, 0.12)


def _sample(part: Any, sample: SampleAnswer, colors: NDArray[np.uint8]) -> None:  # noqa: ANN401
    shown = (
        ("validation image", sample.rgb),
        ("label (black: void)", colored(sample.label, colors)),
        ("dense", colored(sample.dense, colors)),
        ("tokens stopped", colored(sample.stopped, colors)),
    )
    for axes, (name, rgb) in zip(part.subplots(1, 4), shown, strict=True):
        axes.imshow(rgb, interpolation="nearest")
        axes.set_title(name, fontsize="medium")
        axes.axis("off")
