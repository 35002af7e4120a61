"""Gates and lenses fitted to a network's own answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dovit_deploy.adapt import fitting
from dovit_deploy.adapt.features import SeenTokens
from dovit_deploy.adapt.fitting import fitted_gate, fitted_parts
from dovit_deploy.adapt.network import empty_parts
from dovit_deploy.families.registry import model_from_spec
from dovit_deploy.progress import Unseen
from tests.tiny import tiny_spec, tiny_state

SPEC = tiny_spec(head="light", gate="linear", gates=(1, 3), answer="lens", aggregate_rate=1.0)


def seen_tokens(count: int = 600) -> SeenTokens:
    draw = torch.Generator().manual_seed(1)
    reached = tuple(torch.randn(count, SPEC.width, generator=draw) for _ in SPEC.gates)
    matrix = torch.randn(SPEC.width, SPEC.classes, generator=draw)
    return SeenTokens(reached, 2 * reached[1], (reached[0] @ matrix / 3).softmax(1), (count // 2,) * 2)


def test_a_gate_finds_the_answer_in_channels_of_any_size() -> None:
    seen = seen_tokens()
    scale = torch.logspace(-3, 3, SPEC.width)
    tokens = seen.reached[0] * scale + 50 * scale
    head = fitted_gate(tokens, seen.answers, np.random.default_rng(0))
    given, wanted = head(tokens).log_softmax(1), seen.answers
    divergence = (wanted * (wanted.log() - given)).sum(1).mean()
    assert divergence < 0.1
    assert (given.argmax(1) == wanted.argmax(1)).float().mean() > 0.85


def test_a_channel_that_never_changes_does_no_harm() -> None:
    seen = seen_tokens()
    tokens = seen.reached[0].clone()
    tokens[:, 0] = 1e6
    head = fitted_gate(tokens, seen.answers, np.random.default_rng(0))
    assert torch.isfinite(head.weight).all() and torch.isfinite(head.bias).all()


def test_all_parts_are_fitted_and_the_same_every_time() -> None:
    model = model_from_spec(SPEC, tiny_state(SPEC))
    parts, gates = fitted_parts(model, seen_tokens(), Unseen())
    again, _ = fitted_parts(model, seen_tokens(), Unseen())
    empty = empty_parts(SPEC)
    assert {name: value.shape for name, value in parts.items()} == {name: value.shape for name, value in empty.items()}
    assert all(torch.equal(value, again[name]) for name, value in parts.items())
    assert [gate.layer for gate in gates] == [1, 3]
    # The second gate's tokens say nothing of the answer, and the first one's all of it.
    assert gates[0].agreement > 0.85 > 0.6 > gates[1].agreement
    assert gates[0].confidence > gates[1].confidence
    model.load_state_dict(parts, strict=False)
    torch.testing.assert_close(
        model.lenses[1](seen_tokens().reached[1]).mean(0), seen_tokens().last.mean(0), atol=1e-3, rtol=1e-3
    )


def test_every_reader_has_a_lens_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "STEPS", 2)
    spec = tiny_spec(head="light", gate="linear", gates=(1, 3), depth=5, taps=(2, 4), answer="lens", tap_answer="lens")
    model, seen = model_from_spec(spec, tiny_state(spec)), seen_tokens()
    seen = replace(seen, tapped={2: -seen.reached[0], 4: 3 * seen.reached[0]})
    parts, _ = fitted_parts(model, seen, Unseen())
    assert parts.keys() == empty_parts(spec).keys()
    model.load_state_dict(parts, strict=False)
    for lens, wanted in ((model.tap_lenses[0]["2"], -1.0), (model.tap_lenses[0]["4"], 3.0)):
        # A norm stands before the map, so that a token's own length is lost.
        errors = (lens(seen.reached[0]) - wanted * seen.reached[0]).abs().mean() / abs(wanted)
        assert errors < 0.4


def test_where_gates_answer_nothing_else_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "STEPS", 2)
    spec = tiny_spec(head="linear", gate="linear", gates=(1, 3), answer="gate", aggregate_rate=1.0)
    parts, _ = fitted_parts(model_from_spec(spec, tiny_state(spec)), seen_tokens(), Unseen())
    assert parts.keys() == empty_parts(spec).keys()
    assert {name.partition(".")[0] for name in parts} == {"gates"}


def test_each_layer_has_a_map_of_what_the_lenses_before_it_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "STEPS", 2)
    spec = tiny_spec(head="linear", gate="linear", gates=(1, 3), depth=5, answer="gate", context="pooled")
    model, seen = model_from_spec(spec, tiny_state(spec)), seen_tokens()
    # What a lens makes of a token is what the last layer does, or nearly so.
    near = replace(seen, last=seen.reached[0], reached=(seen.reached[0], seen.reached[0]))
    seen = replace(near, entering={layer: (layer - 2.0) * near.last + layer for layer in (1, 2, 3, 4)})
    parts, _ = fitted_parts(model, seen, Unseen())
    assert parts.keys() == empty_parts(spec).keys()
    model.load_state_dict(parts, strict=False)
    for layer in (1, 2, 3, 4):
        for lens in model.lenses:
            mapped = model.context_maps[str(layer)](lens(near.last))
            assert (mapped - seen.entering[layer]).abs().mean() < 0.3 * abs(layer - 2.0) + 1e-3


@pytest.mark.parametrize("at_once", [7, 16_384])
def test_moments_are_those_of_all_tokens(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(fitting, "AT_ONCE", at_once)
    tokens = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * 4 + 9
    mean, spread = fitting._moments(tokens)
    torch.testing.assert_close(mean, tokens.mean(0))
    torch.testing.assert_close(spread, tokens.std(0, correction=0))
