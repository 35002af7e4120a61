"""What changed since an earlier benchmark: only what noise does not explain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dovit_deploy.errors import CheckError, InputError, UsageError
from dovit_deploy.measure.bench_compare import compared, comparison_lines, earlier_report, refuse_incomparable, verdict
from dovit_deploy.measure.bench_limits import check_limit, fail_if
from dovit_deploy.measure.bench_records import BenchReport, BenchResult, FirstRuns, FrameMacs, FrameResult, Side
from dovit_deploy.measure.bench_text import COLUMNS, CSV_MARK, csv_from_bench, markdown_from_bench
from tests.tiny import tiny_spec

ROUNDS = 5


def report(
    *,
    factor: float = 1.0,
    frames: int = 10,
    seed: int = 0,
    drift: tuple[float, ...] = (1.0,) * ROUNDS,
    hardest: float = 10.0,
    dense: bool = True,
) -> BenchReport:
    """Frames of 5 to `hardest` ms, each run with 2 % of noise; `drift`: how much longer each round takes."""
    rng = np.random.default_rng(seed)
    measured = []
    for number in range(frames):
        times = factor * (5 + (hardest - 5) * number / frames) * np.array(drift) * rng.normal(1, 0.02, ROUNDS)
        measured.append(
            FrameResult(
                frame=f"{number}.png 0",
                kept=(37, 20),
                flops_saved=0.4,
                speedup=2.0,
                gmacs=FrameMacs(dense=1.0, actual=0.6),
                sha256=f"{number}",
                dense_ms=tuple(2 * times) if dense else None,
                dynamic_ms=tuple(times),
            )
        )
    latency = {"mean": 8.0, "p50": 7.0, "p90": 9.0, "p99": 12.5}
    side = Side.model_validate({"latency_ms": latency, "cpu_ms": 7.0})
    result = BenchResult(
        engine="onnxruntime",
        precision="fp32",
        dense=side if dense else None,
        dynamic=side,
        speedup=2.0 if dense else None,
        predicted_speedup=2.2,
        realised_efficiency=0.9 if dense else None,
        flops_saved=0.4,
        kept=(37.0, 20.5),
        cpu_speedup=None,
        engine_factor=1.0,
        first_runs=FirstRuns(p50=9.0, p99=9.0, most=9.0, compiled_ms=0.0),
        per_frame=tuple(measured),
    )
    return BenchReport(
        machine={"cpu": "a | b"},
        versions={"numpy": "2"},
        bundle="/x/tiny.dovit",
        frames=frames,
        threads=1,
        repeat=ROUNDS,
        results=(result,),
    )


def test_the_same_again_is_no_change() -> None:
    for seed in range(1, 3):
        for change in compared(report(), report(seed=seed), Path("old.json")).changes:
            assert verdict(change).startswith("no change beyond noise"), change
            assert change.frames == 10 and change.interval[0] < 1 < change.interval[1]


@pytest.mark.parametrize(("factor", "said"), [(0.8, "faster by 1.2"), (1.25, "slower by 1.2")])
def test_a_change_is_seen_with_its_interval(factor: float, said: str) -> None:
    comparison = compared(report(), report(factor=factor, seed=7), Path("old.json"))
    assert [change.run for change in comparison.changes] == ["dense", "dynamic"]
    for change in comparison.changes:
        assert verdict(change).startswith(said)
        assert change.interval[0] < 1 / factor < change.interval[1]
        assert change.ratio == pytest.approx(change.before_ms / change.now_ms)
    assert comparison_lines(comparison)[1].startswith(f"onnxruntime fp32 dynamic against old.json: {said}")


def test_rounds_that_the_machine_makes_slow_are_noise() -> None:
    """Three rounds of five are slower, two are faster: that is the machine; all five alike would be a change."""
    # Frames of one cost, which by themselves would give a narrow interval.
    before = report(hardest=5.0)
    mixed, steady = (report(hardest=5.0, seed=3, drift=drift) for drift in ((1.15, 0.9, 1.2, 0.88, 1.12), (1.13,) * 5))
    for change in compared(before, mixed, Path("old.json")).changes:
        assert change.ratio < 0.95 and verdict(change).startswith("no change beyond noise"), change
    for change in compared(before, steady, Path("old.json")).changes:
        assert verdict(change).startswith("slower by 1.1"), change


def test_only_frames_that_both_have_are_compared() -> None:
    fewer = compared(report(frames=10), report(frames=7, seed=2), Path("old.json")).changes[0]
    assert (fewer.frames, fewer.interval) == (7, None)
    assert "too few frames for an interval, at least 8 are needed" in verdict(fewer)
    before = report()
    refuse_incomparable(before, Path("old.json"), pairs=[("onnxruntime", "fp32")], frames=["3", "new"])
    with pytest.raises(InputError, match="none of its frames"):
        refuse_incomparable(before, Path("old.json"), pairs=[("onnxruntime", "fp32")], frames=["new"])
    with pytest.raises(InputError, match="it has onnxruntime fp32, and now openvino fp32 is measured"):
        refuse_incomparable(before, Path("old.json"), pairs=[("openvino", "fp32")], frames=["3"])


def test_what_else_differs_is_said() -> None:
    now = report(seed=1).model_copy(update={"bundle": "/x/other.dovit", "machine": {"cpu": "c", "cores": 2}})
    lines = comparison_lines(compared(report(), now, Path("old.json")))
    assert "not as it was: bundle was /x/tiny.dovit, is /x/other.dovit" in lines
    assert "not as it was: machine: cores was not there, is 2" in lines
    assert not any("repeat" in line for line in lines)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("notes", "no report of dovit bench --json"),
        ("[" * 100_000, "nests"),
        ('{"frames": 3}', "no report of dovit bench --json"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=said):
        earlier_report(path)


def test_a_report_of_an_older_version_is_refused(tmp_path: Path) -> None:
    written = report().model_dump(mode="json")
    path = tmp_path / "old.json"
    path.write_text(json.dumps(written))
    assert earlier_report(path) == report()
    for frame in written["results"][0]["per_frame"]:
        for key in ("gmacs", "sha256", "dense_ms", "dynamic_ms"):
            del frame[key]
    path.write_text(json.dumps(written))
    with pytest.raises(InputError, match="without the times of each frame; measure again"):
        earlier_report(path)


@pytest.mark.parametrize("time", [0.0, -1.0, float("nan"), float("inf"), 1e308])
@pytest.mark.parametrize("key", ["dense_ms", "dynamic_ms"])
def test_what_is_no_time_is_refused(tmp_path: Path, key: str, time: float) -> None:
    written = report().model_dump(mode="json")
    written["results"][0]["per_frame"][0][key][0] = time
    path = tmp_path / "old.json"
    path.write_text(json.dumps(written))
    with pytest.raises(InputError, match=r"no report of dovit bench --json: a frame that takes .* ms"):
        earlier_report(path)


@pytest.mark.parametrize(
    ("expression", "holds"),
    [("p99>12", True), (" p99 >= 12.5 ", True), ("p99>12.5", False), ("speedup<=2", True), ("flops_saved<0.4", False)],
)
def test_a_limit(expression: str, holds: bool) -> None:
    limit = fail_if(expression)
    if not holds:
        check_limit(limit, report().results)
        return
    with pytest.raises(CheckError, match=r"of onnxruntime fp32 is (12.5 ms|2)$"):
        check_limit(limit, report().results)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p95>3",
        "p90",
        "p90=3",
        "p90>",
        "p90>x",
        "p90>nan",
        "p90>inf",
        "p90>3 4",
        "3<p90",
        "p90>1_0",
        "p90>\u0665",
        "p90>1e999",
    ],
)
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(UsageError, match=r"--fail-if.*p50, p90, p99, mean, speedup, flops_saved"):
        fail_if(text)


def test_what_is_not_known_is_within_no_limit() -> None:
    with pytest.raises(CheckError, match="speedup of onnxruntime fp32 is not known: the bundle has no dense form"):
        check_limit(fail_if("speedup<1"), report(dense=False).results)
    check_limit(fail_if("p50>100"), report(dense=False).results)


def test_as_csv() -> None:
    header, dense, dynamic = csv_from_bench(report()).splitlines()
    assert header == CSV_MARK
    row = dict(zip(COLUMNS, dynamic.split(","), strict=True))
    assert (row["run"], row["p99_ms"], row["speedup"], row["kept"]) == ("dynamic", "12.5", "2", "37 20.5")
    assert dense.split(",")[2] == "dense"
    (_, only) = csv_from_bench(report(dense=False)).splitlines()
    assert dict(zip(COLUMNS, only.split(","), strict=True))["speedup"] == ""


def test_as_markdown() -> None:
    text = markdown_from_bench(report(), tiny_spec())
    lines = text.splitlines()
    assert lines[0] == "<!-- dovit bench -->" and "a \\| b" in lines[1]
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4 and {line.replace("\\|", "").count("|") for line in table} == {9}
    assert "- onnxruntime fp32: 2.00x against onnxruntime fp32 dense = tokens 2.00x \\* engine 1.00x" in text
