"""The proof's sections: each has one outcome, whatever it does, and what it found is in the file."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu import child, prove
from gpu.child import run_section
from gpu.result import Gpu, GpuReport, Outcome, ParityRow
from gpu.section import Bench, Found, NotDone, ProofSection, TimeBudget
from gpu.tables import TABLES, mark
from report import END

from dovit_deploy.errors import PackageMissing

FORK = multiprocessing.get_context("fork")
CARD = Gpu(name="G", compute_capability="9.0", memory_gb=80.0, torch_cuda="13.0")


def bench(seconds: float = math.inf, device: str = "cpu") -> Bench:
    return Bench(torch.device(device), TimeBudget(time.monotonic() + seconds), lambda text: None)


def found(name: str) -> Found:
    return "kernels", Outcome(name=name, ok=True, detail="")


def fine(bench: Bench) -> Iterator[Found]:
    del bench
    yield found("fine")


def nothing(bench: Bench) -> Iterator[Found]:
    raise AssertionError("not to be run")


def section(find, name: str = "s", **fields) -> ProofSection:
    return ProofSection(name, find, **{"seconds": 60.0, "least": 0.0, **fields})


def ran(find, bench: Bench | None = None, **fields):
    """The outcome, and the names of what was kept."""
    kept: list[str] = []
    outcome = run_section(
        section(find, **fields), bench or globals()["bench"](), lambda given: kept.append(given[1].name)
    )
    return outcome, kept


def test_a_section_that_ends_is_done() -> None:
    outcome, kept = ran(fine)
    assert (outcome.outcome, outcome.why, kept) == ("done", "", ["fine"])


def test_a_section_that_raises_has_failed_with_the_errors_text_and_keeps_what_it_found(capfd) -> None:
    def raises(bench):
        yield found("before")
        raise RuntimeError("CUDA error: an illegal memory access\nCompile with TORCH_USE_CUDA_DSA\n")

    outcome, kept = ran(raises)
    assert outcome.outcome == "failed" and kept == ["before"]
    assert outcome.why == "RuntimeError: CUDA error: an illegal memory access"
    assert "Traceback" in capfd.readouterr().err, "where it was, for whoever reads the log"


@pytest.mark.parametrize("error", [NotDone("no toolkit"), PackageMissing("no toolkit"), torch.OutOfMemoryError("no")])
def test_what_this_machine_lacks_is_not_done(error: Exception) -> None:
    def lacking(bench):
        yield found("before")
        raise error

    outcome, kept = ran(lacking)
    assert (outcome.outcome, outcome.why, kept) == ("not done", str(error), ["before"])


def test_a_section_that_is_killed_has_failed_and_keeps_what_it_found() -> None:
    def killed(bench):
        for number in range(200):
            yield found(str(number))
        os.kill(os.getpid(), signal.SIGKILL)

    outcome, kept = ran(killed)
    assert outcome.outcome == "failed" and "SIGKILL" in outcome.why and kept == [str(n) for n in range(200)]


def test_a_process_that_leaves_without_an_outcome_has_failed() -> None:
    def leaves(bench):
        yield found("before")
        os._exit(3)

    outcome, kept = ran(leaves)
    assert (outcome.outcome, kept) == ("failed", ["before"]) and "code 3" in outcome.why


def test_a_section_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    def hangs(bench):
        started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (tmp_path / "pid").write_text(str(started.pid))
        yield found("before")
        # As a driver that hangs: it does not hear.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(600)

    start = time.monotonic()
    outcome, kept = ran(hangs, seconds=2.0)
    assert time.monotonic() - start < 60
    assert (outcome.outcome, kept) == ("failed", ["before"]) and "2 s; killed" in outcome.why
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_section_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    def waits(bench):
        started = subprocess.Popen(["sleep", "600"])
        (tmp_path / "new").write_text(f"{os.getpid()} {started.pid}")
        (tmp_path / "new").rename(tmp_path / "pid")
        time.sleep(600)
        yield found("never")

    process = FORK.Process(target=lambda: ran(waits))
    process.start()
    while not (tmp_path / "pid").exists():
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    # What it had started, too.
    assert [gone(int(pid)) for pid in (tmp_path / "pid").read_text().split()] == [True, True]


def gone(pid: int) -> bool:
    """Whether the process ends soon; it is nobody's child of ours any more."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_section_that_a_child_of_its_own_outlives_ends_all_the_same() -> None:
    """The pipe stays open in what a section forked; its outcome does not wait for that."""

    def leaves_a_child(bench):
        if os.fork() == 0:
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)
        yield found("never")

    start = time.monotonic()
    outcome, _ = ran(leaves_a_child)
    assert outcome.outcome == "failed" and time.monotonic() - start < 30


