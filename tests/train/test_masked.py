from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.families.folding import folded
from dovit_deploy.families.registry import model_from_spec, spec_at_size
from dovit_deploy.families.stages import DenseNetwork
from dovit_deploy.train.initialise import initialise, trainable_model
from dovit_deploy.train.masked import Passing, masked_forward
from tests.staged_loop import run_staged
from tests.tiny import tiny_model, tiny_pixels, tiny_spec

SPEC = tiny_spec(head="pup", gate="fcn", stem="conv", gates=(1, 2, 3))
LENS = tiny_spec(head="light", gate="linear", gates=(1, 2, 3), answer="lens")
TAPPED = tiny_spec(head="linear", gate="linear", gates=(1, 3), taps=(1, 2, 3), answer="lens")
LENSED = tiny_spec(
    head="linear", gate="linear", gates=(1, 3), depth=5, taps=(1, 2, 4), answer="lens", tap_answer="lens"
)
ANSWERING = tiny_spec(head="fcn", gate="fcn", gates=(1, 2, 3), taps=(2,), answer="gate")
LINEAR = tiny_spec(head="mask", gate="linear", gates=(1, 3), extra_tokens=2, final_norm=False)
ROTARY = tiny_spec(head="linear", gate="linear", gates=(1, 3), extra_tokens=5, rotary=True)


def passing_of(spec, threshold, floor=0.0):
    return Passing(torch.full((len(spec.gates), spec.classes), threshold), torch.tensor(floor))


def assert_as_alone(model, pixels, thresholds, floor=0.0):
    """Every image of the batch decides and answers as the stages do on it alone; returns the numbers kept."""
    extra = model.spec.extra_tokens
    with torch.inference_mode():
        output = masked_forward(model, pixels, passing=Passing(thresholds, torch.tensor(floor)))
    kept = []
    for number in range(len(pixels)):
        alone = run_staged(model, pixels[number : number + 1], thresholds=thresholds, floor=floor)
        for gate, index in zip(output.gates, alone.indices, strict=True):
            assert gate.keep[number].nonzero()[:, 0].tolist() == (index[extra:] - extra).tolist()
        torch.testing.assert_close(output.logits[number : number + 1], alone.logits, atol=1e-4, rtol=1e-4)
        kept.append(alone.kept)
    return kept


@settings(max_examples=14, deadline=None, derandomize=True)
@given(threshold=st.floats(0.3, 0.99), floor=st.sampled_from([0.0, 0.25]), seed=st.integers(0, 20))
@pytest.mark.parametrize(
    "spec",
    [SPEC, LINEAR, LENS, TAPPED, LENSED, ANSWERING, ROTARY],
    ids=[
        "conv stem, fcn gates",
        "two extra tokens, linear gates",
        "light head, lens",
        "four layers and a lens",
        "four layers, a lens for each",
        "gates answer",
        "rotary positions",
    ],
)
def test_a_batch_answers_as_the_stages_do_image_by_image(spec, threshold, floor, seed):
    model = tiny_model(spec, seed % 3)
    thresholds = torch.full((len(spec.gates), spec.classes), threshold)
    assert_as_alone(model, tiny_pixels(spec.size, seed, images=3), thresholds, floor)


def test_the_comparison_sees_images_that_keep_different_numbers():
    thresholds = torch.full((len(SPEC.gates), SPEC.classes), 0.7)
    kept = assert_as_alone(tiny_model(SPEC), tiny_pixels(SPEC.size, 1, images=3), thresholds)
    assert len({tuple(counts) for counts in kept}) > 1
    assert any(SPEC.extra_tokens < counts[-1] < SPEC.tokens for counts in kept)


def test_thresholds_are_validated_up_by_class_and_gate():
    draw = torch.Generator().manual_seed(5)
    thresholds = 0.4 + 0.6 * torch.rand(len(SPEC.gates), SPEC.classes, generator=draw)
    assert_as_alone(tiny_model(SPEC), tiny_pixels(SPEC.size, 2, images=2), thresholds)


@pytest.mark.parametrize("threshold", [0.0, 1.0], ids=["everything stops", "nothing stops"])
def test_extremes(threshold):
    thresholds = torch.full((len(SPEC.gates), SPEC.classes), threshold)
    kept = assert_as_alone(tiny_model(SPEC), tiny_pixels(SPEC.size, 3, images=2), thresholds)
    assert kept == [[SPEC.tokens, *[SPEC.extra_tokens if threshold == 0 else SPEC.tokens] * 3]] * 2


def test_without_passing_it_is_the_dense_network_and_every_gate_sees_every_token():
    model, pixels = tiny_model(SPEC), tiny_pixels(SPEC.size, 4)
    with torch.inference_mode():
        output = masked_forward(model, pixels)
        dense = DenseNetwork(model)(pixels)
    torch.testing.assert_close(output.logits, dense, atol=1e-4, rtol=1e-4)
    assert all(gate.running.all() and gate.keep.all() for gate in output.gates)
    assert [gate.logits.shape for gate in output.gates] == [(SPEC.patches, SPEC.classes)] * 3


