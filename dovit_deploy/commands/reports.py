"""Which file may `--report` name, and how is it written? By suffix a page; of a benchmark also CSV and Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dovit_deploy import packages
from dovit_deploy.claims import real_path
from dovit_deploy.commands import targets
from dovit_deploy.errors import UsageError
from dovit_deploy.files import write_text

if TYPE_CHECKING:
    from dovit_deploy.bundle.manifest import Manifest
    from dovit_deploy.measure.bench_records import BenchReport
    from dovit_deploy.pages.page import Page

PAGE = ".html"
OF_BENCH = (PAGE, ".csv", ".md")


def claim(
    json_file: Path | None,
    path: Path | None,
    *,
    inputs: targets.Inputs,
    output: Path | None = None,
    suffixes: tuple[str, ...] = (PAGE,),
) -> None:
    """Claim the files of `--json` and `--report`, before any work; nothing for None.

    Args:
        json_file: that of `--json`, as given.
        path: that of `--report`.
        inputs: what the verb reads.
        output: what else the verb writes.
        suffixes: that are allowed.

    Raises:
        UsageError: another suffix, the file of `--json`, or as `targets.claim_report`.
        PackageMissing: of a page, what makes it is not installed.
    """
    targets.claim_report(json_file, inputs=inputs, outputs=(output,))
    if path is None:
        return
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise UsageError(f"--report {path}: allowed are names that end in {', '.join(suffixes)}")
    if json_file is not None and real_path(json_file) == real_path(path):
        raise UsageError(f"--report {path}: --json writes there, too; choose another")
    targets.claim_report(path, inputs=inputs, outputs=(output,), option="--report", kind=_kind(suffix))
    if suffix == PAGE:
        packages.load("jinja2")


def _kind(suffix: str) -> targets.ReportKind:
    """How a file of ours begins, which a new one may replace."""
    from dovit_deploy.measure.bench_text import CSV_MARK, MARKDOWN_MARK
    from dovit_deploy.pages.page import MARK

    kinds = {
        PAGE: targets.ReportKind("page of dovit's", lambda head: MARK.encode() in head),
        ".csv": targets.ReportKind("table of dovit bench's", lambda head: head.startswith(CSV_MARK.encode())),
        ".md": targets.ReportKind("report of dovit bench's", lambda head: head.startswith(MARKDOWN_MARK.encode())),
    }
    return kinds[suffix]


def write_page(path: Path | None, page: Page | None) -> None:
    """Write `page`, whole or not at all; nothing for None; raises OutputFailed."""
    from dovit_deploy.pages.page import html_from_page

    if path is not None and page is not None:
        write_text(path, html_from_page(page))


def write_bench(path: Path | None, report: BenchReport, manifest: Manifest, *, frames: str | None) -> None:
    """Write a benchmark in the form that the suffix names; nothing for None.

    Args:
        path: a file that was claimed.
        report: as in the file of `--json`.
        manifest: of the bundle.
        frames: as given; None: rendered.

    Raises:
        OutputFailed: the disk refuses it.
    """
    from dovit_deploy.commands.console import this_command
    from dovit_deploy.measure.bench_page import page_from_bench
    from dovit_deploy.measure.bench_text import csv_from_bench, markdown_from_bench

    if path is None:
        return
    spec, suffix = manifest.spec, path.suffix.lower()
    if suffix == ".csv":
        write_text(path, csv_from_bench(report))
    elif suffix == ".md":
        write_text(path, markdown_from_bench(report, spec))
    else:
        given = "rendered streets" if frames is None else frames
        write_page(path, page_from_bench(report, spec, frames=given, command=this_command()))
