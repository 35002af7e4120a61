"""The steps of `dovit batch`: sources are divided, what runs is chosen once, rows are computed, results are put."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from dovit_deploy import packages
from dovit_deploy.batch.archive import ARCHIVE_FILES, foreign_in_batch, keep_table, write_archive
from dovit_deploy.batch.driver import BatchCalls, BatchOutcome, Driver
from dovit_deploy.batch.folder import BatchAsked, BatchFolder, BatchRecord, ChosenOnce, folder_of
from dovit_deploy.batch.listing import stems_of, texts_from
from dovit_deploy.batch.on_ray import Cluster, connected, refuse_silent
from dovit_deploy.batch.rows import BatchSource, Selected, source_from_text
from dovit_deploy.batch.work import WorkPlan
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.commands import console
from dovit_deploy.commands.closing import drift_line, duration
from dovit_deploy.commands.run_flags import (
    audits_of,
    chosen_engine,
    kinds_of,
    numbered_threads,
    painted_and_page,
    settings_of,
    settings_within,
    windows_of,
)
from dovit_deploy.documents import bytes_of_document
from dovit_deploy.engines.base import EngineOptions
from dovit_deploy.errors import EnvironmentProblem, Interrupted, PartialFailure, SourceError, UsageError
from dovit_deploy.files import put_in_place, refuse_existing, refuse_inputs, reported_writes
from dovit_deploy.interruption import stop_requests
from dovit_deploy.machine import this_machine
from dovit_deploy.printing import plural, printable
from dovit_deploy.runtime.auto import Chosen, Wanted, named_session
from dovit_deploy.runtime.choices import bundle_digest
from dovit_deploy.runtime.deadline import Deadline
from dovit_deploy.runtime.outputs import REPORT, SUMMARY
from dovit_deploy.runtime.run import RunPlan
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.workers import Workers
from dovit_deploy.sources.ahead import FramesAhead

OPTIONS = {
    "thresholds": "--threshold",
    "named": "--save",
    "legend": "--no-legend",
    "options": "--cuda-memory or --trust-engine",
    "seconds": "--segment-seconds",
    "selected": "--every, --max-frames, --start, --end, --recursive or --max-pixels",
}
"""What fields of `BatchFlags` are called on the command line; the others by their names."""


@dataclass(frozen=True)
class BatchPlaces:
    """What is read and written."""

    given: tuple[str, ...]
    """SOURCE..."""
    output: Path
    overwrite: bool
    resume: bool
    bundle: Bundle
    json_file: Path | None


@dataclass(frozen=True)
class BatchFlags:
    """What the flags say of the results, checked as far as they can be without a source."""

    engine: str
    precision: str | None
    thresholds: tuple[float, ...] | None
    dense: bool
    deadline_ms: float | None
    audit: int | None
    named: tuple[str, ...] | None
    """Of `--save`."""
    legend: bool
    threads: int | None
    options: EngineOptions
    seconds: float
    """Of a segment."""
    selected: Selected

    def as_texts(self) -> dict[str, str]:
        """Option -> value, for `--resume`."""
        names = [field.name for field in dataclasses.fields(self)]
        return {OPTIONS.get(name, f"--{name.replace('_', '-')}"): str(getattr(self, name)) for name in names}


@dataclass(frozen=True)
class BatchRequest:
    """A batch with all that was asked for."""

    places: BatchPlaces
    flags: BatchFlags
    workers: int | None
    quiet: bool

    @property
    def bundle(self) -> Bundle:
        """What runs."""
        return self.places.bundle

    @property
    def settings(self) -> RunSettings:
        """Which tokens stop, but for a deadline."""
        flags, own = self.flags, self.flags.thresholds
        given = own[0] if own is not None and len(own) == 1 else own
        return settings_of(self.bundle.manifest, given, dense=flags.dense, deadline=flags.deadline_ms is not None)

    @property
    def threads_of_each(self) -> int:
        """Threads of a worker: as given, else the cores shared out."""
        cores = this_machine().cores
        return self.flags.threads or max(1, cores // (self.workers or cores))

    def remark(self, text: str) -> None:
        """A line about what is going on."""
        console.remark(text, quiet=self.quiet)


def carried_out(
    places: BatchPlaces, flags: BatchFlags, *, address: str | None, workers: int | None, quiet: bool
) -> None:
    """Do all of it; print what came out.

    Raises:
        PartialFailure: some sources, or images of them, could not be read.
        Interrupted: the user stopped it; `--resume` goes on.
    """
    if places.resume and _complete_before(places):
        return
    request = BatchRequest(places, flags, workers, quiet)
    began = perf_counter()
    # Before sources are indexed, which takes long for an archive.
    if address is not None:
        refuse_silent(address)
    texts = texts_from(request.places.given, recursive=request.flags.selected.recursive)
    refuse_inputs(request.places.output, texts)
    sources, unread = _divided(request, texts)
    with connected(address, workers=request.workers, threads=request.threads_of_each) as cluster:
        folder, chosen = _begun(request, texts, sources)
        with chosen.session:
            outcome = _computed(request, folder, chosen, sources, cluster)
    outcome.failed |= unread.failed
    _put(request, folder, [*sources, *unread.sources], outcome, seconds=perf_counter() - began)


@dataclass(frozen=True)
class _Unread:
    """Sources that could not even be opened."""

    sources: tuple[BatchSource, ...]
    failed: dict[int, str]


def _divided(request: BatchRequest, texts: Sequence[str]) -> tuple[list[BatchSource], _Unread]:
    """The sources that can be opened, divided, and the others.

    Raises:
        SourceError: none can be opened.
    """
    stems, sources = stems_of(texts, reserved=ARCHIVE_FILES), list[BatchSource]()
    unread, failed = list[BatchSource](), dict[int, str]()
    with console.progress("indexing", total=len(texts), unit="sources", quiet=request.quiet) as shown:
        for number, text in enumerate(texts):
            try:
                source = source_from_text(
                    number, text, stems[text], request.flags.selected, seconds=request.flags.seconds
                )
            except SourceError as error:
                failed[number] = str(error)
                unread.append(BatchSource(number, printable(text), stems[text], (), None))
            else:
                sources.append(source)
                if source.note is not None:
                    request.remark(f"note: {text} is computed as one segment: {source.note}")
            shown.reach(number + 1)
    if not sources:
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise SourceError(f"{failed[0]}{others}")
    for message in failed.values():
        console.remark(f"failed: {message}", quiet=False)
    return sources, _Unread(tuple(unread), failed)


def _begun(request: BatchRequest, texts: Sequence[str], sources: Sequence[BatchSource]) -> tuple[BatchFolder, Chosen]:
    """The batch's folder and what runs: chosen now, or as it was when the batch was begun."""
    path = folder_of(request.places.output)
    names = [entry.name for entry in request.bundle.manifest.classes]
    asked = BatchAsked(
        bundle=f"{bundle_digest(request.bundle)} {names}",
        sources=tuple(map(printable, texts)),
        flags=request.flags.as_texts(),
    )
    if request.places.resume and path.is_dir():
        folder = BatchFolder.open(path)
        folder.refuse_other(asked)
        return folder, _as_chosen(request, folder.record.chosen)
    chosen = _chosen(request, sources[0])
    try:
        record = BatchRecord(asked=asked, chosen=_once(chosen))
        return BatchFolder.create(path, record), chosen
    except BaseException:
        chosen.session.close()
        raise


