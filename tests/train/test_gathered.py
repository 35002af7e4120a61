"""Token passing by quota: what stops, and that each image gets what the deployed stages give it alone."""

from __future__ import annotations

import copy

import pytest
import torch

from dovit_deploy.families.tokens import aggregate_limit
from dovit_deploy.train.gathered import Quotas, gathered_forward, most_confident, take_each
from dovit_deploy.train.masked import Passing, masked_forward
from tests.staged_loop import run_staged
from tests.tiny import tiny_model, tiny_pixels, tiny_spec

SPECS = {
    "lens": tiny_spec(head="light", gate="fcn", gates=(1, 2, 3), answer="lens"),
    "feature, two extra tokens": tiny_spec(head="mask", gate="linear", gates=(1, 3), extra_tokens=2),
    "rotary": tiny_spec(head="linear", gate="linear", gates=(1, 3), extra_tokens=5, rotary=True),
    "never aggregated": tiny_spec(head="linear", gate="linear", gates=(1, 2), aggregate_rate=1.0),
    "four layers": tiny_spec(head="light", gate="linear", gates=(1, 3), taps=(1, 2, 3), answer="lens"),
    "four layers, a lens for each": tiny_spec(
        head="linear", gate="linear", gates=(1, 3), depth=5, taps=(1, 2, 4), answer="lens", tap_answer="lens"
    ),
    "gates answer": tiny_spec(head="fcn", gate="linear", gates=(1, 2, 3), taps=(2,), answer="gate"),
}
SHARES = (0.4, 0.5, 0.3)


def quotas_of(spec):
    return Quotas(SHARES[: len(spec.gates)])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_image_of_a_batch_answers_as_the_stages_with_its_decisions(spec):
    model, pixels, extra = tiny_model(spec), tiny_pixels(spec.size, 1, images=3), spec.extra_tokens
    with torch.inference_mode():
        output = gathered_forward(model, pixels, quotas=quotas_of(spec))
    whole, everything = torch.ones(len(spec.gates), spec.classes), torch.arange(extra)
    for number in range(3):
        indices = [torch.cat([everything, extra + gate.keep[number].nonzero()[:, 0]]) for gate in output.gates]
        alone = run_staged(model, pixels[number : number + 1], thresholds=whole, indices=indices)
        torch.testing.assert_close(output.logits[number : number + 1], alone.logits, atol=1e-4, rtol=1e-4)
        for gate, confidence, share in zip(output.gates, alone.confidences, SHARES, strict=False):
            stopped = gate.running[number] & ~gate.keep[number]
            assert stopped.sum() == round(share * int(gate.running[number].sum()))
            assert confidence[stopped].min() >= confidence[gate.keep[number]].max() - 1e-6
            assert not (gate.keep[number] & ~gate.running[number]).any()
    assert not torch.equal(output.gates[0].keep[0], output.gates[0].keep[1]), "images that stop alike prove little"


def between(output, number):
    """A threshold that stops what stopped at gate `number` of the only image."""
    gate = output.gates[number]
    confidence = gate.logits.softmax(1).amax(1)
    stays = gate.keep[0][gate.running[0]]
    return (confidence[~stays].min() + confidence[stays].max()).item() / 2


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_one_image_learns_as_with_masks(spec, detach):
    """Where a threshold stops the same tokens, values and gradients are those of the pass with masks."""
    gathered = tiny_model(spec).requires_grad_(True)
    masked, pixels = copy.deepcopy(gathered), tiny_pixels(spec.size, 2)
    flags = {"detach_gates": detach, "detach_stopped": detach}
    mine = gathered_forward(gathered, pixels, quotas=quotas_of(spec), **flags)
    rows = torch.tensor([[between(mine, number)] * spec.classes for number in range(len(spec.gates))])
    other = masked_forward(masked, pixels, passing=Passing(rows, torch.zeros(())), **flags)
    torch.testing.assert_close(mine.logits, other.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mine.features, other.features, atol=1e-4, rtol=1e-4)
    for one, two in zip(mine.gates, other.gates, strict=True):
        torch.testing.assert_close(one.logits, two.logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(one.running, two.running) and torch.equal(one.keep, two.keep)
    for output in (mine, other):
        (output.logits.square().sum() + sum(gate.logits.square().sum() for gate in output.gates)).backward()
    for (name, one), two in zip(gathered.named_parameters(), masked.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=2e-3, rtol=1e-3, msg=name)


def test_the_aggregate_fires_in_the_specs_above():
    spec = SPECS["feature, two extra tokens"]
    assert round(SHARES[0] * spec.patches) > aggregate_limit(spec.aggregate_rate, spec.tokens)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_or_everything_may_stop(share):
    spec = SPECS["lens"]
    model, pixels = tiny_model(spec), tiny_pixels(spec.size, 3, images=2)
    with torch.inference_mode():
        output = gathered_forward(model, pixels, quotas=Quotas((share,) * 3))
        dense = masked_forward(model, pixels)
    assert [int(gate.keep.sum()) for gate in output.gates] == [2 * spec.patches * (1 - int(share))] * 3
    assert output.logits.isfinite().all()
    assert torch.allclose(output.logits, dense.logits, atol=1e-4) is (share == 0)


def test_a_crop_takes_the_positions_where_it_lies():
    spec = SPECS["lens"]
    model, pixels = tiny_model(spec), tiny_pixels((32, 48), 3)
    with torch.inference_mode():
        mine, other = (
            gathered_forward(model, pixels, quotas=Quotas((0.0,) * 3), origin=torch.tensor([[row, 1]])).logits
            for row in (0, 1)
        )
        masked = masked_forward(model, pixels, origin=torch.tensor([[1, 1]])).logits
    torch.testing.assert_close(other, masked, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(mine, other, atol=1e-3)


def test_ties_stop_in_raster_order():
    stop, keep = most_confident(torch.zeros(2, 5, 3), 0.4)
    assert stop.tolist() == [[0, 1]] * 2
    assert keep.tolist() == [[2, 3, 4]] * 2


def test_each_image_has_rows_of_its_own():
    tokens = torch.arange(12.0).reshape(2, 3, 2)
    taken = take_each(tokens, torch.tensor([[2, 0], [1, 1]]))
    assert taken.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
