"""The replay of recorded costs: nothing is lost, failures cost what they must, and small segments keep workers even."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.paths import ROOT


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_scaling", ROOT / "benchmarks" / "scaling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_forty_clips_of_threefold_cost_keep_two_workers_even(scaling: ModuleType) -> None:
    """A clip of 30 s is three segments of 10 s; each frame costs 40 to 120 ms."""
    for seed in range(20):
        chance = random.Random(seed)
        costs = [chance.uniform(1, 3) for _ in range(40)]
        segments = [scaling.Segment(100, 4 * cost, 10.0) for cost in costs for _ in range(3)]
        done = scaling.replay(segments, 2)
        assert done.spread < 0.05 and sum(done.busy) == pytest.approx(sum(4 * cost * 3 for cost in costs))


def test_failures_cost_time_and_lose_nothing(scaling: ModuleType) -> None:
    segments = [scaling.Segment(100, 10.0, 10.0)] * 500
    calm, rough = scaling.replay(segments, 10), scaling.replay(segments, 10, failures=20.0, restart=30.0)
    assert calm.seconds == pytest.approx(500.0) and calm.use == pytest.approx(1.0) and calm.lost == 0
    assert sum(rough.busy) - rough.lost == pytest.approx(5000.0) and rough.lost > 0
    assert rough.seconds > calm.seconds and rough.use < 1


def test_rows_are_cut_as_a_batch_cuts_them(scaling: ModuleType, tmp_path: Path) -> None:
    rows = [{"time_s": number / 4, "latency_ms": {"total": 100.0}} for number in range(10)]
    path = tmp_path / "frames.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    segments = scaling.segments_from_rows(path, 1.0, 0.5)
    assert [segment.frames for segment in segments] == [4, 4, 2]
    assert segments[0].seconds == pytest.approx(0.9) and segments[0].video_s == pytest.approx(1.0)
    scaled = scaling.scaled(segments, 50.0, overhead=0.5)
    assert scaled[0].seconds == pytest.approx(0.7) and scaled[0].video_s == segments[0].video_s
    assert sum(segment.video_s for segment in scaling.repeated(segments, 0.01)) >= 36
