"""The closed form against PyTorch's own counter and against the figures of the official fixtures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.registry import spec_at_size
from dovit_deploy.families.stages import DenseNetwork
from dovit_deploy.families.vit.network import stages_from_model
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.golden import Case, case_parameters, load
from tests.staged_loop import Carrier
from tests.tiny import tiny_model, tiny_pixels, tiny_spec

SPECS = {
    "mask head, fcn gates": tiny_spec(),
    "setr head and gates": tiny_spec(head="setr", gate="setr"),
    "pup head, linear gates": tiny_spec(head="pup", gate="linear"),
    "linear head, conv stem": tiny_spec(head="linear", stem="conv"),
    "light head, lens": tiny_spec(head="light", gate="linear", gates=(1, 2, 3), answer="lens"),
    "linear head on three layers": tiny_spec(head="linear", gate="linear", taps=(1, 2)),
    "fcn head on three layers, gates answer": tiny_spec(head="fcn", gate="linear", taps=(1, 2), answer="gate"),
    "linear head, lenses of taps": tiny_spec(
        head="linear", gate="linear", gates=(1, 2), taps=(1, 3), answer="lens", tap_answer="lens"
    ),
    "linear head, pooled context": tiny_spec(
        head="linear", gate="linear", gates=(1, 2), answer="gate", context="pooled", classes=7
    ),
    "queries, lens, pooled context": tiny_spec(
        head="query", gate="fcn", gates=(1, 2), depth=5, answer="lens", context="pooled"
    ),
    "distilled, no gates": tiny_spec(gates=(), extra_tokens=2),
    "queries, lens": tiny_spec(head="query", gate="linear", gates=(1, 2), depth=5, answer="lens"),
    "rotary positions": tiny_spec(head="linear", extra_tokens=5, rotary=True),
    "registers, SwiGLU, patches of 14": tiny_spec(extra_tokens=5, mlp="swiglu", patch=14, padding="centre"),
}
GATED = {name: spec for name, spec in SPECS.items() if spec.gates}


def counted(function: torch.nn.Module, *inputs: torch.Tensor) -> tuple[int, tuple[torch.Tensor, ...]]:
    """MACs by FlopCounterMode, with attention decomposed: it misses the fused kernel on the CPU."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        outputs = function(*inputs)
    return counter.get_total_flops() // 2, outputs


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_dense_equals_the_flop_counter(spec: VisionTransformerSpec) -> None:
    macs, _ = counted(DenseNetwork(tiny_model(spec)), tiny_pixels(spec.size))
    assert cost_model(spec).dense().total == macs


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("spec", GATED.values(), ids=GATED.keys())
def test_dynamic_equals_the_flop_counter(spec: VisionTransformerSpec, threshold: float) -> None:
    stages = stages_from_model(tiny_model(spec))
    thresholds, floor = torch.full((spec.classes,), threshold), torch.tensor(0.0)
    total, outputs = counted(stages[0], tiny_pixels(spec.size), thresholds, floor)
    kept, carrier = [spec.tokens], Carrier(spec)
    for number, stage in enumerate(stages[1:]):
        index = outputs[1][: int(outputs[2])]
        kept.append(len(index))
        last = stage is stages[-1]
        carried = carrier.onward(number, outputs[5:])
        macs, outputs = counted(stage, outputs[0], index, *(() if last else (thresholds, floor)), *carried)
        total += macs
    assert cost_model(spec).actual(kept).total == total


@pytest.mark.parametrize("case", case_parameters("dovit"))
def test_figures_of_the_official_fixtures(case: Case) -> None:
    result, macs = case.facts["result"], case.facts["result"]["macs"]
    checkpoint = checkpoint_from_path(case.weights, config=case.config)
    spec = spec_at_size(checkpoint.spec, tuple(load(case)["input"].shape[-2:]))
    cost = cost_model(spec)
    kept = [spec.tokens, *(count + 1 for count in result["kept_tokens_excl_cls"])]
    dense, actual = cost.dense(), cost.actual(kept)
    assert dense.backbone == macs["backbone_dense"]
    assert actual.backbone == macs["backbone_actual"]
    printed = result["gflops"]
    assert round(dense.head / 1e9, 4) == printed["decode_head"]
    assert round(dense.total / 1e9, 4) == printed["total_dense_without_aux"]
    # The fixture counts auxiliary heads on the full grid; ours run on running tokens only, so never more.
    assert actual.total <= (printed["total_actual"] + 0.00005) * 1e9


@settings(max_examples=50, derandomize=True, deadline=None)
@given(
    spec=st.sampled_from(list(GATED.values())),
    data=st.data(),
)
def test_cost_rises_with_every_count(spec: VisionTransformerSpec, data: st.DataObject) -> None:
    counts = [data.draw(st.integers(spec.extra_tokens, spec.tokens - 1)) for _ in spec.stage_layers]
    before = cost_model(spec).actual(counts).total
    for position in range(len(counts)):
        more = [count + (number == position) for number, count in enumerate(counts)]
        assert cost_model(spec).actual(more).total > before


def test_everything_running_costs_dense_and_the_gates() -> None:
    spec = tiny_spec()
    everything = cost_model(spec).actual([spec.tokens] * 3)
    assert everything.total - everything.gates == cost_model(spec).dense().total
    assert everything.gates == 2 * spec.patches * 12 * (spec.width + spec.classes)
