"""Keys of stopped tokens: what they stand for, what they cost, and that nothing else is changed."""

from __future__ import annotations

import pytest
import torch
from pooled_context import (
    EMPTY,
    FORMS,
    POOLINGS,
    Keys,
    PooledRun,
    Pooling,
    blocked,
    fit,
    groups_of,
    layer_inputs,
    table,
)

from dovit_deploy.adapt import fitting
from dovit_deploy.families.vit.network import VisionTransformer
from tests.staged_loop import run_staged
from tests.tiny import tiny_model, tiny_pixels, tiny_spec

SPEC = tiny_spec(
    head="light", gate="linear", gates=(1, 3), depth=5, size=(64, 80), answer="lens", aggregate_rate=1.0, extra_tokens=2
)


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    return tiny_model(SPEC, 3).requires_grad_(False)


def test_without_keys_it_is_the_staged_network(model: VisionTransformer) -> None:
    pixels = tiny_pixels(SPEC.size, 3)
    logits, kept = PooledRun(model, {}, layer_inputs(model, pixels)[0], "none").logits(0.7)
    staged = run_staged(model, pixels, thresholds=torch.full((2, SPEC.classes), 0.7))
    assert list(kept) == staged.kept and SPEC.extra_tokens < kept[2] < kept[1] < SPEC.tokens
    torch.testing.assert_close(logits, staged.logits, atol=1e-4, rtol=1e-4)


def test_groups_are_cells_by_class() -> None:
    label, stopped = torch.tensor([0, 0, 1, 2, 1, 0, 2, 2]), torch.tensor([1, 1, 1, 0, 1, 0, 1, 1], dtype=torch.bool)
    halves = groups_of(Pooling((1, 2), by_class=False), label, stopped, (2, 4), 3)
    # Left: 0 twice, 1 once (patch 5 runs). Right: 2 twice, 1 once (patch 3 runs).
    assert [row.nonzero()[:, 0].tolist() for row in halves] == [[0, 1], [4], [6, 7], [2]]
    classes = groups_of(Pooling((1, 1), by_class=True), label, stopped, (2, 4), 3)
    assert [row.nonzero()[:, 0].tolist() for row in classes] == [[0, 1], [2, 4], [6, 7]]
    nothing = groups_of(Pooling((1, 2), by_class=False), label, torch.zeros(8, dtype=torch.bool), (2, 4), 3)
    assert nothing.sum() == 0


def test_a_key_weighs_as_many_as_it_stands_for(model: VisionTransformer) -> None:
    x, key = torch.randn(4, SPEC.width), torch.randn(1, SPEC.width)
    three = blocked(model.blocks[0], x, Keys(key.expand(3, -1), torch.zeros(3)))
    torch.testing.assert_close(blocked(model.blocks[0], x, Keys(key, torch.tensor([3.0]).log())), three)
    alone = blocked(model.blocks[0], x, Keys(key, torch.tensor([EMPTY])))
    torch.testing.assert_close(alone, model.blocks[0](x))
    assert (three - alone).abs().max() > 1e-2


@pytest.mark.parametrize("form", [*POOLINGS, "true"])
def test_keys_change_what_runs_and_are_counted(
    model: VisionTransformer, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "STEPS", 2)
    fresh, pixels = tiny_model(SPEC, 3).requires_grad_(False), tiny_pixels(SPEC.size, 3)
    maps = fit(fresh, iter([pixels]))
    dense, wanted = layer_inputs(model, pixels)
    run, plain = PooledRun(model, maps, dense, form), PooledRun(model, maps, dense, "none")
    # Nothing stopped: nothing is seen, and nothing costs.
    torch.testing.assert_close(run.logits(1.0)[0], wanted)
    assert run.macs == 0
    changed, kept = run.logits(0.7)
    assert (changed - plain.logits(0.7)[0]).abs().max() > 1e-3
    if form == "3x4":
        # Layers 1 to 4, sums behind both gates; 24 keys of 3 C^2, and every running token asks them.
        layers = [kept[1], kept[1], kept[2], kept[2]]
        macs = sum(24 * 3 * 16**2 + 2 * count * 24 * 16 for count in layers) + 2 * 20 * (24 * 16 + 12 * 5)
        assert run.macs == macs


def test_gains_are_read_off_at_equal_macs() -> None:
    # One image, whose plain curve falls from 1 at -0.02 to 0.9 at 0.18; a form of 0.97 at 0.08 is 0.02 above it.
    rows = [[[0.18, 0.9]], *[[[0.08, 0.97]]] * 5]
    found = table(torch.tensor([rows] * 8, dtype=torch.float64).numpy(), [0.9], FORMS, -0.02)
    assert found[0]["gain"] == pytest.approx(0) and found[1]["gain"] == pytest.approx(0.02)
    assert found[1]["none_there"] == pytest.approx(0.95) and found[1]["gain_interval"] == pytest.approx((0.02, 0.02))
