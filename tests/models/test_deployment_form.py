"""Folding and laying out: the deployed network computes what the trained one does, and back again."""

from __future__ import annotations

import pytest
import torch

from dovit_deploy.bundle.model_spec import ModelSpec
from dovit_deploy.models.build import model_from_spec
from dovit_deploy.models.deployment_form import deployed, trainable
from dovit_deploy.models.families import family_of
from dovit_deploy.models.official_state import shapes_of
from tests.tiny import tiny_pixels
from tests.tiny_stvit import tiny_classifier, tiny_segmenter, tiny_swin, training_state

SPECS = [tiny_classifier(options=True), tiny_segmenter((40, 56), head="pup"), tiny_swin()]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.architecture)
def test_both_forms_compute_the_same(spec: ModelSpec) -> None:
    state, pixels = training_state(spec), tiny_pixels(spec.size)
    final = deployed(state)
    assert {name: tuple(value.shape) for name, value in final.items()} == shapes_of(spec, trainable=False)
    whole = family_of(spec).build(spec, trainable=True).eval()
    whole.load_state_dict(state, strict=False)
    names = [name for name in shapes_of(spec, trainable=True) if not name.endswith("num_batches_tracked")]
    with torch.inference_mode():
        wanted = model_from_spec(spec, final)(pixels)
        assert torch.allclose(whole(pixels), wanted, atol=1e-4)
        # Back in training form it has the same entries, and still computes the same.
        back = trainable(final, shapes_of(spec, trainable=True))
        assert set(names) <= back.keys() <= shapes_of(spec, trainable=True).keys()
        whole.load_state_dict(back, strict=False)
        assert torch.allclose(whole(pixels), wanted, atol=1e-4)
    for name, value in deployed(back).items():
        assert torch.allclose(value, final[name], atol=1e-6), name


def test_what_is_deployed_stays_as_it_is() -> None:
    final = deployed(training_state(SPECS[0]))
    assert deployed(final).keys() == final.keys()
    assert all(torch.equal(value, final[name]) for name, value in deployed(final).items())
