"""What is said of a whole archive? A Parquet file with a row for every frame, a summary, a page of its clips."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dovit_deploy import packages
from dovit_deploy.batch.driver import BatchOutcome
from dovit_deploy.batch.folder import BatchFolder, BatchRecord
from dovit_deploy.batch.parts import FrameEntry, PartMarker, entries_of, seconds_of
from dovit_deploy.batch.rows import BatchSource
from dovit_deploy.documents import bytes_of_document
from dovit_deploy.files import file_written_aside, write_text
from dovit_deploy.machine import machine_facts, package_versions
from dovit_deploy.pages.page import (
    Fact,
    Page,
    PageSection,
    PageTable,
    Paragraph,
    Part,
    facts_table,
    html_from_page,
    machine_table,
)
from dovit_deploy.printing import plural
from dovit_deploy.runtime.outputs import REPORT_PAGE, SUMMARY, foreign_in_run

FRAMES = "frames.parquet"
ARCHIVE_FILES = (FRAMES, SUMMARY, REPORT_PAGE)
"""What lies beside the results of the sources."""
ROWS_AT_ONCE = 4096
"""Of Parquet, in memory."""
EXTREMES = 10
"""Clips that the page names, the hardest and the easiest."""

ArchiveSummary = dict[str, Any]


def _schema() -> Any:  # noqa: ANN401  pyarrow comes with Ray
    arrow = packages.load("pyarrow")
    number, text = arrow.float64(), arrow.string()
    return arrow.schema(
        {
            "clip": text,
            "source": text,
            "index": arrow.int64(),
            "time_s": number,
            "windows": arrow.int32(),
            "tokens_total": arrow.int64(),
            "tokens_kept": arrow.list_(arrow.int64()),
            "gmacs_dense": number,
            "gmacs_actual": number,
            "flops_saved": number,
            "still": arrow.bool_(),
            **{f"{step}_ms": number for step in ("decode", "preprocess", "model", "postprocess", "total")},
            "class_shares": arrow.map_(text, number),
        }
    )


def keep_table(folder: BatchFolder, source: BatchSource, markers: Sequence[PartMarker]) -> None:
    """Write the figures of a source's frames, from its parts, for `frames.parquet`."""
    arrow, parquet, schema = packages.load("pyarrow"), packages.pyarrow_parquet(), _schema()
    entries = (entry for marker in markers for entry in entries_of(folder.parts, marker))
    rows = (_row(source.stem, entry) for entry in entries if isinstance(entry, FrameEntry))
    with file_written_aside(folder.table(source)) as path, parquet.ParquetWriter(path, schema) as writer:
        for chunk in _chunks(rows):
            writer.write_table(arrow.Table.from_pylist(chunk, schema=schema))


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    held = list[dict[str, Any]]()
    for row in rows:
        held.append(row)
        if len(held) == ROWS_AT_ONCE:
            yield held
            held = []
    if held:
        yield held


def _row(clip: str, entry: FrameEntry) -> dict[str, Any]:
    dense = sum(window.dense for window in entry.windows)
    actual = 0.0 if entry.still else sum(window.actual for window in entry.windows)
    kept = [sum(counts) for counts in zip(*(window.kept for window in entry.windows), strict=True)]
    steps = dict(zip(("decode_ms", "preprocess_ms", "model_ms", "postprocess_ms"), entry.timing, strict=True))
    return {
        "clip": clip,
        "source": entry.source,
        "index": entry.index,
        "time_s": float(seconds_of(entry)),
        "windows": len(entry.windows),
        "tokens_total": kept[0],
        "tokens_kept": kept,
        "gmacs_dense": dense,
        "gmacs_actual": actual,
        "flops_saved": 1.0 - actual / dense,
        "still": entry.still,
        **steps,
        "total_ms": sum(entry.timing),
        "class_shares": list(entry.shares.items()),
    }


def write_archive(
    folder: BatchFolder, sources: Sequence[BatchSource], outcome: BatchOutcome, *, command: str, page: bool
) -> ArchiveSummary:
    """Write what is said of the archive beside the results of its sources; the summary.

    Args:
        folder: of the batch; every source is merged or has failed.
        sources: all of them.
        outcome: what came of them.
        command: of this batch, without credentials.
        page: write `report.html`, too.
    """
    parquet = packages.pyarrow_parquet()
    merged = [source for source in sources if source.number in outcome.merged]
    with (
        file_written_aside(folder.results / FRAMES) as path,
        parquet.ParquetWriter(path, _schema()) as writer,
    ):
        for source in merged:
            with parquet.ParquetFile(folder.table(source)) as table:
                for batch in table.iter_batches(ROWS_AT_ONCE):
                    writer.write_batch(batch)
    summary = _summary(folder, sources, outcome)
    write_text(folder.results / SUMMARY, json.dumps(summary, indent=1) + "\n")
    if page:
        write_text(folder.results / REPORT_PAGE, html_from_page(page_from_archive(summary, command)))
    return summary


