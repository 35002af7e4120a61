"""How fast is it on this CPU, and against what? Engines, precisions, tokens and peers on the same frames, in turns.

    python benchmarks/cpu.py --quick -o quick.json
    python benchmarks/cpu.py --dataset CAMVID -o results/cpu.json --docs docs/benchmarks.md --readme README.md
    python benchmarks/cpu.py --tables benchmarks/results/cpu.json benchmarks/results/cpus/*.json \\
        --docs docs/benchmarks.md --readme README.md

The first takes less than three minutes, the second hours (`--models default` half of one); it may be interrupted and
started again with the same words: what is in the output stays. Each cell runs in a process of its own and is given
up after `--limit` seconds. The third writes the tables again, those of the first result and one line for every other
machine. docs/benchmarks.md explains them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from on_cpu.cells import MODELS, all_cells, quick_cells
from on_cpu.models import CaseFiles, FrameChoice
from on_cpu.result import DEFAULT, CellEffort, CellRow, CpuCell, CpuReport, CpuSettings, UndoneCell
from on_cpu.tables import write_tables
from report import circumstances, command_text

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.installed import chosen_bundle
from dovit_deploy.errors import DovitError
from dovit_deploy.files import write_text
from dovit_deploy.machine import this_machine

QUICK = CellEffort(seconds=2.0, fewest=6, timed_frames=3, limit_s=40.0)
QUICK_FRAMES, QUICK_S = 6, 130.0
"""Seconds after which no further cell begins: with the limit of the last one still less than three minutes."""
PREPARE_S = 900.0
"""What making the files of a case may take: exporting ViT-B on a slow machine."""


def say(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def started(arguments: argparse.Namespace, command: str, settings: CpuSettings) -> CpuReport:
    """What is in the output already, or an empty result.

    Raises:
        SystemExit: the output is of another machine, other versions or other settings.
    """
    fresh = CpuReport.model_validate(
        {**circumstances(command), "features": this_machine().features, "settings": settings}
    )
    if not arguments.output.exists():
        return fresh
    old = CpuReport.model_validate_json(arguments.output.read_text(encoding="utf-8"))
    for name in ("machine", "versions", "settings"):
        if getattr(old, name) != getattr(fresh, name):
            raise SystemExit(f"{arguments.output} was measured with other {name}; give another -o, or remove it")
    return fresh.model_copy(update={"rows": old.rows, "undone": old.undone})


def measure(
    report: CpuReport, cells: Sequence[CpuCell], work: Path, bundle: Path, choice: FrameChoice, output: Path, end: float
) -> CpuReport:
    """Measure every cell that is not in `report` yet; the output is written after each."""
    for number, cell in enumerate(cells, start=1):
        if report.row(cell) is not None:
            continue
        # What failed is tried again: perhaps a package has been installed meanwhile.
        report = report.model_copy(update={"undone": tuple(old for old in report.undone if old.cell != cell)})
        if time.monotonic() > end:
            done: CellRow | UndoneCell = UndoneCell(cell=cell, why="no time was left")
        else:
            say(f"{number} of {len(cells)}: {cell.label}")
            done = in_process(cell, work, bundle, choice, report.settings.effort)
        if isinstance(done, CellRow):
            say(f"  {done.ratio:.2f}x, {done.p50:.1f} ms")
            report = report.model_copy(update={"rows": (*report.rows, done)})
        else:
            say(f"  not done: {done.why}")
            report = report.model_copy(update={"undone": (*report.undone, done)})
        write_text(output, report.model_dump_json(indent=1) + "\n")
    return report


def in_process(
    cell: CpuCell, work: Path, bundle: Path, choice: FrameChoice, effort: CellEffort
) -> CellRow | UndoneCell:
    """Measure `cell` in a process of its own: what ends or hangs there costs one cell."""
    answer = work / "answer.json"
    answer.unlink(missing_ok=True)
    words = ["--cell", cell.model_dump_json(), "--work", str(work), "--bundle", str(bundle), "-o", str(answer)]
    words += ["--frame-count", str(choice.count), "--split", choice.split, "--effort", effort.model_dump_json()]
    words += ["--frames", choice.frames] if choice.frames is not None else []
    words += ["--dataset", str(choice.dataset)] if choice.dataset is not None else []
    ready = CaseFiles(cell.case, work=work, bundle=bundle).ready
    limit = effort.limit_s + (0.0 if ready else PREPARE_S)
    try:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return UndoneCell(cell=cell, why=f"took more than {limit:.0f} s")
    if not answer.exists():
        lines = done.stderr.strip().splitlines()
        return UndoneCell(cell=cell, why=f"ended with code {done.returncode}: {lines[-1] if lines else 'no message'}")
    text = answer.read_text(encoding="utf-8")
    return CellRow.model_validate_json(text) if '"ratio"' in text else UndoneCell.model_validate_json(text)


def one_cell(arguments: argparse.Namespace) -> None:
    """What runs in that process: measure the cell and write its row, or why there is none."""
    # Not at the top: the parent process loads no engine.
    from on_cpu.measuring import measured
    from on_cpu.runners import Unavailable

    cell = CpuCell.model_validate_json(arguments.cell)
    files = CaseFiles(cell.case, work=arguments.work, bundle=arguments.bundle)
    if not files.ready:
        files.prepare(choice_of(arguments))
    try:
        done: CellRow | UndoneCell = measured(cell, files, CellEffort.model_validate_json(arguments.effort))
    except (DovitError, Unavailable) as error:
        done = UndoneCell(cell=cell, why=str(error).replace("\n", " "))
    write_text(arguments.output, done.model_dump_json() + "\n")


def choice_of(arguments: argparse.Namespace) -> FrameChoice:
    """The default model's frames."""
    return FrameChoice(arguments.frames, arguments.dataset, arguments.split, arguments.frame_count)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("--bundle", type=Path, help="instead of the installed default model")
    result.add_argument("--frames", metavar="SRC", help="images, a folder or a video; default: rendered streets")
    result.add_argument("--dataset", type=Path, help="labelled frames, as `dovit eval` takes them: gives mIoU too")
    result.add_argument("--split", default="val")
    result.add_argument("--frame-count", type=int, default=30, help="frames on which answers are compared")
    result.add_argument("--timed-frames", type=int, default=6, help="of these, frames that are timed")
    result.add_argument("--seconds", type=float, default=15.0, help="of pairs in each cell")
    result.add_argument("--limit", type=float, default=300.0, help="seconds after which a cell is given up")
    names = (DEFAULT, *MODELS)
    result.add_argument("--models", nargs="+", choices=names, default=names, help="default: all of them")
    result.add_argument("--only", action="append", default=[], metavar="TEXT", help="cells whose label contains it")
    result.add_argument("--quick", action="store_true", help="a first impression in less than three minutes")
    result.add_argument("-o", "--output", type=Path)
    result.add_argument("--tables", type=Path, nargs="+", metavar="JSON", help="write tables; measure nothing")
    result.add_argument("--readme", type=Path)
    result.add_argument("--docs", type=Path)
    # How the command calls itself for one cell.
    for name in ("--cell", "--work", "--effort"):
        result.add_argument(name, type=Path if name == "--work" else str, help=argparse.SUPPRESS)
    return result


