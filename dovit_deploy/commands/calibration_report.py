"""What does the user read at the end of a calibration? What was run, what was chosen, and what may be relied on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dovit_deploy.commands import console
from dovit_deploy.commands.console import show_table
from dovit_deploy.printing import plural

if TYPE_CHECKING:
    from dovit_deploy.bundle.calibration import Calibration, ControlPoint, Interval, MeasuredPoint, SequenceTest

PART_NAMES = {"search": "search", "check": "held out", "all": "all"}


def show_calibration(calibration: Calibration, *, verbose: bool, quiet: bool) -> None:
    """Print what was run, what was chosen, and what may be relied on; `verbose`: settings of the search, too."""
    counts = {
        part.part: f"{plural(len(part.images), 'image')} in {plural(part.blocks, 'block')}"
        for part in calibration.parts
    }
    shown = [point for point in calibration.measured if verbose or point.part != "search"]
    headers = ("images", "thresholds", "MACs saved", "differ", "mIoU", "drop", "95 % interval", "ms", "")
    rows = [_row(point, chosen=point in (calibration.chosen, calibration.chosen_on_all)) for point in shown]
    rows += _control_rows(calibration)
    title = f"{calibration.budget.text}; searched on {counts['search']}, checked on {counts['check']}"
    show_table(title, headers, rows, right=(2, 3, 4, 5, 7))
    chosen = calibration.chosen
    values = ", ".join(f"{value:g}" for value in chosen.thresholds)
    console.result(
        f"thresholds {values}: {chosen.flops_saved:z.1%} of the MACs saved{_drop_text(chosen)}, "
        f"{chosen.differing:.2%} of the pixels differ from the dense answer, on held-out images"
    )
    if calibration.test is not None:
        console.result(_promise_line(calibration.test, calibration))
    whole = calibration.chosen_on_all
    console.result(f"on all {plural(whole.images, 'image')}: {whole.flops_saved:z.1%} saved{_drop_text(whole)}")
    if calibration.controls is not None and calibration.controls.left_out is not None:
        console.remark(f"dense at smaller inputs is left out: {calibration.controls.left_out}", quiet=quiet)


def _promise_line(test: SequenceTest, calibration: Calibration) -> str:
    """What may be relied on, where, and what shows it."""
    from dovit_deploy.calibrate.units import named_units

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
        for name, point in named
        if point is not None
    ]


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
