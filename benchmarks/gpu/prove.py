"""Prove what runs on an NVIDIA GPU, in ten minutes: kernels, plugins, memory, stages against dense, engines, parity.

    python benchmarks/gpu/prove.py --minutes 10 -o benchmarks/results/gpu.json --docs docs/benchmarks.md
    python benchmarks/gpu/prove.py --tables benchmarks/results/gpu.json --docs docs/benchmarks.md

With --only, what the JSON has of other sections stays in it: a run of the same GPU and versions is added to.

`make prove-gpu` installs what is needed and runs the first line; the second writes the tables again. Each section runs
in a process of its own and has one outcome; the JSON is written after every result. Without a GPU the self-test is all
that runs, and the report says what was not done; `--device cpu` runs the sections on tiny models instead. Exit code 0:
nothing that was tried is wrong (slow is not wrong); 4: something is; 130: interrupted. docs/benchmarks.md explains the
figures.
"""

from __future__ import annotations

import time

STARTED = time.monotonic()
"""Importing takes a part of the minutes, too."""

import argparse
import dataclasses
import json
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
# A script finds the modules of its own folder; those that benchmarks share are in the folder above. And the references
# and promises that are proved here are those of the tests, so this takes a checkout, whose root must be found, too.
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS.parent)]

import torch
from report import circumstances, command_text, errors_in_a_line, output_file, page_with

from dovit_deploy.errors import InputError, OutputFailed, UsageError
from dovit_deploy.files import write_text
from dovit_deploy.interruption import interruptible
from gpu.child import run_section
from gpu.result import GpuReport, SectionOutcome
from gpu.section import Bench, Found, ProofSection, TimeBudget
from gpu.sections import GPU_ITSELF, SECTIONS
from gpu.tables import TABLES, mark, write_tables

ROOM_S = 60.0
"""Left of the minutes when the last section ends: to kill it, to write, and for whoever ends this from outside."""


def say(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)


class Proof:
    """A report that is in its file after every result.

    Args:
        report: without results.
        output: the file; None: it is only printed.
        adds: what the file has of other sections stays.

    Raises:
        UsageError: the file holds something else, or what cannot be added to.
    """

    def __init__(self, report: GpuReport, output: Path | None, *, adds: bool = False) -> None:
        self.report = report
        self._output = output
        self._guarded = output is not None and holds_results_of_a_gpu(output)
        self._before = result_to_add_to(output, report) if adds and output is not None and output.exists() else None
        self._found: Counter[str] = Counter()

    @property
    def withheld(self) -> str:
        """Why the file keeps the results of a GPU that it had; empty where it does not."""
        if self._guarded and self.report.gpu is None:
            return "it has the results of a GPU, and there was none now"
        if self._guarded and self._before is not None and self._before.gpu != self.report.gpu:
            return "it has the results of another GPU; give another -o"
        return ""

    @property
    def whole(self) -> GpuReport:
        """The report with what the file had of other sections."""
        if self._before is None or self._before.gpu != self.report.gpu:
            return self.report
        return self.report.over(self._before)

    def keep(self, found: Found) -> None:
        """Add a result."""
        self.report = self.report.with_found(*found)
        self._found[found[0]] += 1
        self._write()

    def ended(self, outcome: SectionOutcome) -> None:
        """Add a section's outcome, and say it."""
        say(f"  {outcome.outcome}{f': {outcome.why}' if outcome.why else ''}  ({outcome.seconds:.0f} s)")
        outcome = outcome.model_copy(update={"found": dict(self._found)})
        self._found.clear()
        self.report = self.report.with_found("sections", outcome)
        self._write()

    def finish(self) -> None:
        """Print the report, and write it.

        Raises:
            OutputFailed: the disk refuses it.
        """
        print(self._text())
        if self.withheld:
            say(f"{self._output} stays as it is: {self.withheld}")
        elif self._output is not None:
            write_text(self._output, self._text())

    def _write(self) -> None:
        if self._output is None or self.withheld:
            return
        try:
            write_text(self._output, self._text())
        # Measuring goes on: there may be room later, and at the end the report is printed, too.
        except OutputFailed as error:
            say(f"  {error}")

    def _text(self) -> str:
        return self.whole.model_dump_json(indent=1) + "\n"


def result_to_add_to(output: Path, report: GpuReport) -> GpuReport | None:
    """What an earlier run wrote to `output`, if `report` can be added to it; None: it is of no GPU, and is replaced.

    Raises:
        UsageError: it does not say which section found what, or is of another machine or other versions.
    """
    try:
        before = GpuReport.model_validate_json(output.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"-o {output}: this file is no result of prove.py", "choose another name") from error
    if before.gpu is None:
        return before if before.counts_results else None
    if not before.counts_results:
        raise UsageError(
            f"-o {output}: an older result, which does not say which section found what, so --only cannot add to it",
            "choose another name, or run all sections",
        )
    other = [name for name in ("machine", "versions") if getattr(before, name) != getattr(report, name)]
    if other:
        raise UsageError(
            f"-o {output}: a result of other {' and '.join(other)}, so --only cannot add to it", "choose another name"
        )
    return before


