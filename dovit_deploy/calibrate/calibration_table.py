"""The table of a calibration and what may be relied on, for the console and for the page."""

from __future__ import annotations

from dovit_deploy.bundle.calibration import Calibration, ControlPoint, Interval, MeasuredPoint, SequenceTest
from dovit_deploy.calibrate.units import named_units
from dovit_deploy.printing import plural

PART_NAMES = {"search": "search", "check": "held out", "all": "all"}
HEADERS = ("images", "thresholds", "MACs saved", "differ", "mIoU", "drop", "95 % interval", "ms", "")
NUMBERS = (2, 3, 4, 5, 7)
"""The columns of `HEADERS` that hold numbers."""


def calibration_title(calibration: Calibration) -> str:
    """The budget, and what it was searched and checked on."""
    counts = {
        part.part: f"{plural(len(part.images), 'image')} in {plural(part.blocks, 'block')}"
        for part in calibration.parts
    }
    return f"{calibration.budget.text}; searched on {counts['search']}, checked on {counts['check']}"


def calibration_rows(calibration: Calibration, *, search: bool) -> list[tuple[str, ...]]:
    """A row below `HEADERS` for each setting that was run, and each control; `search`: those of the search, too."""
    shown = [point for point in calibration.measured if search or point.part != "search"]
    rows = [_row(point, chosen=point in (calibration.chosen, calibration.chosen_on_all)) for point in shown]
    return rows + _control_rows(calibration)


def calibration_lines(calibration: Calibration) -> list[str]:
    """What was chosen, and what may be relied on."""
    chosen, whole = calibration.chosen, calibration.chosen_on_all
    values = ", ".join(f"{value:g}" for value in chosen.thresholds)
    return [
        f"thresholds {values}: {chosen.flops_saved:z.1%} of the MACs saved{_drop_text(chosen)}, "
        f"{chosen.differing:.2%} of the pixels differ from the dense answer, on held-out images",
        *([] if calibration.test is None else [_promise_line(calibration.test, calibration)]),
        f"on all {plural(whole.images, 'image')}: {whole.flops_saved:z.1%} saved{_drop_text(whole)}",
    ]


def _promise_line(test: SequenceTest, calibration: Calibration) -> str:
    """What may be relied on, where, and what shows it."""
    last = test.sequence[test.boldest]
    behind = "the last of them" if test.stopped_at is None else f"the next one fails (p {_p_text(test)})"
    return (
        f"on images like these, in {calibration.engine} {calibration.precision}: at most {test.max_disagree:.2%} of "
        f"the pixels differ from the dense answer, with confidence {test.confidence:g}; setting {test.boldest + 1} of "
        f"the sequence tested on {named_units(test.unit, test.units)}, p {last.p_value:.2g}; {behind}"
    )


def _p_text(test: SequenceTest) -> str:
    assert test.stopped_at is not None
    return f"{test.sequence[test.stopped_at].p_value:.2g}"


def _row(point: MeasuredPoint, *, chosen: bool) -> tuple[str, ...]:
    return (
        PART_NAMES[point.part],
        ", ".join(f"{value:g}" for value in point.thresholds),
        f"{point.flops_saved:z.1%}",
        f"{point.differing:.2%}",
        "-" if point.miou is None else f"{point.miou:.2f}",
        "-" if point.drop is None else f"{point.drop:z.2f}",
        _ends(point.drop_interval),
        f"{point.model_ms:.1f}",
        "chosen" if chosen else "met" if point.met else "not met",
    )


def _control_rows(calibration: Calibration) -> list[tuple[str, ...]]:
    return [
        (
            PART_NAMES["check"],
            name,
            f"{point.flops_saved:z.1%}",
            "-",
            f"{point.miou:.2f}",
            f"{point.drop:z.2f}",
            _ends(point.drop_interval),
            "-",
            _control_text(point),
        )
        for name, point in named_controls(calibration)
    ]


def named_controls(calibration: Calibration) -> list[tuple[str, ControlPoint]]:
    """The controls that were measured, with their names; smaller inputs are called "dense at HxW"."""
    controls = calibration.controls
    if controls is None:
        return []
    named: list[tuple[str, ControlPoint | None]] = [
        ("random, same counts", controls.random),
        ("position, same counts", controls.position),
        ("another image's, same counts", controls.other),
        ("oracle, same counts", controls.oracle),
        *((f"dense at {small.size[0]}x{small.size[1]}", small) for small in controls.smaller_input),
    ]
    return [(name, point) for name, point in named if point is not None]


def _control_text(point: ControlPoint) -> str:
    if point.rule_gain is None:
        return "control"
    ends = "" if point.rule_gain_interval is None else f" ({_ends(point.rule_gain_interval)})"
    return f"control; chosen {point.rule_gain:+.2f}{ends}"


def _ends(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.low:z.2f} to {interval.high:z.2f}"


def _drop_text(point: MeasuredPoint) -> str:
    if point.drop is None:
        return ""
    ends = "no interval" if point.drop_interval is None else _ends(point.drop_interval)
    return f", mIoU drop {point.drop:z.2f} ({ends})"
