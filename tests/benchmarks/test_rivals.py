"""Networks of several seeds against static ones, on tiny bundles and four images; nothing is exported here."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from protocol.looks import looks_in
from report import END
from why_not import cells, exports, rivals
from why_not.compare import measured_ways
from why_not.result import PointsLost
from why_not.rivals_result import RivalRow, RivalTable, against_best, verdict
from why_not.ways import Alternatives, WayComparison

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import CheckError
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from tests.bundles import saved_tiny
from tests.datasets.labelled_folder import write_labelled
from tests.tiny import tiny_spec


@pytest.fixture
def compared(tiny_bundle_path, dense_bundle_path, monkeypatch, tmp_path):
    """Runs the script on runs of two seeds whose bundles are exported already; returns its exit code."""
    # A file of weights holds its digest, so that it fits a bundle of other weights.
    for module in (rivals, exports):
        monkeypatch.setattr(module, "file_entry", lambda path: SimpleNamespace(sha256=path.read_text()))
    # The gates of the second are never asked: rivals run dense.
    found = {"ours": tiny_bundle_path, "dense": tiny_bundle_path, "shallow": dense_bundle_path}
    for name, bundle in found.items():
        for seed in (0, 1):
            weights = tmp_path / "runs" / f"{name}-seed{seed}" / "checkpoint" / rivals.WEIGHTS
            weights.parent.mkdir(parents=True)
            weights.write_text(Bundle.open(bundle).manifest.provenance.source_sha256)
            (weights.parent.parent / exports.CURVE).write_text("{}")
            shutil.copytree(bundle, tmp_path / "work" / "bundles" / f"{name}-seed{seed}.dovit")
    data = write_labelled(tmp_path / "labelled")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{rivals.mark('')}\n{END}\nafter\n")

    def run(*more: str, seeds=("0", "1"), at=("--threshold", "0.7")) -> int:
        words = [str(data), "--runs", str(tmp_path / "runs"), "--ours", "ours", "--rivals", "dense", "shallow"]
        words += ["--seeds", *seeds, *at, "--work", str(tmp_path / "work"), "--timed", "2", *more]
        with pytest.raises(SystemExit) as ended:
            rivals.main([*words, "-o", str(tmp_path / "rivals.json"), "--docs", str(page)])
            raise SystemExit(0)
        return ended.value.code

    return run


def tables(folder) -> list[dict]:
    """Of the result in a folder."""
    return json.loads((folder / "rivals.json").read_text())["tables"]


def page_of(folder) -> str:
    """What was written into the page."""
    return (folder / "page.md").read_text()


def test_seeds_are_compared_and_nothing_is_measured_twice(compared, tmp_path, monkeypatch, capsys) -> None:
    assert compared("--curve", "0.5", seeds=("0",)) == 0
    (alone,) = tables(tmp_path)
    assert alone["seeds"] == [0] and alone["rows"][0]["speedup"] == 1.0
    assert compared("--curve", "0.5") == 0
    (table,) = tables(tmp_path)
    assert [row["family"] for row in table["rows"]] == [
        *("dense", "token passing", "curve", "dense-trained", "shallower"),
    ]
    bundles = tmp_path / "work" / "bundles"
    chosen = Alternatives(
        bundle=bundles / "ours-seed1.dovit",
        dense_trained=bundles / "dense-seed1.dovit",
        shallower=[bundles / "shallow-seed1.dovit"],
        curve=["0.5"],
        controls=False,
    )
    data = dataset_from_path(tmp_path / "labelled", "val")
    ways = measured_ways(WayComparison(chosen, folder=tmp_path), data, "val")
    for way, row in zip(ways, table["rows"], strict=True):
        # The same weights stand for both seeds.
        assert (row["name"], row["mious"]) == (way.name, [pytest.approx(way.tally.counts.miou)] * 2)
        assert row["boundary_iou"] == pytest.approx(way.tally.boundary_counts.miou)
        assert row["gmacs"] == pytest.approx(np.mean(way.tally.gmacs)) and row["seeds"] == [0, 1]
        assert row["speedup"] > 0 and row["model_ms"] > 0
        if way is not ways[1]:
            assert row["better_by"]["points"] == pytest.approx(ways[1].tally.counts.miou - way.tally.counts.miou)
    text = (tmp_path / "page.md").read_text()
    assert "`val`, ONNX Runtime fp32 (4 frames, 4 blocks, seeds 0, 1):" in text and text.endswith("\nafter\n")
    assert "Not trained" not in text and "Not measured" not in text

    def again(*given, **more):
        raise AssertionError("measured again")

    monkeypatch.setattr(cells.CellFolder, "_judged", again)
    monkeypatch.setattr(cells.CellFolder, "_timed", again)
    assert compared("--curve", "0.5") == 0
    capsys.readouterr()
    # Other weights, images, no run: nothing is taken for what it is not.
    assert compared("--curve", "0.5", "--split", "val/2") == 4
    assert "accuracy.json: measured with other images" in capsys.readouterr().err
    assert compared(seeds=("7",)) == 3
    assert "ours-seed7/checkpoint: there is no such run" in capsys.readouterr().err
    (tmp_path / "runs" / "shallow-seed1" / "checkpoint" / rivals.WEIGHTS).write_text("other")
    assert compared("--curve", "0.5") == 4
    assert "shallow-seed1.dovit was made of other weights" in capsys.readouterr().err


def test_accuracy_and_latency_are_measured_apart_and_resumed_cell_by_cell(compared, tmp_path, monkeypatch, capsys):
    judged, timed = [], []
    for name, done in (("_judged", judged), ("_timed", timed)):
        whole = getattr(cells.CellFolder, name)

        def counted(self, key, *more, whole=whole, done=done):
            if len(judged) == 3 and not timed:
                raise KeyboardInterrupt
            done.append(key.name)
            return whole(self, key, *more)

        monkeypatch.setattr(cells.CellFolder, name, counted)
    with pytest.raises(KeyboardInterrupt):
        compared("--measure", "accuracy")
    assert len(list((tmp_path / "work" / "cells").glob("*-accuracy.json"))) == 3
    # What is done is kept, and the rest is done once.
    first = judged.copy()
    judged.clear()
    monkeypatch.setattr(cells, "in_pairs", lambda one, other, frames: [(2.0, 1.0)] * len(frames))
    timed.append("")
    assert compared("--measure", "accuracy") == 0
    assert not set(first) & set(judged) and len({*first, *judged}) == 8
    (table,) = tables(tmp_path)
    assert [row["speedup"] for row in table["rows"]] == [None] * 4 and "Nothing was timed yet." in page_of(tmp_path)
    timed.clear()
    judged.clear()
    assert compared("--measure", "latency") == 0
    # Ours with each seed, static networks with the first.
    assert judged == [] and sorted(timed) == [
        *(f"val-onnxruntime-fp32-{name}" for name in ("dense-trained-seed0", "dense-trained__2_layers-seed0")),
        *(f"val-onnxruntime-fp32-own_thresholds__0.7_-seed{seed}" for seed in (0, 1)),
    ]
    (table,) = tables(tmp_path)
    assert [(row["family"], row["speedup"]) for row in table["rows"]] == [
        *(("dense", 1.0), ("token passing", 2.0), ("dense-trained", 2.0), ("shallower", 2.0)),
    ]


@pytest.mark.slow
def test_runs_that_are_missing_are_named_and_pairs_are_of_the_seeds_that_both_have(compared, tmp_path, capsys) -> None:
    (tmp_path / "runs" / "shallow-seed1" / exports.CURVE).unlink()
    shutil.rmtree(tmp_path / "runs" / "dense-seed0")
    assert compared("--merge", "2") == 0
    assert "shallow-seed1: not there, or not ended; left out" in capsys.readouterr().err
    (table,) = tables(tmp_path)
    assert table["missing"] == ["dense-seed0", "shallow-seed1"]
    assert {row["family"]: row["seeds"] for row in table["rows"]} == {
        "dense": [0, 1],
        "token passing": [0, 1],
        "dense-trained": [1],
        "shallower": [0],
        "merging": [1],
    }
    text = page_of(tmp_path)
    assert "**Not trained yet, and missing here: dense, seed 0; shallow, seed 1.**" in text
    assert "dense-trained (seed 1 alone)" in text and "layers (seed 0 alone)" in text
    # Ours of seed 1 ends later than its rivals: they are no pair without it.
    (tmp_path / "runs" / "ours-seed1" / exports.CURVE).unlink()
    assert compared() == 0
    (table,) = tables(tmp_path)
    assert table["seeds"] == [0] and "ours-seed1" in table["missing"]


def test_fp32_is_judged_once_and_what_is_not_measured_is_named(compared, tmp_path) -> None:
    pytest.importorskip("openvino")
    both = ("--runtimes", "openvino:fp32", "onnxruntime:fp32")
    assert compared(*both, "--measure", "accuracy", seeds=("0",)) == 0
    first, second = tables(tmp_path)
    assert (first["engine"], first["judged_in"]) == ("openvino", "openvino")
    assert (second["engine"], second["judged_in"]) == ("onnxruntime", "openvino")
    assert first["rows"] == second["rows"] and "Accuracy as judged in OpenVINO fp32." in page_of(tmp_path)
    for path in (tmp_path / "work" / "cells").glob("*_layers*"):
        path.unlink()
    assert compared(*both, "--measure", "exports", seeds=("0",)) == 0
    assert "**Not measured yet: dense-trained, 2 layers (seed 0).**" in page_of(tmp_path)


def test_tables_of_another_input_say_so_and_have_marks_of_their_own(compared, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(exports.RunExports, "trained_size", lambda self, run, seed: (48, 64))
    page, size = tmp_path / "page.md", "96x128"
    assert compared("--table", "rendered", "--size", size) == 2
    assert "--docs: " in capsys.readouterr().err
    for path in (tmp_path / "work" / "bundles").iterdir():
        path.rename(path.with_name(f"{path.stem}-{size}.dovit"))
    page.write_text(f"{rivals.mark('')}\n{END}\n{rivals.mark('rendered')}\n{END}\n")
    assert compared("--table", "rendered", "--size", size, "--measure", "accuracy") == 0
    first, second = page_of(tmp_path).split(rivals.mark("rendered"))
    assert "Run at 96x128 (height x width) where no other size is named, trained at 48x64." in second
    assert "mIoU" not in first


def test_pairs_turn() -> None:
    order = []

    def way(name):
        def run(frame):
            order.append(name)
            timing = SimpleNamespace(model=1.0 if name == "one" else 3.0)
            return SimpleNamespace(
                tokens=SimpleNamespace(windows=[SimpleNamespace(report=SimpleNamespace(timing=timing))])
            )

        return SimpleNamespace(run=run)

    assert cells.in_pairs(way("one"), way("other"), ["first", "second"]) == [(1.0, 3.0)] * 4
    assert order[2:] == ["one", "other", "other", "one", "other", "one", "one", "other"]


@pytest.mark.slow
def test_a_run_becomes_a_bundle_and_a_rival_has_no_gates(tmp_path) -> None:
    spec = tiny_spec(gates=(1,), depth=2)
    for name in ("ours-seed0", "other-seed0"):
        saved_tiny(spec, tmp_path / "runs" / name / "checkpoint")
        (tmp_path / "runs" / name / exports.CURVE).write_text("{}")
    work, data = tmp_path / "work", write_labelled(tmp_path / "labelled")
    work.mkdir()
    made = exports.RunExports(tmp_path / "runs", work, "0.6", None, None)
    ours, other = made.bundle("ours", 0, ours=True), made.bundle("other", 0)
    manifest = Bundle.open(ours).manifest
    assert len(manifest.spec.gates) == 1 and manifest.defaults.thresholds[0][0] == pytest.approx(0.6)
    assert Bundle.open(other).manifest.spec.gates == ()
    # Without its gates it is the same network.
    frame = dataset_from_path(data, "val").sample(0)
    answers = [Predictor(Session(Bundle.open(path))).predict(frame.rgb, dense=True).class_map for path in (ours, other)]
    assert (answers[0] == answers[1]).all()
    assert made.trained_size("other", 0) == spec.size
    smaller = made.bundle("other", 0, size="32x48")
    assert Bundle.open(smaller).manifest.spec.size == (32, 48) and smaller.name == "other-seed0-32x48.dovit"


def test_what_cannot_be_compared(compared, capsys) -> None:
    for words, message in (
        (("--rivals", "shallow"), "one network of the size and depth of ours is needed, trained dense; given: none"),
        (("--rivals", "dense", "dense"), "given: dense-seed0, dense-seed0"),
        (("--runtimes", "onnxruntime:int8"), "needs --calibration SRC"),
        (("--runtimes", "onnxruntime:int8", "--calibration", "x"), "was exported without int8"),
        (("--threshold", "1.5"), "--threshold: 1.5 is outside"),
        (("--smaller", "12"), "--smaller, --size"),
    ):
        assert compared(*words) in (2, 4)
        assert message in capsys.readouterr().err


def test_the_frozen_thresholds_are_those_of_ours(compared, tmp_path, monkeypatch, capsys) -> None:
    frozen, asked = SimpleNamespace(threshold_text="0.7,0.8"), []

    def refuse(found, checkpoint, bundle):
        asked.append((found, checkpoint, bundle.path))
        raise CheckError("another recipe than was frozen")

    monkeypatch.setattr(rivals, "frozen_from_file", lambda path: frozen)
    monkeypatch.setattr(rivals, "check_bundle", refuse)
    assert compared(at=("--frozen", "frozen.json")) == 4
    assert "another recipe than was frozen" in capsys.readouterr().err
    checkpoint, bundle = (
        tmp_path / "runs" / "ours-seed0" / "checkpoint",
        tmp_path / "work" / "bundles" / "ours-seed0.dovit",
    )
    assert asked == [(frozen, checkpoint, bundle)]
    options = rivals.parser().parse_args(
        ["x", "--frozen", "y", "--runs", "r", "--ours", "o", "--rivals", "d", "--work", "w"]
    )
    rivals.check(rivals.parser(), options)
    assert options.threshold == "0.7,0.8"
    for at in ((), ("--threshold", "0.7", "--frozen", "frozen.json")):
        assert compared(at=at) == 2
        assert "one of --threshold and --frozen" in capsys.readouterr().err


def test_a_look_at_what_stays_unseen_is_noted_before_it_is_taken(compared, tmp_path, monkeypatch, capsys) -> None:
    frozen = SimpleNamespace(threshold_text="0.7", reads="val", digest="d" * 64)
    watched = SimpleNamespace(recipe=SimpleNamespace(split="val:drive_000", watch="val:drive_000"))
    for name, stand_in in {
        "frozen_from_file": lambda path: frozen,
        "check_bundle": lambda frozen, checkpoint, bundle: None,
        "check_unseen": lambda frozen, dataset: None,
        "trained_from_file": lambda checkpoint: watched,
    }.items():
        monkeypatch.setattr(rivals, name, stand_in)
    monkeypatch.setattr(cells.CellFolder, "_judged", lambda *given: sys.exit(130))
    choice = tmp_path / "frozen.json"
    choice.write_text("{}")
    assert compared(at=("--frozen", str(choice))) == 4
    assert "not committed" in capsys.readouterr().err
    monkeypatch.setattr(rivals, "check_committed", lambda path: None)
    assert compared(at=("--frozen", str(choice))) == 4
    assert "dense trains on val:drive_000: 1 images of val" in capsys.readouterr().err and not looks_in(tmp_path)
    monkeypatch.setattr(rivals, "refuse_seen", lambda frozen, dataset, what, split: None)
    assert compared(at=("--frozen", str(choice))) == 130
    assert [(look.seed, look.reads) for look in looks_in(tmp_path)] == [(0, "val"), (1, "val")]
    # What else is measured is no look.
    frozen.reads = "val:drive_003"
    assert compared("--split", "val:drive_001", at=("--frozen", str(choice))) == 130
    assert len(looks_in(tmp_path)) == 2


def test_what_is_to_stay_unseen_is_measured_with_what_was_frozen_alone(compared, monkeypatch, capsys, tmp_path) -> None:
    keeping = {"val:drive_001": {tmp_path / "frozen.json": SimpleNamespace(reads="val:drive_00")}}
    monkeypatch.setattr(rivals, "keeping_unseen", lambda dataset, split: keeping.get(split, {}))
    monkeypatch.setattr(cells.CellFolder, "_judged", lambda *given: sys.exit(130))
    assert compared("--split", "val:drive_000", "--split", "val:drive_001") == 4
    wanted = "val:drive_001 has images of val:drive_00, which are to stay unseen; --frozen"
    assert wanted in capsys.readouterr().err
    assert compared("--split", "val:drive_000") == 130


def row_of(name, family, miou, speedup, better=None, *, interval=True) -> RivalRow:
    """Of one seed, token passing better by `better` at boundaries, too, within a point."""
    ends = (better - 1, better + 1) if better is not None and interval else None
    lost = None if better is None else PointsLost(points=better, interval=ends)
    return RivalRow(
        name=name,
        family=family,
        seeds=(0,),
        miou=miou,
        mious=(miou,),
        boundary_iou=1.0,
        gmacs=1.0,
        macs_saved=0.0,
        speedup=speedup,
        model_ms=1.0,
        better_by=lost,
        boundary_better_by=lost,
    )


def table_of(*others) -> RivalTable:
    """Of our dense run, token passing at 1.7x, and `others`."""
    rows = (row_of("dense", "dense", 60.0, 1.0, -1.0), row_of("own", "token passing", 59.0, 1.7), *others)
    kind = {"split": "val", "engine": "openvino", "precision": "int8", "judged_in": "openvino"}
    return RivalTable(**kind, seeds=(0,), frames=1, blocks=9, rows=rows, equal_latency=(), missing=(), unmeasured=())


def test_the_verdict_is_about_what_is_as_fast() -> None:
    slower = row_of("12", "dense-trained", 61.0, 1.0, -2.0)
    worse, untimed = row_of("small", "smaller", 58.0, 1.8, 1.0), row_of("x", "shallower", 62.0, None, -3.0)
    assert verdict(table_of(slower, untimed)) == "Nothing else that was measured is as fast as token passing."
    assert verdict(table_of(slower, worse)) == (
        "The best that is as fast, small, is worse by 1.00 (0.00 to 2.00) points."
    )
    better = row_of("6 layers", "shallower", 59.5, 1.9, -0.5)
    assert verdict(table_of(worse, better)) == "**6 layers is as fast and better**, by 0.50 (-0.50 to 1.50) points."


def test_the_best_network_of_the_class_may_be_slower() -> None:
    best, other = row_of("8 layers", "shallower", 61.0, 1.4, -0.5), row_of("12", "dense-trained", 60.0, 1.0, 0.0)
    (line,) = against_best(table_of(row_of("small", "smaller", 70.0, 1.8, -9.0), other, best))
    assert "trained to run whole, 8 layers (61.0 mIoU), token passing loses 0.50 (-0.50 to 1.50) points" in line
    # Below 0.8 and 1.5 are the upper ends that are wanted.
    assert line.endswith("missed.")
    assert against_best(table_of(row_of("12", "dense-trained", 59.0, 1.0, 0.3)))[0].endswith("reached.")
    (line,) = against_best(table_of(row_of("12", "dense-trained", 59.0, 1.0, 0.3, interval=False)))
    assert line.endswith("no interval.")
    assert against_best(table_of()) == []