def wanted(cell: CpuCell, only: Sequence[str]) -> bool:
    """Whether the label of `cell` holds one of the texts; no text leaves nothing out."""
    return not only or any(text in cell.label for text in only)


def run(arguments: argparse.Namespace, command: str) -> CpuReport:
    """Measure what is asked for."""
    bundle = Bundle.open(arguments.bundle if arguments.bundle else chosen_bundle(None).path)
    spec = bundle.manifest.spec
    effort = CellEffort(
        seconds=arguments.seconds, fewest=8, timed_frames=arguments.timed_frames, limit_s=arguments.limit
    )
    cells, end = all_cells(spec.size, gates=bool(spec.gates)), float("inf")
    if arguments.quick:
        cells, end, effort = quick_cells(spec.size, gates=bool(spec.gates)), time.monotonic() + QUICK_S, QUICK
        arguments.frame_count = min(arguments.frame_count, QUICK_FRAMES)
    cells = [cell for cell in cells if cell.case.model in arguments.models and wanted(cell, arguments.only)]
    choice = choice_of(arguments)
    settings = CpuSettings(bundle=bundle.path.name, frames=choice.described(), count=choice.count, effort=effort)
    report = started(arguments, command, settings)
    with tempfile.TemporaryDirectory(prefix="dovit-") as folder:
        return measure(report, cells, Path(folder), bundle.path, choice, arguments.output, end)


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    given = list(sys.argv[1:] if words is None else words)
    command_line = parser()
    arguments = command_line.parse_args(given)
    if arguments.cell is not None:
        one_cell(arguments)
        return
    if arguments.tables is not None:
        reports = [CpuReport.model_validate_json(path.read_text(encoding="utf-8")) for path in arguments.tables]
    elif arguments.output is None:
        command_line.error("-o OUTPUT.json is needed: what was measured is kept there, cell by cell")
    else:
        reports = [run(arguments, command_text("cpu.py", given))]
    write_tables(reports, readme=arguments.readme, docs=arguments.docs)


if __name__ == "__main__":
    main()
