"""What does the page of a calibration show? The figures of `calibration.json`: what was run, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dovit_deploy.bundle.calibration import (
    Calibration,
    ControlPoint,
    HeldOutImage,
    Interval,
    MeasuredPoint,
    PartName,
    SequenceTest,
)
from dovit_deploy.calibrate.calibration_table import (
    HEADERS,
    NUMBERS,
    calibration_lines,
    calibration_rows,
    calibration_title,
    named_controls,
)
from dovit_deploy.calibrate.units import named_units
from dovit_deploy.measure.eval_page import MOST_LISTED, Ends, class_by_class, drop_fact, gain_bars, score_ends
from dovit_deploy.pages.charts import LEAST_SPAN, ChartPoint, Scatter
from dovit_deploy.pages.page import Fact, Lines, Page, PageSection, PageTable, Part, facts_table, machine_table
from dovit_deploy.printing import plural


def page_from_calibration(
    calibration: Calibration,
    *,
    bundle: Path,
    command: str,
    machine: Mapping[str, object],
    versions: Mapping[str, object],
) -> Page:
    """The page of a calibration.

    Args:
        calibration: as in the bundle and in the file of `--json`.
        bundle: that was calibrated.
        command: that of the run, without credentials.
        machine, versions: of this machine and its packages.
    """
    sections = [PageSection("Accuracy against computation", _overview(calibration))]
    if calibration.test is not None:
        sections.append(PageSection("What is promised", _promise(calibration.test)))
    sections += _held_out(calibration)
    rows = (
        ("command", command),
        ("bundle", str(bundle)),
        ("data set", " ".join(filter(None, (calibration.dataset, calibration.split)))),
        ("engine", f"{calibration.engine} {calibration.precision}"),
        ("times a part was run", str(calibration.passes)),
    )
    sections.append(PageSection("Settings", (facts_table("Settings", rows), machine_table(machine, versions))))
    title = f"dovit calibrate {bundle.name}"
    return Page(title, calibration_title(calibration), _headline(calibration), tuple(sections))


def _headline(calibration: Calibration) -> tuple[Fact, ...]:
    chosen = calibration.chosen
    dense = next(part.dense_gmacs for part in calibration.parts if part.part == chosen.part)
    facts = [
        Fact(
            f"{chosen.flops_saved:z.1%}", "MACs saved, on held-out images", f"{chosen.gmacs:.3g} of {dense:.3g} GMACs"
        ),
        Fact(f"{chosen.differing:.2%}", "pixels that differ from dense", "mean over held-out images"),
        Fact(", ".join(f"{value:g}" for value in chosen.thresholds), "thresholds, gate by gate"),
    ]
    if chosen.drop is not None:
        facts.insert(1, drop_fact("mIoU", chosen.drop, _pair(chosen.drop_interval)))
    return tuple(facts)


def _overview(calibration: Calibration) -> tuple[Part, ...]:
    parts: list[Part] = [_scatter(calibration, "check", "held-out images")]
    if any(point.part == "search" for point in calibration.measured):
        parts.append(_scatter(calibration, "search", "images of the search"))
    gains = [
        (name, control.rule_gain, _pair(control.rule_gain_interval))
        for name, control in named_controls(calibration)
        if control.rule_gain is not None
    ]
    parts += gain_bars("at the chosen thresholds", gains)
    rows = tuple(calibration_rows(calibration, search=True))
    parts.append(PageTable("Every setting that was run", HEADERS, rows, right=NUMBERS, wide=True))
    return (*parts, Lines(tuple(calibration_lines(calibration))))


def _pair(interval: Interval | None) -> Ends | None:
    return None if interval is None else (interval.low, interval.high)


def _scatter(calibration: Calibration, part: PartName, name: str) -> Scatter:
    """Settings on the images of one part; where the choice was checked, with what it must beat."""
    images = next(entry for entry in calibration.parts if entry.part == part)
    labelled = calibration.chosen.miou is not None
    y_name = "mIoU, %" if labelled else "pixels as in the dense answer, %"
    dense = 100.0 if images.dense_miou is None else images.dense_miou
    measured = sorted((point for point in calibration.measured if point.part == part), key=lambda point: point.gmacs)
    chosen = [point for point in measured if point == calibration.chosen]
    groups: list[tuple[str, Sequence[ChartPoint]]] = [
        ("thresholds", [_point(point) for point in measured if point not in chosen]),
        ("dense", [ChartPoint(images.dense_gmacs, dense, f"dense: {dense:.2f}, {images.dense_gmacs:.4g} GMACs")]),
        ("chosen, with the 95 % interval of its drop", [_point(point, dense) for point in chosen]),
    ]
    if part == calibration.chosen.part:
        controls = named_controls(calibration)
        groups += [
            ("controls", [_control(name, point, dense) for name, point in controls if "dense at" not in name]),
            (
                "dense at smaller inputs",
                [_control(name, point, dense) for name, point in controls if "dense at" in name],
            ),
        ]
    shown = tuple((group, tuple(members)) for group, members in groups if members)
    curve = ("thresholds, from bold to cautious", tuple((point.gmacs, _height(point)) for point in measured))
    return Scatter(
        f"{y_name.partition(',')[0]} against GMACs, {name}", "GMACs an image", y_name, shown, curve, least=LEAST_SPAN
    )


def _height(point: MeasuredPoint) -> float:
    return 100.0 * (1.0 - point.differing) if point.miou is None else point.miou


def _point(point: MeasuredPoint, dense: float | None = None) -> ChartPoint:
    """A setting; with the score of the dense run also its interval."""
    values = ", ".join(f"{value:g}" for value in point.thresholds)
    said = f"{values}: {_height(point):.2f}, {point.gmacs:.4g} GMACs"
    low, high = score_ends(dense, _pair(point.drop_interval))
    return ChartPoint(point.gmacs, _height(point), said, low, high)


def _control(name: str, point: ControlPoint, dense: float) -> ChartPoint:
    said = f"{name}: {point.miou:.2f}, {point.gmacs:.4g} GMACs"
    if not name.startswith("dense at "):
        # They cost the same and stand above each other: what they lack against the rule is in the bars.
        return ChartPoint(point.gmacs, point.miou, said)
    low, high = score_ends(dense, _pair(point.drop_interval))
    return ChartPoint(point.gmacs, point.miou, said, low, high, name.removeprefix("dense at "))


def _held_out(calibration: Calibration) -> list[PageSection]:
    """The chosen thresholds class by class and on the images that lose most; none of files that did not say."""
    sections = []
    if calibration.classes:
        dense = {entry.name: entry.dense for entry in calibration.classes}
        chosen = {entry.name: entry.chosen for entry in calibration.classes}
        sections.append(PageSection("Class by class, on held-out images", class_by_class(dense, chosen)))
    if calibration.held_out:
        worst = sorted(calibration.held_out, key=lambda entry: -_lost(entry))[:MOST_LISTED]
        rows = tuple(
            (
                entry.image,
                f"{entry.differing:.2%}",
                *("-" if value is None else f"{value:.2f}" for value in (entry.dense_miou, entry.miou)),
                f"{entry.flops_saved:z.1%}",
            )
            for entry in worst
        )
        title = f"{len(rows)} of {plural(len(calibration.held_out), 'held-out image')}, the worst first"
        head = ("image", "differs from dense", "mIoU dense", "chosen", "MACs saved")
        sections.append(PageSection("Worst images", (PageTable(title, head, rows, right=(1, 2, 3, 4), wide=True),)))
    return sections


def _lost(image: HeldOutImage) -> float:
    """Points of mIoU, or without labels percent of the pixels."""
    if image.dense_miou is None or image.miou is None:
        return 100 * image.differing
    return image.dense_miou - image.miou


def _promise(test: SequenceTest) -> tuple[Part, ...]:
    """The sequence of settings that was tested."""
    rows = tuple(
        (
            str(number + 1),
            ", ".join(f"{value:g}" for value in step.thresholds),
            *(f"{step.flops_saved:z.1%}", f"{step.differing:.2%}", f"{step.bound:.2%}", f"{step.p_value:.2g}"),
            "chosen" if number == test.boldest else "shown" if step.shown else "not shown",
        )
        for number, step in enumerate(test.sequence)
    )
    head = ("setting", "thresholds", "MACs saved", "differ", "at most", "p", "")
    title = (
        f"At most {test.max_disagree:.2%} differ, with confidence {test.confidence:g}: tested on "
        f"{named_units(test.unit, test.units)}, from cautious to bold, after {plural(test.units_searched, 'unit')} "
        "of the search"
    )
    return (PageTable(title, head, rows, right=(2, 3, 4, 5), wide=True),)
