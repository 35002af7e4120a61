"""Rows and their statistics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dovit_deploy.runtime.outputs import RunReport, names_from_paths


def row(number: int) -> dict[str, object]:
    return {
        "index": number,
        "source": "x",
        "time_s": number / 25,
        "windows": 1,
        "latency_ms": {"model": float(number)},
        "tokens": {"total": 10, "kept": [10, number]},
        "flops_saved": number / 100,
    }


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "frames.jsonl"
    with RunReport(path) as report:
        for number in range(3):
            report.add(row(number))
            assert len(path.read_text().splitlines()) == number + 1
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0, 1, 2]
    assert report.frames == 3


def test_statistics_have_the_shape_of_a_row_without_what_identifies_it(tmp_path: Path) -> None:
    report = RunReport(tmp_path / "frames.jsonl")
    for number in range(101):
        report.add(row(number))
    found = report.statistics()
    assert set(found) == {"windows", "latency_ms", "tokens", "flops_saved"}
    assert found["latency_ms"]["model"] == {"mean": 50.0, "p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert [stage["mean"] for stage in found["tokens"]["kept"]] == [10.0, 50.0]
    assert np.isclose(found["flops_saved"]["mean"], 0.5)


def test_no_rows_no_statistics(tmp_path: Path) -> None:
    assert RunReport(tmp_path / "frames.jsonl").statistics() == {}


def test_what_was_begun_after_the_last_whole_row_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "frames.jsonl"
    with RunReport(path) as report:
        report.add(row(0))
    whole = path.read_text()
    path.write_text(whole + '{"index": 1, "sou')
    report.keep_whole()
    assert path.read_text() == whole


def test_results_are_named_after_stems_and_never_twice() -> None:
    names = names_from_paths(tuple(map(Path, ("a/x.png", "a/x.jpg", "a/y.png", "b/z.png", "c/z.png"))))
    assert names["a/y.png"] == "y"
    assert names["a/x.png"] == "x.png"
    assert names["a/x.jpg"] == "x.jpg"
    assert len(set(names.values())) == 5


def test_results_lie_in_the_folders_below_the_sources_own() -> None:
    paths = tuple(map(Path, ("in/x.png", "in/s/x.png", "in/s/x.jpg", "in/y.jpg", "in/y.png/x.png")))
    names = names_from_paths(paths, Path("in"))
    assert names["in/x.png"] == "x"
    assert (names["in/s/x.png"], names["in/s/x.jpg"]) == ("s/x.png", "s/x.jpg")
    # "y.png" is a folder already.
    assert (names["in/y.jpg"], names["in/y.png/x.png"]) == ("y-2", "y.png/x")
