"""Folding: a batch norm in evaluation mode and the layer it is folded into give the same numbers."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from dovit_deploy.checkpoints.keys import shapes_of
from dovit_deploy.families.folding import (
    NormedConv,
    NormedLinear,
    conv_norm,
    deployed,
    folded,
    linear_norm,
    trainable,
    unfolded,
)
from dovit_deploy.families.registry import family_of, model_from_spec
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.families.stages import DenseNetwork
from dovit_deploy.families.vit.network import VisionTransformer
from tests.tiny import tiny_pixels, tiny_spec
from tests.tiny_stvit import tiny_classifier, tiny_segmenter, tiny_swin, training_state

Part = TypeVar("Part", bound=nn.Module)


def randomised(module: Part, seed: int) -> Part:
    """Weights and running statistics far from their defaults, so that each of them matters."""
    draw = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=draw)
            value.copy_(noise.abs() + 0.3 if name.endswith(("running_var", "norm.weight")) else 0.4 * noise)
    return module.eval()


def in_deployment(trained: nn.Module, deployed: nn.Module) -> nn.Module:
    """`deployed` with the folded weights of `trained`."""
    state = folded({f"layer.{name}": value for name, value in trained.state_dict().items()})
    deployed.load_state_dict({name.removeprefix("layer."): value for name, value in state.items()}, strict=True)
    return deployed.eval()


@torch.no_grad()
def test_linear_layer() -> None:
    trained = randomised(linear_norm(7, 5, trainable=True), 0)
    assert isinstance(trained, NormedLinear)
    deployed = in_deployment(trained, linear_norm(7, 5, trainable=False))
    assert type(deployed) is nn.Linear
    tokens = torch.randn(11, 7, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(trained(tokens), deployed(tokens), atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
@torch.no_grad()
def test_convolution(kernel: int, stride: int) -> None:
    trained = randomised(conv_norm(3, 4, kernel, stride=stride, trainable=True), 2)
    assert isinstance(trained, NormedConv)
    deployed = in_deployment(trained, conv_norm(3, 4, kernel, stride=stride, trainable=False))
    image = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(3))
    assert trained(image).shape == deployed(image).shape
    assert torch.allclose(trained(image), deployed(image), atol=1e-5)


@torch.no_grad()
def test_the_epsilon_is_inside_the_root() -> None:
    trained = randomised(linear_norm(2, 2, trainable=True), 4)
    trained.get_buffer("norm.running_var").copy_(torch.tensor([1e-5, 0.0]))
    deployed = in_deployment(trained, linear_norm(2, 2, trainable=False))
    tokens = torch.eye(2)
    assert torch.allclose(trained(tokens), deployed(tokens), rtol=1e-5)


@torch.no_grad()
def test_a_whole_network_of_every_folding_part() -> None:
    spec = tiny_spec(head="pup", gate="fcn", stem="conv", gates=(1, 2), depth=3)
    trained = randomised(VisionTransformer(spec, trainable=True), 5)
    state = folded(trained.state_dict())
    deployed = model_from_spec(spec, state)
    pixels = tiny_pixels(spec.size)
    before, after = DenseNetwork(trained)(pixels), DenseNetwork(deployed)(pixels)
    assert torch.allclose(before, after, atol=1e-4 * float(before.abs().max()))
    tokens = deployed.embed(pixels)
    everything = torch.arange(spec.tokens)
    for before_gate, after_gate in zip(trained.gates, deployed.gates, strict=True):
        ends = torch.ones(spec.classes), torch.tensor(0.0)
        expected, found = before_gate(tokens, everything, *ends), after_gate(tokens, everything, *ends)
        assert torch.allclose(expected.confidence, found.confidence, atol=1e-4)


def test_a_deployment_state_comes_back_as_it_is() -> None:
    state: dict[str, Tensor] = dict(model_from_spec(tiny_spec(stem="conv")).state_dict())
    again = folded(state)
    assert again.keys() == state.keys()
    assert all(again[name] is state[name] for name in state)


@torch.no_grad()
def test_unfolding_is_the_opposite_of_folding() -> None:
    spec = tiny_spec(head="pup", stem="conv", gate="fcn", gates=(1, 2))
    trained = randomised(VisionTransformer(spec, trainable=True), 3)
    deployed = folded(trained.state_dict())
    again = VisionTransformer(spec, trainable=True).eval()
    again.load_state_dict(unfolded(deployed, again.state_dict()), strict=True)
    pixels = tiny_pixels(spec.size, 5)
    torch.testing.assert_close(again.stem(pixels), trained.stem(pixels), atol=1e-4, rtol=1e-4)
    for name, value in folded(again.state_dict()).items():
        torch.testing.assert_close(value, deployed[name], msg=name)


def test_unfolding_leaves_alone_what_has_no_norm() -> None:
    spec = tiny_spec(head="linear", gate="linear")
    state = VisionTransformer(spec).state_dict()
    assert unfolded(state, state).keys() == state.keys()


# Folding and laying out: the deployed network computes what the trained one does, and back again.

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
