from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.checkpoints.own_format import OwnConfig, save_checkpoint
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import ConfigError, PickleRefused
from dovit_deploy.families.parts import ConvStem, FcnHead
from dovit_deploy.families.registry import model_from_spec
from dovit_deploy.families.stages import DenseNetwork
from dovit_deploy.train.config import Phase, TrainConfig
from dovit_deploy.train.data import TrainingData
from dovit_deploy.train.initialise import (
    adapt_norms,
    initialise,
    load_start,
    trainable_model,
)
from dovit_deploy.train.loop import Trainer
from dovit_deploy.train.masked import masked_forward
from dovit_deploy.train.network import NetworkChoice, added_layers
from dovit_deploy.train.start import start_from_path
from dovit_deploy.train.state import RunFolder
from dovit_deploy.train.target import Labels
from tests.families.vit import official
from tests.tiny import tiny_pixels, tiny_spec, tiny_state
from tests.train.tiny_folder import write_folder

SPEC = tiny_spec(head="pup", stem="conv", gates=(1, 2), classes=4)


def saved(folder, spec, **settings):
    """A checkpoint of ours with `tiny_state`'s weights, in deployment form."""
    config = OwnConfig(
        spec=spec,
        preprocessing=Preprocessing(mean=(1, 2, 3), std=(4, 5, 6), assumed=False, stride=None),
        classes=tuple(ClassEntry(name=f"class {number}", color=(number, 0, 0)) for number in range(spec.classes)),
        thresholds=(0.9,) * len(spec.gates),
    )
    save_checkpoint(folder, config, tiny_state(spec))
    return folder


def started(path, *, size=SPEC.size, classes=4, config=None, **choice):
    return start_from_path(path, NetworkChoice(**choice), config=config, size=size, classes=classes)


def model_of(start, seed=0):
    model = trainable_model(start.spec)
    initialise(model, seed)
    load_start(model, start.state)
    return model.eval()


@torch.no_grad()
def assert_computes(model, start, *, atol=1e-4):
    """The dense network in training form gives what the checkpoint's gives."""
    pixels = tiny_pixels(start.spec.size, 4)
    plain = start.spec.model_copy(update={"gates": ()})
    state = {name: tensor for name, tensor in start.state.items() if not name.startswith("gates.")}
    expected = DenseNetwork(model_from_spec(plain, state))(pixels)
    torch.testing.assert_close(masked_forward(model, pixels).logits, expected, atol=atol, rtol=1e-4)


def test_unfolded_weights_compute_what_the_folded_ones_do(tmp_path):
    start = started(saved(tmp_path / "made", SPEC))
    assert isinstance(start.spec.stem, ConvStem)
    assert_computes(model_of(start), start)


@torch.no_grad()
def test_adapted_norms_change_nothing_in_evaluation_and_little_in_training(tmp_path):
    start = started(saved(tmp_path / "made", SPEC))
    model = model_of(start)
    raw = copy.deepcopy(model)
    pixels = tiny_pixels(SPEC.size, 7, images=3)
    adapt_norms(model, start.state, pixels)
    assert_computes(model, start, atol=3e-4)
    wanted = masked_forward(model, pixels).logits
    adapted, raw_logits = (masked_forward(network.train(), pixels).logits for network in (model, raw))
    torch.testing.assert_close(adapted, wanted, atol=3e-3, rtol=1e-3)
    assert (raw_logits - wanted).abs().max() > 0.1


@pytest.mark.parametrize(
    ("spec", "state", "settings"),
    [
        (official.segmenter_spec(), official.segmenter_state(), official.SEGMENTER),
        (official.setr_spec(), official.setr_state(), official.SETR_PUP),
        (official.dovit_spec(), official.dovit_state(), official.DOVIT),
    ],
    ids=["Segmenter", "SETR", "DoViT"],
)
def test_official_checkpoints_compute_what_they_did_and_have_gates(tmp_path, spec, state, settings):
    path = official.save_pth(tmp_path / "plain.pth", state)
    (tmp_path / "settings.json").write_text(json.dumps({"config": settings}))
    config = str(tmp_path / "settings.json")
    start = started(path, size=spec.size, classes=spec.classes, config=config, gate_channels=6)
    layers = [gate.layer for gate in spec.gates] or list(added_layers(spec.depth))
    assert [gate.layer for gate in start.spec.gates] == layers
    assert start.spec.family == "dovit"
    assert start.spec.gates[0].head == FcnHead(channels=8 if spec.gates else 6)
    assert_computes(model_of(start), start)


