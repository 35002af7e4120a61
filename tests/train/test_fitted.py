"""Gates and lenses fitted before the first step."""

from __future__ import annotations

import copy

import pytest
import torch

from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import ConfigError, Interrupted
from dovit_deploy.train import fitted
from dovit_deploy.train.batches import BatchMaker, Planner
from dovit_deploy.train.config import Phase, TokenPassing, TrainConfig
from dovit_deploy.train.data import TrainingData
from dovit_deploy.train.fitted import fit_gates
from dovit_deploy.train.initialise import trainable_model
from dovit_deploy.train.loop import Trainer
from dovit_deploy.train.masked import embed, masked_forward, run_layers
from dovit_deploy.train.objective import gate_loss
from dovit_deploy.train.state import RunFolder
from dovit_deploy.train.target import Labels, token_histograms
from tests.tiny import tiny_spec, tiny_state
from tests.train.runs import record_of
from tests.train.tiny_folder import write_folder

SPEC = tiny_spec(head="light", gate="fcn", gates=(1, 2), size=(40, 56), classes=4, answer="lens", aggregate_rate=1.0)
EQUAL = torch.ones(4)


def config_of(**changes):
    return TrainConfig(
        **{
            "spec": SPEC,
            "steps": 6,
            "phases": (Phase(until=1, crop=(48, 64), batch=2),),
            "precision": "fp32",
            "validations": 0,
            "fitted": 3,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset_from_path(write_folder(tmp_path_factory.mktemp("data") / "set"), "train")


@pytest.fixture(scope="module")
def batches(data):
    planner = Planner(config_of(), len(data))
    maker = BatchMaker(config_of(), TrainingData(data, None))
    return [maker.batch(planner.plan(step, 0.0)) for step in range(3)]


def model_of():
    model = trainable_model(SPEC)
    model.load_state_dict(tiny_state(SPEC), strict=False)
    return model.eval()


@torch.no_grad()
def losses(model, batches):
    """Of each gate, and of each lens against the last layer's tokens, on `batches`."""
    gates, lenses = torch.zeros(2), torch.zeros(2)
    for batch in batches:
        histograms = token_histograms(batch.labels, SPEC.patch, SPEC.classes)
        output = masked_forward(model, batch.pixels, origin=batch.origin)
        gates += torch.stack([gate_loss(gate, histograms, EQUAL) for gate in output.gates])
        tokens, seen = embed(model, batch.pixels, batch.origin).tokens, []
        for layers in SPEC.stage_layers:
            tokens = run_layers(model, layers, tokens)
            seen.append(tokens[:, 1:])
        found = [lens(one) - seen[-1] for lens, one in zip(model.lenses, seen[:-1], strict=True)]
        lenses += torch.stack([one.square().mean() for one in found])
    return gates, lenses


def test_gates_know_classes_lenses_the_last_layer_and_nothing_else_changes(batches):
    model = model_of()
    before, was = copy.deepcopy(model.state_dict()), losses(model, batches)
    fit_gates(model, batches, config_of(), EQUAL)
    gates, lenses = losses(model, batches)
    assert (gates < 0.7 * was[0]).all()
    assert (lenses < 0.3 * was[1]).all()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in changed} == {"gates", "lenses"}


@pytest.mark.parametrize("at_once", [500, 130])
def test_a_lens_is_the_best_affine_map_of_its_tokens(monkeypatch, at_once):
    """Where the last layer's tokens are an affine map of the normed ones, it is found, also of a part at a time."""
    monkeypatch.setattr(fitted, "RIDGE", 1e-9)
    monkeypatch.setattr(fitted, "LENS_AT_ONCE", at_once)
    lens, draw = model_of().lenses[0], torch.Generator().manual_seed(0)
    tokens = torch.randn(500, SPEC.width, generator=draw) * 3 + 1
    matrix, shift = torch.randn(SPEC.width, SPEC.width, generator=draw), torch.randn(SPEC.width, generator=draw)
    wanted = lens.norm(tokens) @ matrix + shift
    fitted.fit_lens(lens, tokens, wanted)
    torch.testing.assert_close(lens(tokens), wanted, atol=1e-3, rtol=1e-3)


def test_a_resumed_run_with_everything_new_is_the_straight_run(tmp_path, data):
    config = config_of(
        layer_decay=0.7,
        head_rate=1e-2,
        gate_rate=3e-3,
        frozen_layers=1,
        drop_path=0.4,
        passing=TokenPassing(mode="quota", start=0.0, share=0.6, quotas=((0.2, 0.6), (0.1, 0.4))),
        precision="bf16",
    )

    def trainer(name, *, made):
        folder = RunFolder.create(tmp_path / name, record_of(config)) if made else RunFolder.open(tmp_path / name)[0]
        return Trainer(
            config, TrainingData(data, None), None, folder, target=Labels.of(data.class_frequencies().tolist(), config)
        )

    straight, first = trainer("straight", made=True), trainer("parts", made=True)
    straight.run()
    first.run(stop_after=3)
    second = trainer("parts", made=False)
    assert second.resume()
    second.run()
    for mine, theirs in ((straight.model, second.model), (straight.average, second.average)):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
    rows = [row for row in straight.folder.rows() if "loss" in row]
    assert len(rows) == len([row for row in second.folder.rows() if "loss" in row]) == 6
    dropped = [row for row in rows if "quotas" in row]
    assert 0 < len(dropped) < 6
    patches = 12
    for row in dropped:
        first_kept = patches - round(row["quotas"][0] * patches)
        assert row["kept0"] == pytest.approx(first_kept / patches)
        assert row["kept1"] == pytest.approx((first_kept - round(row["quotas"][1] * first_kept)) / patches)
    assert not torch.equal(straight.model.blocks[1].norm1.weight, torch.ones(SPEC.width))
    assert torch.equal(straight.model.blocks[0].norm1.weight, torch.ones(SPEC.width)), "the first layer is frozen"


def test_layers_of_a_run_move_at_their_own_rates(tmp_path, data):
    config = config_of(
        steps=1, fitted=1, layer_decay=1e-3, head_rate=1e-2, learning_rate=1e-3, weight_decay=0.0, warm_up=0.0
    )
    folder = RunFolder.create(tmp_path / "run", record_of(config))
    trainer = Trainer(
        config, TrainingData(data, None), None, folder, target=Labels.of(data.class_frequencies().tolist(), config)
    )
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.run()
    moved = {name: (value - before[name]).abs().max().item() for name, value in trainer.model.named_parameters()}
    # The first step of AdamW is the rate itself, where there is a gradient.
    assert moved["blocks.3.mlp.expand.weight"] == pytest.approx(1e-3, rel=0.1)
    assert moved["blocks.2.mlp.expand.weight"] == pytest.approx(1e-6, rel=0.1)
    assert moved["head.conv.weight"] == pytest.approx(1e-2, rel=0.1)


def test_a_run_can_be_stopped_before_its_first_step(tmp_path, data):
    folder = RunFolder.create(tmp_path / "run", record_of(config_of()))
    trainer = Trainer(config_of(), TrainingData(data, None), None, folder, target=Labels.of([0.25] * 4, config_of()))
    with pytest.raises(Interrupted, match="stopped before the first step; the same command with --resume"):
        trainer.run(stopped=lambda: True)
    assert trainer.step == 0
    again = Trainer(config_of(), TrainingData(data, None), None, folder, target=Labels.of([0.25] * 4, config_of()))
    assert not again.resume()


def test_more_batches_than_a_run_holds_are_refused(tmp_path, data):
    with pytest.raises(ValueError, match="fitted = 7: more batches than the run has steps, 6"):
        config_of(fitted=7)
    config = config_of(fitted=1000, steps=None, minutes=1.0)
    folder, ticks = RunFolder.create(tmp_path / "run", record_of(config)), iter(range(0, 10_000, 5))
    shares = data.class_frequencies().tolist()
    # Five seconds each time that the clock is read.
    trainer = Trainer(
        config,
        TrainingData(data, None),
        None,
        folder,
        target=Labels.of(shares, config),
        clock=lambda: float(next(ticks)),
    )
    with pytest.raises(ConfigError, match=r"1000 batches take longer than the run of 1 minutes"):
        trainer.run()
    assert trainer.step == 0


@pytest.mark.parametrize("warm_up", [0.01, 0.5])
def test_a_fit_that_outlasts_the_warm_up_is_said(tmp_path, data, warm_up):
    config = config_of(fitted=1, steps=None, minutes=1.0, warm_up=warm_up)
    folder, ticks = RunFolder.create(tmp_path / "run", record_of(config)), iter(range(0, 10_000, 5))
    shares, lines = data.class_frequencies().tolist(), list[str]()
    trainer = Trainer(
        config,
        TrainingData(data, None),
        None,
        folder,
        target=Labels.of(shares, config),
        clock=lambda: float(next(ticks)),
    )
    trainer.fit(remark=lines.append)
    assert lines == (
        ["fitting gates to 1 batch took 5 s of the run, more than its warm-up (1 s)"] if warm_up < 0.1 else []
    )


def test_nothing_is_fitted_to_a_single_token(data):
    config = config_of(fitted=1, phases=(Phase(until=1, crop=(16, 16), batch=1),))
    batch = BatchMaker(config, TrainingData(data, None)).batch(Planner(config, len(data)).plan(0, 0.0))
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    fit_gates(model, [batch], config, EQUAL)
    for name, values in model.state_dict().items():
        torch.testing.assert_close(values, before[name], atol=0, rtol=0)
