"""The run as one picture: loss and learning rate, mIoU, tokens that run, and accuracy against FLOPs at the end."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dovit_deploy import packages
from dovit_deploy.train.result import CurvePoint
from dovit_deploy.train.state import write_atomically

SMOOTH = 50
"""Steps that a point of the loss curve averages at most."""


def write_picture(path: Path, rows: Sequence[dict[str, Any]], curve: Sequence[CurvePoint]) -> None:
    """Draw the log's `rows` and the threshold `curve` to the PNG file `path`.

    Raises:
        PackageMissing: matplotlib is not installed.
        InputError: the file cannot be written.
    """
    figure = packages.matplotlib_figure().Figure(figsize=(14, 3.8), layout="constrained")
    losses, tokens, trade = figure.subplots(1, 3)
    _losses(losses, [row for row in rows if "loss" in row], [row for row in rows if "miou" in row])
    _tokens(tokens, [row for row in rows if "loss" in row])
    _trade(trade, curve)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_atomically(path, content.getvalue())


def _losses(axes: Any, steps: list[dict[str, Any]], looks: list[dict[str, Any]]) -> None:  # noqa: ANN401
    axes.set_title("loss of the decode head; mIoU of the watched images")
    axes.set_xlabel("step")
    width = max(1, min(SMOOTH, len(steps) // 10))
    values = np.convolve([row["loss"] for row in steps], np.ones(width) / width, "valid") if steps else np.zeros(0)
    axes.plot([row["step"] for row in steps][width - 1 :], values, color="tab:blue")
    axes.set_ylabel("loss", color="tab:blue")
    if looks:
        other = axes.twinx()
        other.plot([row["step"] for row in looks], [row["miou"] for row in looks], "o-", color="tab:orange")
        other.set_ylabel("mIoU, %", color="tab:orange")


def _tokens(axes: Any, steps: list[dict[str, Any]]) -> None:  # noqa: ANN401
    axes.set_title("share of tokens running after each gate")
    axes.set_xlabel("step that stops tokens")
    passing = [row for row in steps if row["threshold"] < 1]
    for name in sorted(key for key in (steps[0] if steps else {}) if key.startswith("kept")):
        axes.plot([row["step"] for row in passing], [row[name] for row in passing], ".", ms=2, label=f"gate {name[4:]}")
    axes.set_ylim(0, 1.02)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _trade(axes: Any, curve: Sequence[CurvePoint]) -> None:  # noqa: ANN401
    axes.set_title("mIoU against MACs saved, by threshold")
    axes.set_xlabel("MACs of the whole model saved, %")
    axes.set_ylabel("mIoU, %")
    curve = sorted(curve, key=lambda point: point.flops_saved)
    axes.plot([100 * point.flops_saved for point in curve], [point.miou for point in curve], "o-")
    for point in curve:
        name = "dense" if point.threshold is None else f"{point.threshold:g}"
        axes.annotate(name, (100 * point.flops_saved, point.miou), fontsize=7)
