"""Other decisions at gates: what each form stops, that it really runs, and that MACs are equal where it is compared."""

from __future__ import annotations

import json

import numpy as np
import pytest
from decisions import compare
from decisions.forms import AtGate, Form, fitted_curves, forms, least, logistic, mean, own, same, threshold_for
from decisions.steered import FirstStageKept, RecordedGates, recorded, run_with
from report import END

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.measure.intervals import Blocks
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from tests.datasets.labelled_folder import write_labelled
from tests.tiny import tiny_pixels

GRID = (3, 4)


def at_gate(confidence, label=None, stopped=()) -> AtGate:
    running = np.ones(12, dtype=bool)
    running[list(stopped)] = False
    values = np.where(running, np.asarray(confidence, dtype=float), np.nan)
    found = np.zeros(12, dtype=np.int64) if label is None else np.asarray(label)
    return AtGate(0, values, np.where(running, found, -1), running, GRID)


def test_a_neighbourhood_is_of_those_that_run() -> None:
    values = np.arange(12) / 20 + 0.4
    seen = at_gate(values, stopped=(0, 6))
    # Patch 5 is in the middle of 0 1 2, 4 5 6, 8 9 10; of these 0 and 6 have stopped.
    assert least(seen)[5] == values[1] and mean(seen)[5] == pytest.approx(values[[1, 2, 4, 5, 8, 9, 10]].mean())
    # Patch 11 is in a corner.
    assert least(seen)[11] == values[7] and mean(seen)[11] == pytest.approx(values[[7, 10, 11]].mean())
    label = np.array([1, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2])
    assert same(at_gate(values, label, stopped=(0, 6)))[5] == values[5]
    assert same(at_gate(values, label, stopped=(0,)))[5] == 0
    assert not Form("", least).leaving(seen, 0.0)[[0, 6]].any()


def test_the_surest_of_each_class_run_on() -> None:
    confidence = [0.9, 0.95, 0.99, 0.7, 0.9, 0.96, 0.2, 0.9, 0.9, 0.9, 0.9, 0.9]
    label = [0, 0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 3]
    seen = at_gate(confidence, label, stopped=(8,))
    assert np.flatnonzero(Form("", own).leaving(seen, 0.8)).tolist() == [0, 1, 2, 4, 5, 7, 9, 10, 11]
    # 2 is the surest of class 0, 5 of 1, 7 the only one of 2; among equals of 3 the first.
    assert np.flatnonzero(Form("", own, kept=1).leaving(seen, 0.8)).tolist() == [0, 1, 4, 10, 11]


def test_curves_say_how_often_a_gate_is_right() -> None:
    draw = np.random.default_rng(0)
    odds = draw.normal(1, 2, 20000)
    right = draw.random(20000) < 1 / (1 + np.exp(-(0.5 * odds - 1)))
    slope, offset = logistic(odds, right, start=(1.0, 0.0))
    assert slope == pytest.approx(0.5, abs=0.05) and offset == pytest.approx(-1, abs=0.1)
    assert logistic(odds[:0], right[:0], start=(0.7, 0.3)) == pytest.approx((0.7, 0.3))
    # Class 1 is wrong half of the time however sure the gate is of it, class 0 is right.
    label = np.tile([0, 1], 500)[None]
    final = np.where(label[0] == 1, np.tile([0, 1, 0, 0], 250), 0)
    one = RecordedGates(np.full((1, 1000), 0.9), label, final)
    curves = fitted_curves([one], classes=2)
    seen = AtGate(0, np.full(2, 0.9), np.array([0, 1]), np.ones(2, bool), (1, 2))
    by_gate, by_class = (curves[name](seen) for name in ("one per gate", "one per class"))
    assert by_gate == pytest.approx([0.75, 0.75], abs=0.02)
    assert by_class[0] > 0.95 and by_class[1] == pytest.approx(0.5, abs=0.05)


def test_one_threshold_is_the_rule_and_the_first_stage_runs_once(tiny_bundle_path) -> None:
    bundle = Bundle.open(tiny_bundle_path)
    plain = Form("", own)
    with FirstStageKept(bundle, threads=1) as session, Session(bundle, threads=1) as rule:
        manifest = bundle.manifest
        for seed in (0, 1):
            pixels = tiny_pixels(manifest.spec.size, seed).numpy()
            session.next_image()
            for threshold in (0.45, 0.6):
                logits, kept = run_with(session, pixels, lambda seen, at=threshold: plain.leaving(seen, at))
                settings = RunSettings.resolve(manifest, thresholds=threshold)
                expected, report = rule.run_one(pixels, settings)
                assert kept == report.kept
                np.testing.assert_array_equal(logits, expected)
            seen = recorded(session, pixels)
            assert seen.confidence.shape == seen.label.shape and not np.isnan(seen.confidence).any()
        assert len(set(kept)) > 1


def test_thresholds_save_what_is_predicted(tiny_bundle_path) -> None:
    bundle = Bundle.open(tiny_bundle_path)
    spec = bundle.manifest.spec
    with FirstStageKept(bundle, threads=1) as session:
        seen = [recorded(session, tiny_pixels(spec.size, seed).numpy()) for seed in range(3)]
    every = forms(fitted_curves(seen, spec.classes))
    assert len({form.name for form in every}) == len(every) == 8
    # Twenty tokens of many classes are too few for the others.
    for form in every[:5]:
        found = [threshold_for(form, share, seen, spec) for share in (0.02, 0.1)]
        assert found[0] > found[1]


def test_forms_are_compared_where_the_set_saves_as_much() -> None:
    def one(saved, agreement):
        counts = np.zeros((2, 8, 3, 2))
        counts[:, :, 0], counts[:, :, 1:] = 50, 100
        return compare.MeasuredForm(
            np.array(saved)[:, None] * np.ones(8), np.array(agreement)[:, None] + np.zeros(8), counts
        )

    plain, other = Form(compare.PLAIN, own), Form("other", least)
    found = {plain: one([0.2, 0.6], [1.0, 0.8]), other: one([0.3, 0.4], [0.97, 0.96])}
    rows = compare.compared(found, Blocks(np.arange(8)))
    gains = {(row["form"], row["saved"]): row["gain"] for row in rows}
    assert gains["other", 0.4] == pytest.approx(6.0) and gains["other", 0.3] == pytest.approx(2.0)
    assert ("other", 0.5) not in gains and gains[compare.PLAIN, 0.5] == 0
    assert rows[-1]["gain_interval"] == pytest.approx((6.0, 6.0))


def test_the_script_from_bundle_to_page(tiny_bundle_path, tmp_path, monkeypatch) -> None:
    # With everything stopped the tiny network saves 22 %.
    monkeypatch.setattr(compare, "RUN_AT", (0.02, 0.12))
    monkeypatch.setattr(compare, "SHOWN_AT", (0.07,))
    data = write_labelled(tmp_path / "set", images=8)
    page = tmp_path / "page.md"
    page.write_text(f"{compare.MARK}\n{END}\n")
    words = [str(tiny_bundle_path), "--dataset", str(data), "--fitted", "val", "--count", "8"]
    compare.main([*words, "-o", str(tmp_path / "found.json"), "--docs", str(page)])
    report = json.loads((tmp_path / "found.json").read_text())
    (model,) = report["models"]
    assert model["images"] == model["blocks"] == 8 and set(model["thresholds"]) >= {"one per class", "keep 2 per class"}
    assert str(tmp_path) not in page.read_text() and "| least of 3x3 |" in page.read_text()
    compare.main(["--tables", str(tmp_path / "found.json"), "--docs", str(page)])
    assert "| mean of 3x3 |" in page.read_text()
