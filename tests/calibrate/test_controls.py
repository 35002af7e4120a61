"""The controls of a calibration are those of an evaluation of the held-out images."""

from __future__ import annotations

import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.calibration import Calibration
from dovit_deploy.calibrate.controls import controls_of_choice
from dovit_deploy.calibrate.images import FolderImages, SplitImages, halves
from dovit_deploy.datasets.dataset import DatasetPart
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.controls import CONTROLS
from dovit_deploy.measure.decisions import decisions_of
from dovit_deploy.measure.evaluate import EvalPlan, SegmentationTally, evaluate
from dovit_deploy.measure.intervals import blocks_of
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from tests.bundle.test_bundle import VALUES, made
from tests.datasets.labelled_folder import write_labelled

IMAGES = 16


def with_parts(calibration: Calibration, images, held_out) -> Calibration:
    """The parts are those that the file names."""
    entry = calibration.parts[0]
    named = {"search": set(range(len(images.stems))) - set(held_out), "check": held_out}
    return calibration.model_copy(
        update={
            "parts": tuple(
                entry.model_copy(update={"part": part, "images": tuple(images.stems[index] for index in indices)})
                for part, indices in named.items()
            )
        }
    )


@pytest.mark.parametrize("fixture", ["tiny_bundle_path", "setr_bundle_path"])
def test_they_are_those_of_an_evaluation(request, fixture, tmp_path):
    data = dataset_from_path(write_labelled(tmp_path / "set", images=IMAGES), "val")
    bundle = Bundle.open(request.getfixturevalue(fixture))
    values = VALUES[: len(bundle.manifest.spec.gates)]
    chosen = made().chosen.model_copy(update={"thresholds": values})
    images, seen = SplitImages(data, name="set", split="val"), []
    held_out = halves(images.blocks, seed=1).check
    calibration = with_parts(made().model_copy(update={"chosen": chosen}), images, held_out)
    with Session(bundle, threads=1) as session:
        controls = controls_of_choice(
            session,
            images,
            calibration,
            # A session of another size is one like any other; the same one is at hand.
            smaller=(session,),
            left_out="a reason",
            advance=seen.append,
        )
        plan = EvalPlan("set", "val", RunSettings.resolve(bundle.manifest, thresholds=values), CONTROLS)
        part, settings = DatasetPart(data, held_out), RunSettings.resolve(bundle.manifest, thresholds=values)
        # Positions are learned on the other half.
        rest = DatasetPart(data, sorted(set(range(IMAGES)) - set(held_out)))
        decisions = decisions_of(session, part, settings, blocks_of(len(part), None), source=rest)
        measured = evaluate(session, part, SegmentationTally, plan, decisions=decisions, advance=lambda saved: None)
    assert len(seen) == len(held_out) >= 4
    dense, rule = measured.dense, measured.dynamic
    for point, tally in (
        (controls.random, measured.controls["random"]),
        (controls.oracle, measured.controls["oracle"]),
        (controls.position, measured.controls["position"]),
        (controls.other, measured.controls["other"]),
    ):
        assert point.miou == pytest.approx(tally.counts.miou)
        assert point.drop == pytest.approx(dense.counts.miou - tally.counts.miou)
        assert point.gmacs == pytest.approx(sum(rule.gmacs) / len(held_out))
        assert point.flops_saved == pytest.approx(1 - sum(rule.gmacs) / sum(dense.gmacs))
        assert point.drop_interval.low <= point.drop_interval.high
        assert point.rule_gain == pytest.approx(rule.score - tally.score)
        assert point.rule_gain_interval.low <= point.rule_gain_interval.high
    (small,) = controls.smaller_input
    assert (small.miou, small.drop, small.flops_saved) == (pytest.approx(dense.counts.miou), 0, 0)
    assert (small.size, small.engine) == (session.bundle.manifest.spec.size, "onnxruntime")
    assert controls.left_out == "a reason"


def test_without_labels_there_are_none(tiny_bundle_path, tmp_path):
    root = write_labelled(tmp_path / "set", images=IMAGES)
    with (
        Session(Bundle.open(tiny_bundle_path), threads=1) as session,
        pytest.raises(DatasetError, match="no labels"),
    ):
        controls_of_choice(
            session,
            FolderImages(root / "images" / "val"),
            made(),
            smaller=(),
            left_out=None,
            advance=lambda saved: None,
        )


def test_a_file_from_before_there_was_position_is_read():
    point = {"flops_saved": 0.3, "gmacs": 1.0, "miou": 50.0, "drop": 1.0, "drop_interval": {"low": 0.0, "high": 2.0}}
    old = {"random": point, "oracle": point, "smaller_input": (), "left_out": None, "seed": 0}
    controls = Calibration.model_validate({**made().model_dump(), "controls": old}).controls
    assert controls.position is controls.other is controls.random.rule_gain is None


def test_a_file_from_before_there_were_controls_is_read():
    content = made().model_dump()
    del content["controls"]
    assert Calibration.model_validate(content) == made()
