"""How fast is it on this CPU, and against what? Engines, precisions, tokens and peers on the same frames, in turns.

    python benchmarks/cpu.py --quick -o quick.json
    python benchmarks/cpu.py --dataset CAMVID --work FOLDER --prepare
    python benchmarks/cpu.py --dataset CAMVID --work FOLDER -o results/cpu.json --docs docs/benchmarks.md \\
        --readme README.md
    python benchmarks/cpu.py --tables benchmarks/results/cpu.json benchmarks/results/cpus/*.json \\
        --docs docs/benchmarks.md --readme README.md

With road-tiny the first takes less than three minutes. The second exports the bench model, which takes long and needs
no quiet; then the third measures everything in 20 to 25 minutes of a quiet machine (`--models default`: eight). It may
be interrupted and started again with the same words: what is in the output stays. The cells of one engine and case run
in one process, which is given up after `--limit` seconds. The last writes the tables again, those of the first result
and one line for every other machine. docs/benchmarks.md explains them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from on_cpu.cells import MODELS, all_cells, measured_together, quick_cells
from on_cpu.frames import FrameChoice
from on_cpu.processes import answer_in_this_process, done_in_process, made_ready
from on_cpu.result import (
    DEFAULT,
    CellEffort,
    CellsDone,
    CellsWanted,
    CpuCase,
    CpuCell,
    CpuReport,
    CpuSettings,
    UndoneCell,
)
from on_cpu.tables import check_pages, write_tables
from pydantic import ValidationError
from report import circumstances, command_text

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.installed import chosen_bundle
from dovit_deploy.errors import DovitError, InputError, UsageError
from dovit_deploy.files import write_text
from dovit_deploy.interruption import interruptible
from dovit_deploy.machine import this_machine

QUICK = CellEffort(seconds=6.0, fewest=2, timed_frames=3, limit_s=75.0)
NOT_BEGUN = "not begun"
"""Why a cell is not there while others are measured, and where the run ends before its turn."""
QUICK_FRAMES, QUICK_S = 6, 100.0
"""Seconds after which nothing further begins: with what the last may take still less than three minutes."""


def say(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def started(output: Path, command: str, settings: CpuSettings) -> CpuReport:
    """What is in the output already, or an empty result.

    Raises:
        UsageError: the output is of another machine, other versions or other settings.
    """
    fresh = CpuReport.model_validate(
        {**circumstances(command), "features": this_machine().features, "settings": settings}
    )
    if not output.exists():
        return fresh
    old = stored(output)
    # A package that was installed since then only adds to what can be measured.
    known = {name: fresh.versions.get(name) for name in old.versions}
    changed = {
        "machine": old.machine != fresh.machine,
        "versions": old.versions != known,
        "settings": old.settings != fresh.settings,
    }
    for name, is_other in changed.items():
        if is_other:
            raise UsageError(f"{output} was measured with other {name}; give another -o, or remove it")
    return fresh.model_copy(update={"rows": old.rows, "undone": old.undone})


def stored(path: Path) -> CpuReport:
    """A result that was written before.

    Raises:
        InputError: there is none.
    """
    try:
        return CpuReport.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(f"{path} is no result of benchmarks/cpu.py as it is now: {where}: {first['msg']}") from error


class GrowingReport:
    """A result that grows cell by cell, and is written after each process.

    Args:
        report: what is there already.
        output: where it is kept.
        template: what every process is asked, but for the cells.
    """

    def __init__(self, report: CpuReport, output: Path, template: CellsWanted) -> None:
        self.report, self._output, self._template = report, output, template
        # At once: an output that cannot be written must not be found out after the first measurement.
        self._write()

    def run(self, cells: Sequence[CpuCell], end: float) -> None:
        """Measure every cell that is not in the report yet; none begins after `end`."""
        left = [cell for cell in cells if self.report.row(cell) is None]
        groups = measured_together(left)
        # So that an interrupted run does not pass for a whole one.
        self._add(left, all_undone(left, NOT_BEGUN))
        for number, group in enumerate(groups, start=1):
            # They differ in how they run alone.
            more = f", and {len(group) - 1} more" if len(group) > 1 else ""
            say(f"{number} of {len(groups)}: {group[0].label}{more}")
            self._add(group, self._done(group, left, end))

    def _done(self, group: list[CpuCell], left: Sequence[CpuCell], end: float) -> CellsDone:
        if time.monotonic() > end:
            return all_undone(group, "no time was left")
        case = group[0].case
        of_case = tuple(cell for cell in left if cell.case == case)
        missing = made_ready(self._template.model_copy(update={"cells": of_case}))
        if missing is not None:
            return all_undone(group, f"its files cannot be made: {missing}")
        return done_in_process(self._template.model_copy(update={"cells": tuple(group)}))

    def _add(self, group: Sequence[CpuCell], done: CellsDone) -> None:
        for row in done.rows:
            say(f"  {row.cell.way.runs} {row.cell.way.profile}: {row.ratio:.2f}x, {row.cpu:.1f} ms of CPU time")
        for entry in (one for one in done.undone if one.why != NOT_BEGUN):
            say(f"  not done: {entry.cell.way.runs} {entry.cell.way.profile}: {entry.why}")
        # What failed is tried again: perhaps a package has been installed meanwhile.
        before = tuple(old for old in self.report.undone if old.cell not in group)
        self.report = self.report.model_copy(
            update={"rows": (*self.report.rows, *done.rows), "undone": (*before, *done.undone)}
        )
        self._write()

    def _write(self) -> None:
        write_text(self._output, self.report.model_dump_json(indent=1) + "\n")


def all_undone(cells: Sequence[CpuCell], why: str) -> CellsDone:
    """None of `cells` was measured."""
    return CellsDone(undone=tuple(UndoneCell(cell=cell, why=why) for cell in cells))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("--bundle", type=Path, help="instead of the installed default model")
    result.add_argument("--frames", metavar="SRC", help="images, a folder or a video; default: rendered streets")
    result.add_argument("--dataset", type=Path, help="labelled frames, as `dovit eval` takes them: gives mIoU too")
    result.add_argument("--split", default="val")
    result.add_argument("--frame-count", type=int, default=101, help="frames on which answers are compared")
    result.add_argument("--timed-frames", type=int, default=6, help="of these, frames that are timed")
    result.add_argument(
        "--seconds", type=float, default=20.0, help="of rounds in each process, unless they are too few"
    )
    result.add_argument("--fewest", type=int, default=2, help="runs of each frame")
    result.add_argument("--limit", type=float, default=900.0, help="seconds after which a process is given up")
    names = (DEFAULT, *MODELS)
    result.add_argument("--models", nargs="+", choices=names, default=names, help="default: all of them")
    result.add_argument("--only", action="append", default=[], metavar="TEXT", help="cells whose label contains it")
    result.add_argument("--quick", action="store_true", help="a first impression, in minutes")
    result.add_argument("--work", type=Path, metavar="FOLDER", help="keeps the exported bench models for the next time")
    result.add_argument("--prepare", action="store_true", help="make what is kept in --work; measure nothing")
    result.add_argument("-o", "--output", type=Path, metavar="JSON")
    result.add_argument("--tables", type=Path, nargs="+", metavar="JSON", help="write tables; measure nothing")
    result.add_argument("--readme", type=Path)
    result.add_argument("--docs", type=Path)
    # How the command calls itself for some cells.
    result.add_argument("--wanted", type=Path, help=argparse.SUPPRESS)
    return result


def checked(command_line: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse what cannot be meant."""
    for name in ("frame_count", "timed_frames", "fewest", "limit"):
        # Written so that NaN is refused, too; likewise below.
        if not getattr(arguments, name) >= 1:
            command_line.error(f"--{name.replace('_', '-')} {getattr(arguments, name)}: at least 1 is needed")
    if not 0 <= arguments.seconds < float("inf"):
        command_line.error(f"--seconds {arguments.seconds:g}: a finite number from 0 on is needed")
    if arguments.frames is not None and arguments.dataset is not None:
        command_line.error("--frames and --dataset are two sources of images; give one of them")
    if arguments.prepare and arguments.work is None:
        command_line.error("--prepare needs --work FOLDER, where it keeps what it makes")
    if arguments.output is None and not arguments.prepare:
        command_line.error("-o OUTPUT.json is needed: what was measured is kept there, cell by cell")


