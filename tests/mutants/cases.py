"""Runs chosen so that every branch of token passing matters in one of them, with what the naive reference says.

The reference is computed once, from unmutated code; thresholds are laid halfway between two tokens' confidences, so
that no decision hangs on a rounding error, except where equality is the point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.naive import NaiveRun, naive_run
from tests.plain_maths import Array
from tests.tiny import tiny_pixels, tiny_spec, tiny_state

MARGIN = 1e-3
"""Least distance of a confidence from what it is compared with."""


@dataclass(frozen=True)
class Case:
    """One image through one network."""

    spec: VisionTransformerSpec
    state: dict[str, Tensor]
    pixels: Tensor
    thresholds: Array
    """(gates, K)."""
    floor: float
    expected: NaiveRun

    @property
    def stopped(self) -> list[int]:
        """How many tokens stop at each gate."""
        return [before - after for before, after in zip(self.expected.kept, self.expected.kept[1:], strict=False)]


@cache
def case(name: str) -> Case:
    """The case called `name`."""
    return CASES[name]()


def mask() -> Case:
    """Three gates that all stop some tokens, thresholds that differ by gate and class, a floor, ragged size."""
    spec = tiny_spec(head="mask", gate="fcn", gates=(1, 3, 4), depth=6, size=(72, 88))
    return _stopping(spec, seed=19, stops=[7, 5, 5], hopeless=1, spread=0.05)


def grid() -> Case:
    """Gates and decode head that up-sample, no final norm."""
    spec = tiny_spec(head="setr", gate="setr", gates=(1, 2), depth=4, size=(50, 100), final_norm=False)
    return _stopping(spec, seed=2, stops=[8, 7])


def distilled() -> Case:
    """Two extra tokens, a convolutional stem, per-token decode head."""
    spec = tiny_spec(head="linear", gate="linear", gates=(1, 3), depth=4, size=(60, 80), extra_tokens=2, stem="conv")
    return _stopping(spec, seed=5, stops=[6, 4])


def tenth() -> Case:
    """Of ten tokens one stops at the first gate, exactly the aggregate rate, and another at the second."""
    spec = tiny_spec(head="linear", gate="linear", gates=(1, 2), depth=4, size=(48, 48))
    return _stopping(spec, seed=4, stops=[1, 1])


def twentieth() -> Case:
    """Of twenty-one tokens one stops at the first gate and none later: the class token stays alone."""
    spec = tiny_spec(head="linear", gate="linear", gates=(1, 3), depth=4, size=(64, 80))
    return _stopping(spec, seed=2, stops=[1, 0])


def certain() -> Case:
    """Every confidence is exactly 1, as are thresholds and floor: not above and not below, so nothing stops."""
    spec = tiny_spec(head="linear", gate="linear", gates=(1, 2), depth=3, classes=3, size=(48, 64))
    state = tiny_state(spec, 6)
    for number in range(len(spec.gates)):
        state[f"gates.{number}.head.classifier.weight"].zero_()
        state[f"gates.{number}.head.classifier.bias"].copy_(torch.tensor([-200.0, 0.0, -200.0]))
    pixels = tiny_pixels(spec.size, 6)
    thresholds = np.ones((2, 3))
    expected = naive_run(spec, _weights(state), pixels[0].double().numpy(), thresholds=thresholds, floor=1.0)
    return Case(spec, state, pixels, thresholds, 1.0, expected)


def quiet_mask() -> Case:
    """Tokens so small that the epsilons of backbone and mask head show."""
    spec = tiny_spec(head="mask", gate="linear", gates=(2,), depth=3)
    return _stopping(spec, seed=7, stops=[5], loudness=0.003)


def quiet_grid() -> Case:
    """The same for the up-sampling head."""
    spec = tiny_spec(head="pup", gate="linear", gates=(2,), depth=3, final_norm=False)
    return _stopping(spec, seed=8, stops=[5], loudness=0.003)


def rotary() -> Case:
    """Queries and keys turned by position, registers that are not, stopped tokens at both gates."""
    spec = tiny_spec(head="linear", gate="linear", gates=(1, 3), depth=5, size=(60, 100), extra_tokens=3, rotary=True)
    return _stopping(spec, seed=4, stops=[9, 5])


def queries() -> Case:
    """All tokens run again in the last two layers, stopped ones too, with queries that answer."""
    spec = tiny_spec(head="query", gate="linear", gates=(1, 2), depth=5, size=(50, 90), extra_tokens=3)
    return _stopping(spec, seed=3, stops=[7, 4])


def all_stop() -> Case:
    """Everything stops at the first gate; the class token runs on alone."""
    spec = tiny_spec(head="mask", gate="fcn", gates=(1, 2), depth=4, size=(40, 60))
    return _stopping(spec, seed=9, stops=[spec.patches, 0])


def lens() -> Case:
    """What stops at any of three gates answers through that gate's lens; a light head at twice the grid."""
    spec = tiny_spec(head="light", gate="linear", gates=(1, 2, 3), depth=4, size=(56, 72), answer="lens")
    return _stopping(spec, seed=11, stops=[4, 4, 4])


