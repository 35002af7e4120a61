"""Families side by side: rows are what the sessions did, the table shows it, the first row is the baseline."""

from __future__ import annotations

import json

import pytest
from families import MARK, NetworkRow, figures_of, main, table

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.families.cost import cost_model
from tests.bundles import export
from tests.datasets.labelled_folder import write_labelled
from tests.tiny_evovit import tiny_deit_spec, tiny_evo_checkpoint


@pytest.fixture(scope="module")
def bundles(tiny_bundle_path, tmp_path_factory):
    share = tmp_path_factory.mktemp("families") / "share.dovit"
    export(tiny_evo_checkpoint(tiny_deit_spec(size=(40, 56), head="linear")), share)
    return tiny_bundle_path, share


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_labelled(tmp_path_factory.mktemp("data") / "set", images=3, split="train")


def test_every_network_runs_as_deployed_and_dense(bundles, data):
    gated, share = bundles
    report = figures_of(data, ["train"], None, [gated, share])
    (split,) = report["splits"]
    rows = [NetworkRow.model_validate(row) for row in split["rows"]]
    assert [row.name for row in rows] == ["tiny, nothing saved", "tiny", "share, nothing saved", "share"]
    assert rows[0].drop == 0 and rows[0].drop_interval is None and rows[0].speedup == 1
    cost = cost_model(Bundle.open(share).manifest.spec)
    kept = Bundle.open(share).manifest.spec.counts
    assert rows[3].gmacs == pytest.approx(cost.actual(kept).total / 1e9)
    assert rows[3].macs_saved == pytest.approx(1 - cost.actual(kept).total / cost.dense().total)
    assert rows[2].macs_saved == 0
    assert [row.own_speedup is None for row in rows] == [True, False, True, False]


def test_the_table_is_written_between_its_marks(tmp_path):
    row = NetworkRow(
        name="a",
        saves="b",
        miou=50.04,
        boundary_iou=20,
        gmacs=1.234,
        macs_saved=0.456,
        speedup=1.5,
        own_speedup=None,
        model_ms=1,
        drop=0.5,
        drop_interval=(-0.25, 1.0),
    ).model_dump(mode="json")
    report = {
        "dataset": "camvid",
        "machine": {"cpu": "a cpu"},
        "date": "2026-01-01",
        "command": "python benchmarks/families.py camvid",
        "splits": [{"split": "val", "frames": 2, "rows": [row]}],
    }
    assert "| a | b | 50.0 | 20.0 | 0.50 (-0.25 to 1.00) | 1.23 | 46% | 1.50x | - |" in table(report)

    (tmp_path / "r.json").write_text(json.dumps(report))
    (tmp_path / "page.md").write_text(f"before\n{MARK}\nold\n<!-- end of table -->\nafter\n")
    main(["--tables", str(tmp_path / "r.json"), "--docs", str(tmp_path / "page.md")])
    page = (tmp_path / "page.md").read_text()
    assert "old" not in page and "46%" in page and page.endswith("after\n")
