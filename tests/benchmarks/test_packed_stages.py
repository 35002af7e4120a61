"""The packed stages on CPU tensors against the model that is exported: any count, any batch, no padding that shows."""

from __future__ import annotations

import copy

import pytest
import torch
from gpu import cases
from gpu.models import PROFILES, predicted_speedup, random_model, random_pixels, thresholds_for, vit_spec
from gpu.packed_runner import AtOnce, DenseRunner, StagedRunner
from gpu.packed_stages import masked_attention, varlen_attention
from gpu.parity import parity, reference_trace

from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.stages import DenseNetwork
from tests.staged_loop import run_staged

CPU = torch.device("cpu")
SPEC = vit_spec(32, 4, 4, 80)
FLOATS = 1e-5


@pytest.fixture(scope="module")
def model():
    return random_model(SPEC, CPU)


@pytest.fixture(scope="module")
def pixels():
    return random_pixels(SPEC, 3, CPU)


def alone(model, pixels, thresholds, image):
    limits = torch.tensor(thresholds)[:, None].expand(-1, SPEC.classes).contiguous()
    return run_staged(model, pixels[image : image + 1], thresholds=limits)


def agrees(model, pixels, runner, thresholds) -> list[list[int]]:
    runner.set_thresholds(thresholds)
    result = runner.run(pixels)
    for image in range(len(pixels)):
        expected = alone(model, pixels, thresholds, image)
        assert [row[image] for row in result.counts] == expected.kept[1:]
        torch.testing.assert_close(result.logits[image : image + 1], expected.logits, atol=FLOATS, rtol=FLOATS)
        for gate, index in enumerate(expected.indices):
            before = sum(result.counts[gate][:image])
            order = runner.decisions[gate].order[before : before + len(index)] - image * SPEC.tokens
            assert torch.equal(order, index)
    return result.counts


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("step", [1, 8, 1000])
@pytest.mark.parametrize("images", [1, 3])
def test_each_image_runs_as_if_alone(model, pixels, profile, step, images) -> None:
    runner = StagedRunner(model, images, masked_attention, step=step)
    thresholds = thresholds_for(runner, pixels[:images], PROFILES[profile])
    counts = agrees(model, pixels[:images], runner, thresholds)
    assert images == 1 or len({tuple(column) for column in zip(*counts, strict=True)}) > 1, "the images should differ"
    shares = [(sum(row) - images * SPEC.extra_tokens) / (images * SPEC.patches) for row in counts]
    assert shares == pytest.approx(PROFILES[profile], abs=0.03)


@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_nothing_and_everything_runs_on(model, pixels, threshold) -> None:
    counts = agrees(model, pixels, StagedRunner(model, 3, masked_attention, step=8), [threshold] * 3)
    assert {count for row in counts for count in row} == {SPEC.extra_tokens if threshold == 0 else SPEC.tokens}


def test_dense_is_the_dense_network(model, pixels) -> None:
    got = DenseRunner(model, 3).run(pixels)
    with torch.inference_mode():
        want = torch.cat([DenseNetwork(model)(pixels[image : image + 1]) for image in range(3)])
    torch.testing.assert_close(got, want, atol=FLOATS, rtol=FLOATS)


class Replayed(AtOnce):
    """As CUDA graphs: work is done twice before the first launch; each launch repeats what was given first."""

    def __init__(self) -> None:
        self.graphs = {}

    @property
    def launches(self) -> int:
        return len(self.graphs)

    def __call__(self, key, work) -> None:
        if key not in self.graphs:
            work()
            work()
            self.graphs[key] = work
        self.graphs[key]()


