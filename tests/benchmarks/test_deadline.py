"""`benchmarks/deadline.py` on a tiny bundle and data set, and what it calls a failure."""

from __future__ import annotations

import json
from pathlib import Path

import deadline
import pytest

from tests.datasets.labelled_folder import write_labelled
from tests.runtime.test_latency import model_of


def row(ms: float | None, **changed) -> deadline.DeadlineRow:
    figures = {"p50_ms": 1.0, "p99_ms": 1.0, "hardest_p50_ms": 1.0, "hardest_p99_ms": 10.0, "kept": (21.0, 9.0, 3.0)}
    figures |= {"capped_images": 2, "miou": 60.0, "drop": 0.5, "drop_interval": (0.1, 0.9)}
    return deadline.DeadlineRow(**{"ms": ms, **figures, "step": 0.2, "step_interval": (-0.1, 0.5), **changed})


def report(*rows: deadline.DeadlineRow, error: float = 0.0) -> deadline.DeadlineReport:
    model = model_of().model_copy(update={"error": error})
    return deadline.DeadlineReport(
        bundle="x.dovit", dataset="d", split="val", images=3, repeat=1, model=model, rows=rows
    )


def test_what_does_not_hold_is_named() -> None:
    none = row(None, step_interval=None, drop_interval=None)
    assert report(none, row(9.6)).failures == []
    assert "9.5 ms: the hardest take 10.0 ms" in report(none, row(9.5)).failures[0]
    assert "wrong by 3.1%" in report(none, error=0.031).failures[0]
    assert "mIoU rises by 0.30" in report(none, row(20, step=-0.3, step_interval=(-0.5, -0.1))).failures[0]
    assert report(none, row(20, step=-0.3, step_interval=(-0.5, 0.1))).failures == []


def test_the_table_has_a_row_for_each() -> None:
    none = row(None, step_interval=None, drop_interval=None)
    lines = deadline.table(report(none, row(9.6)), machine="a CPU", date="2026-11-30", command="python x").splitlines()
    assert lines[2] == "| none | 1.0 / 1.0 | 1.0 / 10.0 |  | 21 9 3 | 2 of 3 | 60.0 |  |  |"
    assert lines[3].startswith("| 9.6 | 1.0 / 1.0 | 1.0 / 10.0 | 1.04 | 21 9 3 | 2 of 3 | 60.0 | 0.50 (0.10 to 0.90) |")
    assert "x.dovit on d, val (3 images), onnxruntime fp32, one thread" in lines[-1]


def test_the_whole_command(tiny_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_labelled(tmp_path / "data", images=6, classes=5)
    # Of a network that takes less than a millisecond times are chance.
    monkeypatch.setattr(deadline, "LATE", 1000.0)
    monkeypatch.setattr(deadline, "WRONG", 1000.0)
    output, page = tmp_path / "deadline.json", tmp_path / "page.md"
    page.write_text(f"{deadline.MARK}\n<!-- end of table -->\n")
    words = [
        str(tmp_path / "data"),
        "--bundle",
        str(tiny_bundle_path),
        "--seconds",
        "0",
        "--repeat",
        "1",
        "-o",
        str(output),
    ]
    assert deadline.main([*words, "--docs", str(page)]) in (0, 4)
    report = json.loads(output.read_text())
    rows = report["rows"]
    assert report["dataset"] == "data" and str(tmp_path) not in page.read_text()
    assert [entry["ms"] is None for entry in rows] == [True] + [False] * len(deadline.SHARES)
    times = [entry["ms"] for entry in rows[1:]]
    assert times == sorted(times, reverse=True)
    assert rows[-1]["kept"][1] <= rows[1]["kept"][1] <= rows[0]["kept"][1]
    assert page.read_text().count("\n| ") == 1 + len(rows)
    assert deadline.main(["--tables", str(output), "--docs", str(page)]) in (0, 4)
    with pytest.raises(SystemExit):
        deadline.main([])
