"""`benchmarks/soak.py` on a tiny bundle, and what it calls growth."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import soak
from soak import Soaked, SoakPart, random_keep

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.runtime.session import Session


def part(**changed) -> SoakPart:
    return SoakPart(**{"frames": 9, "resident_mib": 100.0, "mappings": 50, "p50_ms": 1.0, "p999_ms": 2.0, **changed})


def test_flat_is_no_failure_and_growth_is_named() -> None:
    assert Soaked([], [], [part(), part(resident_mib=109.0, mappings=54, p999_ms=3.9)]).failures == []
    assert "111 MiB" in Soaked([], [], [part(), part(resident_mib=111.0)]).failures[0]
    assert "50 to 56" in Soaked([], [], [part(), part(mappings=56)]).failures[0]
    assert "2.0 to 4.1 ms" in Soaked([], [], [part(), part(p999_ms=4.1)]).failures[0]
    cold_first = [part(p999_ms=200.0), part(), part(), part(p999_ms=4.1)]
    assert "2.0 to 4.1 ms" in Soaked([], [], cold_first).failures[0], "a slow first part excuses nothing"
    assert Soaked([], [], [part(mappings=None), part(mappings=None)]).failures == []


def test_decisions_are_nested_and_differ(tiny_bundle_path) -> None:
    spec, random = Bundle.open(tiny_bundle_path).manifest.spec, np.random.default_rng(1)
    drawn = [random_keep(spec, random) for _ in range(20)]
    for keep in drawn:
        assert len(keep) == len(spec.gates)
        for before, after in itertools.pairwise(keep):
            assert not (after & ~before).any()
    assert len({tuple(int(grid.sum()) for grid in keep) for keep in drawn}) > 10


def test_cold_frames_reach_every_size_of_every_stage(tiny_bundle_path, monkeypatch) -> None:
    seen = []
    with Session(tiny_bundle_path) as session:
        spec = session.bundle.manifest.spec
        monkeypatch.setattr(session, "run_one", lambda pixels, settings: seen.append(settings.replay))
        soak.soak(session, frames=70, cold=60)
    cold, warm = seen[:60], seen[60:]
    counts = [[len(index) for index in replay] for replay in cold]
    assert all(len(set(each)) == 1 for each in counts), "the same at all gates"
    assert counts[0][0] <= spec.extra_tokens + 1 and counts[-1][0] == spec.tokens
    assert any(len({len(index) for index in replay}) > 1 for replay in warm)


def test_the_whole_command(tiny_bundle_path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(soak, "COLD", 10)
    output = tmp_path / "soak.json"
    words = ["--bundle", str(tiny_bundle_path), "--engine", "onnxruntime", "--frames", "60", "-o", str(output)]
    # Frames of a tiny network take less than a millisecond: their slowest is chance.
    monkeypatch.setattr(soak, "SLOWER", 1000.0)
    assert soak.main(words) == 0
    report = json.loads(output.read_text())
    assert [entry["frames"] for entry in report["parts"]] == [10 + number * 5 for number in range(1, 11)]
    assert report["engine"] == "onnxruntime fp32" and report["cold"].keys() == {"p50_ms", "p99_ms"}
    assert report["warm"]["p99_ms"] >= report["warm"]["p50_ms"] > 0


def test_too_few_frames_and_models_without_gates_are_refused(dense_bundle_path, capsys) -> None:
    with pytest.raises(SystemExit):
        soak.main(["--frames", "100"])
    assert "at least 310" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        soak.main(["--bundle", str(dense_bundle_path)])
    assert "no gates" in capsys.readouterr().err


def test_a_precision_that_the_bundle_lacks_is_said_in_a_line(tiny_bundle_path, capsys) -> None:
    words = ["--bundle", str(tiny_bundle_path), "--engine", "onnxruntime", "--precision", "int8"]
    with pytest.raises(SystemExit, match="2"):
        soak.main(words)
    error = capsys.readouterr().err
    assert "int8" in error and "Traceback" not in error