def tapped() -> Case:
    """A linear head on four layers: one that the first gate closes, one within a later stage, one in the last."""
    spec = tiny_spec(head="linear", gate="linear", gates=(1, 4), depth=6, taps=(1, 3, 5))
    return _stopping(spec, seed=12, stops=[6, 4])


def gate_answers() -> Case:
    """What stops at any of three gates answers by that gate's logits, the rest by a head on three layers."""
    spec = tiny_spec(
        head="fcn",
        gate="linear",
        gates=(1, 2, 4),
        depth=5,
        answer="gate",
        taps=(1, 3),
        extra_tokens=2,
        aggregate_rate=0.3,
    )
    return _stopping(spec, seed=13, stops=[5, 4, 3])


def tap_lenses() -> Case:
    """A linear head on four layers, each of which sees a lens of what stopped before it."""
    spec = tiny_spec(
        head="linear", gate="linear", gates=(1, 3, 4), depth=6, taps=(1, 2, 5), answer="lens", tap_answer="lens"
    )
    return _stopping(spec, seed=15, stops=[5, 4, 3])


def pooled() -> Case:
    """Layers behind any of three gates see by class what has stopped, positions are rotary, and one class is empty."""
    spec = tiny_spec(
        head="linear",
        gate="linear",
        gates=(1, 2, 4),
        depth=6,
        classes=4,
        extra_tokens=2,
        rotary=True,
        answer="gate",
        context="pooled",
        aggregate_rate=1.0,
    )
    return _stopping(spec, seed=16, stops=[7, 4, 2])


CASES: dict[str, Callable[[], Case]] = {
    function.__name__: function
    for function in (
        *(mask, grid, distilled, tenth, twentieth, certain, quiet_mask, quiet_grid),
        *(rotary, queries, all_stop, lens, tapped, gate_answers, tap_lenses, pooled),
    )
}


def _weights(state: dict[str, Tensor]) -> dict[str, Array]:
    return {name: value.double().numpy() for name, value in state.items()}


def _stopping(
    spec: VisionTransformerSpec,
    *,
    seed: int,
    stops: list[int],
    hopeless: int = 0,
    spread: float = 0.0,
    loudness: float = 1.0,
) -> Case:
    """A case whose gate g stops `stops[g]` tokens for certainty, and the first `hopeless` more by the floor.

    Thresholds of odd classes are `spread` below, those of even classes above; the counts are then only about right.
    """
    state, pixels = tiny_state(spec, seed, loudness=loudness), tiny_pixels(spec.size, seed)
    if loudness < 1.0:
        # Quiet tokens leave a gate without a norm undecided; what it decides is not the point, but it should decide.
        for number in range(len(spec.gates)):
            state[f"gates.{number}.head.classifier.weight"] /= loudness
    weights, image = _weights(state), pixels[0].double().numpy()
    thresholds, floor = np.ones((len(spec.gates), spec.classes)), 0.0
    for number, count in enumerate(stops):
        run = naive_run(spec, weights, image, thresholds=thresholds, floor=floor)
        ladder = [0.0, *sorted(run.gates[number].confidence.values()), 1.0]
        if number == 0 and hopeless:
            floor = (ladder[hopeless] + ladder[hopeless + 1]) / 2
        if count:
            edge = (ladder[-count - 1] + ladder[-count - 2]) / 2
            thresholds[number] = edge + spread * (-1.0) ** np.arange(spec.classes)
    thresholds = np.clip(thresholds, 0.0, 1.0)
    expected = naive_run(spec, weights, image, thresholds=thresholds, floor=floor)
    _assert_margins(expected, thresholds, floor)
    return Case(spec, state, pixels, thresholds, floor, expected)


def _assert_margins(run: NaiveRun, thresholds: Array, floor: float) -> None:
    for gate, row in zip(run.gates, thresholds, strict=True):
        for position, confidence in gate.confidence.items():
            if min(abs(confidence - row[gate.label[position]]), abs(confidence - floor)) < MARGIN:
                raise ValueError(f"confidence {confidence} is too close to a threshold; choose another seed")
