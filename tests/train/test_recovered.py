"""STViT-R's segmenter in training: crops of any size share one set of weights, all of which learn, and are deployed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional

from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.bundle.stvit_spec import StvitSegmenterSpec
from dovit_deploy.models.build import model_from_spec, spec_at_size
from dovit_deploy.models.checkpoint import checkpoint_from_path
from dovit_deploy.models.own_format import OwnConfig, save_checkpoint
from dovit_deploy.models.stvit_segmenter import StvitSegmenter
from dovit_deploy.train.initialise import initialise
from dovit_deploy.train.loop import parameter_groups
from dovit_deploy.train.network import NetworkChoice, spec_from_choice
from dovit_deploy.train.recovered import recovered_forward
from tests.tiny import tiny_pixels
from tests.tiny_stvit import tiny_segmenter, training_state

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
        output = recovered_forward(model, pixels)
        assert torch.allclose(output.logits, other(pixels), atol=1e-5)
        assert output.features.shape == (2, 3 * 4, 16)
        # The head was told of the crop's grid for that moment only.
        assert torch.allclose(recovered_forward(model, whole).logits, model(whole), atol=1e-5)


def test_every_parameter_learns_and_norms_take_in_the_crop() -> None:
    model = trained_model(tiny_segmenter()).train()
    before = model.stem.first.norm.running_mean.clone()
    recovered_forward(model, tiny_pixels(CROP, images=2)).logits.square().mean().backward()
    assert not torch.equal(model.stem.first.norm.running_mean, before)
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


def test_a_few_steps_learn_a_picture(tmp_path: Path) -> None:
    """From random weights: stripes by brightness are told apart, and what was learnt is what is deployed."""
    choice = NetworkChoice(family="stvit", width=32, heads=4, head="setr", head_channels=8)
    spec = spec_from_choice(choice, (64, 96), 2)
    assert isinstance(spec, StvitSegmenterSpec)
    model = StvitSegmenter(spec, trainable=True)
    initialise(model, 0)
    labels = (torch.arange(12) // 3 % 2).repeat(8, 1)[None].repeat_interleave(8, 1).repeat_interleave(8, 2)
    pixels = (2.0 * labels[:, None] - 1).expand(-1, 3, -1, -1) + 0.3 * tiny_pixels((64, 96))
    optimiser = torch.optim.AdamW(parameter_groups(model, 0.05), lr=3e-3)
    losses = []
    for step in range(30):
        crop = slice(0, 96 - 8 * (step % 3))
        logits = recovered_forward(model.train(), pixels[..., crop]).logits
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
    free = {id(value) for value in parameter_groups(model, 0.05)[1]["params"]}  # type: ignore[attr-defined]
    named = {name for name, value in model.named_parameters() if id(value) in free}
    assert "stages.0.blocks.0.attention.bias.table" in named and "head.class_tokens" in named
    assert "stages.0.blocks.0.attention.query.weight" not in named
