"""`benchmarks/worst_case.py` on a tiny bundle: what is built keeps more, and what is compared is what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import worst_case
from built_inputs import BuiltImage, built_image, patched, patterns
from worst_case import merged_run

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.openvino_graphs import ALL_IN_ORDER
from dovit_deploy.families.cost import cost_model
from dovit_deploy.runtime.results import RunTiming, TokenReport
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.tasks import predictor_for


def test_the_search_betters_the_best_pattern_and_is_repeatable(tiny_bundle_path) -> None:
    with Session(tiny_bundle_path, threads=1) as session:
        settings, predictor = RunSettings.resolve(session.bundle.manifest), predictor_for(session)
        drawn = patterns(session.bundle.manifest.spec.size, np.random.default_rng(0))
        plain = max(sum(session.run_one(predictor.to_input(rgb), settings)[1].kept[1:]) for rgb in drawn)
        untouched, built, again = (built_image(session, rounds=rounds) for rounds in (0, 25, 25))
    assert untouched.running == plain < built.running
    np.testing.assert_array_equal(built.rgb, again.rgb)


def test_only_patches_that_stopped_are_exchanged() -> None:
    keep = np.ones((3, 3), dtype=bool)
    keep[1, 2] = keep[2, 0] = False
    report = TokenReport((9, 7), 1.0, 1.0, (np.ones((3, 3), dtype=bool), keep), (), RunTiming(1.0, (1.0,)))
    # 40 pixels are two patches and a half.
    image = BuiltImage(np.zeros((40, 40, 3), dtype=np.uint8), report)
    found = patched(image, [np.full((40, 40, 3), 9, dtype=np.uint8)], 16, np.random.default_rng(0))
    expected = np.zeros((40, 40), dtype=np.uint8)
    expected[16:32, 32:], expected[32:, :16] = 9, 9
    np.testing.assert_array_equal(found[..., 0], expected)
    assert not image.rgb.any() and not image.keeps_all and image.running == 7


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_where_nothing_stops_all_three_graphs_do_the_same_work(engine, tiny_bundle_path) -> None:
    if not packages.is_there(engine):
        pytest.skip(f"the package {engine} is not installed")
    with Session(tiny_bundle_path, engine=engine, threads=1) as session:
        manifest = session.bundle.manifest
        pixels = np.random.default_rng(0).normal(size=(1, 3, *manifest.spec.size)).astype(np.float32)
        settings = RunSettings.stop_nothing(manifest.spec)
        staged, report = session.run_one(pixels, settings)
        dense, _ = session.run_one(pixels, RunSettings.resolve(manifest, dense=True))
        assert report.kept == merged_run(session, pixels, settings) == (manifest.spec.tokens,) * len(report.kept)
        buckets = [getattr(session.engine(f"stage{number}"), "buckets", ()) for number in range(1, len(report.kept))]
    np.testing.assert_allclose(staged, dense, atol=1e-4 * max(1.0, float(np.abs(dense).max())))
    # What is above the dense network by count is the auxiliary heads and nothing else.
    auxiliary = cost_model(manifest.spec).actual(report.kept).gates / 1e9
    assert report.gmacs_actual - report.gmacs_dense == pytest.approx(auxiliary) and auxiliary > 0
    # Nothing is computed for padding, or to find what stopped.
    assert all(found in ((), (ALL_IN_ORDER,)) for found in buckets)


def test_the_whole_command(tiny_bundle_path, tmp_path, monkeypatch, capsys) -> None:
    output, image = tmp_path / "worst.json", tmp_path / "built.png"
    words = ["--bundle", str(tiny_bundle_path), "--pairs", "3", "--rounds", "3", "-o", str(output)]
    monkeypatch.setattr(worst_case, "ALLOWED", 1000.0)
    assert worst_case.main([*words, "--image", str(image)]) == 0
    report = json.loads(output.read_text())
    assert [(row["case"], row["form"]) for row in report["rows"]] == [
        (case, form) for case in ("raised", "built") for form in ("staged", "merged")
    ]
    tokens = Bundle.open(tiny_bundle_path).manifest.spec.tokens
    assert report["engine"] == "onnxruntime fp32" and set(report["rows"][0]["kept"]) == {tokens}
    assert all(row["quartiles"][0] <= row["over_dense"] <= row["quartiles"][1] for row in report["rows"])
    with Session(tiny_bundle_path) as session:
        again = predictor_for(session).predict(image).tokens.kept
    assert list(again) == report["rows"][2]["kept"]
    monkeypatch.setattr(worst_case, "ALLOWED", 0.0)
    assert worst_case.main(words) == 4
    assert "raised, staged: " in capsys.readouterr().out


def test_a_model_without_gates_is_refused(dense_bundle_path, capsys) -> None:
    with pytest.raises(SystemExit):
        worst_case.main(["--bundle", str(dense_bundle_path)])
    assert "no gates" in capsys.readouterr().err