def _chosen(request: BatchRequest, source: BatchSource) -> Chosen:
    """The engine for all sources, by the first of them."""
    with request.flags.selected.opened(source.text) as frames:
        ahead = FramesAhead(frames)
        windows = windows_of(request.bundle.manifest, frames, ahead)
        wanted = _wanted(request, request.flags.precision, windows)
        chosen = chosen_engine(
            request.bundle, request.flags.engine, wanted, source=frames, ahead=ahead, quiet=request.quiet
        )
    try:
        settings = settings_within(request.flags.deadline_ms, chosen, windows=windows, quiet=request.quiet)
    except BaseException:
        chosen.session.close()
        raise
    return dataclasses.replace(chosen, settings=settings)


def _wanted(request: BatchRequest, precision: str | None, windows: int) -> Wanted:
    deadline = request.flags.deadline_ms is not None
    threads = numbered_threads(request.threads_of_each, deadline=deadline)
    # A worker runs one image after another: there are as many workers as run side by side.
    return Wanted(
        request.settings,
        request.flags.thresholds,
        precision,
        threads,
        windows=windows,
        options=request.flags.options,
        deadline=deadline,
        audited=request.flags.audit is not None,
    )


def _once(chosen: Chosen) -> ChosenOnce:
    deadline = chosen.settings.deadline
    return ChosenOnce(
        engine=chosen.session.backend.name,
        precision=chosen.session.backend.precision,
        threads=chosen.at_once.threads,
        windows=chosen.at_once.windows,
        dense=chosen.settings.dense,
        latency=None if deadline is None else deadline.model,
        rounds=1 if deadline is None else deadline.rounds,
    )