@pytest.mark.parametrize(
    ("spec", "tables"), [(SPEC, ["positions"]), (ROTARY, ["rotary.cosines", "rotary.sines"])], ids=["added", "rotary"]
)
def test_a_crop_takes_the_positions_where_it_lies(spec, tables):
    model = tiny_model(spec)
    pixels = tiny_pixels((32, 48), 6)
    small = spec_at_size(spec, (32, 48))
    rows, columns = torch.arange(1, 3), torch.arange(2, 5)
    patches = spec.extra_tokens + (rows[:, None] * spec.grid[1] + columns).flatten()
    state = model.state_dict()
    for table in tables:
        state[table] = state[table][torch.cat([torch.arange(spec.extra_tokens), patches])]
    with torch.inference_mode():
        expected = DenseNetwork(model_from_spec(small, state))(pixels)
        logits = masked_forward(model, pixels, origin=torch.tensor([[1, 2]])).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_stopped_tokens_receive_no_gradient_through_later_blocks():
    model = trainable_model(SPEC)
    initialise(model, 0)
    pixels = tiny_pixels(SPEC.size, 7, images=2)
    output = masked_forward(model, pixels, passing=passing_of(SPEC, 0.0), detach_gates=True)
    output.logits.sum().backward()
    # All patches stop at the first gate: later blocks then see the class token alone, which the head never reads.
    assert model.blocks[0].mlp.expand.weight.grad.abs().sum() > 0
    assert model.blocks[3].mlp.expand.weight.grad.abs().sum() == 0


def test_detached_gates_do_not_train_the_layers_below():
    for detach in (True, False):
        model = trainable_model(SPEC)
        initialise(model, 0)
        output = masked_forward(model, tiny_pixels(SPEC.size, 8, images=2), detach_gates=detach)
        sum(gate.logits.square().sum() for gate in output.gates).backward()
        assert model.gates[0].head.classifier.weight.grad.abs().sum() > 0
        assert (model.blocks[0].mlp.expand.weight.grad is None) == detach


def test_detached_stopped_tokens_do_not_train_the_layers_that_they_stopped_behind():
    # Nothing but stopped patches reaches this head, so the layers below the gate get nothing at all.
    spec = tiny_spec(head="pup", gate="fcn", stem="conv", gates=(2,), aggregate_rate=1.0)
    gradients, answers = [], []
    for detached in (False, True):
        model = tiny_model(spec).requires_grad_(True)
        output = masked_forward(
            model, tiny_pixels(spec.size, 3), passing=passing_of(spec, 0.0), detach_stopped=detached
        )
        assert not output.gates[0].keep.any()
        output.logits.square().sum().backward()
        gradients.append(
            [
                0.0 if block.mlp.expand.weight.grad is None else float(block.mlp.expand.weight.grad.abs().sum())
                for block in model.blocks[:2]
            ]
        )
        assert float(model.head.classifier.weight.grad.abs().sum()) > 0
        answers.append(output.logits.detach())
    assert min(gradients[0]) > 0
    assert gradients[1] == [0.0, 0.0]
    assert torch.equal(*answers)


def test_a_gate_reached_by_no_token_is_harmless_in_training():
    model = trainable_model(SPEC)
    initialise(model, 0)
    output = masked_forward(model, tiny_pixels(SPEC.size, 9, images=2), passing=passing_of(SPEC, 0.0))
    assert not output.gates[1].running.any()
    assert not output.gates[2].keep.any()


def test_training_form_and_its_folded_weights_agree():
    model = trainable_model(SPEC)
    initialise(model, 0)
    with torch.no_grad():
        for _ in range(3):
            masked_forward(model, tiny_pixels(SPEC.size, 10, images=2))
    model.eval()
    pixels = tiny_pixels(SPEC.size, 11)
    deployed = model_from_spec(SPEC, folded(copy.deepcopy(model).state_dict()))
    with torch.inference_mode():
        logits = masked_forward(model, pixels).logits
        expected = DenseNetwork(deployed)(pixels)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bfloat16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("head", ["linear", "mask", "setr", "pup"])
def test_every_head_learns_from_every_gate_that_may_learn(head, bfloat16):
    spec = tiny_spec(head=head, gates=(1, 2))
    model = trainable_model(spec)
    initialise(model, 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        output = masked_forward(model, tiny_pixels(spec.size, 3, images=2), passing=passing_of(spec, 0.9))
    (
        output.logits.float().square().mean() + sum(gate.logits.float().square().mean() for gate in output.gates)
    ).backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert idle == []
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


def test_a_network_without_class_token_runs_dense():
    spec = tiny_spec(head="setr", gates=()).model_copy(update={"extra_tokens": 0})
    pixels = tiny_pixels(spec.size, 2)
    model = tiny_model(spec)
    with torch.inference_mode():
        torch.testing.assert_close(
            masked_forward(model, pixels).logits, DenseNetwork(model)(pixels), atol=1e-4, rtol=1e-4
        )