def test_when_time_is_up_a_section_is_not_done_and_keeps_what_it_found() -> None:
    def slow(bench):
        yield found("before")
        time.sleep(600)

    outcome, kept = ran(slow, bench(seconds=1.5))
    assert (outcome.outcome, kept) == ("not done", ["before"]) and "time was up" in outcome.why
    outcome, kept = ran(nothing, bench(seconds=5), least=10)
    assert (outcome.outcome, kept) == ("not done", []) and "about 10 are needed" in outcome.why


def test_a_part_is_left_out_rather_than_killed() -> None:
    """A section's own time is what its parts plan with, less a share."""

    def plans(bench):
        assert 17 < bench.budget.left <= 18
        yield found(bench.budget.lacks("a part", 19).why)

    outcome, kept = ran(plans, seconds=20.0)
    assert outcome.outcome == "done" and kept == ["18 s remained, about 19 are needed"]


# The report


def report() -> GpuReport:
    return GpuReport(command="c", date="d", machine={}, versions={}, minutes=1, gpu=None)


def raising(bench: Bench) -> Iterator[Found]:
    yield found("before")
    raise ValueError("wrong")


def test_the_file_holds_every_result_as_soon_as_it_is_there(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"

    def looks(bench):
        yield found("first")
        # The parent takes it while this process goes on.
        for _ in range(200):
            if output.exists() and len(json.loads(output.read_text())["kernels"]) == 2:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("it is not in the file")

    sections = [section(raising, "a"), section(nothing, "b", only_gpu=True), section(looks, "c"), section(fine, "d")]
    prove.prove(prove.Proof(report(), output), bench(), sections)
    written = GpuReport.model_validate_json(output.read_text())
    assert [(each.name, each.outcome) for each in written.sections] == [
        ("a", "failed"),
        ("b", "not done"),
        ("c", "done"),
        ("d", "done"),
    ]
    assert [row.name for row in written.kernels] == ["before", "first", "fine"]
    assert written.failures == ("a: ValueError: wrong",)


def test_without_a_gpu_each_section_that_needs_one_is_not_done_by_name(tmp_path: Path) -> None:
    def no_gpu(bench):
        raise NotDone("no GPU here")
        yield

    sections = [
        section(no_gpu, prove.GPU_ITSELF.name),
        section(nothing, "b", only_gpu=True),
        section(nothing, "c"),
        section(fine, "d", everywhere=True),
    ]
    proof = prove.Proof(report(), None)
    prove.prove(proof, bench(device="cuda"), sections)
    assert [(each.outcome, each.why) for each in proof.report.sections] == [
        *[("not done", "no GPU here")] * 3,
        ("done", ""),
    ]


def test_sections_behind_the_first_know_the_gpu() -> None:
    def card(bench):
        yield "gpu", CARD

    def knows(bench):
        assert bench.gpu == CARD
        yield found("it knows")

    proof = prove.Proof(report(), None)
    prove.prove(proof, bench(device="cuda"), [section(card, prove.GPU_ITSELF.name), section(knows, "b")])
    assert [each.outcome for each in proof.report.sections] == ["done", "done"]


def test_a_full_disk_loses_nothing_that_is_printed(tmp_path: Path, monkeypatch, capsys) -> None:
    """Measuring goes on, the report is printed, and the exit code is that of the disk."""
    monkeypatch.setattr(prove, "SECTIONS", (section(fine, "a", everywhere=True), section(fine, "b", everywhere=True)))
    monkeypatch.setattr(prove, "GPU_ITSELF", section(fine, "g", everywhere=True))

    def full(*arguments) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dovit_deploy.files.os.fsync", full)
    monkeypatch.setattr("dovit_deploy.files.os.replace", full)
    output = tmp_path / "gpu.json"
    yesterday = '{"gpu": null}'
    output.write_text(yesterday)
    with pytest.raises(SystemExit) as ended:
        prove.main(["-o", str(output)])
    out, err = capsys.readouterr()
    assert ended.value.code == 5 and "No space left" in err
    assert len(GpuReport.model_validate_json(out).sections) == 3
    assert output.read_text() == yesterday


def test_sigterm_keeps_what_is_there_and_names_what_was_not_done(tmp_path: Path, monkeypatch) -> None:
    output = tmp_path / "gpu.json"

    def waits(bench):
        yield found("before")
        (tmp_path / "new").write_text(str(os.getpid()))
        (tmp_path / "new").rename(tmp_path / "pid")
        time.sleep(600)

    monkeypatch.setattr(prove, "GPU_ITSELF", section(fine, "a", everywhere=True))
    sections = (section(waits, "b", everywhere=True), section(nothing, "c", everywhere=True))
    monkeypatch.setattr(prove, "SECTIONS", sections)
    process = FORK.Process(target=lambda: os._exit(prove.main(["--minutes", "9", "-o", str(output)])))
    process.start()
    while not (tmp_path / "pid").exists() or "before" not in output.read_text():
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 130
    written = GpuReport.model_validate_json(output.read_text())
    assert [(each.name, each.outcome, each.why) for each in written.sections] == [
        ("a", "done", ""),
        ("b", "not done", "interrupted"),
        ("c", "not done", "interrupted"),
    ]
    assert [row.name for row in written.kernels] == ["fine", "before"]
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "soon"])
def test_no_time_at_all_is_refused(minutes: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        prove.main(["--minutes", minutes, "-o", str(tmp_path / "gpu.json")])
    assert ended.value.code == 2 and "--minutes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_result_is_never_replaced(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(prove, "GPU_ITSELF", section(nothing, "g", everywhere=True))
    for text in ("a page\n", '["a list"]', '{"command": "of another benchmark"}'):
        output = tmp_path / "page.md"
        output.write_text(text)
        with pytest.raises(SystemExit) as ended:
            prove.main(["-o", str(output)])
        assert ended.value.code == 2 and "no result of prove.py" in capsys.readouterr().err
        assert output.read_text() == text


def test_results_of_a_gpu_are_not_replaced_where_there_is_none(tmp_path: Path, monkeypatch, capsys) -> None:
    def card(bench):
        yield "gpu", CARD

    output, page = tmp_path / "gpu.json", tmp_path / "page.md"
    page.write_text("\n".join(f"{mark(name)}\nof the GPU\n{END}" for name in TABLES))
    monkeypatch.setattr(prove, "SECTIONS", ())
    words = ["-o", str(output), "--docs", str(page)]
    monkeypatch.setattr(prove, "GPU_ITSELF", section(card, "g", everywhere=True))
    assert prove.main(words[:2]) == 0
    written = output.read_text()
    assert GpuReport.model_validate_json(written).gpu == CARD

    monkeypatch.setattr(prove, "GPU_ITSELF", section(fine, "g", everywhere=True))
    capsys.readouterr()
    assert prove.main(words) == 0
    out, err = capsys.readouterr()
    assert output.read_text() == written and "stays as it is" in err and "of the GPU" in page.read_text()
    assert GpuReport.model_validate_json(out).gpu is None, "it is printed all the same"

    monkeypatch.setattr(prove, "GPU_ITSELF", section(card, "another", everywhere=True))
    assert prove.main(words) == 0
    assert "another" in output.read_text() and "of the GPU" not in page.read_text()


def test_only_adds_to_what_the_same_gpu_has_found(tmp_path: Path, monkeypatch, capsys) -> None:
    output, cards = tmp_path / "gpu.json", [CARD]

    def card(bench):
        yield "gpu", cards[-1]

    def finds(*names):
        def find(bench):
            for name in names:
                yield found(name)

        return find

    def run(*more, **sections):
        """Of sections by their names, each of which finds or raises."""
        monkeypatch.setattr(prove, "SECTIONS", tuple(section(find, name) for name, find in sections.items()))
        monkeypatch.setattr(prove, "GPU_ITSELF", section(card, "g", everywhere=True))
        try:
            return prove.main(["-o", str(output), *more])
        except SystemExit as ended:
            return ended.code

    def kernels():
        written = GpuReport.model_validate_json(output.read_text())
        return [row.name for row in written.kernels], {each.name: each.outcome for each in written.sections}

    def lacks(bench):
        yield found("half")
        raise NotDone("no nvcc")

    assert run(a=finds("a1", "a2"), b=finds("b1"), c=finds("c1")) == 0
    assert run("--only", "b", a=nothing, b=finds("b2", "b3"), c=nothing) == 0
    assert kernels() == (["a1", "a2", "b2", "b3", "c1"], dict.fromkeys("gabc", "done"))
    # What could not run now keeps what it had; what is new comes last.
    assert run("--only", "b", "--only", "d", a=nothing, b=lacks, d=finds("d1")) == 0
    assert kernels() == (["a1", "a2", "b2", "b3", "c1", "d1"], dict.fromkeys("gabcd", "done"))
    # What is wrong now is wrong in the file, and in the exit code.
    assert run("--only", "d", d=raising) == 4
    assert kernels()[1] == {**dict.fromkeys("gabc", "done"), "d": "failed"}
    kept = output.read_text()
    cards.append(CARD.model_copy(update={"name": "another"}))
    assert run("--only", "a", a=finds("a9")) == 0
    assert output.read_text() == kept and "the results of another GPU" in capsys.readouterr().err
    assert run(a=finds("a9")) == 0
    assert kernels() == (["a9"], {"g": "done", "a": "done"})
    # Without --only it is replaced; older results, and those of other versions, cannot be added to.
    older = json.loads(kept)
    for changed, message in (({"versions": {"torch": "1"}}, "other versions"), ({"sections": UNCOUNTED}, "older")):
        output.write_text(json.dumps(older | changed))
        assert run("--only", "a", a=nothing) == 2 and message in capsys.readouterr().err
        assert json.loads(output.read_text()) == older | changed


UNCOUNTED = [{"name": "g", "outcome": "done", "why": "", "seconds": 1.0}]
"""Of a result from before sections counted what they found."""


def test_figures_that_are_none_are_read_back(tmp_path: Path) -> None:
    """Broken work gives them, and then the report matters most."""
    row = ParityRow(
        name="x", precision="float16", explained=0, failures=("x",), confidence_error=math.nan, float_error=math.inf
    )
    text = report().with_found("parity", row).model_dump_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    (again,) = GpuReport.model_validate_json(text).parity
    assert math.isnan(again.confidence_error) and again.float_error == math.inf


@pytest.mark.parametrize("text", ["", "{}", '{"gpu": null}'])
def test_tables_of_what_is_no_result_are_refused_in_a_line(text: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    for given in (path, tmp_path / "missing.json"):
        with pytest.raises(SystemExit) as ended:
            prove.main(["--tables", str(given)])
        assert ended.value.code == 3 and capsys.readouterr().err.count("\n") == 1


def test_a_minute_of_the_minutes_is_left(monkeypatch) -> None:
    ends = []
    monkeypatch.setattr(prove, "prove", lambda proof, bench, sections: ends.append(bench.budget.end))
    for minutes, seconds in ((10, 540), (7, 360), (1, 45)):
        prove.proved(prove.parser().parse_args(["--minutes", str(minutes)]), "c", 1000.0)
        assert ends.pop() == 1000.0 + seconds


def test_a_section_forks_and_so_the_parent_never_touches_the_gpu() -> None:
    """CUDA does not survive a fork: that there is a GPU is found in a section's process, too."""
    source = Path(prove.__file__).read_text() + Path(child.__file__).read_text()
    assert "torch.cuda" not in source
