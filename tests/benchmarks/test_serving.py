"""What `benchmarks/serving.py` makes of the calls that it timed, and what it says where there is no server."""

from __future__ import annotations

import os
import time

import pytest
import serving
from serving import TimedCall, figures_of, processor_ms


def test_ratios_are_of_calls_that_follow_each_other() -> None:
    direct = [TimedCall(wall, wall) for wall in (10.0, 20.0, 100.0)]
    slower = [TimedCall(2 * call.wall, call.cpu + 1) for call in direct]
    figures = figures_of({"direct": direct, "grpc": slower})
    assert figures["direct"]["cpu_ratio"] == figures["direct"]["p99_ratio"] == 1.0
    assert figures["grpc"]["p50_ratio"] == 2.0
    assert (figures["grpc"]["cpu_ms"], figures["grpc"]["cpu_ratio"]) == (21.0, 1.05)


def test_processor_time_is_that_of_the_processes() -> None:
    before = processor_ms([os.getpid()])
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert processor_ms([os.getpid()]) > before + 25


def test_where_there_is_no_server_a_line_says_how_to_get_one(
    tiny_bundle_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        serving, "why_not", lambda: "the server is not installed: pip install --no-deps nvidia-pytriton"
    )
    with pytest.raises(SystemExit) as caught:
        serving.main(["--bundle", str(tiny_bundle_path), "--frames", "2"])
    assert caught.value.code == 5
    assert capsys.readouterr().err.startswith("error: the server is not installed")
