"""Who learns how fast: layers by depth, heads and gates at rates of their own, frozen layers not at all."""

from __future__ import annotations

import pytest
import torch

from dovit_deploy.train.config import Phase, TrainConfig
from dovit_deploy.train.initialise import trainable_model
from dovit_deploy.train.rates import is_trained, optimiser_from_groups, rate_groups
from tests.tiny import tiny_spec
from tests.tiny_stvit import tiny_segmenter

SPEC = tiny_spec(head="light", gate="fcn", gates=(1, 3), answer="lens")
"""Four layers."""


def config_of(**changes):
    return TrainConfig(
        **{
            "spec": SPEC,
            "steps": 1,
            "phases": (Phase(until=1, crop=(32, 32), batch=1),),
            "learning_rate": 1.0,
            **changes,
        }
    )


def rates_of(config):
    """Name -> (highest learning rate, weight decay) of what is trained."""
    model = trainable_model(SPEC)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, config))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group.share * config.learning_rate, group.weight_decay)
        for group in rate_groups(model, config)
        for parameter in group.parameters
    }


def test_each_layer_learns_slower_than_the_one_above():
    rates = rates_of(config_of(layer_decay=0.5, head_rate=3.0, gate_rate=2.0, weight_decay=0.1))
    assert rates["blocks.3.mlp.expand.weight"] == (1.0, 0.1)
    assert rates["blocks.2.mlp.expand.bias"] == (0.5, 0.0)
    assert rates["blocks.0.attention.query.weight"] == (0.125, 0.1)
    assert {rates[name] for name in ("positions", "extra_tokens", "stem.projection.bias")} == {(0.0625, 0.0)}
    assert rates["stem.projection.weight"] == (0.0625, 0.1)
    assert rates["norm.weight"] == (1.0, 0.0)
    assert rates["head.conv.weight"] == (3.0, 0.1)
    assert rates["gates.0.head.classifier.weight"] == rates["lenses.1.linear.weight"] == (2.0, 0.1)
    assert set(rates) == {name for name, _ in trainable_model(SPEC).named_parameters()}


def test_without_a_word_all_learn_alike():
    assert {rate for rate, _ in rates_of(config_of()).values()} == {1.0}
    assert len(rate_groups(trainable_model(SPEC), config_of())) == 2


def test_frozen_layers_and_what_stands_before_them_stay():
    rates = rates_of(config_of(frozen_layers=2))
    frozen = {name for name, _ in trainable_model(SPEC).named_parameters()} - set(rates)
    assert {name.partition(".")[0] for name in frozen} == {"stem", "positions", "extra_tokens", "blocks"}
    assert {name.split(".")[1] for name in frozen if name.startswith("blocks")} == {"0", "1"}
    assert not any(name.startswith(("blocks.0.", "blocks.1.", "stem")) for name in rates)
    assert "stem.projection.weight" in rates_of(config_of())


def test_gates_alone_include_their_lenses():
    assert {name.partition(".")[0] for name in rates_of(config_of(trained="gates"))} == {"gates", "lenses"}


def test_a_step_moves_a_parameter_by_its_own_rate():
    model = trainable_model(SPEC)
    config = config_of(layer_decay=0.5, weight_decay=0.0, learning_rate=1e-3)
    optimiser = optimiser_from_groups(groups := rate_groups(model, config), config)
    for part, group in zip(optimiser.param_groups, groups, strict=True):
        part["lr"] = config.learning_rate * group.share
    before = {name: value.clone() for name, value in model.named_parameters()}
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    optimiser.step()
    moved = {name: (before[name] - value).max().item() for name, value in model.named_parameters()}
    # The first step of AdamW is the rate itself.
    assert moved["blocks.3.norm1.bias"] == pytest.approx(1e-3, rel=1e-2)
    assert moved["blocks.1.norm1.bias"] == pytest.approx(2.5e-4, rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frozen_layers": 5}, "the network has 4 layers"),
        ({"passing": {"mode": "quota", "quotas": [[0.1, 0.2]] * 3}}, "3 ranges, the network 2 gates"),
        ({"passing": {"mode": "quota", "quotas": [[0.3, 0.2]]}}, r"quotas \(0.3, 0.2\): lowest and highest"),
        ({"passing": {"mode": "quota", "quotas": []}}, "one range for all gates"),
        ({"spec": tiny_segmenter(), "drop_path": 0.1}, "drop_path is for vision transformers"),
    ],
)
def test_what_a_network_cannot_be_given_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        config_of(**changes)