def read_report(path: Path) -> GpuReport:
    """What an earlier run wrote.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    try:
        return GpuReport.model_validate_json(path.read_text(encoding="utf-8"))
    # What pydantic raises is a ValueError.
    except (OSError, ValueError) as error:
        raise InputError(f"--tables {path} is no result of prove.py: {str(error).splitlines()[0]}") from error


def holds_results_of_a_gpu(output: Path) -> bool:
    """Whether an earlier run wrote `output`, and had a GPU.

    Raises:
        UsageError: something else is in it.
    """
    try:
        text = output.read_text(encoding="utf-8") if output.exists() else ""
        report = json.loads(text) if text else {"gpu": None}
    except (OSError, ValueError):
        report = None
    if not (isinstance(report, dict) and "gpu" in report):
        raise UsageError(f"-o {output}: this file is no result of prove.py", "choose another name")
    return report["gpu"] is not None


def prove(proof: Proof, bench: Bench, sections: Sequence[ProofSection]) -> None:
    """Run `sections`, one after the other, whatever happens to each.

    Raises:
        KeyboardInterrupt: the user asked to stop; what was measured is kept, and what was not is named.
    """
    left = list(sections)
    try:
        while left:
            section = left[0]
            say(section.name)
            bench = dataclasses.replace(bench, gpu=proof.report.gpu)
            if (why := _lacking(section, bench, proof.report)) is None:
                outcome = run_section(section, bench, proof.keep)
            else:
                outcome = not_done(section, why)
            del left[0]
            proof.ended(outcome)
    finally:
        for section in left:
            proof.ended(not_done(section, "interrupted"))


def not_done(section: ProofSection, why: str) -> SectionOutcome:
    """The outcome of a section that was not begun, or not finished."""
    return SectionOutcome(name=section.name, outcome="not done", why=why, seconds=0.0)


def _lacking(section: ProofSection, bench: Bench, report: GpuReport) -> str | None:
    """Why `section` cannot run on this device; None where it can."""
    if section.everywhere:
        return None
    if not bench.on_gpu:
        return "it needs a GPU; this is --device cpu" if section.only_gpu else None
    first = next((outcome for outcome in report.sections if outcome.name == GPU_ITSELF.name), None)
    return None if first is None or report.gpu is not None else first.why


@contextmanager
def temporary_folder() -> Iterator[None]:
    """Let everything temporary lie in one folder, which goes at the end: a killed process does not clean up."""
    with tempfile.TemporaryDirectory(prefix="dovit-prove-", ignore_cleanup_errors=True) as folder:
        before = tempfile.tempdir, os.environ.get("TMPDIR")
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            tempfile.tempdir = before[0]
            if before[1] is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before[1]


def minutes(text: str) -> float:
    """A type for `argparse`: a time in which something can run."""
    value = float(text)
    # NaN is more than nothing for no comparison, and no clock reaches infinity.
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} given, a number above 0 is needed")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument(
        "--minutes", type=minutes, default=10, help="be done by then, a minute to spare; what does not fit is left out"
    )
    result.add_argument("-o", "--output", type=output_file)
    result.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: tiny models, which prove code and no figure",
    )
    result.add_argument(
        "--only", action="append", metavar="WORDS", help="run sections whose names have these words; several add up"
    )
    result.add_argument("--tables", type=Path, metavar="JSON", help="write the tables of this result; run nothing")
    first_mark = mark(next(iter(TABLES)))
    result.add_argument("--docs", type=page_with(first_mark), help="the page with the marks of the tables")
    return result


def chosen_sections(only: Sequence[str] | None) -> tuple[ProofSection, ...]:
    """The sections with any of `only` in their names; all where nothing is asked for.

    Raises:
        UsageError: no section's name has these words.
    """
    for words in only or ():
        if not any(words in section.name for section in SECTIONS):
            names = "; ".join(section.name for section in SECTIONS)
            raise UsageError(f"--only {words!r}: no section has this in its name", f"there are: {names}")
    return tuple(section for section in SECTIONS if only is None or any(words in section.name for words in only))


def proved(arguments: argparse.Namespace, command: str, start: float) -> tuple[Proof, bool]:
    """Run everything; the proof, and whether the user interrupted it."""
    chosen = (GPU_ITSELF, *chosen_sections(arguments.only))
    seconds = 60 * arguments.minutes
    budget = TimeBudget(start + seconds - min(ROOM_S, seconds / 4))
    report = GpuReport.model_validate({**circumstances(command), "minutes": arguments.minutes, "gpu": None})
    proof, interrupted = Proof(report, arguments.output, adds=arguments.only is not None), False
    with interruptible(), temporary_folder():
        try:
            prove(proof, Bench(torch.device(arguments.device), budget, say), chosen)
        except KeyboardInterrupt:
            interrupted = True
        proof.finish()
    return proof, interrupted


@errors_in_a_line()
def main(words: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    start = STARTED if words is None else time.monotonic()
    given = list(sys.argv[1:] if words is None else words)
    arguments = parser().parse_args(given)
    if arguments.tables is not None:
        report, interrupted, publish = read_report(arguments.tables), False, True
        whole = report
    else:
        proof, interrupted = proved(arguments, command_text("gpu/prove.py", given), start)
        report, whole, publish = proof.report, proof.whole, not proof.withheld
    if arguments.docs is not None and publish:
        write_tables(whole, arguments.docs)
    for undone in report.undone:
        say(f"not done: {undone.what}: {undone.why}")
    for failure in report.failures:
        say(f"WRONG: {failure}")
    return 130 if interrupted else 4 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
