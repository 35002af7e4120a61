"""`benchmarks/cpu.py`: processes that measure cells, going on where it stopped, and what it refuses."""

from __future__ import annotations

import signal

import cpu
import pytest
from on_cpu import processes
from on_cpu.models import CaseFiles
from on_cpu.processes import NoAnswer, done_in_process, made_ready
from on_cpu.result import DEFAULT, CellsDone, CellsWanted, CpuCase, CpuCell, CpuReport, UndoneCell

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.errors import InputError
from dovit_deploy.interruption import _Requests
from tests.benchmarks.cpu_cells import FRAMES, LITTLE, ROWS, cell_of, report_of


@pytest.fixture
def asked(monkeypatch) -> list[CpuCell]:
    """The cells that would be measured, each of which gives a row, but for those in PyTorch."""
    seen: list[CpuCell] = []

    def fake(wanted: CellsWanted) -> CellsDone:
        seen.extend(wanted.cells)
        failed = [cell for cell in wanted.cells if cell.way.engine == "torch"]
        return CellsDone(
            rows=tuple(ROWS[0].model_copy(update={"cell": cell}) for cell in wanted.cells if cell not in failed),
            undone=tuple(UndoneCell(cell=cell, why="no") for cell in failed),
        )

    monkeypatch.setattr(cpu, "done_in_process", fake)
    monkeypatch.setattr(cpu, "made_ready", lambda wanted: None)
    return seen


@pytest.fixture
def words(tiny_bundle_path, tmp_path) -> list[str]:
    """Arguments that every call has."""
    return ["--bundle", str(tiny_bundle_path), "-o", str(tmp_path / "cpu.json")]


def report_in(folder) -> CpuReport:
    return CpuReport.model_validate_json((folder / "cpu.json").read_text())


def test_what_is_done_stays_and_what_failed_is_tried_again(asked, words, tmp_path) -> None:
    words = [*words, "--models", "default"]
    assert cpu.main([*words, "--only", "threads 1, streams 1"]) == 0
    first = list(asked)
    assert len(first) > 5 and {cell.streams for cell in first} == {1}
    assert cpu.main(words) == 0
    again = asked[len(first) :]
    assert [cell.way.runs for cell in again if cell in first] == ["eager", "compiled"]
    report = report_in(tmp_path)
    assert len(report.rows) + len(report.undone) == len({row.label for row in [*first, *again]})
    assert [entry.cell.way.runs for entry in report.undone] == ["eager", "compiled"]


def test_an_interruption_keeps_what_was_done_and_says_how_to_go_on(asked, words, tmp_path, monkeypatch, capsys) -> None:
    fake = cpu.done_in_process

    def interrupted(wanted: CellsWanted) -> CellsDone:
        if len(asked) > 5:
            # As from a terminal or from `kill`: raised here, so that the process that measures is ended, too.
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            signal.raise_signal(signal.SIGTERM)
        return fake(wanted)

    monkeypatch.setattr(cpu, "done_in_process", interrupted)
    # Whatever another test has sent.
    monkeypatch.setattr(_Requests, "last", float("-inf"))
    assert cpu.main(words) == 130
    assert "the same command goes on" in capsys.readouterr().err
    done = {row.cell for row in report_in(tmp_path).rows}
    assert len(done) == len(asked) > 5
    assert {entry.why for entry in report_in(tmp_path).undone} == {cpu.NOT_BEGUN}
    monkeypatch.setattr(cpu, "done_in_process", fake)
    asked.clear()
    assert cpu.main([*words, "--models", "default"]) == 0
    assert asked and not done & set(asked)


def test_a_result_of_another_machine_is_left_alone(asked, words, tmp_path, capsys) -> None:
    output = tmp_path / "cpu.json"
    report = report_of(*ROWS).model_copy(update={"machine": {"cpu": "another"}})
    output.write_text(report.model_dump_json())
    before = output.read_text()
    assert cpu.main(words) == 2
    assert "other machine" in capsys.readouterr().err
    assert output.read_text() == before and not asked


def test_a_package_that_was_installed_since_goes_on_and_another_version_does_not(asked, words, tmp_path) -> None:
    words = [*words, "--only", "dense onnxruntime fp32, threads 1, streams 1"]
    assert cpu.main(words) == 0
    report = report_in(tmp_path)
    less = {name: version for name, version in report.versions.items() if name != "onnxruntime"}
    (tmp_path / "cpu.json").write_text(report.model_copy(update={"versions": less}).model_dump_json())
    assert cpu.main(words) == 0
    other = {**report.versions, "onnxruntime": "1.0"}
    (tmp_path / "cpu.json").write_text(report.model_copy(update={"versions": other}).model_dump_json())
    assert cpu.main(words) == 2


