"""The staged PyTorch network against the naive reference, on random tiny models, inputs, thresholds and floors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as some
from torch import Tensor

from dovit_deploy.families.registry import model_from_spec
from dovit_deploy.families.vit.spec import Answer, VisionTransformerSpec
from tests.naive import NaiveGate, NaiveRun, naive_run
from tests.plain_maths import Array
from tests.staged_loop import StagedRun, run_staged
from tests.tiny import GateName, HeadName, tiny_pixels, tiny_spec, tiny_state

GATES: list[GateName] = ["fcn", "linear", "setr"]
HEADS: list[HeadName] = ["mask", "linear", "fcn", "setr", "pup", "light"]
steadily = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@dataclass(frozen=True)
class Case:
    """What makes a run; everything in it is drawn."""

    spec: VisionTransformerSpec
    seed: int
    shares: list[float]
    """Per gate: about which share of the tokens that the dense network would show it are to stop for certainty."""
    spread: float
    """How far apart the thresholds of different classes are."""
    hopeless: float
    """About which share of the tokens at the first gate is to stop below the floor."""


@some.composite
def cases(draw: some.DrawFn, *, least_gates: int) -> Case:
    depth = draw(some.integers(4, 6))
    gates = draw(some.sets(some.integers(1, depth - 1), min_size=least_gates, max_size=3))
    gate = draw(some.sampled_from(GATES))
    head = draw(some.sampled_from(HEADS))
    answer = draw(some.sampled_from(answers_of(head, gate)))
    width, heads = draw(some.sampled_from([16, 24, 32])), draw(some.sampled_from([1, 2, 4]))
    spec = tiny_spec(
        head=head,
        gate=gate,
        gates=sorted(gates),
        depth=depth,
        width=width,
        heads=heads,
        size=(draw(some.integers(16, 100)), draw(some.integers(16, 100))),
        classes=draw(some.integers(2, 7)),
        final_norm=draw(some.booleans()),
        norm_eps=draw(some.sampled_from([1e-6, 1e-5])),
        stem=draw(some.sampled_from(["patch", "conv"])),
        extra_tokens=draw(some.sampled_from([1, 2, 5])),
        aggregate_rate=draw(some.sampled_from([0.1, 0.3])),
        answer=answer,
        context=draw(some.sampled_from(["none", "pooled"])) if gate != "setr" else "none",
        taps=draw(some.sampled_from([(), (1, 2, 3), (depth - 1,)])),
        tap_answer=draw(some.sampled_from(["feature", "lens"])) if answer == "lens" else "feature",
        tap_norm=draw(some.booleans()),
        mlp=draw(some.sampled_from(["gelu", "swiglu"])),
        padding=draw(some.sampled_from(["end", "centre"])),
        rotary=draw(some.booleans()) and width // heads % 4 == 0,
    )
    share = some.sampled_from([0.3, 0.5, 0.15, 0.7, 0.06, 0.0, 1.0])
    return Case(
        spec,
        seed=draw(some.integers(0, 2**16)),
        shares=[draw(share) for _ in gates],
        # Heads that up-sample take one threshold for all classes.
        spread=0.0 if gate == "setr" else draw(some.sampled_from([0.0, 0.1])),
        hopeless=draw(some.sampled_from([0.0, 0.1, 0.0])),
    )


def answers_of(head: HeadName, gate: GateName) -> list[Answer]:
    """What can answer for a stopped token."""
    return ["feature", "lens", *(["gate"] if head in ("linear", "fcn") and gate != "setr" else [])]


def check(case: Case) -> None:
    """Decisions and counts equal, floats within 1e-4 of their size."""
    state = tiny_state(case.spec, case.seed)
    pixels = tiny_pixels(case.spec.size, case.seed)
    weights = {name: value.double().numpy() for name, value in state.items()}
    image = pixels[0].double().numpy()
    thresholds, floor = _limits(case, naive_run(case.spec, weights, image))
    expected = naive_run(case.spec, weights, image, thresholds=thresholds, floor=floor)
    gates = zip(expected.gates, thresholds, strict=True)
    assume(not any(_on_the_edge(gate, row, floor) for gate, row in gates))
    found = run_staged(
        model_from_spec(case.spec, state), pixels, thresholds=torch.from_numpy(thresholds).float(), floor=floor
    )
    assert_agree(case.spec, found, expected)


def _limits(case: Case, dense: NaiveRun) -> tuple[Array, float]:
    """Thresholds (gates, K) and floor, from what the gates say when nothing stops."""
    steps = np.linspace(-case.spread, case.spread, case.spec.classes)
    rows = []
    for gate, share in zip(dense.gates, case.shares, strict=True):
        rows.append(np.clip(_between(gate, 1.0 - share) + steps, 0.0, 1.0))
    floor = _between(dense.gates[0], case.hopeless) if dense.gates else 0.0
    return np.reshape(rows, (-1, case.spec.classes)), floor


def _between(gate: NaiveGate, share: float) -> float:
    """A confidence that about `share` of the tokens stay below, halfway between two of them."""
    ladder = [0.0, *sorted(gate.confidence.values()), 1.0]
    below = round(share * len(gate.confidence))
    if below in (0, len(gate.confidence)):
        return ladder[0 if below == 0 else -1]
    return (ladder[below] + ladder[below + 1]) / 2


def assert_agree(spec: VisionTransformerSpec, found: StagedRun, expected: NaiveRun, *, tolerance: float = 1e-4) -> None:
    """Decisions and counts are equal, floats within `tolerance` of the largest."""
    assert found.kept == expected.kept
    for number, gate in enumerate(expected.gates):
        extra = list(range(spec.extra_tokens))
        running = [spec.extra_tokens + position for position in gate.running]
        stopped = [spec.extra_tokens + position for position in gate.stopped]
        assert found.orders[number].tolist() == [*extra, *running, *stopped]
        _assert_close(found.tokens[number], gate.seen, tolerance)
        looked = list(gate.confidence)
        confidence = found.confidences[number].double().numpy()
        np.testing.assert_allclose(confidence[looked], list(gate.confidence.values()), rtol=0, atol=tolerance)
        assert found.labels[number][looked].tolist() == list(gate.label.values())
    assert found.logits.shape == (1, spec.classes, *spec.logits_grid)
    _assert_close(found.logits[0], expected.logits, tolerance)


def _assert_close(found: Tensor, expected: Array, tolerance: float) -> None:
    atol = tolerance * np.abs(expected).max(initial=1.0)
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=atol)


def _on_the_edge(gate: NaiveGate, thresholds: Array, floor: float) -> bool:
    """Whether single precision may decide otherwise."""
    return any(
        abs(confidence - thresholds[gate.label[position]]) < 1e-4 or abs(confidence - floor) < 1e-4
        for position, confidence in gate.confidence.items()
    )


@settings(steadily, max_examples=20)
@given(cases(least_gates=1))
def test_a_handful_of_random_dynamic_models(case: Case) -> None:
    check(case)


@settings(steadily, max_examples=8)
@given(cases(least_gates=0))
def test_a_handful_of_random_models(case: Case) -> None:
    check(case)


@pytest.mark.exhaustive
@settings(steadily, max_examples=150)
@given(cases(least_gates=1))
def test_many_random_dynamic_models(case: Case) -> None:
    check(case)