def _summary(folder: BatchFolder, sources: Sequence[BatchSource], outcome: BatchOutcome) -> ArchiveSummary:
    merged = [source for source in sources if source.number in outcome.merged]
    notes = outcome.merged
    frames = sum(note.frames for note in notes.values())
    record: BatchRecord = folder.record
    return {
        "sources": len(sources),
        "frames": frames,
        "flops_saved": sum(note.saved for note in notes.values()) / max(frames, 1),
        "engine": record.chosen.engine,
        "precision": record.chosen.precision,
        "machine": machine_facts(),
        "versions": package_versions(),
        "failed": [
            {"source": source.text, "message": outcome.failed[source.number]}
            for source in sources
            if source.number in outcome.failed
        ],
        "mixed": [
            {"source": source.text, "what": notes[source.number].mixed}
            for source in merged
            if notes[source.number].mixed
        ],
        "clips": [_clip(source, folder.result(source)) for source in merged],
    }


def _clip(source: BatchSource, result: Path) -> dict[str, Any]:
    summary = json.loads(bytes_of_document(result / SUMMARY))
    return {
        "clip": source.stem,
        "source": source.text,
        "frames": summary["frames"],
        "failed": len(summary["failed"]),
        "gmacs": summary["gmacs"]["actual"]["mean"],
        "flops_saved": summary["flops_saved"]["mean"],
        "model_ms": summary["latency_ms"]["model"]["p50"],
    }


def page_from_archive(summary: Mapping[str, Any], command: str) -> Page:
    """The page of an archive: its hardest and easiest clips, and what could not be read."""
    clips = sorted(summary["clips"], key=lambda clip: (-clip["gmacs"], clip["clip"]))
    facts = (
        Fact(str(summary["frames"]), "frames", f"of {plural(len(clips), 'clip')}"),
        Fact(f"{summary['flops_saved']:z.1%}", "FLOPs saved", "mean over the frames"),
    )
    tables = [_clip_table("Hardest clips", clips[:EXTREMES]), _clip_table("Easiest clips", clips[: -EXTREMES - 1 : -1])]
    sections = [PageSection("Hardest and easiest clips", tuple(tables))]
    if summary["failed"]:
        rows = tuple((entry["source"], entry["message"]) for entry in summary["failed"][:100])
        sections.append(PageSection("Not read", (PageTable("Sources", ("source", "why"), rows, wide=True),)))
    settings = [("engine", f"{summary['engine']} {summary['precision']}"), ("command", command)]
    mixed = [Paragraph(f"{entry['source']}: computed with different {entry['what']}") for entry in summary["mixed"]]
    about: tuple[Part, ...] = (
        facts_table("Settings", settings),
        *mixed,
        machine_table(summary["machine"], summary["versions"]),
    )
    sections.append(PageSection("How it was made", about))
    return Page("dovit batch", plural(summary["sources"], "source"), facts, tuple(sections))


def _clip_table(title: str, clips: Sequence[Mapping[str, Any]]) -> PageTable:
    rows = tuple(
        (
            *(clip["clip"], str(clip["frames"]), f"{clip['gmacs']:.2f}"),
            *(f"{clip['flops_saved']:z.1%}", f"{clip['model_ms']:.1f}"),
        )
        for clip in clips
    )
    return PageTable(title, ("clip", "frames", "GMACs a frame", "FLOPs saved", "model ms, median"), rows, (1, 2, 3, 4))


def foreign_in_batch(folder: Path) -> str | None:
    """Why `folder` is no result of a batch or run that a new one may replace; None: one of them wrote all of it."""
    try:
        summary = json.loads(bytes_of_document(folder / SUMMARY))
        clips = [clip["clip"] for clip in summary["clips"]] if "clips" in summary else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        clips = None
    if clips is None:
        return foreign_in_run(folder)
    expected = {*ARCHIVE_FILES, *clips}
    for path in sorted(folder.iterdir()):
        if path.name not in expected or path.is_symlink():
            return f"it holds '{path.name}', which was not written by this command"
        reason = foreign_in_run(path) if path.is_dir() else None
        if reason is not None:
            return f"in {path.name}, {reason}"
    return None
