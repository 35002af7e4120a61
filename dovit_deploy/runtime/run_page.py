"""What does `report.html` show of a run? The figures of `summary.json` and `frames.jsonl`, and some frames as pictures.

A run of any length: what is drawn over time are at most `MOST_PLACES` means, read row by row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dovit_deploy.pages.charts import Bar, Bars, Histogram, Panel, Series, Timeline, css_color
from dovit_deploy.pages.page import (
    Fact,
    Gallery,
    Page,
    PageSection,
    PageTable,
    Paragraph,
    Part,
    Stills,
    facts_table,
    machine_table,
)
from dovit_deploy.printing import plural
from dovit_deploy.runtime.album import FILLED_HOW, Album, token_colors
from dovit_deploy.runtime.outputs import FRAMES_FOR_P99

MOST_PLACES = 1000
"""Places along the time axis; more frames are drawn as means of as many each."""
BINS = 20
"""Of the shares of tokens."""
MOST_CLASSES_SHOWN = 15
MOST_FAILED_SHOWN = 100
"""Inputs that could not be read; `summary.json` has all."""
STEPS = ("decode", "preprocess", "model", "postprocess", "total")


@dataclass(frozen=True)
class PagePlan:
    """What a page says of a run that is known before it."""

    source: str
    """As given, without credentials."""
    command: str
    """That of the run, without credentials."""


@dataclass(frozen=True)
class RunFacts:
    """What a page says of a run beside its summary."""

    plan: PagePlan
    seconds: float
    """From the first frame that was read to the last that was written."""
    gates: tuple[int, ...]
    """The layer before which each gate of the model stands."""
    video: bool

    def stages(self, summary: Mapping[str, Any]) -> tuple[str, ...]:
        """What the stages are called: by the layers that they begin with, where gates part them."""
        if self.gates:
            return ("from layer 0 on", *(f"from layer {layer} on" for layer in self.gates))
        return tuple(f"stage {number}" for number in range(len(summary["tokens"]["kept"])))


@dataclass(frozen=True)
class Places:
    """Rows of a run, each the mean of as many frames."""

    each: int
    """Frames a place; of the last one fewer."""
    x: tuple[float, ...]
    """Seconds of a video; else the number of the first image."""
    labels: tuple[str, ...]
    kept: tuple[tuple[float, ...], ...]
    """For each stage, the share of the tokens that run, in percent."""
    total_ms: tuple[float, ...]
    slowest_ms: tuple[float, ...]
    model_ms: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]
    """For each stage, how many frames had a share in each of `BINS`."""
    audited: tuple[float, ...]
    """Of each frame that ran dense, too, how many times as long that took."""


def places_from_rows(path: Path, frames: int, *, video: bool) -> Places:
    """Read `frames.jsonl`, of `frames` rows, in one pass."""
    each = max(1, math.ceil(frames / MOST_PLACES))
    x, labels = list[float](), list[str]()
    total, slowest, model = list[float](), list[float](), list[float]()
    kept = list[Any]()
    counts: np.ndarray[Any, np.dtype[np.int64]] | None = None
    audited = []
    for rows in _chunks(path, each):
        shares = np.array([[100 * count / row["tokens"]["total"] for count in row["tokens"]["kept"]] for row in rows])
        if counts is None:
            counts = np.zeros((shares.shape[1], BINS), dtype=np.int64)
        for stage, column in enumerate(shares[["filled" not in row for row in rows]].T):
            # A share of 100 % lies in the last bin.
            bins = np.clip(column / 100 * BINS - 1e-9, 0, BINS - 1).astype(int)
            np.add.at(counts[stage], bins, 1)
        totals = [row["latency_ms"]["total"] for row in rows]
        x.append(rows[0]["time_s"] if video else float(len(x) * each))
        labels.append(_label(rows, video=video))
        kept.append(shares.mean(axis=0))
        total.append(float(np.mean(totals)))
        slowest.append(max(totals))
        model.append(float(np.mean([row["latency_ms"]["model"] for row in rows])))
        audited += [row["audit"]["ms"] / row["latency_ms"]["model"] for row in rows if _was_audited(row)]
    return Places(
        *(each, tuple(x), tuple(labels), tuple(tuple(map(float, column)) for column in np.transpose(kept))),
        *(tuple(total), tuple(slowest), tuple(model)),
        () if counts is None else tuple(tuple(row) for row in counts.tolist()),
        tuple(audited),
    )


def _was_audited(row: Mapping[str, Any]) -> bool:
    return "audit" in row and row["latency_ms"]["model"] > 0


def _chunks(path: Path, each: int) -> Iterator[list[dict[str, Any]]]:
    rows = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            rows.append(json.loads(line))
            if len(rows) == each:
                yield rows
                rows = []
    if rows:
        yield rows


def _label(rows: Sequence[Mapping[str, Any]], *, video: bool) -> str:
    first, last = rows[0], rows[-1]
    if video:
        name = f"frame {first['index']}" + ("" if first is last else f" to {last['index']}")
        return f"{name} at {first['time_s']:.2f} s{_how_filled(rows)}"
    return str(first["source"]) + ("" if first is last else f" and {len(rows) - 1} more")


def _how_filled(rows: Sequence[Mapping[str, Any]]) -> str:
    """What is added to a label of frames that did not all run."""
    filled = [row["filled"] for row in rows if "filled" in row]
    if not filled:
        return ""
    return f", {len(rows) - len(filled)} of {len(rows)} ran" if len(rows) > 1 else f", {FILLED_HOW[filled[0]]}"


def page_from_run(summary: Mapping[str, Any], rows: Path, album: Album, facts: RunFacts) -> Page:
    """The page of a run.

    Args:
        summary: as in `summary.json`.
        rows: path of its `frames.jsonl`.
        album: saw each of its frames.
        facts: what the summary does not say.
    """
    noun = "frame" if facts.video else "image"
    frames = summary["frames"]
    subtitle = f"{plural(frames, noun)}, {summary['engine']} {summary['precision']}, {Path(summary['bundle']).name}"
    if summary["interrupted"]:
        subtitle += "; interrupted: what was done until then"
    title = f"dovit run {facts.plan.source}"
    if not frames:
        return Page(title, subtitle, (), (_settings(summary, facts),))
    places = places_from_rows(rows, frames, video=facts.video)
    sections = (
        PageSection("What was seen", _pictures(album, noun)),
        PageSection("Over time" if facts.video else "Image by image", _over_time(places, summary, facts)),
        PageSection("Tokens, classes and time", _distributions(places, album, summary, facts)),
        _settings(summary, facts),
    )
    return Page(title, subtitle, _headline(summary, places, facts, noun), sections)


def _headline(summary: Mapping[str, Any], places: Places, facts: RunFacts, noun: str) -> tuple[Fact, ...]:
    frames, latency, macs = summary["frames"], summary["latency_ms"], summary["gmacs"]
    saved = Fact(
        f"{summary['flops_saved']['mean']:z.1%}",
        "FLOPs saved",
        f"{macs['actual']['mean']:.2f} of {macs['dense']['mean']:.2f} GMACs",
    )
    rate = Fact(
        f"{frames / max(facts.seconds, 1e-3):.1f}",
        f"{noun}s per second",
        f"{plural(frames, noun)} in {facts.seconds:.1f} s, reading and writing included",
    )
    filled = summary["filled"]
    step = latency["model"] if filled is None else filled["model_ms"] or latency["model"]
    model = Fact(
        f"{step['p50']:.1f} ms",
        "model step, median" if filled is None else "model step, median of those that ran",
        f"p99 {step['p99']:.1f} ms" if frames >= FRAMES_FOR_P99 else plural(frames, noun),
    )
    if frames == 1:
        return saved, model
    return saved, model, rate, _against_dense(places, summary), *_filled(summary, noun), *_audited(summary)


def _filled(summary: Mapping[str, Any], noun: str) -> tuple[Fact, ...]:
    """Which frames ran, where not all were to."""
    filled = summary["filled"]
    if filled is None:
        return ()
    ran = summary["frames"] - filled["frames"]
    note = f"one of {filled['every']}; of the others {plural(filled['frames'], noun)} {FILLED_HOW[filled['by']]}"
    return (Fact(str(ran), f"{noun}s ran", note),)


def _audited(summary: Mapping[str, Any]) -> tuple[Fact, ...]:
    """How far the answers are from dense ones, where some were compared."""
    audit = summary["audit"]
    if audit is None or not audit["frames"]:
        return ()
    alarms = plural(len(audit["alarms"]), "alarm") if audit["alarms"] else "no alarm"
    note = f"at most {audit['max_disagree']:.2%} asked for; {alarms}"
    return (Fact(f"{audit['differing']:.2%}", "of the audited pixels differ from dense", note),)


def _against_dense(places: Places, summary: Mapping[str, Any]) -> Fact:
    if summary["dense"]:
        return Fact("dense", "nothing was stopped", "--dense")
    if not places.audited:
        return Fact("-", "speed against dense", "not measured; dovit bench measures it")
    ratio = float(np.median(places.audited))
    return Fact(f"{ratio:.2f}x", "speed against dense", f"median of {plural(len(places.audited), 'audited frame')}")


def _pictures(album: Album, noun: str) -> tuple[Part, ...]:
    even = album.even
    note = f"{plural(len(even), noun)}, evenly spread over the run." if len(even) > 1 else ""
    parts: list[Part] = [Stills("Pictures", note, even)]
    if album.key:
        parts.append(token_colors(album.key))
    hardest, easiest = tuple(album.hardest), tuple(album.easiest)
    if len(even) > 1 and hardest and easiest:
        parts += [Gallery(f"Hardest {noun}s", hardest), Gallery(f"Easiest {noun}s", easiest)]
    return tuple(parts)


def _over_time(places: Places, summary: Mapping[str, Any], facts: RunFacts) -> tuple[Part, ...]:
    if len(places.x) < 2:
        return (Paragraph("One frame has no course over time."),)
    stages = [Series(name, column) for name, column in zip(facts.stages(summary)[1:], places.kept[1:], strict=True)]
    mean = "" if places.each == 1 else f", mean of {places.each}"
    latency = [Series("total", places.total_ms), Series("model", places.model_ms)]
    if places.each > 1:
        latency.insert(0, Series(f"slowest of {places.each}", places.slowest_ms))
    panels = [Panel(f"latency, ms{mean}", tuple(latency))]
    if stages:
        panels.insert(0, Panel(f"tokens that run, % of all{mean}", tuple(stages)))
    alarms = () if summary["audit"] is None else summary["audit"]["alarms"]
    marks = tuple((float(alarm["time_s" if facts.video else "frame"]), "drift") for alarm in alarms)
    x_name = "seconds of the video" if facts.video else "image"
    return (Timeline("Tokens and latency", x_name, places.x, places.labels, tuple(panels), marks),)


def _distributions(places: Places, album: Album, summary: Mapping[str, Any], facts: RunFacts) -> tuple[Part, ...]:
    parts: list[Part] = []
    stages = facts.stages(summary)
    if len(stages) > 1:
        groups = tuple(zip(stages[1:], places.counts[1:], strict=True))
        parts.append(Histogram("Tokens that run, in how many frames", "% of all tokens", groups))
    if album.shares:
        shown = [Bar(s.name, (100 * s.share,), color=css_color(s.color)) for s in album.shares]
        rest = sum(bar.values[0] for bar in shown[MOST_CLASSES_SHOWN:])
        bars = shown[:MOST_CLASSES_SHOWN] + ([Bar("all others", (rest,))] if rest else [])
        parts.append(Bars("Classes' share of the pixels, mean", ("share",), tuple(bars), unit=" %"))
    latency = summary["latency_ms"]
    rows = tuple((step, *(f"{latency[step][name]:.1f}" for name in ("mean", "p50", "p90", "p99"))) for step in STEPS)
    parts.append(PageTable("Latency in ms", ("step", "mean", "p50", "p90", "p99"), rows, right=(1, 2, 3, 4)))
    tokens = tuple(
        (name, *(f"{column[key]:.0f}" for key in ("mean", "p50", "p90", "p99")))
        for name, column in zip(stages, summary["tokens"]["kept"], strict=True)
    )
    parts.append(PageTable("Tokens of each stage", ("stage", "mean", "p50", "p90", "p99"), tokens, right=(1, 2, 3, 4)))
    return tuple(parts)


def _settings(summary: Mapping[str, Any], facts: RunFacts) -> PageSection:
    thresholds = "none: nothing was stopped" if summary["thresholds"] is None else _written(summary["thresholds"])
    rows = [
        ("command", facts.plan.command),
        ("bundle", summary["bundle"]),
        ("engine", f"{summary['engine']} {summary['precision']}"),
        ("thresholds", thresholds),
        *((name, _written(summary[name])) for name in ("filled", "deadline", "audit", "compiling") if summary[name]),
    ]
    parts: list[Part] = [facts_table("Settings", rows), machine_table(summary["machine"], summary["versions"])]
    if failed := summary["failed"]:
        shown = tuple((entry["source"], entry["message"]) for entry in failed[:MOST_FAILED_SHOWN])
        rest = "" if len(failed) == len(shown) else f": the first {len(shown)}, summary.json has all"
        parts.append(PageTable(f"{plural(len(failed), 'input')} could not be read{rest}", ("source", "why"), shown))
    return PageSection("Settings", tuple(parts))


def _written(value: object) -> str:
    """A value of a summary as one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_written(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_written, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
