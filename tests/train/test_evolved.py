"""Evo-ViT in training: a batch gives what single images give when deployed, and all that runs learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional

from dovit_deploy.models.batch_norm import folded
from dovit_deploy.models.build import model_from_spec
from dovit_deploy.models.evovit_deit import EvoDeit, EvoDeitDense, EvoDeitStage
from dovit_deploy.train.evolved import evolved_forward
from tests.tiny import tiny_pixels
from tests.tiny_evovit import tiny_deit_spec, tiny_evo_model


@pytest.mark.parametrize("head", ["linear", "mask", "setr"])
def test_a_batch_gives_each_image_what_it_gives_deployed(head: str) -> None:
    spec = tiny_deit_spec(size=(48, 80), head=head, stem="conv", selections=((1, 3, 0.5), (3, 5, 0.6)))
    model = tiny_evo_model(spec, 5)
    assert isinstance(model, EvoDeit)
    pixels = torch.cat([tiny_pixels(spec.size, seed) for seed in (1, 2, 3)])
    with torch.inference_mode():
        batch = evolved_forward(model, pixels)
        dense = evolved_forward(model, pixels, selecting=False)
        for image in range(3):
            logits, _, *chosen = EvoDeitStage(model)(pixels[image : image + 1])
            assert torch.allclose(batch.logits[image], logits[0], atol=1e-4)
            assert all(torch.equal(mine[image], one.bool()) for mine, one in zip(batch.chosen, chosen, strict=True))
            assert torch.allclose(dense.logits[image], EvoDeitDense(model)(pixels[image : image + 1])[0], atol=1e-4)
    assert dense.chosen == ()
    assert not torch.equal(batch.chosen[0][0], batch.chosen[0][1]), "pictures that choose alike prove little"
    assert batch.features.shape == (3, spec.patches, spec.width)
    # One image is a batch too: not the two-dimensional form by accident.
    assert evolved_forward(model, pixels[:1]).logits.shape == (1, 5, *spec.outputs["logits"][2:])


def test_every_weight_learns_and_folds_into_what_is_deployed() -> None:
    spec = tiny_deit_spec(size=(48, 64), head="setr", stem="conv", selections=((1, 3, 0.5), (3, 5, 0.5)))
    torch.manual_seed(0)
    model = EvoDeit(spec, trainable=True).train()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    pixels = torch.cat([tiny_pixels(spec.size, seed) for seed in range(4)])
    output = evolved_forward(model, pixels)
    functional.cross_entropy(output.logits, torch.randint(5, (4, *output.logits.shape[2:]))).backward()
    silent = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.abs().sum() > 0]
    # A key's bias moves every score of a query alike, which the softmax takes out again.
    assert [name for name in silent if not name.endswith("key.bias")] == []
    model.eval()
    deployed = model_from_spec(spec, folded(dict(model.state_dict())))
    with torch.inference_mode():
        assert torch.allclose(
            evolved_forward(model, pixels[:1]).logits, EvoDeitStage(deployed)(pixels[:1])[0], atol=1e-4
        )


def test_a_crop_takes_the_positions_of_its_place() -> None:
    spec = tiny_deit_spec(size=(64, 96), head="linear", selections=((1, 3, 0.5),))
    model = tiny_evo_model(spec)
    assert isinstance(model, EvoDeit)
    crop = tiny_pixels((32, 48), 4)
    with torch.inference_mode():
        there = evolved_forward(model, crop, origin=torch.tensor([[2, 3]]))
        here = evolved_forward(model, crop)
    assert there.logits.shape == (1, 5, 2, 3)
    assert int(there.chosen[0].sum()) == 3, "the ratio is of the crop's own tokens"
    assert not torch.allclose(there.logits, here.logits)
    moved = spec.model_copy(update={"size": (32, 48)})
    small = EvoDeit(moved)
    state = dict(model.state_dict())
    grid = state["positions"][1:].reshape(4, 6, -1)[2:, 3:].reshape(6, -1)
    small.load_state_dict({**state, "positions": torch.cat([state["positions"][:1], grid])})
    with torch.inference_mode():
        assert torch.allclose(there.logits, EvoDeitStage(small.eval())(crop)[0], atol=1e-4)
