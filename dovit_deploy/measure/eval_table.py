"""The table of an evaluation: a row for every way of running, for the console and for the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dovit_deploy.measure.eval_records import ClassificationReport, SegmentationReport

EitherReport = SegmentationReport | ClassificationReport

SCORES = {
    "segmentation": {"mIoU": "miou", "boundary": "boundary_iou", "pixels": "pixel_accuracy"},
    "classification": {"top-1": "top1", "top-5": "top5"},
}
"""The table's columns of each task, and the keys that they show."""

CONTROL_NAMES = {
    "random": "random, same counts",
    "position": "position, same counts",
    "other": "another image's, same counts",
    "first_gate": "all at the first gate",
    "oracle": "oracle gate, same counts",
    "oracle_unlimited": "oracle gate, any counts",
}


def eval_rows(report: EitherReport, scores: Sequence[str]) -> list[tuple[str, ...]]:
    """A row for every way of running that was measured, below `eval_headers`."""
    return [_row(name, entry, scores) for name, entry in measured_ways(report)]


def eval_headers(scores: Iterable[str]) -> tuple[str, ...]:
    """Of the columns; all but the first hold numbers."""
    return ("run", *scores, "drop", "95 % interval", "GMACs", "saved")


def measured_ways(report: EitherReport) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and figures, as in the JSON, of every way of running that was measured."""
    # By the keys of the JSON, in which both tasks name what they share alike.
    contents = report.model_dump()
    controls = contents["controls"] or {}
    named = [("dense", contents["dense"]), ("dynamic", contents["dynamic"])]
    named += [(name, controls.get(key)) for key, name in CONTROL_NAMES.items()]
    named += [(f"dense at {entry['size'][0]}x{entry['size'][1]}", entry) for entry in controls.get("smaller_input", ())]
    return [(name, entry) for name, entry in named if entry is not None]


def _row(name: str, entry: Mapping[str, Any], scores: Sequence[str]) -> tuple[str, ...]:
    # The dense run has no drop, and a set of few blocks has no interval.
    drop, interval, saved = (entry.get(key) for key in ("drop", "drop_interval", "flops_saved"))
    return (
        name,
        *(f"{entry[key]:.2f}" for key in scores),
        "" if drop is None else f"{drop:z.2f}",
        "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
        f"{entry['gmacs']:.3f}",
        "" if saved is None else f"{saved:z.1%}",
    )
