"""`model.py` of a repository under a fake of the server's module: `fake_backend.py` says what that does not show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dovit_deploy import Session
from tests.tiny import tiny_pixels
from tests.triton.conftest import plan_of
from tests.triton.fake_backend import FakeRequest, MetricFamily, TritonModelException, loaded_model

PIXELS = tiny_pixels((56, 72), images=3).numpy()


def test_images_are_answered_as_alone_with_thresholds_of_their_own(
    tiny_repository: Path, tiny_bundle_path: Path
) -> None:
    full = np.linspace(0.3, 0.9, 10, dtype=np.float32).reshape(1, 10)
    given = (
        {},
        {"thresholds": np.array([[0.5], [0.9], [0.6]], np.float32)},
        {"thresholds": np.array([[0.5, 0.8]] * 3, np.float32), "floor": np.array([[0.4], [0.0], [0.5]], np.float32)},
        {"thresholds": np.repeat(full, 3, axis=0)},
    )
    with loaded_model(tiny_repository / "tiny" / "1") as model, Session(tiny_bundle_path, threads=1) as session:
        responses = model.execute([FakeRequest({"pixels": PIXELS, **limits}) for limits in given])
        for limits, response in zip(given, responses, strict=True):
            for number in range(3):
                thresholds = limits["thresholds"][number] if "thresholds" in limits else None
                if thresholds is not None:
                    thresholds = {1: lambda t: float(t[0]), 2: lambda t: t, 10: lambda t: t.reshape(2, 5)}[
                        thresholds.size
                    ](thresholds)
                floor = float(limits["floor"][number, 0]) if "floor" in limits else None
                logits, report = session.run(PIXELS[number : number + 1], thresholds, floor)
                assert np.array_equal(response.array("logits")[number : number + 1], logits)
                assert response.array("kept")[number].tolist() == list(report.kept)
                assert response.array("gmacs_actual")[number].tolist() == [report.gmacs_actual]
                assert response.array("gmacs_dense")[number].tolist() == [report.gmacs_dense]
                assert response.array("milliseconds")[number] > 0
    assert len({str(response.array("kept")) for response in responses}) == len(given), "thresholds must matter here"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"pixels": np.full_like(PIXELS, np.nan)}, "NaN"),
        ({"pixels": PIXELS[:, :, :50]}, "(1, 3, 56, 72)"),
        ({"pixels": PIXELS, "thresholds": np.full((3, 1), 7, np.float32)}, "threshold 7 is outside [0, 1]"),
        ({"pixels": PIXELS, "thresholds": np.full((3, 3), 0.5, np.float32)}, "2 gates"),
        ({"pixels": PIXELS, "floor": np.full((3, 1), -1, np.float32)}, "floor -1 is outside [0, 1]"),
        ({}, "no pixels given"),
    ],
)
def test_a_request_that_is_refused_leaves_the_others_as_they_are(tiny_repository: Path, bad, words: str) -> None:
    with loaded_model(tiny_repository / "tiny" / "1") as model:
        (alone,) = model.execute([FakeRequest({"pixels": PIXELS})])
        before, refused, after = model.execute(
            [FakeRequest(one) for one in ({"pixels": PIXELS}, bad, {"pixels": PIXELS})]
        )
    assert refused.error.code == "INVALID_ARG"
    assert words in str(refused.error)
    for response in (before, after):
        assert np.array_equal(response.array("logits"), alone.array("logits"))
    labels = (("model", "tiny"), ("version", "1"))
    assert MetricFamily.made["dovit_requests_refused_total"].values == {labels: 1.0}


def test_what_is_wanted_is_given_and_counted(tiny_repository: Path) -> None:
    with loaded_model(tiny_repository / "tiny" / "1") as model:
        (response,) = model.execute([FakeRequest({"pixels": PIXELS}, wanted=("kept", "gmacs_actual"))])
    assert [tensor.name for tensor in response.output_tensors] == ["kept", "gmacs_actual"]
    counted = {name: family.values for name, family in MetricFamily.made.items()}
    labels = {"model": "tiny", "version": "1"}
    assert counted["dovit_images_total"] == {tuple(labels.items()): 3.0}
    (actual,) = counted["dovit_gmacs_actual_total"].values()
    assert actual == pytest.approx(response.array("gmacs_actual").sum())
    for stage, kept in enumerate(response.array("kept").sum(axis=0)):
        assert counted["dovit_tokens_total"][tuple(sorted({**labels, "stage": str(stage)}.items()))] == kept


def test_a_model_without_gates_takes_pixels_alone(dense_bundle_path: Path, tmp_path: Path) -> None:
    from dovit_deploy.triton.repository import write_repository

    write_repository(plan_of(dense_bundle_path), tmp_path / "repository")
    with (
        loaded_model(tmp_path / "repository" / "tiny" / "1") as model,
        Session(dense_bundle_path, threads=1) as session,
    ):
        (response,) = model.execute([FakeRequest({"pixels": PIXELS})])
        assert np.array_equal(response.array("logits"), session.run(PIXELS)[0])
        assert response.array("kept").shape == (3, 1)


def test_what_cannot_be_loaded_is_said_in_a_line(tiny_repository: Path, tmp_path: Path) -> None:
    version = tmp_path / "tiny" / "1"
    shutil.copytree(tiny_repository / "tiny" / "1", version)
    weights = version / "bundle.dovit" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(TritonModelException, match=r"weights\.safetensors.*differs"), loaded_model(version):
        pass
    settings = json.loads((version / "settings.json").read_text())
    (version / "settings.json").write_text(json.dumps({**settings, "engine": "abacus"}))
    shutil.copy(tiny_repository / "tiny" / "1" / "bundle.dovit" / weights.name, weights)
    with pytest.raises(TritonModelException, match="unknown engine 'abacus'"), loaded_model(version):
        pass


def test_images_run_side_by_side_as_settings_and_batches_allow(tiny_repository: Path, tmp_path: Path) -> None:
    version = tmp_path / "tiny" / "1"
    shutil.copytree(tiny_repository / "tiny" / "1", version)
    settings = json.loads((version / "settings.json").read_text())
    assert settings["side_by_side"] is None
    (version / "settings.json").write_text(json.dumps({**settings, "side_by_side": 3}))
    for max_batch, expected in ((8, 3), (2, 2)):
        with loaded_model(version, max_batch=max_batch) as model:
            assert model.session.callers == expected
