"""Pooled context: what layers behind a gate see of what has stopped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dovit_deploy.families.registry import model_from_spec
from dovit_deploy.families.vit.context import EMPTY, keys_from_sums, members, with_stopped
from dovit_deploy.families.vit.network import Lens
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.naive import naive_run
from tests.staged_loop import run_staged
from tests.tiny import HeadName, tiny_model, tiny_pixels, tiny_spec, tiny_state


def pooled_spec(head: HeadName = "linear", **changes: object) -> VisionTransformerSpec:
    given = {"gate": "linear", "gates": (1, 2, 3), "depth": 6, "answer": "lens", "aggregate_rate": 1.0, **changes}
    return tiny_spec(head=head, context="pooled", **given)  # type: ignore[arg-type]


def shares(spec: VisionTransformerSpec, share: float) -> list[torch.Tensor]:
    """After each gate a random index of about this share of the patches that ran to it."""
    draw, running, indices = np.random.default_rng(3), np.arange(spec.patches), []
    for _ in spec.gates:
        running = running[draw.random(len(running)) < share]
        indices.append(torch.from_numpy(np.concatenate([np.arange(spec.extra_tokens), spec.extra_tokens + running])))
    return indices


def grids(spec: VisionTransformerSpec, indices: list[torch.Tensor]) -> list[list[bool]]:
    kept = [set(index.tolist()) for index in indices]
    return [[spec.extra_tokens + at in index for at in range(spec.patches)] for index in kept]


@pytest.mark.parametrize("head", ["linear", "mask", "query"])
def test_where_nothing_stops_the_answer_is_dense(head: HeadName) -> None:
    spec = pooled_spec(head)
    model, pixels = tiny_model(spec), tiny_pixels(spec.size)
    found = run_staged(model, pixels, thresholds=torch.ones(3, spec.classes))
    torch.testing.assert_close(found.logits, model.one_image(pixels, dense=True).results[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", [0.7, 0.3, 0.0])
@pytest.mark.parametrize("classes", [3, 150])
def test_any_decision_may_be_replayed(share: float, classes: int) -> None:
    """Also that everything stops, and of 150 classes most are empty."""
    spec = pooled_spec("linear", classes=classes, extra_tokens=2, size=(40, 56))
    state, pixels, indices = tiny_state(spec, 5), tiny_pixels(spec.size, 5), shares(spec, share)
    found = run_staged(model_from_spec(spec, state), pixels, thresholds=torch.ones(3, classes), indices=indices)
    weights = {name: value.double().numpy() for name, value in state.items()}
    expected = naive_run(spec, weights, pixels[0].double().numpy(), keep=grids(spec, indices))
    assert found.kept == expected.kept
    atol = 1e-4 * np.abs(expected.logits).max()
    np.testing.assert_allclose(found.logits[0].numpy(), expected.logits, rtol=0, atol=atol)


def test_only_what_stopped_at_the_last_gate_is_added_with_its_class() -> None:
    votes = torch.tensor([[0.2, 0.8], [0.9, 0.1], [0.0, 0.0], [0.5, 0.5]])
    # The second patch runs on, and the third had stopped before; of equal votes the first counts.
    found = members(votes, torch.tensor([1]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.25], [0.0, 0.0], [0.0, 0.0], [0.25, 0.0]]))


def test_sums_are_those_of_the_lens_of_each_token() -> None:
    spec, draw = tiny_spec(), torch.Generator().manual_seed(0)
    lens, patches = Lens(spec), torch.randn(6, spec.width, generator=draw)
    chosen = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]) / 6
    before = torch.randn(3, spec.width + 1, generator=draw)
    with torch.no_grad():
        found = with_stopped(lens, patches, chosen, before)
        torch.testing.assert_close(found[:, :-1] - before[:, :-1], chosen.T @ lens(patches))
        torch.testing.assert_close(found[:, -1] - before[:, -1], torch.tensor([3, 1, 0]) / 6)
        alone = with_stopped(lens, patches, chosen, None)
        keys = keys_from_sums(alone, 6)
        torch.testing.assert_close(keys.means[0], lens(patches)[[0, 2, 4]].mean(0))
        torch.testing.assert_close(keys.bias, torch.tensor([np.log(3), 0.0, EMPTY], dtype=torch.float32))
    assert torch.isfinite(keys.means).all() and torch.exp(keys.bias[2]) == 0
    # As float16 has them: what no softmax sees must stay finite there.
    assert torch.isfinite(keys.bias.half()).all()


def test_what_is_carried_stays_small_however_much_stops() -> None:
    """Of 40,000 tokens no sum is beyond float16, and one token is still one."""
    sums = torch.tensor([[3.0 * 39_999 / 40_000, 39_999 / 40_000], [3.0 / 40_000, 1 / 40_000]]).half().float()
    keys = keys_from_sums(sums, 40_000)
    torch.testing.assert_close(keys.means, torch.full((2, 1), 3.0), atol=0.1, rtol=0)
    torch.testing.assert_close(keys.bias.exp(), torch.tensor([39_999.0, 1.0]), atol=0.1, rtol=0.05)
