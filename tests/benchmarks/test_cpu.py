"""`benchmarks/cpu.py`: every way on a tiny bundle, going on where it stopped, and the tables that are made of it."""

from __future__ import annotations

import importlib.util

import cpu
import pytest
from on_cpu import cells, models, runners
from on_cpu.measuring import measured
from on_cpu.models import CaseFiles, FrameChoice, spread
from on_cpu.result import (
    DEFAULT,
    OWN,
    CellAccuracy,
    CellEffort,
    CellRow,
    CpuCase,
    CpuCell,
    CpuReport,
    CpuSettings,
    CpuWay,
    UndoneCell,
)
from on_cpu.tables import TABLES, best_dense, factors, machines_table, mark, readme_table, write_tables
from on_cpu.timing import paired
from report import END, between_marks, circumstances

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.errors import UsageError
from tests.paths import ROOT

LITTLE = CellEffort(seconds=0.0, fewest=2, timed_frames=2, limit_s=60.0)
FRAMES = FrameChoice(frames=None, dataset=None, split="val", count=2)
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")


@pytest.fixture(scope="module")
def files(tiny_bundle_path, tmp_path_factory) -> CaseFiles:
    case = CpuCase(model=DEFAULT, size=Bundle.open(tiny_bundle_path).manifest.spec.size)
    found = CaseFiles(case, work=tmp_path_factory.mktemp("work"), bundle=tiny_bundle_path)
    found.prepare(FRAMES)
    return found


def cell_of(files: CaseFiles, runs: str, engine: str = "onnxruntime", precision: str = "fp32", **more) -> CpuCell:
    profile = OWN if runs in ("tokens", "merging") else ""
    way = CpuWay(runs=runs, engine=engine, precision=precision, profile=profile)
    return CpuCell(case=files.case, way=way, **more)


def test_the_baseline_agrees_with_itself(files) -> None:
    row = measured(cell_of(files, "dense"), files, LITTLE)
    assert row.accuracy is not None and row.accuracy.agreement == 1.0 and row.macs_saved == 0.0
    assert row.pairs >= 2 and 0 < row.low <= row.ratio <= row.high and 0 < row.p50 <= row.p99


def test_tokens_replay_what_the_gates_decided_and_answer_by_their_own_decisions(files) -> None:
    row = measured(cell_of(files, "tokens"), files, LITTLE)
    assert 0 < row.macs_saved < 1
    assert row.accuracy is not None and row.accuracy.frames == 2 and 0 < row.accuracy.agreement < 1


@needs_openvino
def test_openvino_replays_the_same_tokens(files) -> None:
    one = measured(cell_of(files, "tokens"), files, LITTLE)
    two = measured(cell_of(files, "tokens", "openvino"), files, LITTLE)
    assert two.macs_saved == one.macs_saved and two.accuracy == one.accuracy
    assert two.first > two.p50, "compiling is in the first runs, and not in the others"


@pytest.mark.parametrize("runs", ["plain", "eager"])
def test_peers_give_the_answers_of_the_dense_network(files, runs) -> None:
    row = measured(cell_of(files, runs, "onnxruntime" if runs == "plain" else "torch"), files, LITTLE)
    assert row.accuracy is not None and row.accuracy.agreement > 0.999


# An export.
@pytest.mark.slow
def test_merging_saves_as_much_as_the_tokens(files) -> None:
    row = measured(cell_of(files, "merging"), files, LITTLE)
    assert row.macs_saved > 0 and row.accuracy is not None and row.accuracy.agreement < 1


def test_two_streams_are_timed_by_the_image(files) -> None:
    row = measured(cell_of(files, "tokens", streams=2), files, LITTLE)
    assert row.accuracy is None and row.ratio > 0 and row.cell.streams == 2


