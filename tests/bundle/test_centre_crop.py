"""How a classifier's crop travels in the manifest: absent where there is none, checked where there is one."""

from __future__ import annotations

import json

import pytest

from dovit_deploy.bundle.manifest import CentreCrop, Manifest, Preprocessing, digest_of
from dovit_deploy.errors import ManifestInvalid
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.fakes import fake_classifier_manifest, fake_manifest


def read_again(manifest: Manifest) -> Manifest:
    return Manifest.from_json(manifest.to_json())


def test_a_segmentation_manifest_is_what_it_was():
    manifest = fake_manifest()
    assert "crop" not in json.loads(manifest.to_json())["preprocessing"]
    assert read_again(manifest) == manifest


def test_a_crop_travels():
    preprocessing = Preprocessing(
        mean=(0, 0, 0), std=(1, 1, 1), assumed=False, stride=None, crop=CentreCrop(shorter=256)
    )
    assert preprocessing.model_dump(mode="json")["crop"] == {"shorter": 256, "filter": "bicubic"}
    assert Preprocessing.model_validate_json(preprocessing.model_dump_json()) == preprocessing


def test_it_follows_the_task_and_the_size():
    seen = fake_manifest().preprocessing
    spec = fake_manifest(size=(64, 64)).spec
    assert seen.for_spec(spec).crop is None

    class Classifying(VisionTransformerSpec):
        @property
        def task(self):
            return "classification"

    assert seen.for_spec(Classifying(**spec.model_dump())).crop == CentreCrop(shorter=73)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop": {"shorter": 72}}, "only a classifier crops"),
        ({"crop": {"shorter": 0}}, "crop.shorter"),
        ({"crop": {"shorter": 72, "filter": "nearest"}}, "crop.filter"),
    ],
)
def test_a_crop_that_does_not_fit_is_refused(change, words):
    body = json.loads(fake_manifest().to_json())
    del body["digest"]
    body["preprocessing"].update(change)
    with pytest.raises(ManifestInvalid, match=words):
        Manifest.from_json(json.dumps({**body, "digest": digest_of(body)}))


def test_a_task_that_is_not_the_specs_is_refused():
    with pytest.raises(ManifestInvalid, match="task: classification"):
        read_again(fake_classifier_manifest())
