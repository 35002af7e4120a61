"""Drop-path: which images skip which layers, and what that does to their tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dovit_deploy.train.gathered import Quotas, gathered_forward
from dovit_deploy.train.masked import masked_forward, uniform_passing
from dovit_deploy.train.skips import Shown, Skips, through
from tests.tiny import tiny_model, tiny_pixels, tiny_spec

SPEC = tiny_spec(head="light", gate="linear", gates=(1, 3), answer="lens")


def skips(rate, seed=0):
    return Skips(rate, SPEC.depth, np.random.default_rng(seed))


def test_deeper_layers_are_skipped_more_often_and_the_first_never():
    drawn = skips(0.6)
    shown = [drawn.at(layer, 4_000) for layer in range(SPEC.depth)]
    assert shown[0] is None
    for layer, one in enumerate(shown[1:], start=1):
        share = 0.6 * layer / (SPEC.depth - 1)
        assert len(one.images) / 4_000 == pytest.approx(1 - share, abs=0.03)
        assert one.scale == pytest.approx(1 / (1 - share))


def test_an_image_that_skips_keeps_its_tokens_and_the_others_take_more():
    tokens = torch.arange(6.0).reshape(3, 2, 1)
    seen = []

    def layer(part, images):
        seen.append(images)
        return part + 10

    after = through(layer, tokens, Shown(torch.tensor([0, 2]), 2.0))
    assert (after - tokens).flatten().tolist() == [20, 20, 0, 0, 20, 20]
    assert seen[0].tolist() == [0, 2]
    assert torch.equal(through(layer, tokens, Shown(torch.tensor([], dtype=torch.int64), 2.0)), tokens)
    assert torch.equal(through(layer, tokens, None), tokens + 10)


@pytest.mark.parametrize("passing", [None, uniform_passing(SPEC, 0.6)], ids=["dense", "masked"])
@torch.no_grad()
def test_images_skip_by_themselves(passing):
    """In a batch an image gets what its own skips give it, whatever the others skip, stopped tokens included."""
    model, pixels = tiny_model(SPEC), tiny_pixels(SPEC.size, 1, images=3)
    together = masked_forward(model, pixels, passing=passing, skips=skips(0.7, 3))
    drawn = skips(0.7, 3)
    shown = [drawn.at(layer, 3) for layer in range(SPEC.depth)]
    assert {len(one.images) for one in shown[1:]} - {0, 3}, "nobody skips, which proves little"

    class Own:
        def __init__(self, image):
            self.image = image

        def at(self, layer, batch):
            one = shown[layer]
            if one is None:
                return None
            there = torch.zeros(int(self.image in one.images.tolist()), dtype=torch.int64)
            return Shown(there, one.scale)

    for image in range(3):
        alone = masked_forward(model, pixels[image : image + 1], passing=passing, skips=Own(image))
        torch.testing.assert_close(together.logits[image : image + 1], alone.logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_quotas_and_skips_go_together_and_follow_the_seed():
    model, pixels = tiny_model(SPEC), tiny_pixels(SPEC.size, 1, images=3)
    runs = [
        gathered_forward(model, pixels, quotas=Quotas((0.3, 0.3)), skips=skips(0.7, seed)).logits for seed in (3, 3, 4)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
