"""What an export writes about images: a classifier's crop follows the size, a stride is for segmentation alone."""

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
    return ExportPlan.resolve(checkpoint, Path("x.dovit"), **wanted).manifest.preprocessing


@pytest.mark.parametrize(("size", "shorter"), [(None, 73), ((96, 96), 109), ((224, 224), 256), ((384, 384), 438)])
def test_a_classifier_crops_in_proportion_to_its_size(size, shorter):
    checkpoint = naming_checkpoint(tiny_deit_spec(size=(64, 64)), {})
    assert preprocessing(checkpoint, size=size).crop == CentreCrop(shorter=shorter)


def test_a_bundle_taken_as_a_checkpoint_forgets_its_old_crop():
    checkpoint = naming_checkpoint(tiny_deit_spec(size=(64, 64)), {})
    assert preprocessing(checkpoint).crop == CentreCrop(shorter=73)
    again = dataclasses.replace(checkpoint, preprocessing=preprocessing(checkpoint))
    assert preprocessing(again, size=(96, 96)).crop == CentreCrop(shorter=109)


def test_only_segmentation_slides():
    assert preprocessing(tiny_checkpoint(tiny_spec()), stride=(40, 48)).stride == (40, 48)
    assert preprocessing(tiny_checkpoint(tiny_spec())).crop is None
    with pytest.raises(UsageError, match="--stride: only a segmentation network"):
        preprocessing(naming_checkpoint(tiny_deit_spec(size=(64, 64)), {}), stride=(32, 32))