def test_gates_of_the_checkpoint_stay_unless_others_are_wished(tmp_path):
    path = saved(tmp_path / "made", SPEC)
    kept, replaced, none = started(path), started(path, gates=(3,), gate_channels=5), started(path, gates=())
    assert kept.spec == SPEC
    assert "gates.0.head.classifier.weight" in kept.state
    assert [gate.layer for gate in replaced.spec.gates] == [3]
    assert not any(name.startswith("gates.") for name in replaced.state)
    assert (none.spec.gates, none.spec.family) == ((), "segmenter")
    weight = model_of(kept).gates[0].head.hidden.projection.weight
    assert torch.equal(weight, kept.state["gates.0.head.hidden.weight"])


def test_gates_that_stay_keep_their_heads(tmp_path):
    path = saved(tmp_path / "made", SPEC)
    channels = SPEC.gates[1].head.channels
    start, kept = started(path, gates=(2, 3), gate_channels=channels), started(path)
    assert [gate.layer for gate in start.spec.gates] == [2, 3]
    assert torch.equal(start.state["gates.0.head.hidden.weight"], kept.state["gates.1.head.hidden.weight"])
    assert not any(name.startswith("gates.1.") for name in start.state)
    model_of(start)
    assert not any(name.startswith("gates.") for name in started(path, gates=(2,), gate_channels=channels + 1).state)


def test_the_first_layers_alone_make_a_shallower_network(tmp_path):
    path = saved(tmp_path / "made", SPEC)
    start = started(path, depth=2)
    assert (start.spec.depth, [gate.layer for gate in start.spec.gates]) == (2, [1])
    assert_computes(model_of(start), start)
    assert (started(path, depth=1).spec.gates, started(path, depth=2, gates=()).spec.family) == ((), "segmenter")
    with pytest.raises(ConfigError, match=r"network\.depth = 5: --init .* has 4 layers; at most so many"):
        started(path, depth=5)


def test_gates_are_added_by_the_contracts_rule():
    assert added_layers(12) == (2, 5, 8)
    assert added_layers(24) == (6, 12, 18)
    assert added_layers(8) == (2, 4, 6)
    assert added_layers(3) == (1, 2)
    assert added_layers(1) == ()


def test_another_size_resizes_the_positions(tmp_path):
    start = started(saved(tmp_path / "made", SPEC), size=(96, 128))
    assert start.spec.size == (96, 128)
    assert len(start.state["positions"]) == start.spec.tokens
    assert started(saved(tmp_path / "other", SPEC), size=(96, 128), gates=(1,)).spec.size == (96, 128)


def test_another_number_of_classes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a network of 4 classes, the data set has 11"):
        started(saved(tmp_path / "made", SPEC), classes=11)


def test_what_the_checkpoint_decides_is_not_to_be_stated(tmp_path):
    with pytest.raises(ConfigError, match=r"network\.width is the checkpoint's affair"):
        started(saved(tmp_path / "made", SPEC), width=16)


def test_gates_beyond_the_depth_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"gates \[9\] must rise and stay below the depth 4"):
        started(saved(tmp_path / "made", SPEC), gates=(9,))


def test_pickled_code_is_refused(tmp_path):
    torch.save({"model": np.random.default_rng}, tmp_path / "evil.pth")
    with pytest.raises(PickleRefused):
        started(tmp_path / "evil.pth")


def test_mask_heads_start_with_class_tokens_that_differ():
    model = trainable_model(tiny_spec(head="mask"))
    initialise(model, 0)
    assert not torch.equal(model.head.class_tokens[0], model.head.class_tokens[1])


@torch.no_grad()
def test_a_run_starts_as_the_network_it_was_given(tmp_path):
    start = started(saved(tmp_path / "made", SPEC))
    data = dataset_from_path(write_folder(tmp_path / "set", size=SPEC.size), "train")
    config = TrainConfig(spec=start.spec, steps=1, phases=(Phase(until=1, crop=(48, 64), batch=3),), precision="fp32")
    frequencies = data.class_frequencies()
    run = Trainer(
        config, TrainingData(data, None), None, RunFolder(tmp_path), target=Labels.of(frequencies, config), start=start
    )
    assert_computes(copy.deepcopy(run.average).eval(), start, atol=3e-4)
    # In training mode too, on the batch that the first step sees.
    batch = run.maker.batch(next(run.plans(None)))
    trained, given = (masked_forward(run.model.train(mode), batch.pixels).logits for mode in (True, False))
    torch.testing.assert_close(trained, given, atol=3e-3, rtol=1e-3)
