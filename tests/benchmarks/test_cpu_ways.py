"""Every way of `benchmarks/cpu.py` on a tiny bundle: what runs, on which tokens, against whose answers."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from on_cpu import cells, models, runners
from on_cpu.accuracy import Answers, compared
from on_cpu.frames import FrameChoice, NamedFrame, save_frames, saved_frames, spread
from on_cpu.measuring import measured
from on_cpu.models import CaseFiles
from on_cpu.result import DEFAULT, CellRow, CpuCase, CpuCell, CpuWay
from on_cpu.timing import in_turns, uncertainty

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.datasets.recording import Moment
from dovit_deploy.errors import DatasetError, UsageError
from tests.benchmarks.cpu_cells import FRAMES, LITTLE, cell_of

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")


@pytest.fixture(scope="module")
def files(tiny_bundle_path, tmp_path_factory) -> CaseFiles:
    case = CpuCase(model=DEFAULT, size=Bundle.open(tiny_bundle_path).manifest.spec.size)
    found = CaseFiles(case, work=tmp_path_factory.mktemp("work"), bundle=tiny_bundle_path)
    found.prepare(FRAMES)
    return found


def rows_of(files: CaseFiles, *wanted: CpuCell) -> tuple[CellRow, ...]:
    done = measured(wanted, files, LITTLE)
    assert not done.undone, done.undone
    return done.rows


def why_undone(files: CaseFiles, cell: CpuCell) -> str:
    done = measured([cell], files, LITTLE)
    assert not done.rows
    return done.undone[0].why


def test_the_baseline_agrees_with_itself_and_tokens_with_tokens(files) -> None:
    dense, tokens = rows_of(files, cell_of(files, "dense"), cell_of(files, "tokens"))
    assert dense.accuracy is not None and dense.accuracy.agreement == 1.0 and dense.macs_saved == 0.0
    assert dense.pairs >= 2 and 0 < dense.low <= dense.ratio <= dense.high and 0 < dense.p50 <= dense.p99
    assert 0 < tokens.macs_saved < 1
    assert tokens.accuracy is not None and tokens.accuracy.frames == 2
    # By its own decisions: other than dense, the same as the engine's own run with tokens.
    assert 0 < tokens.accuracy.agreement < 1 and tokens.accuracy.same_agreement == 1.0


@needs_openvino
def test_openvino_replays_the_same_tokens(files) -> None:
    (one,) = rows_of(files, cell_of(files, "tokens"))
    (two,) = rows_of(files, cell_of(files, "tokens", "openvino"))
    assert two.macs_saved == one.macs_saved and two.accuracy == one.accuracy
    assert two.first > two.p50, "compiling is in the first runs, and not in the others"


@pytest.mark.parametrize(
    ("runs", "engine"),
    [("plain", "onnxruntime"), ("eager", "torch"), pytest.param("plain", "openvino", marks=needs_openvino)],
)
def test_peers_give_the_answers_of_the_dense_network(files, runs, engine) -> None:
    (row,) = rows_of(files, cell_of(files, runs, engine))
    assert row.accuracy is not None and row.accuracy.agreement > 0.999


# An export.
@pytest.mark.slow
def test_merging_saves_as_much_as_the_tokens(files) -> None:
    (row,) = rows_of(files, cell_of(files, "merging"))
    assert row.macs_saved > 0 and row.accuracy is not None and row.accuracy.agreement < 1
    assert row.accuracy.same_agreement is None


def test_two_streams_are_timed_by_the_image(files) -> None:
    (row,) = rows_of(files, cell_of(files, "tokens", streams=2))
    assert row.accuracy is None and row.ratio > 0 and row.cell.streams == 2


def test_a_peer_that_is_not_installed_says_what_installs_it(files, monkeypatch) -> None:
    monkeypatch.setattr(runners.importlib.util, "find_spec", lambda name: None)
    assert "pip install nncf" in why_undone(files, cell_of(files, "nncf", "openvino", "int8"))
    for runs in ("eager", "compiled", "merging"):
        assert "torch is not installed: pip install" in why_undone(files, cell_of(files, runs, "torch"))


def test_torch_compile_without_a_compiler_says_so(files, monkeypatch) -> None:
    monkeypatch.setattr(runners.shutil, "which", lambda name: None)
    assert "C++ compiler" in why_undone(files, cell_of(files, "compiled", "torch"))


@needs_openvino
def test_what_the_processor_lacks_is_left_out_and_said(files, monkeypatch) -> None:
    from dovit_deploy.engines import openvino

    for module, name in ((runners, "capabilities"), (openvino, "_capabilities")):
        monkeypatch.setattr(module, name, lambda core: ["FP32", "INT8"])
    for runs in ("dense", "tokens", "plain"):
        assert "does not compute in bf16" in why_undone(files, cell_of(files, runs, "openvino", "bf16"))


def test_one_way_that_cannot_run_costs_no_other(files) -> None:
    done = measured([cell_of(files, "dense", precision="fp8"), cell_of(files, "dense")], files, LITTLE)
    assert [row.cell.way.precision for row in done.rows] == ["fp32"]
    assert "does not run precision" in done.undone[0].why


# Two exports of a whole model.
@pytest.mark.slow
def test_the_bench_model_is_forced_to_its_profile(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(models, "MODELS", {"Ti": (16, 2)})
    monkeypatch.setattr(models, "DEPTH", 4)
    monkeypatch.setattr(models, "GATES", (1, 2, 3))
    bench = CaseFiles(CpuCase(model="Ti", size=(64, 96)), work=tmp_path, bundle=tmp_path)
    bench.prepare(FRAMES)
    assert bench.is_ready(FRAMES)
    ways = [
        CpuWay(runs="tokens", engine="onnxruntime", precision="fp32", profile="p12"),
        CpuWay(runs="plain", engine="onnxruntime", precision="fp32"),
    ]
    tokens, plain = rows_of(bench, *(CpuCell(case=bench.case, way=way) for way in ways))
    assert tokens.accuracy is None and tokens.macs_saved > 0.2 and plain.macs_saved == 0


def test_files_are_made_again_for_other_frames_and_never_over_those_of_others(
    files, tiny_bundle_path, tmp_path
) -> None:
    assert files.is_ready(FRAMES) and not files.is_ready(FRAMES.model_copy(update={"count": 3}))
    foreign = CaseFiles(files.case, work=tmp_path, bundle=tiny_bundle_path)
    foreign.folder.mkdir()
    (foreign.folder / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="--work"):
        foreign.prepare(FRAMES)
    assert (foreign.folder / "mine.txt").exists()


def test_every_frame_runs_once_before_rounds_and_in_both_orders() -> None:
    log: list[tuple[str, int]] = []

    def logged(name: str):
        return lambda frame: log.append((name, frame))

    effort = LITTLE.model_copy(update={"fewest": 2})
    both = in_turns(logged("baseline"), [logged("one"), logged("two")], frames=3, effort=effort, wall=False)
    assert [len(pairs.first) for pairs in both] == [3, 3] and [len(pairs.other) for pairs in both] == [6, 6]
    assert log[3:9] == [(name, frame) for name in ("one", "two") for frame in range(3)]
    rounds = [log[9 + 3 * number : 12 + 3 * number] for number in range(6)]
    for frame in range(3):
        orders = [[name for name, _ in turn] for turn in rounds if turn[0][1] == frame]
        assert sorted(orders) == [["baseline", "one", "two"], ["two", "one", "baseline"]]


def test_rounds_end_when_ratios_are_known(monkeypatch) -> None:
    assert uncertainty([2.0] * 4) == 0.0
    assert uncertainty([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.93 * 1.5 / 2.5 / 2)
    patient = LITTLE.model_copy(update={"fewest": 3, "seconds": 60.0})
    monkeypatch.setattr("on_cpu.timing.SETTLED", 1e9)
    (pairs,) = in_turns(
        lambda frame: sum(range(9999)), [lambda frame: sum(range(9999))], frames=1, effort=patient, wall=True
    )
    assert len(pairs.other) == 3, "well before the minute was over"


def test_answers_are_compared_with_dense_with_the_same_run_and_with_labels() -> None:
    rgb = np.zeros((2, 2, 3), np.uint8)
    label, dense, same, own = (
        np.array(rows, np.uint8) for rows in ([[0, 0], [1, 1]], [[0, 0], [1, 1]], [[0, 0], [0, 1]], [[0, 0], [0, 0]])
    )
    samples = [NamedFrame(f"drive_{number}", rgb, label) for number in range(8)]
    found = compared(*(Answers((maps,) * 8) for maps in (own, dense, same)), samples, classes=2)
    assert (found.agreement, found.same_agreement) == (0.5, 0.75)
    assert found.miou == pytest.approx(25.0) and found.drop == pytest.approx(75.0)
    assert found.same_drop == pytest.approx(100 * (2 / 3 + 1 / 2) / 2 - 25)
    assert found.drop_interval == pytest.approx((75.0, 75.0)) and found.same_drop_interval is not None
    unlabelled = [NamedFrame(sample.name, rgb) for sample in samples]
    bare = compared(*(Answers((maps,) * 8) for maps in (own, dense, same)), unlabelled, classes=2)
    assert bare.miou is None and bare.agreement == 0.5


def test_cells_are_distinct_and_begin_with_the_default_model() -> None:
    all_of_them = cells.all_cells((360, 480))
    assert len(set(all_of_them)) == len(all_of_them) and all_of_them[0].case.model == DEFAULT
    assert cells.is_baseline(all_of_them[0])
    named = {cell.way.engine for cell in all_of_them}
    assert {"onnxruntime", "openvino", "torch"} == named
    assert set(cells.quick_cells((360, 480))) < set(all_of_them)
    assert not any(cell.way.runs == "tokens" for cell in cells.default_cells((360, 480), gates=False))
    assert spread(10, 4) == [0, 2, 5, 7] and spread(2, 4) == [0, 1]


def test_one_process_runs_one_engine_on_one_case_and_peers_of_pytorch_alone() -> None:
    groups = cells.measured_together(cells.all_cells((360, 480)))
    for group in groups:
        assert len({(cell.case, cell.threads, cell.streams, cell.way.engine) for cell in group}) == 1
        assert len(group) == 1 or not {cell.way.runs for cell in group} & set(cells.APART)
    assert {cell.way.runs for cell in groups[0]} == {"dense", "tokens", "plain"}


def test_labels_are_saved_beside_frames(files, tmp_path) -> None:
    samples = [
        NamedFrame("a", np.zeros((2, 3, 3), np.uint8)),
        NamedFrame("b", np.ones((3, 2, 3), np.uint8), np.full((3, 2), 5, np.uint8), Moment("drive", 0.5)),
    ]
    save_frames(samples, tmp_path)
    (one, two) = saved_frames(tmp_path)
    assert (one.name, one.label, one.moment) == ("a", None, None)
    assert two.label is not None and two.label.tolist() == [[5, 5]] * 3 and two.moment == ("drive", 0.5)
    with pytest.raises(DatasetError, match="gone"):
        FrameChoice(frames=None, dataset=tmp_path / "gone", split="val", count=1).check()
