"""The whole comparison on a tiny bundle and four images, and the tables that are made of it."""

from __future__ import annotations

import argparse
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
from report import END, between_marks, command_text, publish
from why_not import compare, ways
from why_not.compare import measure, runtime, turned
from why_not.result import Point, Report, at_latency, equal_latency, figures_of
from why_not.tables import DOCS_TABLES, mark, readme_table, write_tables
from why_not.ways import Alternatives, Runtime, WayComparison

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import UsageError
from dovit_deploy.measure.evaluate import EvalPlan, SegmentationTally, evaluate
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from tests.datasets.labelled_folder import write_labelled
from tests.paths import ROOT


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset_from_path(write_labelled(tmp_path_factory.mktemp("labelled")), "val")


@pytest.fixture(scope="module")
def comparison(tiny_bundle_path, dense_bundle_path, tmp_path_factory):
    chosen = Alternatives(
        bundle=tiny_bundle_path,
        thresholds=["0.9", "0.8,1"],
        curve=["0.5", "0.9"],
        smaller=[tiny_bundle_path],
        dense_trained=dense_bundle_path,
        shallower=[dense_bundle_path],
        merge=[2],
    )
    return WayComparison(chosen, folder=tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def report(comparison, data):
    splits = [measure(comparison, data, "val")]
    return Report.model_validate(publish(figures_of("labelled", 1, splits), command="x", output=None))


def test_figures_are_those_of_eval(report, data, comparison) -> None:
    with Session(comparison.main.session.bundle, threads=1) as session:
        plan = EvalPlan(
            "labelled", "val", RunSettings.resolve(session.bundle.manifest), controls=("random", "first_gate")
        )
        expected = evaluate(session, data, SegmentationTally, plan, advance=lambda saved: None)
    assert expected.dense is not None and expected.controls is not None
    rows = {row.name: row for row in report.splits[0].rows}
    own = rows["own thresholds (0.7)"]
    for row, tally in (
        (rows["dense"], expected.dense),
        (own, expected.dynamic),
        (rows["as many stopped at random"], expected.controls["random"]),
        (rows["everything stopped at the first gate"], expected.controls["first_gate"]),
    ):
        assert row.miou == pytest.approx(tally.counts.miou)
        assert row.boundary_iou == pytest.approx(tally.boundary_counts.miou)
        assert row.gmacs == pytest.approx(np.mean(tally.gmacs))
    assert own.drop.points == pytest.approx(expected.dense.counts.miou - expected.dynamic.counts.miou)
    assert own.drop_from_dense_trained is not None
    assert own.drop_from_dense_trained.points == pytest.approx(rows["dense-trained"].miou - own.miou)


def test_families_are_all_there(report) -> None:
    families = [row.family for row in report.splits[0].rows]
    assert families == [
        *("dense", "token passing", "token passing", "token passing", "curve", "control", "control"),
        *("smaller", "dense-trained", "shallower", "merging"),
    ]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_every_runtime_has_its_table(int8_bundle_path, data, tmp_path, monkeypatch) -> None:
    splits, compiled = [], []
    # Before the first frame: OpenVINO compiles a stage for each size, which is no frame's time.
    monkeypatch.setattr(ways, "run_every_size", lambda session, most: compiled.append((session.backend.name, most)))
    for precision in ("fp32", "int8"):
        chosen = Alternatives(bundle=int8_bundle_path, shallower=[int8_bundle_path], merge=[2])
        comparison = WayComparison(chosen, folder=tmp_path, runtime=Runtime("openvino", precision))
        splits.append(measure(comparison, data, "val"))
        assert comparison.main.session.session.backend.name == "openvino"
    assert compiled == 2 * [("openvino", comparison.manifest.spec.tokens)]
    names = [[row.name for row in split.rows if row.family == "merging"] for split in splits]
    assert names == [["merging 2 tokens a layer"], ["merging 2 tokens a layer, in fp32"]]
    dense = [split.rows[0].miou for split in splits]
    report = Report.model_validate(publish(figures_of("labelled", 1, splits), command="x", output=None))
    text = DOCS_TABLES["rows"](report)
    assert "`val`, OpenVINO fp32 (4 frames, 4 blocks)" in text and "`val`, OpenVINO int8 (4 frames" in text
    assert "OpenVINO fp32, one thread" in text and all(value > 0 for value in dense)
    # The merged network is another one than the dense: its answers, too, come from this engine.
    assert splits[0].rows[-1].gmacs < splits[0].rows[0].gmacs


def test_what_cannot_be_compared(tiny_bundle_path, tmp_path) -> None:
    with pytest.raises(UsageError, match="reads graphs"):
        WayComparison(Alternatives(bundle=tiny_bundle_path, merge=[2]), folder=tmp_path, runtime=Runtime("torch"))
    with pytest.raises(UsageError, match="int8"):
        WayComparison(Alternatives(bundle=tiny_bundle_path), folder=tmp_path, runtime=Runtime("onnxruntime", "int8"))
    for text in ("openvino", ":int8", "openvino:"):
        with pytest.raises(argparse.ArgumentTypeError, match="ENGINE:PRECISION"):
            runtime(text)
    assert runtime("openvino:int8") == Runtime("openvino", "int8")


def test_a_look_at_what_stays_unseen_is_noted_before_it_is_taken(tiny_bundle_path, tmp_path, monkeypatch) -> None:
    found, noted = {"frozen.json": SimpleNamespace()}, []
    monkeypatch.setattr(compare, "keeping_unseen", lambda dataset, split: found if split == "val:drive_001" else {})
    monkeypatch.setattr(compare, "note_beside", lambda kept, **look: noted.append((kept, look)))

    def stopped(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "measure", stopped)
    words = [str(write_labelled(tmp_path / "labelled")), "--bundle", str(tiny_bundle_path), "--split", "val:drive_001"]
    with pytest.raises(KeyboardInterrupt):
        compare.measured(compare.parser().parse_args(words), "the command")
    ((kept, look),) = noted
    weights = Bundle.open(tiny_bundle_path).manifest.provenance.source_sha256
    assert kept is found and look == {"weights": weights, "seed": None, "command": "the command"}


def test_equal_latency_takes_the_full_model_as_first_point(report) -> None:
    def row(name, family, speedup, miou):
        return (
            report.splits[0]
            .rows[0]
            .model_copy(update={"name": name, "family": family, "speedup": speedup, "miou": miou})
        )

    rows = [
        row("dense", "dense", 1.0, 60.0),
        row("own", "token passing", 1.6, 59.5),
        row("small", "smaller", 2.0, 56.0),
        row("dense-trained", "dense-trained", 1.0, 61.0),
        row("8 layers", "shallower", 1.5, 58.0),
    ]
    (point,) = equal_latency(rows)
    assert point.others["smaller"] == pytest.approx(at_latency([Point(1.0, 60.0), Point(0.5, 56.0)], 1 / 1.6))
    # Slower than the operating point, and nothing beyond it: not extrapolated.
    assert point.others["shallower"] is None
    assert point.others["merging"] is None
    (point,) = equal_latency([*rows, row("6 layers", "shallower", 2.0, 54.0), row("8", "merging", 2.0, 55.0)])
    assert 54.0 < point.others["shallower"] < 58.0
    assert point.others["merging"] == pytest.approx(55.0 + (1 / 1.6 - 0.5) / 0.5 * 6.0)


def test_tables_go_between_their_marks(report, tmp_path) -> None:
    readme, docs = tmp_path / "README.md", tmp_path / "benchmarks.md"
    readme.write_text(f"before\n{mark()}\nof yesterday\n{END}\nafter\n")
    docs.write_text("\n".join(f"about {name}\n{mark(name)}\n{END}" for name in DOCS_TABLES))
    write_tables(report, readme=readme, docs=docs)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "of yesterday" not in text
    assert readme_table(report) in text
    for table in DOCS_TABLES.values():
        assert table(report) in docs.read_text()
    once = docs.read_text()
    write_tables(report, readme=readme, docs=docs)
    assert (readme.read_text(), docs.read_text()) == (text, once)


def test_a_missing_mark_leaves_every_page_as_it_was(report, tmp_path) -> None:
    readme, docs = tmp_path / "README.md", tmp_path / "benchmarks.md"
    readme.write_text(f"{mark()}\nof yesterday\n{END}\n")
    docs.write_text("no marks")
    with pytest.raises(ValueError, match=r"table: benchmarks/why_not/compare\.py rows"):
        write_tables(report, readme=readme, docs=docs)
    assert "of yesterday" in readme.read_text()
    with pytest.raises(ValueError):
        between_marks(mark(), mark(), "table")


def test_the_pages_of_the_project_have_the_marks() -> None:
    root = ROOT
    assert between_marks((root / "README.md").read_text(), mark(), "table")
    for name in DOCS_TABLES:
        assert between_marks((root / "docs" / "benchmarks.md").read_text(), mark(name), "table")


def test_the_order_turns() -> None:
    assert turned("abc", 0) == ["a", "b", "c"]
    assert turned("abc", 1) == ["a", "c", "b"]
    assert turned("abc", 2) == ["c", "a", "b"]
    assert len({"".join(turned("abc", number)) for number in range(6)}) == 6


def test_the_published_command_names_no_path_outside() -> None:
    words = ["/data/camvid", "--bundle", "../made/x.dovit", "-o", "benchmarks/results/why_not.json"]
    assert command_text("why_not/compare.py", words) == (
        "python benchmarks/why_not/compare.py camvid --bundle x.dovit -o benchmarks/results/why_not.json"
    )


POINTS = [Point(1.0, 60.0), Point(0.4, 50.0), Point(0.6, 58.0)]


@pytest.mark.parametrize(
    ("latency", "miou"), [(1.0, 60.0), (0.8, 59.0), (0.6, 58.0), (0.5, 54.0), (0.4, 50.0), (0.39, None), (1.01, None)]
)
def test_between_neighbours_and_never_beyond(latency, miou) -> None:
    found = at_latency(POINTS, latency)
    assert found is None if miou is None else found == pytest.approx(miou)


def test_one_point_says_nothing_about_others() -> None:
    assert at_latency([], 0.5) is None
    assert at_latency([Point(1.0, 60.0)], 0.9) is None
