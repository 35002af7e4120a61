"""What an export resolves once: the size, what images go through, and the thresholds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dovit_deploy.bundle.manifest import CentreCrop
from dovit_deploy.errors import UsageError
from dovit_deploy.export.plan import ExportPlan
from tests.bundles import naming_checkpoint, tiny_checkpoint
from tests.tiny import tiny_spec
from tests.tiny_evovit import tiny_deit_spec


def preprocessing(checkpoint, **wanted):
    return plan(checkpoint, **wanted).manifest.preprocessing


def plan(checkpoint, **wanted):
    return ExportPlan.resolve(checkpoint, Path("x.dovit"), **wanted)


@pytest.mark.parametrize(("size", "shorter"), [(None, 73), ((96, 96), 109), ((224, 224), 256), ((384, 384), 438)])
def test_a_classifier_crops_in_proportion_to_its_size(size, shorter):
    checkpoint = naming_checkpoint(tiny_deit_spec(size=(64, 64)), {})
    assert preprocessing(checkpoint, size=size).crop == CentreCrop(shorter=shorter)


def test_a_bundle_taken_as_a_checkpoint_forgets_its_old_crop():
    checkpoint = naming_checkpoint(tiny_deit_spec(size=(64, 64)), {})
    assert preprocessing(checkpoint).crop == CentreCrop(shorter=73)
    again = dataclasses.replace(checkpoint, preprocessing=preprocessing(checkpoint))
    assert preprocessing(again, size=(96, 96)).crop == CentreCrop(shorter=109)


def test_a_window_smaller_than_the_checkpoints_stride_wants_another_stride():
    sliding = tiny_checkpoint(tiny_spec(), stride=(40, 48))
    assert preprocessing(sliding, size=(40, 64)).stride == (40, 48)
    with pytest.raises(UsageError, match="give --stride, too, at most 32x64"):
        plan(sliding, size=(32, 64))
    assert preprocessing(sliding, size=(32, 64), stride=(24, 24)).stride == (24, 24)


def test_only_segmentation_slides():
    assert preprocessing(tiny_checkpoint(tiny_spec()), stride=(40, 48)).stride == (40, 48)
    assert preprocessing(tiny_checkpoint(tiny_spec())).crop is None
    with pytest.raises(UsageError, match="--stride: only a segmentation network"):
        preprocessing(naming_checkpoint(tiny_deit_spec(size=(64, 64)), {}), stride=(32, 32))


def test_a_given_size_takes_precedence_over_the_window_and_that_over_the_training_size():
    checkpoint = dataclasses.replace(tiny_checkpoint(tiny_spec()), slide_size=(48, 64))
    assert plan(checkpoint, size=(96, 96)).manifest.spec.size == (96, 96)
    assert plan(checkpoint).manifest.spec.size == (48, 64)
    assert plan(dataclasses.replace(checkpoint, slide_size=None)).manifest.spec.size == tiny_spec().size


def test_thresholds_are_the_checkpoints_for_every_class():
    checkpoint = dataclasses.replace(tiny_checkpoint(tiny_spec()), thresholds=(0.7, 0.85), floor=0.1)
    found = plan(checkpoint).manifest
    assert found.defaults.thresholds == ((0.7,) * found.spec.classes, (0.85,) * found.spec.classes)
    assert found.defaults.floor == 0.1
    assert [(count.minimum, count.typical, count.maximum) for count in found.counts] == [
        (found.spec.tokens,) * 3,
        *[(1, found.spec.tokens, found.spec.tokens)] * 2,
    ]


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan(tiny_checkpoint(tiny_spec())).overwrite = True  # type: ignore[misc]