def cells_of(arguments: argparse.Namespace, bundle: Bundle) -> list[CpuCell]:
    """What is to be measured.

    Raises:
        UsageError: nothing is.
    """
    spec = bundle.manifest.spec
    cells = (quick_cells if arguments.quick else all_cells)(spec.size, gates=bool(spec.gates))
    wanted = [
        cell
        for cell in cells
        if cell.case.model in arguments.models
        and (not arguments.only or any(text in cell.label for text in arguments.only))
    ]
    if not wanted:
        labels = f" has a label with {arguments.only}" if arguments.only else " is there"
        of_these = f" of --models {' '.join(arguments.models)}{' with --quick' * arguments.quick}"
        raise UsageError(f"no cell{of_these}{labels}; one of them all is called '{cells[0].label}'")
    return wanted


def prepare(template: CellsWanted, cells: Sequence[CpuCell]) -> None:
    """Make the files of all cases.

    Raises:
        InputError: those of some cannot be made.
    """
    cases: dict[CpuCase, list[CpuCell]] = {}
    for cell in cells:
        cases.setdefault(cell.case, []).append(cell)
    failed = []
    for number, (case, of_case) in enumerate(cases.items(), start=1):
        say(f"{number} of {len(cases)}: {case.name}")
        missing = made_ready(template.model_copy(update={"cells": tuple(of_case)}))
        if missing is not None:
            failed.append(f"{case.name}: {missing}")
    if failed:
        raise InputError("not everything could be made", *failed)


