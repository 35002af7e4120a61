"""Simulated calibrations and streams on losses whose truth is known; nothing is rendered or run here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import promise
import pytest

DAY = np.array([0.02, 0.05, 0.08, 0.2, 0.3]) * np.random.default_rng(0).uniform(0.5, 1.5, (40, 1))


def test_settings_below_the_limit_are_shown_and_none_above() -> None:
    assert promise.promised(DAY[:20], np.tile(DAY[20:], (20, 1)), 0.12) == 3
    assert promise.promised(DAY[:20], np.tile(DAY[20:], (20, 1)), 0.001) == 0


def test_a_promise_that_is_broken_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = DAY.mean(axis=0)
    assert promise.drawn_anew(DAY, 0.99 * float(truth[2]), 20)["broken"] == 0
    monkeypatch.setattr(promise, "promised", lambda searched, tested, limit: 4)
    assert promise.drawn_anew(DAY, 0.99 * float(truth[3]), 20)["broken"] == 1
    assert promise.resplit(DAY, 0.15, 20)["broken"] > 0.8


def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what a drive's file lacks."""
    asked = []
    monkeypatch.setattr(promise, "Session", lambda *words, **more: pytest.MonkeyPatch.context())
    monkeypatch.setattr(promise, "Bundle", type("Opens", (), {"open": staticmethod(lambda path: path)}))
    monkeypatch.setattr(promise, "Predictor", lambda session: None)

    def drive(predictor, number, conditions):
        asked.append((number, tuple(conditions)))
        return {name: [0.1] for name in conditions}

    monkeypatch.setattr(promise, "_drive", drive)
    (tmp_path / "drive-0000.json").write_text(json.dumps({"day": [0.2], "night": [0.3]}))
    found = promise.measured(Path("x.dovit"), tmp_path, 2)
    assert asked == [(0, ("fog",)), (1, ("day", "fog", "night"))]
    assert found["day"].tolist() == [[0.2], [0.1]]
    promise.measured(Path("x.dovit"), tmp_path, 2)
    assert len(asked) == 2


def test_fog_hides_what_is_far_and_night_what_is_bright() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (60, 40, 3), dtype=np.uint8)
    misty = promise.fog(rgb)
    assert misty.shape == rgb.shape and misty.dtype == rgb.dtype
    assert misty[:20].std() < 0.3 * rgb[:20].std() and misty[:20].std() < misty[50:].std()
    assert promise.night(rgb).mean() < 0.2 * rgb.mean()
