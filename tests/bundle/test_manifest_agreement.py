from __future__ import annotations

import pytest

from dovit_deploy.bundle.manifest import ClassEntry, GateDefaults, Manifest
from dovit_deploy.errors import ManifestInvalid
from tests.fakes import fake_manifest

CHANGES = {
    "a class too many": {"classes": (*fake_manifest().classes, ClassEntry(name="x", color=(0, 0, 0)))},
    "no counts": {"counts": ()},
    "a gate without thresholds": {"defaults": GateDefaults(thresholds=((0.9,) * 5,))},
    "a class without a threshold": {"defaults": GateDefaults(thresholds=((0.9,) * 5, (0.9,) * 4))},
    "a threshold above 1": {"defaults": GateDefaults(thresholds=((0.9,) * 5, (1.5,) * 5))},
    "a floor below 0": {"defaults": GateDefaults(thresholds=((0.9,) * 5,) * 2, floor=-0.1)},
}


def test_an_agreeing_manifest_comes_back():
    manifest = fake_manifest()
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_does_not_fit_the_spec_is_refused(change):
    text = fake_manifest().model_copy(update=change).to_json()
    with pytest.raises(ManifestInvalid, match=r"classes|counts|defaults"):
        Manifest.from_json(text)
