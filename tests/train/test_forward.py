"""Evo-ViT in training: a batch gives what single images give when deployed, and all that runs learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional

from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.checkpoints.own_format import OwnConfig, save_checkpoint
from dovit_deploy.families.evovit.deit import EvoDeit
from dovit_deploy.families.folding import folded
from dovit_deploy.families.registry import model_from_spec, spec_at_size
from dovit_deploy.families.stages import DenseNetwork, WholeStage
from dovit_deploy.families.stvit.network import StvitSegmenter
from dovit_deploy.families.stvit.spec import StvitSegmenterSpec
from dovit_deploy.train.config import Phase, TrainConfig
from dovit_deploy.train.forward import evovit_forward, stvit_forward
from dovit_deploy.train.initialise import initialise
from dovit_deploy.train.network import NetworkChoice, spec_from_choice
from dovit_deploy.train.rates import optimiser_from_groups, rate_groups
from tests.tiny import tiny_pixels
from tests.tiny_evovit import tiny_deit_spec, tiny_evo_model
from tests.tiny_stvit import tiny_segmenter, training_state


def config_of(spec: StvitSegmenterSpec) -> TrainConfig:
    """A run of one step that decays weights."""
    whole = (spec.grid[0] * spec.patch, spec.grid[1] * spec.patch)
    return TrainConfig(spec=spec, steps=1, learning_rate=3e-3, phases=(Phase(until=1, crop=whole, batch=1),))


@pytest.mark.parametrize("head", ["linear", "mask", "setr"])
def test_a_batch_gives_each_image_what_it_gives_deployed(head: str) -> None:
    spec = tiny_deit_spec(size=(48, 80), head=head, stem="conv", selections=((1, 3, 0.5), (3, 5, 0.6)))
    model = tiny_evo_model(spec, 5)
    assert isinstance(model, EvoDeit)
    pixels = torch.cat([tiny_pixels(spec.size, seed) for seed in (1, 2, 3)])
    with torch.inference_mode():
        batch = evovit_forward(model, pixels)
        dense = evovit_forward(model, pixels, selecting=False)
        for image in range(3):
            logits, _, *chosen = WholeStage(model)(pixels[image : image + 1])
            assert torch.allclose(batch.logits[image], logits[0], atol=1e-4)
            assert all(torch.equal(mine[image], one.bool()) for mine, one in zip(batch.chosen, chosen, strict=True))
            assert torch.allclose(dense.logits[image], DenseNetwork(model)(pixels[image : image + 1])[0], atol=1e-4)
    assert dense.chosen == ()
    assert not torch.equal(batch.chosen[0][0], batch.chosen[0][1]), "images that choose alike prove little"
    assert batch.features.shape == (3, spec.patches, spec.width)
    # One image is a batch too: not the two-dimensional form by accident.
    assert evovit_forward(model, pixels[:1]).logits.shape == (1, 5, *spec.outputs["logits"][2:])


def test_every_weight_learns_and_folds_into_what_is_deployed() -> None:
    spec = tiny_deit_spec(size=(48, 64), head="setr", stem="conv", selections=((1, 3, 0.5), (3, 5, 0.5)))
    torch.manual_seed(0)
    model = EvoDeit(spec, trainable=True).train()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    pixels = torch.cat([tiny_pixels(spec.size, seed) for seed in range(4)])
    output = evovit_forward(model, pixels)
    functional.cross_entropy(output.logits, torch.randint(5, (4, *output.logits.shape[2:]))).backward()
    silent = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.abs().sum() > 0]
    # A key's bias moves every score of a query alike, which the softmax takes out again.
    assert [name for name in silent if not name.endswith("key.bias")] == []
    model.eval()
    deployed = model_from_spec(spec, folded(dict(model.state_dict())))
    with torch.inference_mode():
        assert torch.allclose(evovit_forward(model, pixels[:1]).logits, WholeStage(deployed)(pixels[:1])[0], atol=1e-4)


def test_a_crop_takes_the_positions_of_where_it_was_cut_out() -> None:
    spec = tiny_deit_spec(size=(64, 96), head="linear", selections=((1, 3, 0.5),))
    model = tiny_evo_model(spec)
    assert isinstance(model, EvoDeit)
    crop = tiny_pixels((32, 48), 4)
    with torch.inference_mode():
        there = evovit_forward(model, crop, origin=torch.tensor([[2, 3]]))
        here = evovit_forward(model, crop)
    assert there.logits.shape == (1, 5, 2, 3)
    assert int(there.chosen[0].sum()) == 3, "the ratio is of the crop's own tokens"
    assert not torch.allclose(there.logits, here.logits)
    moved = spec.model_copy(update={"size": (32, 48)})
    small = EvoDeit(moved)
    state = dict(model.state_dict())
    grid = state["positions"][1:].reshape(4, 6, -1)[2:, 3:].reshape(6, -1)
    small.load_state_dict({**state, "positions": torch.cat([state["positions"][:1], grid])})
    with torch.inference_mode():
        assert torch.allclose(there.logits, WholeStage(small.eval())(crop)[0], atol=1e-4)


# STViT-R's segmenter in training: crops of any size share one set of weights, all of which learn, and are deployed.

CROP = (40, 56)


def trained_model(spec: StvitSegmenterSpec, seed: int = 0) -> StvitSegmenter:
    model = StvitSegmenter(spec, trainable=True)
    model.load_state_dict(training_state(spec, seed), strict=False)
    return model


@pytest.mark.parametrize("head", ["linear", "setr", "mask", "pup"])
def test_a_crop_sees_the_network_of_its_own_size(head) -> None:
    model = trained_model(tiny_segmenter(head=head)).eval()
    other = StvitSegmenter(spec_at_size(model.spec, CROP), trainable=True).eval()
    other.load_state_dict(model.state_dict())
    pixels, whole = tiny_pixels(CROP, images=2), tiny_pixels(model.spec.size, images=2)
    with torch.no_grad():
        output = stvit_forward(model, pixels)
        assert torch.allclose(output.logits, other(pixels), atol=1e-5)
        assert output.features.shape == (2, 3 * 4, 16)
        # The head was given the crop's grid for that pass only.
        assert torch.allclose(stvit_forward(model, whole).logits, model(whole), atol=1e-5)


def test_every_parameter_learns_and_norms_take_in_the_crop() -> None:
    model = trained_model(tiny_segmenter()).train()
    before = model.stem.first.norm.running_mean.clone()
    stvit_forward(model, tiny_pixels(CROP, images=2)).logits.square().mean().backward()
    assert not torch.equal(model.stem.first.norm.running_mean, before)
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


def test_a_few_steps_learn_an_image(tmp_path: Path) -> None:
    """From random weights: stripes by brightness are distinguished, and what was learnt is what is deployed."""
    choice = NetworkChoice(family="stvit", width=32, heads=4, head="setr", head_channels=8)
    spec = spec_from_choice(choice, (64, 96), 2)
    assert isinstance(spec, StvitSegmenterSpec)
    model = StvitSegmenter(spec, trainable=True)
    initialise(model, 0)
    labels = (torch.arange(12) // 3 % 2).repeat(8, 1)[None].repeat_interleave(8, 1).repeat_interleave(8, 2)
    pixels = (2.0 * labels[:, None] - 1).expand(-1, 3, -1, -1) + 0.3 * tiny_pixels((64, 96))
    optimiser = optimiser_from_groups(rate_groups(model, config_of(spec)), config_of(spec))
    losses = []
    for step in range(30):
        crop = slice(0, 96 - 8 * (step % 3))
        logits = stvit_forward(model.train(), pixels[..., crop]).logits
        full = functional.interpolate(logits, size=pixels[..., crop].shape[-2:], mode="bilinear")
        loss = functional.cross_entropy(full, labels[..., crop])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    config = OwnConfig(
        spec=spec,
        preprocessing=Preprocessing(mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0), assumed=False, stride=None),
        classes=tuple(ClassEntry(name=name, color=(0, 0, number)) for number, name in enumerate("ab")),
    )
    save_checkpoint(tmp_path / "made", config, model.state_dict())
    checkpoint = checkpoint_from_path(tmp_path / "made")
    assert checkpoint.spec == spec
    with torch.no_grad():
        wanted = model.eval()(pixels)
        assert torch.allclose(model_from_spec(checkpoint.spec, checkpoint.state)(pixels), wanted, atol=1e-4)


def test_tables_of_biases_do_not_decay() -> None:
    model = StvitSegmenter(tiny_segmenter(head="mask"), trainable=True)
    free = {id(value) for value in rate_groups(model, config_of(model.spec))[1].parameters}
    named = {name for name, value in model.named_parameters() if id(value) in free}
    assert "stages.0.blocks.0.attention.bias.table" in named and "head.class_tokens" in named
    assert "stages.0.blocks.0.attention.query.weight" not in named
