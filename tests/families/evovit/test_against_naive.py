"""Both Evo-ViT networks against the naive reference, on random tiny models, selections and trade-offs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as some

from dovit_deploy.families.evovit.deit import EvoDeit
from dovit_deploy.families.evovit.spec import EvoDeitSpec, EvoLevitSpec
from dovit_deploy.families.stages import DenseNetwork, WholeStage
from tests.naive_evovit import NaiveEvoRun, naive_deit, naive_levit
from tests.tiny import tiny_pixels
from tests.tiny_evovit import Cut, tiny_deit_spec, tiny_evo_model, tiny_levit_spec

SEEDS = (1, 3, 19)
"""Under which the source's way with a single token left out changes what the next selection chooses."""
MARGIN = 1e-4
"""Least distance, over the highest score, of what is chosen from what is not: single precision must not decide."""
RATIOS = [0.5, 0.7, 0.3, 0.95, 0.1, 1.0, 0.0]
steadily = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@some.composite
def cuts(draw: some.DrawFn, bounds: list[tuple[int, int]]) -> list[Cut]:
    """Selections that follow one another, none crossing one of the `bounds` of stages."""
    found: list[Cut] = []
    for first, last in bounds:
        layer = max(first, 1)
        while layer < last:
            if draw(some.booleans()):
                end = draw(some.integers(layer + 1, last))
                found.append((layer, end, draw(some.sampled_from(RATIOS))))
                layer = end
            else:
                layer += 1
    return found


@some.composite
def deits(draw: some.DrawFn) -> EvoDeitSpec:
    depth = draw(some.integers(2, 6))
    head = draw(some.sampled_from(["pooled", "pooled", "linear", "mask", "setr"]))
    whole = head != "pooled"
    size = some.integers(16, 90) if whole else some.integers(1, 5).map(lambda side: 16 * side)
    spec = tiny_deit_spec(
        size=(draw(size), draw(size)),
        depth=depth,
        selections=draw(cuts([(0, depth)])),
        tradeoffs=draw(some.lists(some.sampled_from([1.0, 0.5, 0.3, 0.0]), min_size=depth, max_size=depth)),
        head=head,
        stem=draw(some.sampled_from(["patch", "conv"])) if whole else "patch",
        rejoin_last=whole or draw(some.booleans()),
    )
    # Classifying by no token at all is refused where checkpoints are read.
    assume(spec.rejoin_last or all(selection.chosen(spec.patches) for selection in spec.selections))
    return spec


@some.composite
def levits(draw: some.DrawFn) -> EvoLevitSpec:
    depths = draw(some.lists(some.integers(1, 3), min_size=1, max_size=3))
    edges = np.cumsum([0, *depths]).tolist()
    return tiny_levit_spec(
        size=16 * draw(some.integers(2, 6)),
        depths=depths,
        selections=draw(cuts(list(itertools.pairwise(edges)))),
        distilled=draw(some.booleans()),
        tradeoff=draw(some.sampled_from([None, 0.5, 0.8])),
    )


def decided(spec: EvoDeitSpec | EvoLevitSpec, seed: int) -> bool:
    """Choices and counts equal, logits within 1e-4 of their size, the dense network's too.

    False, and nothing compared, where single precision would have to decide.
    """
    model, pixels = tiny_evo_model(spec, seed), tiny_pixels(spec.size, seed)
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    naive = naive_deit if isinstance(spec, EvoDeitSpec) else naive_levit
    run = naive(spec, weights, pixels[0].double().numpy())
    if not all(margin > MARGIN for margin in run.margins):
        return False
    with torch.inference_mode():
        found = WholeStage(model)(pixels)
        dense = DenseNetwork(model)(pixels)
    agrees(spec, found, run)
    nothing = naive(spec, weights, pixels[0].double().numpy(), dense=True)
    close(dense, nothing.logits)
    return True


def agrees(spec: EvoDeitSpec | EvoLevitSpec, found: tuple[torch.Tensor, ...], run: NaiveEvoRun) -> None:
    logits, kept, *choices = found
    assert tuple(kept.tolist()) == tuple(run.kept) == spec.counts
    assert [choice.nonzero()[:, 0].tolist() for choice in choices] == run.chosen
    assert [len(choice) for choice in choices] == [rows * columns for rows, columns in spec.keep_grids]
    assert tuple(logits.shape) == spec.outputs["logits"]
    close(logits, run.logits)


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


@settings(steadily, max_examples=15)
@given(deits(), some.integers(0, 2**16))
def test_a_handful_of_random_deits(spec: EvoDeitSpec, seed: int) -> None:
    assume(decided(spec, seed))


@settings(steadily, max_examples=10)
@given(levits(), some.integers(0, 2**16))
def test_a_handful_of_random_levits(spec: EvoLevitSpec, seed: int) -> None:
    assume(decided(spec, seed))


@pytest.mark.exhaustive
@settings(steadily, max_examples=120)
@given(deits(), some.integers(0, 2**16))
def test_many_random_deits(spec: EvoDeitSpec, seed: int) -> None:
    assume(decided(spec, seed))


@pytest.mark.exhaustive
@settings(steadily, max_examples=80)
@given(levits(), some.integers(0, 2**16))
def test_many_random_levits(spec: EvoLevitSpec, seed: int) -> None:
    assume(decided(spec, seed))


def test_a_single_token_left_out_of_levit_is_scored_by_its_representative() -> None:
    """int(16 * 0.95) = 15: the source takes the representative for the token itself, in every later layer too."""
    spec = tiny_levit_spec(size=64, depths=(4, 1), selections=((1, 3, 0.95), (3, 4, 0.5)))
    for seed in SEEDS:
        assert decided(spec, seed)


def test_every_token_chosen_is_the_dense_network() -> None:
    spec = tiny_deit_spec(selections=((1, 3, 1.0), (3, 5, 1.0)))
    model, pixels = tiny_evo_model(spec), tiny_pixels(spec.size)
    assert isinstance(model, EvoDeit)
    with torch.inference_mode():
        logits, kept, *choices = WholeStage(model)(pixels)
        assert torch.equal(logits, DenseNetwork(model)(pixels))
    assert kept.tolist() == [13, 13, 13]
    assert all(choice.all() for choice in choices)
