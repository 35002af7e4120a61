"""What does the page of an evaluation show? The figures of `eval --json`, and the images that lost most as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovit_deploy.measure.eval_records import ClassificationReport, ClassificationRow, SegmentationReport
from dovit_deploy.measure.eval_table import CONTROL_NAMES, SCORES, EitherReport, eval_headers, eval_rows, measured_ways
from dovit_deploy.pages.charts import LEAST_SPAN, Bar, Bars, ChartPoint, Scatter
from dovit_deploy.pages.page import (
    Fact,
    Gallery,
    Lines,
    Page,
    PageSection,
    PageTable,
    Part,
    Still,
    facts_table,
    machine_table,
)
from dovit_deploy.printing import plural
from dovit_deploy.runtime.album import token_colors

MOST_PICTURED = 4
"""Images that are run again and shown."""
MOST_LISTED = 20
Ends = tuple[float, float]
"""Of an interval."""


@dataclass(frozen=True)
class WorstPictures:
    """The first of `worst_images`, run again."""

    stills: tuple[Still, ...]
    key: tuple[tuple[str, tuple[int, int, int]], ...]
    """What the colours of what the tokens did stand for."""


@dataclass(frozen=True)
class EvalPageFacts:
    """What the page says beside the report."""

    command: str
    """That of the run, without credentials."""
    lines: tuple[str, ...]
    """What the console shows below its table."""
    names: tuple[str, ...]
    """Of the classes, by their numbers."""
    worst: WorstPictures


def worst_images(report: EitherReport) -> list[int]:
    """The numbers of the images by what they lost against dense, the worst first; without dense, by how bad they are.

    Of labels: first those that dense has right and the dynamic run wrong, then those that both have wrong; no others.
    """
    if isinstance(report, ClassificationReport):
        wrong = [number for number, row in enumerate(report.per_image) if row.top_dynamic[0] != row.label]
        return sorted(wrong, key=lambda number: not _lost(report.per_image[number]))
    losses = {
        number: row.miou_dynamic - (0.0 if row.miou_dense is None else row.miou_dense)
        for number, row in enumerate(report.per_image)
        if row.miou_dynamic is not None
    }
    return sorted(losses, key=lambda number: losses[number])


def _lost(row: ClassificationRow) -> bool:
    return row.top_dense is not None and row.top_dense[0] == row.label


def image_facts(report: EitherReport, number: int, names: Sequence[str]) -> str:
    """What is said of image `number`."""
    row = report.per_image[number]
    saved = f"{row.flops_saved:z.1%} of the FLOPs saved"
    if isinstance(row, ClassificationRow):
        dense = "" if row.top_dense is None else f", dense: {names[row.top_dense[0]]}"
        return f"label: {names[row.label]}{dense}, dynamic: {names[row.top_dynamic[0]]}; {saved}"
    dense = "" if row.miou_dense is None else f"{row.miou_dense:.1f} dense, "
    return f"mIoU {dense}{_number(row.miou_dynamic)} dynamic; {saved}"


def page_from_eval(report: EitherReport, facts: EvalPageFacts) -> Page:
    """The page of an evaluation."""
    task = "segmentation" if isinstance(report, SegmentationReport) else "classification"
    scores = SCORES[task]
    sections = [PageSection("Accuracy against computation", _overview(report, facts, scores))]
    if isinstance(report, SegmentationReport):
        sections.append(
            PageSection(
                "Class by class", class_by_class(None if report.dense is None else report.dense.iou, report.dynamic.iou)
            )
        )
    sections += [PageSection("Worst images", _worst(report, facts)), _settings(report, facts)]
    subtitle = f"{report.dataset} {report.split}, {plural(report.images, 'image')}; {report.engine} {report.precision}"
    return Page(f"dovit eval {Path(report.bundle).name}", subtitle, _headline(report, scores), tuple(sections))


def _headline(report: EitherReport, scores: Mapping[str, str]) -> tuple[Fact, ...]:
    name, key = next(iter(scores.items()))
    dense, dynamic = report.dense, report.dynamic
    note = "no dense form to compare with" if dense is None else f"{getattr(dense, key):.2f} dense"
    facts = [Fact(f"{getattr(dynamic, key):.2f}", f"{name}, dynamic", note)]
    if dynamic.drop is not None:
        facts.append(drop_fact(name, dynamic.drop, dynamic.drop_interval))
    full = dynamic.gmacs / (1 - dynamic.flops_saved)
    facts.append(Fact(f"{dynamic.flops_saved:z.1%}", "FLOPs saved", f"{dynamic.gmacs:.3g} of {full:.3g} GMACs"))
    if report.against_fp32 is not None:
        same = f"same class as dense {report.against_fp32.engine} fp32"
        facts.append(Fact(f"{report.against_fp32.agreement:.2f} %", "agreement", same))
    return tuple(facts)


def drop_fact(score: str, drop: float, ends: Ends | None) -> Fact:
    """What was lost against dense, in points of `score`, with its interval."""
    note = "too few images for an interval" if ends is None else f"95 %: {ends[0]:z.2f} to {ends[1]:z.2f}"
    return Fact(f"{drop:z.2f}", f"{score} lost against dense, points", note)


def score_ends(dense: float | None, drop_ends: Ends | None) -> tuple[float | None, float | None]:
    """The interval of a score, of that of its drop from `dense`, which alone is uncertain: a larger drop is a lower
    score."""
    return (None, None) if drop_ends is None or dense is None else (dense - drop_ends[1], dense - drop_ends[0])


def gain_bars(better: str, gains: Sequence[tuple[str, float, Ends | None]]) -> list[Part]:
    """What mIoU of `better` is worth beyond each control: its name, the gain in points, the interval."""
    rows = tuple(Bar(name.removesuffix(", same counts"), (gain,), ends) for name, gain, ends in gains)
    return (
        [Bars(f"mIoU {better} less that of the control, points", ("gain",), rows, digits=2, names=170)] if rows else []
    )


def _overview(report: EitherReport, facts: EvalPageFacts, scores: Mapping[str, str]) -> tuple[Part, ...]:
    name, key = next(iter(scores.items()))
    parts: list[Part] = []
    ways = measured_ways(report)
    # One point is no comparison.
    if len(ways) > 1:
        parts.append(_scatter(ways, name, key))
    gains = [(way, entry["rule_gain"], entry["rule_gain_interval"]) for way, entry in ways if "rule_gain" in entry]
    parts += gain_bars("of the rule", gains)
    headers = eval_headers(scores)
    rows = tuple(eval_rows(report, tuple(scores.values())))
    parts.append(PageTable("Every way of running", headers, rows, right=tuple(range(1, len(headers))), wide=True))
    parts.append(Lines(facts.lines))
    return tuple(parts)


def _scatter(ways: Sequence[tuple[str, Mapping[str, Any]]], name: str, key: str) -> Scatter:
    dense = next((entry[key] for way, entry in ways if way == "dense"), None)
    groups: dict[str, list[ChartPoint]] = {"dense": [], "dynamic": [], "controls": [], "dense at smaller inputs": []}
    for way, entry in ways:
        group = way if way in groups else "controls" if way in CONTROL_NAMES.values() else "dense at smaller inputs"
        # Of controls, which stand above each other, it would hide the others; what they lack against the rule is below.
        low, high = score_ends(dense, None if group == "controls" else entry.get("drop_interval"))
        said = f"{way}: {name} {entry[key]:.2f}, {entry['gmacs']:.4g} GMACs"
        # Controls cost the same and stand above each other; their names are in the table.
        label = "" if group == "controls" else way.removeprefix("dense at ")
        groups[group].append(ChartPoint(entry["gmacs"], entry[key], said, low, high, label))
    shown = tuple((group, tuple(points)) for group, points in groups.items() if points)
    return Scatter(
        f"{name} against GMACs, with 95 % intervals of the drop",
        "GMACs an image",
        f"{name}, %",
        shown,
        least=LEAST_SPAN,
    )


def class_by_class(before: Mapping[str, float | None] | None, dynamic: Mapping[str, float | None]) -> tuple[Part, ...]:
    """IoU (percent) of each class, dense and dynamic, as bars and as a table.

    Args:
        before: dense, by name; None: there is no dense form.
        dynamic: by name; None for a class that neither occurs nor is predicted.
    """
    ways = ("dynamic",) if before is None else ("dense", "dynamic")
    bars, rows = [], []
    for name, after in dynamic.items():
        dense = None if before is None else before.get(name)
        both = (after,) if before is None else (dense, after)
        # A class that neither occurs nor is predicted has no bars.
        if any(value is not None for value in both):
            bars.append(Bar(name, tuple(math.nan if value is None else value for value in both)))
        drop = "-" if dense is None or after is None else f"{dense - after:z.2f}"
        rows.append((name, _number(dense), _number(after), drop))
    return (
        Bars("IoU, %", ways, tuple(bars)),
        PageTable("IoU, %", ("class", "dense", "dynamic", "drop"), tuple(rows), right=(1, 2, 3)),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _worst(report: EitherReport, facts: EvalPageFacts) -> tuple[Part, ...]:
    worst = worst_images(report)
    parts: list[Part] = []
    if facts.worst.stills:
        title = "Run again: label, dense and dynamic answer; black has no label"
        parts.append(Gallery(title, facts.worst.stills, wide=True))
        parts.append(token_colors(facts.worst.key))
    rows = tuple(
        (report.per_image[number].image, image_facts(report, number, facts.names)) for number in worst[:MOST_LISTED]
    )
    if not rows:
        return (Lines(("No image is answered wrongly.",)),)
    title = f"{len(rows)} of {plural(report.images, 'image')}, the worst first"
    return (*parts, PageTable(title, ("image", "what it lost"), rows, folded=True))


def _settings(report: EitherReport, facts: EvalPageFacts) -> PageSection:
    thresholds = ", ".join(map(str, report.thresholds)) or "none: no gates"
    rows = (
        ("command", facts.command),
        ("bundle", report.bundle),
        ("weights, SHA-256", report.source_sha256),
        ("engine", f"{report.engine} {report.precision}"),
        ("thresholds", thresholds),
    )
    return PageSection("Settings", (facts_table("Settings", rows), machine_table(report.machine, report.versions)))
