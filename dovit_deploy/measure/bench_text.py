"""What is read of a benchmark: its table and lines for the console and Markdown, and its figures as CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from dovit_deploy.credentials import masked
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.measure.bench_compare import comparison_lines
from dovit_deploy.measure.bench_records import BenchReport, BenchResult, Side
from dovit_deploy.printing import plural, printable
from dovit_deploy.runtime.latencies import accuracy

HEADERS = ("engine", "precision", "run", "mean", "p50", "p90", "p99", "CPU p50")
NUMBERS = range(3, 8)
"""The columns of `HEADERS` that hold numbers, milliseconds."""
COLUMNS = (
    *("engine", "precision", "run", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "cpu_ms", "speedup", "predicted_speedup"),
    *("realised_efficiency", "flops_saved", "engine_factor", "kept"),
)
"""Of the CSV; its first line is the mark of our files."""
CSV_MARK = ",".join(COLUMNS)
MARKDOWN_MARK = "<!-- dovit bench -->"


def bench_title(report: BenchReport, spec: AnySpec) -> str:
    """What was measured, on what."""
    return (
        f"{Path(report.bundle).name}, {spec.size[0]}x{spec.size[1]}: model step in ms, "
        f"{plural(report.frames, 'frame')}, {plural(report.repeat, 'round')}, {plural(report.threads, 'thread')}, "
        f"{report.machine['cpu']}"
    )


def bench_rows(report: BenchReport) -> list[tuple[str, ...]]:
    """A row below `HEADERS` for each engine, precision and way of running."""
    return [
        (result.engine, result.precision, name, *(f"{value:.2f}" for value in _milliseconds(side)))
        for result in report.results
        for name, side in _sides(result)
    ]


def bench_lines(report: BenchReport, spec: AnySpec) -> list[str]:
    """What the table has no column for, and what changed."""
    lines = list[str]()
    for result in report.results:
        own = (*factor_lines(result, first=report.results[0]), first_line(result), latency_line(result, spec))
        lines += filter(None, own)
    return lines + ([] if report.comparison is None else comparison_lines(report.comparison))


def _sides(result: BenchResult) -> list[tuple[str, Side]]:
    both = (("dense", result.dense), ("dynamic", result.dynamic))
    return [(name, side) for name, side in both if side is not None]


def _milliseconds(side: Side) -> tuple[float, ...]:
    latency = side.latency_ms
    return latency.mean, latency.p50, latency.p90, latency.p99, side.cpu_ms


def factor_lines(result: BenchResult, *, first: BenchResult) -> tuple[str, ...]:
    """Two lines: what the tokens give and what the engine gives, and whether saved FLOPs became saved time."""
    kept = " -> ".join(f"{count:.0f}" for count in result.kept)
    tokens = f"FLOPs saved {result.flops_saved:z.1%}; tokens per stage {kept}"
    if result.speedup is None or result.realised_efficiency is None:
        return (
            f"{result.engine} {result.precision}: engine {result.engine_factor:.2f}x against {first.engine} "
            f"{first.precision}; no dense form to compare tokens with",
            f"  predicted from FLOPs {result.predicted_speedup:.2f}x; {tokens}",
        )
    cpu = "" if result.cpu_speedup is None else f" ({result.cpu_speedup:.2f}x in CPU time)"
    reference = f"{first.engine} {first.precision} dense"
    return (
        f"{result.engine} {result.precision}: {result.total_factor:.2f}x against {reference} "
        f"= tokens {result.speedup:.2f}x{cpu} * engine {result.engine_factor:.2f}x",
        f"  predicted from FLOPs {result.predicted_speedup:.2f}x, realised {result.realised_efficiency:.1%} of it; "
        f"{tokens}",
    )


def first_line(result: BenchResult) -> str:
    """What the frames took when they were new: no other figure has it in it."""
    first = result.first_runs
    return (
        f"  first run of each frame, left out above: p50 {first.p50:.2f}, p99 {first.p99:.2f} ms; "
        f"{first.compiled_ms:.0f} ms in all beyond warm runs"
    )


def latency_line(result: BenchResult, spec: AnySpec) -> str:
    """What the latency model is worth, and the least and the most that it predicts; "" without one."""
    if result.latency_model is None:
        return ""
    ends = (
        result.latency_model.milliseconds((spec.tokens, *[n] * len(spec.gates)))
        for n in (spec.extra_tokens, spec.tokens)
    )
    least, most = (f"{milliseconds:.1f}" for milliseconds in ends)
    return f"  latency model: {least} ms (all tokens stop) to {most} ms; {accuracy(result.latency_model)}"


# As files.


def csv_from_bench(report: BenchReport) -> str:
    """A line for each engine, precision and way of running; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in report.results:
        factors = (result.speedup, result.predicted_speedup, result.realised_efficiency, result.flops_saved)
        kept = " ".join(f"{count:g}" for count in result.kept)
        for name, side in _sides(result):
            figures = (*_milliseconds(side), *factors, result.engine_factor)
            written = ("" if value is None else f"{value:.6g}" for value in figures)
            writer.writerow((result.engine, result.precision, name, *written, kept))
    return text.getvalue()


def markdown_from_bench(report: BenchReport, spec: AnySpec) -> str:
    """What the console shows, as a table and a list."""
    aligned = ["--:" if column in NUMBERS else "---" for column in range(len(HEADERS))]
    table = (HEADERS, aligned, *bench_rows(report))
    lines = (line.strip() for line in bench_lines(report, spec))
    return "\n".join(
        (
            *(MARKDOWN_MARK, _text(bench_title(report, spec)), ""),
            *(f"| {' | '.join(map(_text, row))} |" for row in table),
            *("", *(f"- {_text(line)}" for line in lines), ""),
        )
    )


def _text(text: str) -> str:
    """`text` as Markdown that means nothing but itself."""
    escaped = printable(masked(text)).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for letter in "|*_`[]":
        escaped = escaped.replace(letter, f"\\{letter}")
    return escaped
