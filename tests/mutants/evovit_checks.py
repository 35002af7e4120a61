"""What Evo-ViT's mutants must fail: both networks and their cost against the naive reference, on chosen seeds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from dovit_deploy.families import registry
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.evovit.spec import EvoDeitSpec, EvoLevitSpec
from tests.naive_cost import _block
from tests.naive_evovit import naive_deit, naive_levit
from tests.tiny import tiny_pixels
from tests.tiny_evovit import tiny_deit_spec, tiny_evo_state, tiny_levit_spec

MARGIN = 1e-3
"""Least distance, over the highest score, of what is chosen from what is not."""
FADING = (1.0, 0.6, 0.5, 0.3, 0.7)
CASES: dict[str, tuple[EvoDeitSpec | EvoLevitSpec, int]] = {
    "evo deit": (tiny_deit_spec(tradeoffs=FADING), 12),
    "evo prunecls": (tiny_deit_spec(selections=((1, 3, 0.5), (3, 5, 0.4)), rejoin_last=False, tradeoffs=FADING), 4),
    "evo grid": (tiny_deit_spec(head="linear", size=(50, 90), tradeoffs=FADING), 3),
    "evo levit": (tiny_levit_spec(), 3),
    "evo levit, one left out": (tiny_levit_spec(depths=(4, 1), selections=((1, 3, 0.95), (3, 4, 0.5))), 1),
}


def agrees_with_naive(name: str) -> None:
    """Counts, choices and logits are those of the naive reference."""
    spec, seed = CASES[name]
    state, pixels = tiny_evo_state(spec, seed), tiny_pixels(spec.size, seed)
    weights = {key: value.double().numpy() for key, value in state.items()}
    naive = naive_deit if isinstance(spec, EvoDeitSpec) else naive_levit
    run = naive(spec, weights, pixels[0].double().numpy())
    if min(run.margins) < MARGIN:
        raise ValueError(f"{name}: a choice hangs on {min(run.margins):.1e}; choose another seed")
    with torch.inference_mode():
        (stage,) = registry.family_of(spec).stages(registry.model_from_spec(spec, state))
        logits, kept, *choices = stage(pixels)
    assert kept.tolist() == run.kept
    assert [choice.nonzero()[:, 0].tolist() for choice in choices] == run.chosen
    assert np.abs(logits[0].numpy() - run.logits).max() <= 2e-5 * max(1.0, np.abs(run.logits).max())


def cost_counts_what_runs() -> None:
    """The layers of DeiT cost what the naive run put through them."""
    spec, seed = CASES["evo deit"]
    assert isinstance(spec, EvoDeitSpec)
    weights = {key: value.double().numpy() for key, value in tiny_evo_state(spec, seed).items()}
    for dense in (False, True):
        run = naive_deit(spec, weights, tiny_pixels(spec.size, seed)[0].double().numpy(), dense=dense)
        expected = sum(_block(tokens, spec.width, spec.hidden, spec.heads) for tokens in run.tokens_per_layer)
        cost = cost_model(spec)
        assert (cost.dense() if dense else cost.actual(run.kept)).layers == expected


CHECKS: dict[str, Callable[[], None]] = {
    **{name: partial(agrees_with_naive, name) for name in CASES},
    "evo cost": cost_counts_what_runs,
}