def _as_chosen(request: BatchRequest, once: ChosenOnce) -> Chosen:
    """What the driver chose when the batch was begun."""
    manifest = request.bundle.manifest
    settings = request.settings
    if once.dense and not settings.dense:
        settings = RunSettings.resolve(manifest, dense=True)
    if once.latency is not None and request.flags.deadline_ms is not None:
        deadline = Deadline(request.flags.deadline_ms, once.latency, manifest.spec, once.rounds)
        settings = dataclasses.replace(settings, deadline=deadline)
    at_once = Workers(1, once.windows, once.threads)
    wanted = dataclasses.replace(_wanted(request, once.precision, once.windows), threads=once.threads)
    return Chosen(named_session(request.bundle, once.engine, wanted), settings, at_once)


def _computed(
    request: BatchRequest, folder: BatchFolder, chosen: Chosen, sources: Sequence[BatchSource], cluster: Cluster
) -> BatchOutcome:
    """Every row computed, every source merged."""
    audits = {
        video: audits_of(
            *(request.bundle, chosen.settings, request.flags.audit, None if request.flags.audit is None else "warn"),
            own=request.flags.thresholds is None,
            stream=video,
        )
        for video in (False, True)
    }
    work = WorkPlan(
        bundle=request.bundle.path,
        digest=bundle_digest(request.bundle),
        asked=folder.record.chosen.digest(folder.record.asked),
        engine=folder.record.chosen.engine,
        precision=folder.record.chosen.precision,
        at_once=chosen.at_once,
        settings=chosen.settings,
        options=request.flags.options,
        audit=audits[True],
        selected=request.flags.selected,
        parts=folder.parts.absolute(),
    )
    kinds = {
        video: kinds_of(request.flags.named, request.bundle.manifest, video=video, quiet=request.quiet)
        for video in {source.video for source in sources}
    }

    def merging(source: BatchSource) -> RunPlan:
        painted, page = painted_and_page(kinds[source.video], source.text)
        return RunPlan(
            *(
                folder.result(source),
                False,
                painted,
                chosen.settings,
                request.flags.selected.every,
                request.flags.legend,
            ),
            *(chosen.at_once, page, audits[source.video]),
        )

    # Of one source nothing but the results of a run is written.
    record = partial(keep_table, folder) if folder.several else (lambda source, markers: None)
    with stop_requests() as stop, _progress(request, sources) as advance:
        calls = BatchCalls(
            advance=advance,
            remark=lambda line: console.remark(line, quiet=False),
            drifted=lambda alarm: console.remark(drift_line(alarm), quiet=False),
            merging=merging,
            record=record,
        )
        driver = Driver(folder, sources, work, chosen.session, execute=cluster.execute, calls=calls, stop=stop)
        return _run_or_explain(driver, folder, stop)


def _run_or_explain(driver: Driver, folder: BatchFolder, stop: threading.Event) -> BatchOutcome:
    try:
        return driver.run()
    except (Interrupted, EnvironmentProblem) as error:
        kept = f"{folder.path} keeps what is done, and the same command with --resume goes on"
        if stop.is_set():
            raise Interrupted(f"stopped; {kept}") from error
        raise type(error)(f"{error}; {kept}") from error


