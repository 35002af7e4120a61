"""The stages: replay, dense, and the normal extremes (nothing stopped, everything stopped)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dovit_deploy.families.stages import DenseNetwork, WholeStage
from dovit_deploy.families.vit.network import stages_from_model
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.staged_loop import StagedRun, run_staged
from tests.tiny import GateName, HeadName, tiny_model, tiny_pixels, tiny_spec

GATES: list[GateName] = ["linear", "fcn", "setr"]
HEADS: list[HeadName] = ["mask", "linear", "setr", "pup"]


def thresholds(spec: VisionTransformerSpec, value: float) -> Tensor:
    return torch.full((len(spec.gates), spec.classes), value)


def run(
    spec: VisionTransformerSpec, value: float, *, floor: float = 0.0, indices: list[Tensor] | None = None
) -> StagedRun:
    pixels = tiny_pixels(spec.size, 3)
    return run_staged(tiny_model(spec, 3), pixels, thresholds=thresholds(spec, value), floor=floor, indices=indices)


@pytest.mark.parametrize("gate", GATES)
def test_replaying_a_runs_own_decisions_is_bit_equal(gate: GateName) -> None:
    spec = tiny_spec(gate=gate, gates=(1, 2, 4), depth=5)
    own = run(spec, 0.75)
    assert spec.tokens > own.kept[1] > own.kept[-1] > 1, "a replay of nothing proves nothing"
    # Thresholds that would decide otherwise show that the index alone is obeyed.
    again = run(spec, 1.0, indices=own.indices)
    assert again.kept == own.kept
    assert torch.equal(again.logits, own.logits)
    for before, after in zip(own.tokens, again.tokens, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("gate", GATES)
def test_with_nothing_stopped_it_is_the_dense_network(head: HeadName, gate: GateName) -> None:
    spec = tiny_spec(head=head, gate=gate)
    staged = run(spec, 1.0)
    assert staged.kept == [spec.tokens] * 3
    dense = DenseNetwork(tiny_model(spec, 3))(tiny_pixels(spec.size, 3))
    assert float((staged.logits - dense).abs().max()) < 1e-5


@pytest.mark.parametrize("gate", GATES)
def test_everything_stopped_at_the_first_gate(gate: GateName) -> None:
    spec = tiny_spec(gate=gate, gates=(1, 2, 3))
    stopped = run(spec, 0.0)
    assert stopped.kept == [spec.tokens, 1, 1, 1]
    assert stopped.logits.isfinite().all()
    for tokens in stopped.tokens[1:]:
        assert torch.equal(tokens[1:], stopped.tokens[0][1:]), "a stopped token moved"
        assert not torch.equal(tokens[:1], stopped.tokens[0][:1]), "the class token did not run"
    if gate != "setr":
        assert stopped.confidences[1].isnan().all()
        assert (stopped.labels[1] == -1).all()


def test_a_floor_above_every_confidence_stops_everything_too() -> None:
    spec = tiny_spec()
    assert run(spec, 1.0, floor=1.0).kept == [spec.tokens, 1, 1]


def test_a_stopped_token_keeps_its_value_and_never_runs_again() -> None:
    spec = tiny_spec(gates=(1, 2, 3), depth=5)
    found = run(spec, 0.6)
    for before, after in zip(found.indices, found.indices[1:], strict=False):
        assert set(after.tolist()) <= set(before.tolist())
    for number, index in enumerate(found.indices[:-1]):
        stopped = torch.ones(spec.tokens, dtype=torch.bool).index_fill(0, index, False)
        assert torch.equal(found.tokens[number + 1][stopped], found.tokens[number][stopped])


def test_confidences_are_given_for_running_tokens_only() -> None:
    spec = tiny_spec(gate="fcn")
    found = run(spec, 0.6)
    ran = torch.zeros(spec.patches, dtype=torch.bool).index_fill(0, found.indices[0][1:] - 1, True)
    assert torch.equal(~found.confidences[1].isnan(), ran)
    assert torch.equal(found.labels[1] >= 0, ran)
    assert not found.confidences[0].isnan().any()


def test_a_model_without_gates_is_one_stage() -> None:
    spec = tiny_spec(gates=())
    model = tiny_model(spec, 3)
    (stage,) = stages_from_model(model)
    assert isinstance(stage, WholeStage)
    pixels = tiny_pixels(spec.size, 3)
    logits, kept = stage(pixels)
    assert kept.tolist() == [spec.tokens]
    assert torch.equal(logits, DenseNetwork(model)(pixels))


def test_padding_on_all_sides_puts_an_odd_rest_at_the_end() -> None:
    ragged, whole = tiny_spec(size=(57, 70), padding="centre"), tiny_spec(size=(64, 80))
    pixels = tiny_pixels(ragged.size)
    framed = torch.zeros(1, 3, *whole.size)
    framed[:, :, 3:60, 5:75] = pixels
    assert ragged.pads_before == (3, 5)
    assert torch.equal(DenseNetwork(tiny_model(ragged))(pixels), DenseNetwork(tiny_model(whole))(framed))


def test_pixels_that_are_not_whole_patches_are_padded_with_zeros_right_and_bottom() -> None:
    ragged, whole = tiny_spec(size=(56, 72)), tiny_spec(size=(64, 80))
    pixels = tiny_pixels(ragged.size)
    framed = torch.zeros(1, 3, *whole.size)
    framed[:, :, :56, :72] = pixels
    assert torch.equal(DenseNetwork(tiny_model(ragged))(pixels), DenseNetwork(tiny_model(whole))(framed))