def test_no_time_left_leaves_cells_out_and_says_so(asked, words, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(cpu, "QUICK_S", -1.0)
    assert cpu.main(["--quick", *words]) == 0
    report = report_in(tmp_path)
    assert not report.rows and not asked and {entry.why for entry in report.undone} == {"no time was left"}


def test_files_that_cannot_be_made_cost_only_their_case(asked, words, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(cpu, "made_ready", lambda wanted: "full" if wanted.cells[0].case.model == "S" else None)
    assert cpu.main([*words, "--models", "S", "Ti", "--only", "dense onnxruntime"]) == 0
    report = report_in(tmp_path)
    assert {row.cell.case.model for row in report.rows} == {"Ti"}
    assert {entry.why for entry in report.undone} == {"its files cannot be made: full"}


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--only", "abacus"], 2, "B has a label with ['abacus']; one of them all is called 'default-"),
        (["--quick", "--models", "S"], 2, "no cell of --models S with --quick is there; one of them all is called"),
        (["--dataset", "nowhere"], 3, "nowhere: no such data set"),
        (["--frames", "nowhere.mp4"], 3, "nowhere.mp4"),
        (["-o", "no/such/folder/cpu.json"], 5, "no/such/folder/cpu.json"),
        (["--tables", "nowhere.json"], 3, "nowhere.json cannot be read"),
        (["--docs", __file__], 3, "cannot take the tables"),
        (["--tables", __file__], 3, "is no result of benchmarks/cpu.py"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(asked, words, more, code, said, capsys) -> None:
    assert cpu.main([*words, *more]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") <= 2 and not asked


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--fewest", "0"], "--fewest 0: at least 1"),
        (["--frame-count", "0"], "--frame-count 0"),
        (["--limit", "nan"], "--limit nan: at least 1"),
        (["--seconds", "nan"], "--seconds nan: a finite number"),
        (["--seconds", "-1"], "--seconds -1: a finite number"),
        (["--dataset", "a", "--frames", "b"], "two sources"),
        (["--prepare"], "--work"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(asked, words, more, said, capsys) -> None:
    with pytest.raises(SystemExit):
        cpu.main([*words, *more])
    assert said in capsys.readouterr().err and not asked


@pytest.fixture(scope="module")
def wanted(tiny_bundle_path, tmp_path_factory) -> CellsWanted:
    """The baseline on the tiny bundle."""
    case = CpuCase(model=DEFAULT, size=Bundle.open(tiny_bundle_path).manifest.spec.size)
    work = tmp_path_factory.mktemp("work")
    cell = cell_of(CaseFiles(case, work=work, bundle=tiny_bundle_path), "dense")
    return CellsWanted(cells=(cell,), bundle=tiny_bundle_path, work=work, frames=FRAMES, effort=LITTLE)


def test_cells_run_in_a_process_of_their_own_and_may_fail_there(wanted, tmp_path) -> None:
    assert made_ready(wanted) is None
    (row,) = done_in_process(wanted).rows
    assert row.cell == wanted.cells[0] and row.accuracy is not None
    (gone,) = done_in_process(wanted.model_copy(update={"bundle": tmp_path / "gone.dovit"})).undone
    assert "gone.dovit" in gone.why
    hasty = wanted.model_copy(update={"effort": LITTLE.model_copy(update={"limit_s": 0.01})})
    assert [entry.why for entry in done_in_process(hasty).undone] == ["took more than 0 s"]


def test_a_process_that_ends_costs_only_the_cell_that_ends_it(wanted, monkeypatch) -> None:
    """Together they give no answer; then each gets a process of its own."""
    good = wanted.cells[0]
    bad = good.model_copy(update={"threads": 7})

    def one_process(asked: CellsWanted) -> CellsDone | NoAnswer:
        if bad in asked.cells:
            return NoAnswer("ended with code -11: no message")
        return CellsDone(rows=tuple(ROWS[0].model_copy(update={"cell": cell}) for cell in asked.cells))

    monkeypatch.setattr(processes, "one_process", one_process)
    done = done_in_process(wanted.model_copy(update={"cells": (good, bad)}))
    assert [row.cell for row in done.rows] == [good]
    assert [(entry.cell, entry.why) for entry in done.undone] == [(bad, "ended with code -11: no message")]


def test_what_was_late_is_run_alone_only_where_there_is_time_for_it(wanted, monkeypatch) -> None:
    limits: list[float] = []

    def one_process(asked: CellsWanted) -> NoAnswer:
        limits.append(asked.effort.limit_s)
        return NoAnswer("late", late=True)

    monkeypatch.setattr(processes, "one_process", one_process)
    two = wanted.model_copy(update={"cells": wanted.cells * 2})
    for limit, seen in ((50.0, [50.0]), (80.0, [80.0, 40.0, 40.0])):
        limits.clear()
        effort = LITTLE.model_copy(update={"limit_s": limit})
        done = done_in_process(two.model_copy(update={"effort": effort}))
        assert limits == seen and [entry.why for entry in done.undone] == ["late", "late"]


def test_a_way_that_fails_while_it_runs_is_found_by_running_each_alone(wanted, monkeypatch, tmp_path) -> None:
    from on_cpu import measuring

    question, answer = tmp_path / "wanted.json", tmp_path / "done.json"

    def fails(cells, files, effort) -> CellsDone:
        raise InputError("it broke")

    monkeypatch.setattr(measuring, "measured", fails)
    two = wanted.model_copy(update={"cells": wanted.cells * 2})
    question.write_text(two.model_dump_json())
    with pytest.raises(SystemExit, match="it broke"):
        processes.answer_in_this_process(question, answer)
    assert not answer.exists()
    question.write_text(wanted.model_dump_json())
    processes.answer_in_this_process(question, answer)
    assert CellsDone.model_validate_json(answer.read_text()).undone[0].why == "it broke"


def test_prepare_makes_the_files_and_measures_nothing(wanted, monkeypatch, tmp_path, asked, capsys) -> None:
    monkeypatch.setattr(cpu, "made_ready", made_ready)
    words = ["--bundle", str(wanted.bundle), "--models", "default", "--only", "dense onnxruntime", "--frame-count", "1"]
    assert cpu.main([*words, "--work", str(tmp_path / "work"), "--prepare"]) == 0
    assert (tmp_path / "work" / wanted.cells[0].case.name / "frames.json").exists() and not asked
    monkeypatch.setattr(cpu, "made_ready", lambda wanted: "full")
    assert cpu.main([*words, "--work", str(tmp_path / "work"), "--prepare"]) == 3
    assert "full" in capsys.readouterr().err