def test_work_can_be_captured(model, pixels) -> None:
    """A stage that is run to warm up leaves nothing behind; what is captured reads and writes the same memory."""
    runner, dense = StagedRunner(model, 3, masked_attention, step=8), DenseRunner(model, 3)
    runner._launch = dense._launch = Replayed()
    thresholds = thresholds_for(runner, pixels, PROFILES["p45"])
    agrees(model, pixels, runner, thresholds)
    addresses = [runner.logits.data_ptr(), *(decision.order.data_ptr() for decision in runner.decisions)]
    other = pixels.flip(0).contiguous()
    agrees(model, other, runner, thresholds)
    assert addresses == [runner.logits.data_ptr(), *(decision.order.data_ptr() for decision in runner.decisions)]
    first = dense.run(pixels)
    again = first.clone()
    assert dense.run(other).data_ptr() == first.data_ptr() and torch.allclose(first.flip(0), again, atol=FLOATS)
    assert runner.captured > len(SPEC.gates) + 1


def fake_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    """A FAKE of `torch.nn.attention.varlen.varlen_attn`, by its documentation; rows behind the last one are NaN."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and query.ndim == 3 and query.is_contiguous()
    output = torch.full_like(query, float("nan"))
    for start, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        assert end - start <= min(max_q, max_k)
        parts = (part[start:end].transpose(0, 1)[None] for part in (query, key, value))
        output[start:end] = torch.nn.functional.scaled_dot_product_attention(*parts)[0].transpose(0, 1)
    return output


@pytest.mark.parametrize("images", [1, 3])
def test_whatever_the_packed_kernel_leaves_in_padding_does_not_show(model, pixels, images, monkeypatch) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", fake_varlen)
    runner = StagedRunner(model, images, varlen_attention, step=16)
    thresholds = thresholds_for(runner, pixels[:images], PROFILES["p45"])
    counts = agrees(model, pixels[:images], runner, thresholds)
    assert any(runner.bucket(sum(row)) > sum(row) for row in counts), "there was padding"


def test_a_device_without_the_packed_kernel_gets_the_masked_one() -> None:
    assert cases.fastest_attention(CPU) == (masked_attention, "masked")


def test_parity_finds_what_is_wrong(model, pixels) -> None:
    runner = StagedRunner(model, 3, masked_attention, step=8)
    thresholds = thresholds_for(runner, pixels, PROFILES["p45"])
    assert not [failure for run in parity(runner, model, pixels, thresholds) for failure in run.failures]
    other = copy.deepcopy(model)
    other.blocks[2].mlp.contract.bias += 0.01
    wrong = parity(StagedRunner(other, 3, masked_attention, step=8), model, pixels, thresholds)
    assert all(any("tokens: differs" in failure for failure in run.failures) for run in wrong)
    unsure = copy.deepcopy(model)
    unsure.gates[0].head.classifier.bias[0] += 30.0
    flipped = parity(StagedRunner(unsure, 3, masked_attention, step=8), model, pixels, thresholds)
    assert any("decisions differ" in failure for run in flipped for failure in run.failures)


def test_half_precision_agrees_by_the_rule(model, pixels) -> None:
    runner = StagedRunner(copy.deepcopy(model).half(), 3, masked_attention, step=8)
    thresholds = thresholds_for(runner, pixels, PROFILES["p45"])
    runs = parity(runner, model, pixels, thresholds)
    assert not [failure for run in runs for failure in run.failures]
    assert max(gate.confidence_error for run in runs for gate in run.gates) > 1e-5, "it is another arithmetic"


def test_the_reference_trace_is_that_of_the_stages(model, pixels) -> None:
    thresholds = [0.9, 0.8, 0.7]
    limits = torch.tensor(thresholds)[:, None].expand(-1, SPEC.classes).contiguous().numpy()
    trace, expected = reference_trace(model, pixels[:1], limits), alone(model, pixels, thresholds, 0)
    assert [len(index) for index in trace.index] == expected.kept[1:]
    assert torch.equal(torch.from_numpy(trace.logits), expected.logits)


def test_predicted_speedup_is_the_ratio_of_macs() -> None:
    cost = cost_model(SPEC)
    counts = [[10, 26], [8, 20], [5, 3]]
    macs = cost.actual([26, 10, 8, 5]).total + cost.actual([26, 26, 20, 3]).total
    assert predicted_speedup(SPEC, counts) == pytest.approx(2 * cost.dense().total / macs)
