"""What the page is given: the answer of the model at the thresholds that it asks for."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from dovit_deploy.errors import InputError, SourceError, UsageError
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.view.viewer import REMEMBERED, Question, Viewer, question_from_json
from tests.fakes import FakeClassifierSession, FakeSession
from tests.view.test_frames import png


class ThreeFrames:
    count = 3

    def name(self, number):
        return f"frame {number}"

    def read(self, number):
        return np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def viewer(session=None, frames=None):
    return Viewer(session or FakeSession(), frames, max_pixels=10_000)


def test_an_answer_is_that_of_the_model_at_these_thresholds():
    session, frames = FakeSession(), ThreeFrames()
    answer = viewer(session, frames).answer(Question(1, "", (0.3, 0.4), False))
    wanted = Predictor(session).predict(frames.read(1), thresholds=[0.3, 0.4])
    np.testing.assert_array_equal(session.calls[0][1].thresholds[:, 0], np.float32([0.3, 0.4]))
    assert answer["kept"] == list(wanted.tokens.kept) and answer["flops_saved"] == wanted.tokens.flops_saved
    assert [picture["name"] for picture in answer["pictures"]] == ["input", "mask", "exit depth"]
    assert all(picture["address"].startswith("data:image/") for picture in answer["pictures"])
    assert sum(entry["share"] for entry in answer["classes"]) == pytest.approx(1)
    assert answer["name"] == "frame 1" and len(answer["key"]) == 3


def test_the_models_own_thresholds_and_dense():
    session = FakeSession()
    shown = viewer(session, ThreeFrames())
    assert shown.facts()["thresholds"] == [pytest.approx(0.9)] * 2 and shown.facts()["frames"] == [0, 2]
    shown.answer(Question(0, "", (), False))
    shown.answer(Question(0, "", (), True))
    assert session.calls[0][1].thresholds[0, 0] == np.float32(0.9) and session.calls[1][1].dense


def test_the_same_question_is_answered_once_and_the_last_ones_are_kept():
    session = FakeSession()
    shown = viewer(session, ThreeFrames())
    for _ in range(3):
        shown.answer(Question(0, "", (), False))
    assert len(session.calls) == 1
    for number in range(REMEMBERED):
        shown.answer(Question(0, "", (number / 100, 0.5), False))
    shown.answer(Question(0, "", (), False))
    assert len(session.calls) == REMEMBERED + 2


def test_a_dropped_image_is_answered_by_its_key():
    shown = viewer()
    key = shown.uploads.add(png(3, (40, 60)))
    assert shown.answer(Question(None, key, (), False))["name"] == "dropped image"
    assert shown.facts()["frames"] == []
    with pytest.raises(SourceError, match="drop it again"):
        shown.answer(Question(None, "gone", (), False))


@pytest.mark.parametrize(
    "question", [Question(3, "", (), False), Question(-1, "", (), False), Question(0, "", (0.5,), False)]
)
def test_what_is_not_there_or_does_not_fit_is_refused(question):
    with pytest.raises(UsageError):
        viewer(frames=ThreeFrames()).answer(question)
    with pytest.raises(UsageError, match="no frame 0"):
        viewer().answer(Question(0, "", (), False))


def test_of_a_classifier_the_most_probable_classes_are_given():
    answer = viewer(FakeClassifierSession(), ThreeFrames()).answer(Question(0, "", (), False))
    assert len(answer["top"]) == 5 and answer["classes"] == []


def test_after_the_end_nothing_is_begun():
    session = FakeSession()
    shown = viewer(session, ThreeFrames())
    shown.finish()
    with pytest.raises(UsageError, match="ended"):
        shown.answer(Question(0, "", (), False))
    assert session.calls == []


def test_the_end_waits_for_the_answer_in_work():
    begun, go_on = threading.Event(), threading.Event()

    class Slow(FakeSession):
        def run_one(self, pixels, settings):
            begun.set()
            assert go_on.wait(20)
            return super().run_one(pixels, settings)

    shown = viewer(Slow(), ThreeFrames())
    asking = threading.Thread(target=shown.answer, args=(Question(0, "", (), False),))
    ending = threading.Thread(target=shown.finish)
    asking.start()
    assert begun.wait(20)
    ending.start()
    ending.join(0.2)
    assert ending.is_alive()
    go_on.set()
    ending.join(20)
    asking.join(20)
    assert not ending.is_alive() and not asking.is_alive()


def test_questions_are_read_as_they_are_meant():
    assert question_from_json({"frame": 2, "thresholds": [0.5, 1], "dense": False}) == Question(
        2, "", (0.5, 1.0), False
    )
    assert question_from_json({"frame": None, "image": "k"}) == Question(None, "k", (), False)
    for wrong in (
        *([], 3, None, {"frame": "1"}, {"frame": True}, {"image": 4}, {"dense": 1}, {"thresholds": 0.5}),
        *(
            {"thresholds": ["0.5"]},
            {"thresholds": [None]},
            {"thresholds": "05"},
            {"thresholds": [True]},
            {"thresholds": ""},
        ),
    ):
        with pytest.raises(InputError):
            question_from_json(wrong)
    for outside in (10**400, -1, float("nan"), 1.5):
        with pytest.raises(UsageError, match="outside"):
            question_from_json({"thresholds": [0.5, outside]})
