"""DINOv2's `_ms` heads against transformers: batch norm and 1x1 convolution over the last four layers, each normed."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.errors import DovitError
from dovit_deploy.families.registry import model_from_spec, spec_at_size, state_at_size
from dovit_deploy.families.stages import DenseNetwork
from tests.tiny import tiny_pixels

WIDTH, CLASSES, LAYERS = 16, 5, 6


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A small random model of transformers, and the folder that it is in."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_indices=[LAYERS - 3, LAYERS - 2, LAYERS - 1, LAYERS],
        apply_layernorm=True,
        reshape_hidden_states=True,
        layerscale_value=1.0,
    )
    model = transformers.Dinov2Backbone(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("backbone")
    model.save_pretrained(folder)
    return model, folder


def head_of(layers: int) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
    norm, conv = nn.BatchNorm2d(layers * WIDTH).eval(), nn.Conv2d(layers * WIDTH, CLASSES, 1)
    for part in (norm.weight, norm.running_var):
        nn.init.uniform_(part, 0.5, 2.0)
    for part in (norm.bias, norm.running_mean):
        nn.init.normal_(part)
    return norm, conv


def saved(path, norm, conv):
    entries = {f"decode_head.bn.{name}": value for name, value in norm.state_dict().items()}
    save_file(entries | {f"decode_head.conv_seg.{name}": value for name, value in conv.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("layers", [1, 4])
def test_logits_are_those_of_transformers(backbone, tmp_path, layers):
    model, folder = backbone
    norm, conv = head_of(layers)
    checkpoint = checkpoint_from_path(folder, head=saved(tmp_path / "head.safetensors", norm, conv))
    assert checkpoint.spec.taps == tuple(range(LAYERS - layers + 1, LAYERS))
    # Whole patches, and no square: 4x6 of them.
    spec = spec_at_size(checkpoint.spec, (56, 84))
    network = DenseNetwork(model_from_spec(spec, state_at_size(checkpoint.state, checkpoint.spec, spec.size)))
    pixels = tiny_pixels(spec.size, 1)
    with torch.inference_mode():
        features = torch.cat(model(pixels).feature_maps[-layers:], 1)
        torch.testing.assert_close(network(pixels), conv(norm(features)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("layers", "settings", "words"),
    [(LAYERS + 1, "", "reads 7 layers, the backbone has 6"), (4, "[4, 2, 1, 1]", "resize_factors")],
)
def test_what_cannot_be_read_is_named(backbone, tmp_path, layers, settings, words):
    head = saved(tmp_path / "head.safetensors", *head_of(layers))
    config = tmp_path / "config.json"
    config.write_text(f'{{"decode_head": {{"resize_factors": {settings or "null"}}}}}')
    with pytest.raises(DovitError, match=words):
        checkpoint_from_path(backbone[1], head=head, config=config)


def test_layers_that_are_stated_are_those_that_are_read(backbone, tmp_path):
    head, config = saved(tmp_path / "head.safetensors", *head_of(3)), tmp_path / "config.json"
    config.write_text('{"backbone": {"out_indices": [0, 3, 5]}}')
    assert checkpoint_from_path(backbone[1], head=head, config=config).spec.taps == (1, 4)
    for wrong in ("[0, 5]", "[3, 0, 5]", "[0, 1, 4]"):
        config.write_text(f'{{"backbone": {{"out_indices": {wrong}}}}}')
        with pytest.raises(DovitError, match=r"'backbone\.out_indices' is .*the head reads 3 layers"):
            checkpoint_from_path(backbone[1], head=head, config=config)


def test_the_auxiliary_heads_of_a_training_are_left_out(backbone, tmp_path):
    path = saved(tmp_path / "head.safetensors", *head_of(1))
    auxiliary = {
        "auxiliary_head.0.conv_seg.weight": torch.zeros(5, 8, 1, 1),
        "auxiliary_head.0.conv_seg.bias": torch.zeros(5),
    }
    save_file(load_file(path) | auxiliary, path)
    assert "auxiliary_head.0.conv_seg.weight" in checkpoint_from_path(backbone[1], head=path).remarks[-1]