def run(arguments: argparse.Namespace, command: str) -> CpuReport | None:
    """Measure what is asked for, or only prepare."""
    bundle = Bundle.open(arguments.bundle if arguments.bundle else chosen_bundle(None).path)
    cells, end = cells_of(arguments, bundle), float("inf")
    effort = CellEffort(
        seconds=arguments.seconds,
        fewest=arguments.fewest,
        timed_frames=arguments.timed_frames,
        limit_s=arguments.limit,
    )
    if arguments.quick:
        end, effort = time.monotonic() + QUICK_S, QUICK
        arguments.frame_count = min(arguments.frame_count, QUICK_FRAMES)
    frames = FrameChoice(
        frames=arguments.frames, dataset=arguments.dataset, split=arguments.split, count=arguments.frame_count
    )
    frames.check()
    settings = CpuSettings(bundle=bundle.path.name, frames=frames.described(), count=frames.count, effort=effort)
    with work_folder(arguments.work) as work:
        template = CellsWanted(cells=(), bundle=bundle.path, work=work, frames=frames, effort=effort)
        if arguments.prepare:
            prepare(template, cells)
            return None
        begun, report = time.monotonic(), started(arguments.output, command, settings)
        growing = GrowingReport(report, arguments.output, template)
        growing.run(cells, end)
        say(f"{(time.monotonic() - begun) / 60:.1f} minutes; {arguments.output}")
        return growing.report


@contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """The folder that was given, or one for this time."""
    if given is None:
        with tempfile.TemporaryDirectory(prefix="dovit-") as folder:
            yield Path(folder)
        return
    given.mkdir(parents=True, exist_ok=True)
    yield given.resolve()


def do(command_line: argparse.ArgumentParser, arguments: argparse.Namespace, command: str) -> None:
    """What the command line asks for: measure, or write the tables of what was measured."""
    check_pages(readme=arguments.readme, docs=arguments.docs)
    if arguments.tables is not None:
        reports = [stored(path) for path in arguments.tables]
        if arguments.readme is None and arguments.docs is None:
            raise UsageError("--tables writes into pages: give --readme, --docs or both")
    else:
        checked(command_line, arguments)
        report = run(arguments, command)
        reports = [report] if report is not None else []
    if reports:
        write_tables(reports, readme=arguments.readme, docs=arguments.docs)


def main(words: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    given = list(sys.argv[1:] if words is None else words)
    command_line = parser()
    arguments = command_line.parse_args(given)
    if arguments.wanted is not None:
        answer_in_this_process(arguments.wanted, arguments.output)
        return 0
    try:
        # Also SIGTERM is raised here: else the process that measures would go on alone.
        with interruptible():
            do(command_line, arguments, command_text("cpu.py", given))
    except DovitError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted; what is in the output stays, and the same command goes on with it")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