def test_a_peer_that_is_not_installed_says_what_installs_it(files, monkeypatch) -> None:
    monkeypatch.setattr(runners.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(runners.Unavailable, match="pip install nncf"):
        measured(cell_of(files, "nncf", "openvino", "int8"), files, LITTLE)


def test_a_precision_that_an_engine_does_not_have_is_an_error_of_ours(files) -> None:
    with pytest.raises(UsageError, match="does not run precision"):
        measured(cell_of(files, "dense", precision="fp8"), files, LITTLE)


# Two exports of a whole model.
@pytest.mark.slow
def test_the_bench_model_is_forced_to_its_profile(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(models, "MODELS", {"Ti": (16, 2)})
    monkeypatch.setattr(models, "DEPTH", 4)
    monkeypatch.setattr(models, "GATES", (1, 2, 3))
    bench = CaseFiles(CpuCase(model="Ti", size=(64, 96)), work=tmp_path, bundle=tmp_path)
    bench.prepare(FRAMES)
    way = CpuWay(runs="tokens", engine="onnxruntime", precision="fp32", profile="p12")
    row = measured(CpuCell(case=bench.case, way=way), bench, LITTLE)
    assert row.accuracy is None and row.macs_saved > 0.2
    plain = CpuWay(runs="plain", engine="onnxruntime", precision="fp32")
    assert measured(CpuCell(case=bench.case, way=plain), bench, LITTLE).macs_saved == 0


def test_every_frame_runs_once_before_pairs_and_in_both_orders() -> None:
    log: list[tuple[str, int]] = []
    pairs = paired(
        lambda frame: log.append(("baseline", frame)),
        lambda frame: log.append(("other", frame)),
        frames=3,
        effort=LITTLE.model_copy(update={"fewest": 6}),
    )
    assert len(pairs.first) == 3 and log[3:6] == [("other", frame) for frame in range(3)]
    assert len(pairs.other) == 6
    for frame in range(3):
        firsts = [log[number][0] for number in range(6, 18, 2) if log[number][1] == frame]
        assert sorted(firsts) == ["baseline", "other"]


def test_cells_are_distinct_and_begin_with_the_default_model() -> None:
    all_of_them = cells.all_cells((360, 480))
    assert len(set(all_of_them)) == len(all_of_them) and all_of_them[0].case.model == DEFAULT
    assert cells.is_baseline(all_of_them[0])
    named = {cell.way.engine for cell in all_of_them}
    assert {"onnxruntime", "openvino", "torch"} == named
    assert set(cells.quick_cells((360, 480))) < set(all_of_them)
    assert not any(cell.way.runs == "tokens" for cell in cells.default_cells((360, 480), gates=False))
    assert spread(10, 4) == [0, 2, 5, 7] and spread(2, 4) == [0, 1]


def row_of(
    runs: str, engine: str, precision: str, ratio: float, agreement: float, miou: float | None = None
) -> CellRow:
    profile = OWN if runs == "tokens" else ""
    way = CpuWay(runs=runs, engine=engine, precision=precision, profile=profile)
    cell = CpuCell(case=CpuCase(model=DEFAULT, size=(32, 48)), way=way)
    found = CellAccuracy(frames=3, agreement=agreement, miou=miou, drop=None if miou is None else 62.0 - miou)
    times = {"p50": 5.0, "p99": 6.0, "first": 50.0, "cpu": 5.0, "low": ratio, "high": ratio, "pairs": 4}
    return CellRow(cell=cell, ratio=ratio, accuracy=found, macs_saved=0.0, **times)


def report_of(*rows: CellRow) -> CpuReport:
    settings = CpuSettings(bundle="x.dovit", frames="rendered streets", count=3, effort=LITTLE)
    return CpuReport.model_validate(
        {**circumstances("python benchmarks/cpu.py"), "features": ("avx2",), "settings": settings, "rows": rows}
    )


ROWS = (
    row_of("dense", "onnxruntime", "fp32", 1.0, 1.0),
    row_of("tokens", "onnxruntime", "fp32", 1.7, 0.97),
    row_of("dense", "openvino", "bf16", 1.9, 0.998),
    row_of("tokens", "openvino", "bf16", 3.0, 0.972),
    row_of("nncf", "openvino", "int8", 2.5, 0.96),
)


def test_the_best_dense_way_is_as_accurate() -> None:
    report = report_of(*ROWS)
    found = best_dense(report, ROWS[3])
    assert found is not None and (found.cell.way.runs, found.ratio) == ("dense", 1.9)
    better = report_of(*ROWS[:4], row_of("nncf", "openvino", "int8", 2.5, 0.985))
    found = best_dense(better, ROWS[3])
    assert found is not None and found.cell.way.runs == "nncf"
    # By labels a way may be as good that agrees less.
    labelled = [
        row_of("dense", "onnxruntime", "fp32", 1.0, 1.0, 62.0),
        row_of("nncf", "openvino", "int8", 2.5, 0.9, 61.9),
    ]
    own = row_of("tokens", "openvino", "bf16", 3.0, 0.972, 61.8)
    found = best_dense(report_of(*labelled, own), own)
    assert found is not None and found.cell.way.runs == "nncf"


def test_factors_multiply_to_the_ratio() -> None:
    found = factors(report_of(*ROWS), ROWS[3])
    assert found is not None and found[0] * found[1] == pytest.approx(3.0) and found[1] == 1.9
    assert factors(report_of(*ROWS), ROWS[2]) is None


def test_tables_show_speed_beside_accuracy() -> None:
    report = report_of(*ROWS)
    for table in (readme_table(report), TABLES["default"](report)):
        line = next(text for text in table.splitlines() if "token passing | OpenVINO | bf16" in text)
        assert "0.9720" in line and "3.00x" in line and "1.58x (OpenVINO bf16)" in line and "1.58 * 1.90" in line
    (line,) = machines_table([report]).splitlines()[2:]
    assert "avx2" in line and "OpenVINO bf16 3.00x" in line and "0.9720" in line


def page_with_marks(names) -> str:
    return "\n".join(f"about {name}\n{mark(name)}\nof yesterday\n{END}" for name in names)


def test_tables_go_between_their_marks_or_nowhere(tmp_path) -> None:
    readme, docs = tmp_path / "README.md", tmp_path / "benchmarks.md"
    readme.write_text(page_with_marks([""]))
    docs.write_text(page_with_marks([*TABLES]))
    report = report_of(*ROWS).model_copy(update={"undone": (UndoneCell(cell=ROWS[0].cell, why="it broke"),)})
    with pytest.raises(ValueError, match="machines"):
        write_tables([report], readme=readme, docs=docs)
    assert "of yesterday" in readme.read_text()
    docs.write_text(page_with_marks([*TABLES, "machines"]))
    write_tables([report, report], readme=readme, docs=docs)
    assert "of yesterday" not in readme.read_text() + docs.read_text() and "it broke" in docs.read_text()


def test_the_pages_of_the_project_have_the_marks() -> None:
    assert between_marks((ROOT / "README.md").read_text(), mark(), "table")
    for name in (*TABLES, "machines"):
        assert between_marks((ROOT / "docs" / "benchmarks.md").read_text(), mark(name), "table")


@pytest.fixture
def asked(monkeypatch) -> list[CpuCell]:
    """The cells that would be measured, each of which gives a row, but for those in PyTorch."""
    seen: list[CpuCell] = []

    def fake(cell, work, bundle, choice, effort):
        seen.append(cell)
        if cell.way.engine == "torch":
            return UndoneCell(cell=cell, why="no")
        return ROWS[0].model_copy(update={"cell": cell})

    monkeypatch.setattr(cpu, "in_process", fake)
    return seen


def test_what_is_done_stays_and_what_failed_is_tried_again(asked, tiny_bundle_path, tmp_path) -> None:
    words = ["--bundle", str(tiny_bundle_path), "--models", "default", "-o", str(tmp_path / "cpu.json")]
    cpu.main([*words, "--only", "threads 1, streams 1"])
    first = list(asked)
    assert len(first) > 5 and {cell.streams for cell in first} == {1}
    cpu.main(words)
    again = asked[len(first) :]
    assert [cell.way.runs for cell in again if cell in first] == ["eager", "compiled"]
    report = CpuReport.model_validate_json((tmp_path / "cpu.json").read_text())
    assert len(report.rows) + len(report.undone) == len({row.label for row in [*first, *again]})
    assert [entry.cell.way.runs for entry in report.undone] == ["eager", "compiled"]


def test_a_result_of_another_machine_is_left_alone(asked, tiny_bundle_path, tmp_path) -> None:
    output = tmp_path / "cpu.json"
    report = report_of(*ROWS).model_copy(update={"machine": {"cpu": "another"}})
    output.write_text(report.model_dump_json())
    before = output.read_text()
    with pytest.raises(SystemExit, match="other machine"):
        cpu.main(["--bundle", str(tiny_bundle_path), "-o", str(output)])
    assert output.read_text() == before and not asked


def test_no_time_left_leaves_cells_out_and_says_so(asked, monkeypatch, tiny_bundle_path, tmp_path) -> None:
    monkeypatch.setattr(cpu, "QUICK_S", -1.0)
    cpu.main(["--quick", "--bundle", str(tiny_bundle_path), "-o", str(tmp_path / "cpu.json")])
    report = CpuReport.model_validate_json((tmp_path / "cpu.json").read_text())
    assert not report.rows and not asked and {entry.why for entry in report.undone} == {"no time was left"}


def test_a_cell_runs_in_a_process_of_its_own_and_may_fail_there(files, tmp_path) -> None:
    work = files.folder.parent
    row = cpu.in_process(cell_of(files, "dense"), work, files.bundle_path, FRAMES, LITTLE)
    assert isinstance(row, CellRow) and row.accuracy is not None
    gone = cpu.in_process(cell_of(files, "dense"), work, tmp_path / "gone.dovit", FRAMES, LITTLE)
    assert isinstance(gone, UndoneCell) and "gone.dovit" in gone.why
    hasty = LITTLE.model_copy(update={"limit_s": 0.01})
    late = cpu.in_process(cell_of(files, "dense"), work, files.bundle_path, FRAMES, hasty)
    assert isinstance(late, UndoneCell) and late.why == "took more than 0 s"