@contextmanager
def _progress(request: BatchRequest, sources: Sequence[BatchSource]) -> Iterator[Any]:
    """Shows frames, rate, time left and FLOPs saved, of what comes in segment by segment."""
    counts = [source.frames for source in sources]
    total = None if None in counts else sum(count for count in counts if count is not None)
    done, found, saved, began = 0, 0, 0.0, perf_counter()
    with console.progress("computing", total=total, unit="frames", quiet=request.quiet) as shown:

        def advance(frames: int, more: float, before: bool) -> None:
            nonlocal done, found, saved
            done, found, saved = done + frames, found + frames * before, saved + more
            rate = (done - found) / max(perf_counter() - began, 1e-3)
            shown.reach(done, note=f"{rate:.1f} frames/s  FLOPs saved {saved / max(done, 1):z.0%}")

        yield advance


def _put(
    request: BatchRequest,
    folder: BatchFolder,
    sources: Sequence[BatchSource],
    outcome: BatchOutcome,
    *,
    seconds: float,
) -> None:
    """Rename the results into place, remove what was on the way, and print what came out."""
    ordered = sorted(sources, key=lambda source: source.number)
    if not outcome.merged:
        folder.remove()
        raise SourceError(outcome.failed[min(outcome.failed)])
    several = folder.several
    merged = [source for source in ordered if source.number in outcome.merged]
    if several:
        page = request.flags.named is None or REPORT in request.flags.named
        summary = write_archive(
            folder, ordered, outcome, command=console.this_command(), page=page and packages.is_there("jinja2")
        )
    else:
        summary = _document(folder.result(merged[0]))
    target = request.places.output.absolute()
    with reported_writes(request.places.output):
        refuse_existing(target, overwrite=request.places.overwrite, mark=foreign_in_batch)
        put_in_place(folder.results if several else folder.result(merged[0]), target, replace=request.places.overwrite)
    folder.remove()
    console.write_json(request.places.json_file, summary)
    frames = sum(note.frames for note in outcome.merged.values())
    saved = sum(note.saved for note in outcome.merged.values()) / max(frames, 1)
    chosen = folder.record.chosen
    console.result(
        f"{plural(len(merged), 'source')}, {plural(frames, 'frame')} in {duration(seconds)}, {chosen.engine} "
        f"{chosen.precision}: {frames / max(seconds, 1e-3):.1f} frames per second",
        f"FLOPs saved: {saved:z.1%}; {_busy_line(outcome)}",
        f"{request.places.output}: {', '.join(sorted(path.name for path in request.places.output.iterdir())[:8])}",
    )
    _raise_unless_complete(request, outcome)


def _busy_line(outcome: BatchOutcome) -> str:
    busy = sorted(outcome.busy.values())
    if not busy:
        return "nothing was left to compute"
    span = f"{busy[0]:.1f} to {busy[-1]:.1f}" if len(busy) > 1 else f"{busy[0]:.1f}"
    return f"{plural(len(busy), 'worker')} busy for {span} s"


def _document(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(bytes_of_document(folder / SUMMARY))
    return summary


def _raise_unless_complete(request: BatchRequest, outcome: BatchOutcome) -> None:
    images = sum(note.failed for note in outcome.merged.values())
    early = [note.ended_early for note in outcome.merged.values() if note.ended_early]
    parts = [
        f"{plural(len(outcome.failed), 'source')} could not be read" if outcome.failed else "",
        f"{plural(images, 'image')} could not be read" if images else "",
        f"{plural(len(early), 'video')} ended early ({early[0]})" if early else "",
    ]
    if any(parts):
        raise PartialFailure(f"{', '.join(filter(None, parts))}; the others are done: {request.places.output}")


def _complete_before(places: BatchPlaces) -> bool:
    """Whether `--resume` finds the results in place, and nothing to go on with; what a kill left is removed.

    Raises:
        UsageError: something is there and nothing to go on with.
    """
    folder = folder_of(places.output)
    if not places.output.exists() or places.overwrite:
        return False
    if not folder.is_dir():
        raise UsageError(f"--resume: {places.output} is complete, and there is nothing to go on with")
    begun = BatchFolder.open(folder)
    # The results are moved as one, so that either they are still there or all is done.
    left = begun.results if begun.several else next(iter(begun.results.glob("*")), None)
    if left is not None and left.exists():
        raise UsageError(f"{places.output} exists; choose another with -o, or allow it with --overwrite")
    begun.remove()
    console.result(f"{places.output} was complete already")
    return True
