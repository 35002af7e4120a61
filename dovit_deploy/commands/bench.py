"""`dovit bench [BUNDLE]`: dense against dynamic on real frames, engines side by side, interleaved."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import arguments, console, reports
from dovit_deploy.commands.arguments import PLACEHOLDER, first_use
from dovit_deploy.commands.console import show_table
from dovit_deploy.errors import PartialFailure, UsageError
from dovit_deploy.printing import plural, quote

if TYPE_CHECKING:
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.engines.base import EngineOptions
    from dovit_deploy.measure.bench import BenchFrames, Contestant
    from dovit_deploy.measure.bench_records import BenchReport, BenchResult

DEFAULT_REPEAT = 5
BenchFile = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Also a page to look at (.html), a table (.csv) or text (.md)."),
]
EarlierReport = Annotated[
    Path | None, typer.Option(metavar="OLD.json", help="What changed since that report of --json, beyond noise?")
]
Limit = Annotated[
    str | None,
    typer.Option(metavar="EXPR", help="End with code 4 where it is true of a result, as 'p90>50' or 'speedup<2'."),
]


def bench(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="NAME.dovit, or the name of an installed model; default: the installed default."),
    ] = None,
    frames: Annotated[
        str | None, typer.Option(metavar="SRC", help="Image, folder, glob or video. Default: rendered street frames.")
    ] = None,
    recursive: arguments.Recursive = False,
    engine: Annotated[
        str,
        typer.Option(
            metavar="E[,E...]",
            help=f"{arguments.ENGINE_LINE}; the first that is given is what others are compared with.",
        ),
    ] = "onnxruntime",
    precision: Annotated[
        str | None, typer.Option(metavar="P[,P...]", help=f"Number formats. {arguments.PRECISION_LINE}.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one operator.")] = 1,
    cuda_memory: arguments.CudaMemory = None,
    trust_engine: arguments.TrustEngine = False,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds over all frames.")] = DEFAULT_REPEAT,
    json_file: arguments.JsonFile = None,
    report_file: BenchFile = None,
    compare: EarlierReport = None,
    fail_if: Limit = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Measure latency, tokens and FLOPs: dense against dynamic, engines side by side.

    Every frame is run densely and dynamically back to back, in changing order, after a first run that is reported apart
    (openvino compiles at the first use of a size); the speed-up is the median of these pairs' ratios. Frames are
    resized to the model's size, also where `run` would slide a window. Latency is the model step alone. At most 16
    frames of a source are taken, evenly spread. A bundle without a dense form is run dynamically alone, and what
    compares the two is null.

    Of a model with gates, 20 s then go into a latency model of each engine: what the tokens of each stage take here.
    `run --deadline-ms` uses it.

    --fail-if takes one of p50, p90, p99, mean (ms of the dynamic model step), speedup, flops_saved, then one of
    < > <= >=, then a number. --compare pairs the frames that both reports have.
    """
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.engines.base import EngineOptions
    from dovit_deploy.engines.registry import engine_names
    from dovit_deploy.measure.bench_compare import earlier_report
    from dovit_deploy.measure.bench_limits import check_limit
    from dovit_deploy.measure.bench_limits import fail_if as limit_from

    limit = None if fail_if is None else limit_from(fail_if)
    engines = _distinct(engine, option="--engine", allowed=engine_names())
    precisions = _precisions(precision, engines)
    path = arguments.bundle_path(bundle, quiet=quiet)
    inputs = (frames, path, compare)
    reports.claim(json_file, report_file, inputs=inputs, suffixes=reports.OF_BENCH)
    before = None if compare is None else Earlier(compare, earlier_report(compare))
    opened = Bundle.open(path)
    with ExitStack() as stack:
        # Engines are loaded before the frames are read, so that a missing one is reported at once.
        pairs = list(itertools.product(engines, precisions))
        contestants = _contestants(stack, opened, pairs, threads, EngineOptions(cuda_memory, trust_engine))
        taken = _frames(frames, opened, recursive=recursive, quiet=quiet)
        _refuse_incomparable(before, contestants, taken)
        results = _results(opened, contestants, taken, repeat=repeat, quiet=quiet)
        results = _with_latency_models(results, contestants, quiet=quiet)
    report = _report(opened, taken, results, before, threads=threads, repeat=repeat)
    # Before anything is printed: a reader that stops reading (head) must not cost the report.
    console.write_json(json_file, report.model_dump(mode="json"))
    reports.write_bench(report_file, report, opened.manifest, frames=frames)
    _show(report, opened, verbose=verbose)
    console.next_command(_next(opened, frames, engines, precisions, threads, json_file or report_file), quiet=quiet)
    # First: that something is too slow matters more than that something could not be read.
    check_limit(limit, report.results)
    if taken.failures:
        raise PartialFailure(
            f"{plural(len(taken.failures), 'input')} could not be read, the others were measured: {taken.failures[0]}"
        )


