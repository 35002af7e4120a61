"""Cells in processes of their own: what ends or hangs there costs these cells alone, and its memory is given back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from dovit_deploy.errors import DovitError
from dovit_deploy.files import write_text
from on_cpu.models import NNCF_MODEL, CaseFiles
from on_cpu.result import CellsDone, CellsWanted, CpuCell, UndoneCell

SCRIPT = Path(__file__).resolve().parent.parent / "cpu.py"
PREPARE_S = 1800.0
"""What making the files of a case may take: exporting ViT-B on a slow machine."""

ALONE_S = 30.0
"""What a cell needs at least in a process of its own."""


@dataclass(frozen=True)
class NoAnswer:
    """A process that gave none."""

    why: str
    late: bool = False
    """It took too long."""


def done_in_process(wanted: CellsWanted) -> CellsDone:
    """Do what is wanted in a process of its own; where that gives no answer, each cell in one of its own.

    These take no longer together than the first might; what was late and would have too little time alone is given up.
    """
    whole = one_process(wanted)
    if isinstance(whole, CellsDone):
        return whole
    share = wanted.effort.limit_s / len(wanted.cells)
    if len(wanted.cells) == 1 or (whole.late and share < ALONE_S):
        return CellsDone(undone=tuple(UndoneCell(cell=cell, why=whole.why) for cell in wanted.cells))
    alone = wanted.model_copy(update={"effort": wanted.effort.model_copy(update={"limit_s": share})})
    single = [done_in_process(alone.model_copy(update={"cells": (cell,)})) for cell in wanted.cells]
    return CellsDone(
        rows=tuple(row for done in single for row in done.rows),
        undone=tuple(entry for done in single for entry in done.undone),
    )


def one_process(wanted: CellsWanted) -> CellsDone | NoAnswer:
    """What one process answers, or why it does not."""
    limit = PREPARE_S if wanted.prepare else wanted.effort.limit_s
    with TemporaryDirectory(prefix="dovit-") as folder:
        question, answer = Path(folder) / "wanted.json", Path(folder) / "done.json"
        question.write_text(wanted.model_dump_json(), encoding="utf-8")
        words = [sys.executable, str(SCRIPT), "--wanted", str(question), "-o", str(answer)]
        try:
            ended = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return NoAnswer(f"took more than {limit:.0f} s", late=True)
        if answer.exists():
            return CellsDone.model_validate_json(answer.read_text(encoding="utf-8"))
    lines = ended.stderr.strip().splitlines()
    return NoAnswer(f"ended with code {ended.returncode}: {lines[-1] if lines else 'no message'}")


def answer_in_this_process(question: Path, answer: Path) -> None:
    """What runs in such a process: measure the cells, or make their files, and write the answer."""
    # Not at the top: the process that starts this one loads no engine.
    from on_cpu.measuring import measured

    wanted = CellsWanted.model_validate_json(question.read_text(encoding="utf-8"))
    files = CaseFiles(wanted.cells[0].case, work=wanted.work, bundle=wanted.bundle)
    try:
        done = prepared(wanted, files) if wanted.prepare else measured(wanted.cells, files, wanted.effort)
    except DovitError as error:
        # Of one of several, while it ran: each gets a process of its own.
        if len(wanted.cells) > 1 and not wanted.prepare:
            raise SystemExit(str(error)) from error
        done = CellsDone(undone=tuple(UndoneCell.because(cell, error) for cell in wanted.cells))
    write_text(answer, done.model_dump_json() + "\n")


def prepared(wanted: CellsWanted, files: CaseFiles) -> CellsDone:
    """Make what is not there yet: the files of the case, and the model that NNCF quantises."""
    from on_cpu.runners import Unavailable, quantise_by_nncf

    if not files.is_ready(wanted.frames):
        files.prepare(wanted.frames)
    for cell in nncf_cells(wanted.cells):
        try:
            quantise_by_nncf(files)
        except Unavailable as error:
            return CellsDone(undone=(UndoneCell.because(cell, error),))
    return CellsDone()


def made_ready(wanted: CellsWanted) -> str | None:
    """See to it, in a process of its own, that the files of a case are there; why they are not, or None."""
    files = CaseFiles(wanted.cells[0].case, work=wanted.work, bundle=wanted.bundle)
    quantised = (files.folder / NNCF_MODEL).exists() or not nncf_cells(wanted.cells)
    if files.is_ready(wanted.frames) and quantised:
        return None
    done = one_process(wanted.model_copy(update={"prepare": True}))
    # Whatever NNCF did: without its model a single cell has nothing to run.
    if files.is_ready(wanted.frames):
        return None
    return done.why if isinstance(done, NoAnswer) else "; ".join(dict.fromkeys(entry.why for entry in done.undone))


def nncf_cells(cells: Sequence[CpuCell]) -> list[CpuCell]:
    """Those that run what NNCF quantises."""
    return [cell for cell in cells if cell.way.runs == "nncf"]
