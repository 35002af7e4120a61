"""Classifier: what it hands to the session, what it answers, and the answer as an image, a row and a file."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from dovit_deploy.commands.arguments import first_use
from dovit_deploy.errors import EnvironmentProblem, InputError, UsageError
from dovit_deploy.runtime.classification import Classifier
from dovit_deploy.runtime.paint import paint_label
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.tasks import predictor_for, task_from_manifest
from dovit_deploy.runtime.token_maps import paint_selections
from dovit_deploy.runtime.transforms import to_input
from tests.fakes import FakeClassifierSession, FakeSession, fake_classifier_manifest, fake_manifest


def image(height=120, width=200, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_session_sees_the_crop_and_the_answer_is_its_softmax():
    session, rgb = FakeClassifierSession(), image()
    result = Classifier(session).predict(rgb, decode_ms=3.0)
    manifest = session.bundle.manifest
    pixels = to_input(rgb, manifest.preprocessing, (64, 64))
    np.testing.assert_array_equal(session.calls[0][0], pixels)
    logits = session.run_one(pixels, RunSettings.resolve(manifest))[0][0].astype(np.float64)
    wanted = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(result.probabilities, wanted, rtol=1e-6)
    assert [entry.id for entry in result.classes] == np.argsort(-wanted)[:5].tolist()
    assert result.label.name == manifest.classes[int(wanted.argmax())].name
    assert result.label.probability == pytest.approx(wanted.max())
    timing = result.timing
    assert timing.decode == 3.0 and timing.total >= 3.0 and min(timing.preprocess, timing.model) > 0
    np.testing.assert_array_equal(Classifier(session).logits(pixels)[0], logits.astype(np.float32))


def test_tokens_know_where_the_model_looked():
    tokens = Classifier(FakeClassifierSession()).predict(image(144, 216)).tokens
    # 64 of 72 pixels of the shorter side, whose scale is 144 / 72.
    assert tokens.region is not None and (tokens.region.height, tokens.region.top) == (128.0, 8.0)
    assert tokens.region.left == 44.0 and tokens.input_size == (64, 64)
    assert tokens.kept[0] == tokens.total == 17
    whole = FakeClassifierSession(fake_classifier_manifest(shorter=None))
    assert Classifier(whole).predict(image()).tokens.region is None


def test_arguments_are_handed_on_and_top_is_heard():
    session = FakeClassifierSession()
    result = Classifier(session, top=3).predict(image(), dense=True)
    assert session.calls[-1][1].dense and len(result.classes) == 3
    assert result.tokens.flops_saved == 0
    assert len(Classifier(FakeClassifierSession(fake_classifier_manifest(classes=2))).predict(image()).classes) == 2
    with pytest.raises(UsageError, match="top 0"):
        Classifier(session, top=0)
    # More classes than a class map can hold are no fault here.
    many = FakeClassifierSession(fake_classifier_manifest(classes=1000))
    assert len(Classifier(many).predict(image()).probabilities) == 1000


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), 5])
def test_what_is_no_image(wrong):
    with pytest.raises(InputError, match="image:"):
        Classifier(FakeClassifierSession()).predict(wrong)


def test_the_answer_as_images_and_as_a_row():
    rgb = image(240, 320)
    result = Classifier(FakeClassifierSession()).predict(rgb)
    np.testing.assert_array_equal(result.plot(), paint_label(rgb, result.classes))
    np.testing.assert_array_equal(result.plot_tokens(), paint_selections(rgb, result.tokens))
    (key, top), *rest = result.facts().items()
    assert key == "top" and not rest and len(top) == 5
    first = result.classes[0]
    assert top[0] == {"id": first.id, "name": first.name, "probability": first.probability}


def test_the_answer_as_files(tmp_path):
    result = Classifier(FakeClassifierSession()).predict(image(240, 320))
    result.save(tmp_path / "answer.json")
    assert json.loads((tmp_path / "answer.json").read_text()) == result.facts()
    result.save(str(tmp_path / "answer.PNG"))
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "answer.PNG"))[..., ::-1], result.plot())
    with pytest.raises(UsageError, match=r"\.json or \.png"):
        result.save(tmp_path / "answer.txt")
    with pytest.raises(UsageError, match="no folder"):
        result.save(tmp_path / "absent" / "answer.json")
    for suffix in ("json", "png"):
        (tmp_path / f"taken.{suffix}").mkdir()
        with pytest.raises(EnvironmentProblem, match="cannot write"):
            result.save(tmp_path / f"taken.{suffix}")


def test_one_door_for_every_task():
    assert isinstance(predictor_for(FakeClassifierSession()), Classifier)
    assert isinstance(predictor_for(FakeSession()), Predictor)
    with pytest.raises(UsageError, match=r"task is classification.*predictor_for"):
        Predictor(FakeClassifierSession())
    with pytest.raises(UsageError, match="task is segmentation"):
        Classifier(FakeSession())
    backbone = fake_manifest().model_copy(update={"task": "features"})
    with pytest.raises(InputError, match="backbone without a head"):
        predictor_for(FakeSession(backbone))
    assert "dovit run" in first_use(Path("x.dovit"), fake_classifier_manifest())
    assert first_use(Path("x.dovit"), backbone) == "dovit bench x.dovit"


def test_what_each_task_can_save():
    segmentation, classification = (
        task_from_manifest(manifest) for manifest in (fake_manifest(), fake_classifier_manifest())
    )
    assert segmentation.checked(("masks", "tokens"), name="x") == ("masks", "tokens")
    assert classification.checked(("tokens", "overlay"), name="x") == ("tokens", "overlay")
    with pytest.raises(UsageError, match=r"'masks' given, and x names whole images; allowed: overlay, tokens"):
        classification.checked(("overlay", "masks"), name="x")
    assert classification.images_default == classification.video_default == ("overlay", "report")
    assert segmentation.images_default == ("overlay", "masks", "report")
