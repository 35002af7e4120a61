"""Which networks can be adapted, and where their gates stand."""

from __future__ import annotations

import pytest
import torch

from dovit_deploy.adapt.network import adaptable, adapted_checkpoint, empty_parts, gated
from dovit_deploy.errors import UsageError
from dovit_deploy.families.registry import model_from_spec
from tests.bundles import tiny_checkpoint
from tests.tiny import HeadName, tiny_pixels, tiny_spec
from tests.tiny_evovit import tiny_deit_spec
from tests.tiny_stvit import tiny_swin


@pytest.mark.parametrize(
    ("depth", "layers"), [(12, (2, 5, 8)), (24, (6, 12, 18)), (4, (1, 2, 3)), (6, (1, 3, 4)), (2, (1,))]
)
def test_gates_stand_where_the_depth_has_them(depth: int, layers: tuple[int, ...]) -> None:
    spec = gated(tiny_spec(gates=(), depth=depth, head="linear"), None)
    assert tuple(gate.layer for gate in spec.gates) == layers
    assert spec.answer == "gate" and spec.aggregate_rate == 1.0


@pytest.mark.parametrize(
    ("head", "wanted", "answer"),
    [("linear", None, "gate"), ("fcn", None, "gate"), ("linear", "lens", "lens"), ("fcn", "gate", "gate")]
    + [(head, wanted, "lens") for head in ("mask", "light", "setr", "query") for wanted in (None, "lens")],
)
def test_gates_answer_where_the_head_looks_at_one_token(head: HeadName, wanted: str | None, answer: str) -> None:
    assert gated(tiny_spec(gates=(), head=head, depth=5), (1, 2), answer=wanted).answer == answer


@pytest.mark.parametrize("head", ["mask", "light", "query"])
def test_a_gate_does_not_answer_for_a_head_that_mixes_tokens(head: HeadName) -> None:
    with pytest.raises(UsageError, match=r"--answer gate: the decode head \(.*--answer lens is possible"):
        gated(tiny_spec(gates=(), head=head, depth=5), (1,), answer="gate")


def test_every_layer_that_a_head_reads_behind_a_gate_gets_a_lens() -> None:
    spec = gated(tiny_spec(gates=(), head="light", depth=6, taps=(2, 4)), (2, 3))
    assert spec.tap_answer == "lens" and [spec.lensed_taps(gate) for gate in spec.gates] == [(4,), (4,)]
    assert {name for name in empty_parts(spec) if "weight" in name and "lenses" in name} == {
        *("lenses.0.linear.weight", "lenses.1.linear.weight"),
        *("tap_lenses.0.4.linear.weight", "tap_lenses.1.4.linear.weight"),
    }
    # No tap sees what stopped: where all lie before the gates, and where gates answer.
    assert gated(tiny_spec(gates=(), head="light", depth=6, taps=(1, 2)), (2, 3)).tap_answer == "feature"
    assert gated(tiny_spec(gates=(), head="linear", depth=6, taps=(2, 4)), (2, 3)).tap_answer == "feature"


def test_layers_behind_gates_see_what_stopped_where_that_is_asked_for() -> None:
    dense = tiny_spec(gates=(), head="linear", depth=5)
    assert gated(dense, (2, 3)) == gated(dense, (2, 3), context="none")
    spec = gated(dense, (2, 3), context="pooled")
    assert spec.context == "pooled" and spec.answer == "gate"
    assert {name for name in empty_parts(spec) if name.endswith("weight")} == {
        *("gates.0.head.classifier.weight", "gates.1.head.classifier.weight"),
        *("lenses.0.linear.weight", "lenses.1.linear.weight"),
        *(f"context_maps.{layer}.weight" for layer in (2, 3, 4)),
    }
    with pytest.raises(UsageError, match="--context 'all' given; there are: none, pooled"):
        gated(dense, (2, 3), context="all")


def test_no_gate_stands_where_queries_join() -> None:
    dense = tiny_spec(gates=(), head="query", depth=6)
    assert dense.rejoin == 4
    assert [gate.layer for gate in gated(dense, None).gates] == [1, 3]
    with pytest.raises(UsageError, match=r"--gates 2,4: layers from 1 to 3 .* \(queries join at layer 4"):
        gated(dense, (2, 4))


@pytest.mark.parametrize("layers", [(0, 2), (2, 1), (2, 2), (4,), (-1,), ()])
def test_gates_outside_the_depth_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"--gates .*: layers from 1 to 3 that rise are needed"):
        gated(tiny_spec(gates=(), depth=4), layers)


def test_a_network_of_one_layer_has_no_room() -> None:
    with pytest.raises(UsageError, match="1 layers in which tokens may stop leave no room for a gate"):
        gated(tiny_spec(gates=(), depth=1, head="linear"), None)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (tiny_spec(gates=(1, 3)), r"x is dynamic already \(gates before layers 1, 3\)"),
        (tiny_spec(gates=(), extra_tokens=0), "x has no class token"),
        (tiny_deit_spec(), "x is a network of the family .* that is for classification"),
        (tiny_swin(), "x is a network of the family .* that is for classification"),
    ],
)
def test_what_cannot_be_adapted_is_refused(spec, said) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        adaptable(spec, source="x")
    assert "dovit calibrate" in str(raised.value) or "supported: dense vision transformers" in str(raised.value)


def test_the_dense_answer_is_the_same_bit_for_bit() -> None:
    dense = tiny_checkpoint(tiny_spec(gates=(), padding="centre", patch=14))
    spec = gated(adaptable(dense.spec, source="x"), None)
    adapted = adapted_checkpoint(dense, spec, empty_parts(spec))
    assert adapted.thresholds == (1.0, 1.0, 1.0)
    pixels = torch.as_tensor(tiny_pixels(spec.size))
    with torch.no_grad():
        before, after = (
            model_from_spec(one.spec, one.state).one_image(pixels, dense=True).results[0] for one in (dense, adapted)
        )
    torch.testing.assert_close(after, before, atol=0, rtol=0)