@dataclass(frozen=True)
class Earlier:
    """The report of `--compare`, and where it lies."""

    path: Path
    report: BenchReport


def _refuse_incomparable(before: Earlier | None, contestants: Sequence[Contestant], frames: BenchFrames) -> None:
    """Before anything is measured; raises InputError."""
    from dovit_deploy.measure.bench import digest_of
    from dovit_deploy.measure.bench_compare import refuse_incomparable

    if before is not None:
        measured = [(one.engine, one.precision) for one in contestants]
        refuse_incomparable(before.report, before.path, pairs=measured, frames=map(digest_of, frames.pixels))


def _precisions(given: str | None, engines: Sequence[str]) -> tuple[str | None, ...]:
    """Those of `--precision`; None: each engine's own."""
    from dovit_deploy.engines.registry import engine_entry

    # A format that only one of the engines has is allowed here; the others refuse it with their own list.
    allowed = tuple(dict.fromkeys(format for name in engines for format in engine_entry(name).precisions))
    return (None,) if given is None else _distinct(given, option="--precision", allowed=allowed)


def _distinct(text: str, *, option: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The names in `text`, none of them twice."""
    given = arguments.names(text, option=option, allowed=allowed)
    if len(set(given)) < len(given):
        raise UsageError(f"{option}: '{text}' names one twice; each is measured once")
    return given


def _contestants(
    stack: ExitStack,
    bundle: Bundle,
    pairs: Sequence[tuple[str, str | None]],
    threads: int,
    options: EngineOptions,
) -> list[Contestant]:
    """A session for every pair of engine and precision, closed with `stack`; each gets the options of its engine."""
    from dovit_deploy.engines.registry import options_for
    from dovit_deploy.measure.bench import Contestant
    from dovit_deploy.runtime.session import Session

    contestants = []
    for engine, precision in pairs:
        own = options_for(engine, options, among=[name for name, _ in pairs])
        session = Session(bundle, engine=engine, precision=precision, threads=threads, options=own)
        contestants.append(Contestant(engine, session.backend.precision, stack.enter_context(session)))
    return contestants


def _frames(source: str | None, bundle: Bundle, *, recursive: bool, quiet: bool) -> BenchFrames:
    from dovit_deploy.measure.bench import frames_from_source, rendered_frames

    if source is None:
        return rendered_frames(bundle.manifest)
    taken = frames_from_source(source, bundle.manifest, recursive=recursive)
    if taken.taken_from is not None:
        console.remark(f"{len(taken.pixels)} of {taken.taken_from} frames, evenly spread", quiet=quiet)
    # Even when quiet: with fewer frames the figures are others.
    for failure in taken.failures:
        console.remark(failure, quiet=False)
    return taken


def _results(
    bundle: Bundle, contestants: Sequence[Contestant], frames: BenchFrames, *, repeat: int, quiet: bool
) -> tuple[BenchResult, ...]:
    from dovit_deploy.measure.bench import benchmark

    # Timed: a display that redraws by itself would compute during the runs.
    with console.progress("warm-up", unit="turns", quiet=quiet, timed=True) as display:

        def turn_done(done: int, total: int) -> None:
            display.begin("measuring")
            display.reach(done, total=total)

        dense = bundle.manifest.spec.has_dense
        return benchmark(
            contestants, frames.pixels, labels=frames.labels, repeat=repeat, dense=dense, progress=turn_done
        )


def _with_latency_models(
    results: tuple[BenchResult, ...], contestants: Sequence[Contestant], *, quiet: bool
) -> tuple[BenchResult, ...]:
    """With the latency model of each engine, also kept for other commands."""
    from dovit_deploy.runtime.latencies import LatencyCache, has_latency_model, timed_as
    from dovit_deploy.runtime.latency_fit import fit_latency
    from dovit_deploy.runtime.session import Session

    cache, timed = LatencyCache(), []
    # Timed, too.
    with console.progress(unit="steps", quiet=quiet, timed=True) as display:
        for result, contestant in zip(results, contestants, strict=True):
            session = contestant.session
            model = None
            if isinstance(session, Session) and has_latency_model(session):
                display.begin(f"latency model of {contestant.engine} {contestant.precision}")
                model = fit_latency(session, advance=display.advance)
                cache.remember(timed_as(session), model)
            timed.append(result.model_copy(update={"latency_model": model}))
    return tuple(timed)


def _report(
    bundle: Bundle,
    frames: BenchFrames,
    results: tuple[BenchResult, ...],
    before: Earlier | None,
    *,
    threads: int,
    repeat: int,
) -> BenchReport:
    from dovit_deploy.machine import machine_facts, package_versions
    from dovit_deploy.measure.bench_compare import compared
    from dovit_deploy.measure.bench_records import BenchReport

    report = BenchReport(
        machine=machine_facts(),
        versions=package_versions(),
        bundle=str(bundle.path),
        frames=len(frames.pixels),
        threads=threads,
        repeat=repeat,
        results=results,
    )
    if before is None:
        return report
    return report.model_copy(update={"comparison": compared(before.report, report, before.path)})


def _show(report: BenchReport, bundle: Bundle, *, verbose: bool) -> None:
    from dovit_deploy.measure.bench_text import HEADERS, NUMBERS, bench_lines, bench_rows, bench_title

    spec = bundle.manifest.spec
    show_table(bench_title(report, spec), HEADERS, bench_rows(report), right=NUMBERS)
    console.result("")
    console.result(*bench_lines(report, spec))
    if verbose:
        for result in report.results:
            _show_frames(result)


def _show_frames(result: BenchResult) -> None:
    rows = [
        (
            entry.frame,
            " -> ".join(map(str, entry.kept)),
            f"{entry.flops_saved:z.1%}",
            "-" if entry.speedup is None else f"{entry.speedup:.2f}x",
        )
        for entry in result.per_frame
    ]
    headers = ("frame", "tokens per stage", "FLOPs saved", "speed-up")
    show_table(f"{result.engine} {result.precision}, frame by frame", headers, rows, right=(2, 3))


def _next(
    bundle: Bundle,
    frames: str | None,
    engines: tuple[str, ...],
    precisions: tuple[str | None, ...],
    threads: int,
    written: Path | None,
) -> str:
    """The command to run next: with the report written, using the model; without, writing it of the same runs."""
    path = bundle.path
    if written is not None:
        use = first_use(path, bundle.manifest)
        return use if frames is None else use.replace(PLACEHOLDER, quote(frames))
    source = "" if frames is None else f" --frames {quote(frames)}"
    names = "" if engines == ("onnxruntime",) else f" --engine {','.join(engines)}"
    given = [precision for precision in precisions if precision is not None]
    names += f" --precision {','.join(given)}" if given else ""
    names += f" --threads {threads}" if threads != 1 else ""
    return f"dovit bench {quote(str(path))}{source}{names} --json bench.json"
