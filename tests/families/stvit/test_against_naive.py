"""STViT-R, STViT and Swin in PyTorch against the naive reference: every option, one image and batches, odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from dovit_deploy.families.folding import deployed
from dovit_deploy.families.registry import family_of, model_from_spec
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.families.stvit.spec import StvitBackboneSpec
from tests.naive_stvit import naive_deit, naive_features, naive_logits, naive_segmentation
from tests.tiny import tiny_pixels
from tests.tiny_stvit import tiny_backbone, tiny_classifier, tiny_deit, tiny_segmenter, tiny_swin, training_state

Naive = Callable[[Any, Any, Any], Any]
WHOLE, ROWS, COLUMNS, BOTH = (96, 144), (100, 140), (94, 150), (100, 150)
"""Sizes whose reduced grid (6x9, 7x9, 6x10, 7x10) is made of whole windows of 3, or padded on one side or both."""


def check(spec: ModelSpec, naive: Naive, *, seed: int = 0) -> None:
    """One image in deployment form, and in a batch in training form, gives what the reference gives."""
    state = training_state(spec, seed)
    weights = {name: value.double().numpy() for name, value in state.items()}
    pixels = tiny_pixels(spec.size, seed, images=2)
    wanted = naive(spec, weights, pixels[1].double().numpy())
    stage = family_of(spec).stages(model_from_spec(spec, deployed(state)))[0]
    whole = family_of(spec).build(spec, trainable=True).eval()
    whole.load_state_dict(state, strict=False)
    with torch.inference_mode():
        *alone, kept = stage(pixels[1:])
        together = whole(pixels)
        *other, _ = stage(pixels[:1])
    together = together if isinstance(together, tuple) else (together,)
    assert tuple(kept.tolist()) == spec.counts
    assert [tuple(answer.shape) for answer in alone] == list(spec.outputs.values())
    for number, reference in enumerate(wanted if isinstance(wanted, list) else [wanted]):
        close(alone[number][0], reference)
        close(together[number][1], reference)
        close(together[number][0], other[number][0].numpy())


def close(mine: torch.Tensor, reference: Any) -> None:
    assert np.abs(mine.numpy() - reference).max() <= 1e-4 * max(1.0, float(np.abs(reference).max()))


@pytest.mark.parametrize(
    ("size", "mask"),
    [*((size, "released") for size in (WHOLE, ROWS, COLUMNS, BOTH)), (BOTH, "exact"), (BOTH, "none")],
)
def test_the_backbone_at_every_kind_of_padding(size: tuple[int, int], mask: str) -> None:
    check(tiny_backbone(size, padding_mask=mask), naive_features)


def test_the_released_mask_is_none_exact_or_neither() -> None:
    """Of whole windows it hides nothing, and a corner only where both sides are padded."""

    def features(size: tuple[int, int], mask: str) -> torch.Tensor:
        spec = tiny_backbone(size, padding_mask=mask)
        with torch.inference_mode():
            return model_from_spec(spec, deployed(training_state(spec)))(tiny_pixels(size))[2]

    assert torch.equal(features(WHOLE, "released"), features(WHOLE, "none"))
    for size in (ROWS, COLUMNS, BOTH):
        assert not torch.allclose(features(size, "released"), features(size, "none"), atol=1e-3)
        assert not torch.allclose(features(size, "released"), features(size, "exact"), atol=1e-3)


def test_the_classifier_as_released() -> None:
    check(tiny_classifier(), naive_logits)


@pytest.mark.exhaustive
def test_the_classifier_with_everything_on() -> None:
    """At the published size, of four windows in the reduced stage; `tests/mutants` runs the same every time."""
    spec = tiny_classifier((224, 224), window=7, units=2, options=True, ordinary=(1, 2, 1))
    check(spec, naive_logits)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("side", "window"), [(192, 12), (256, 8), (384, 6)])
def test_the_classifier_at_its_other_sizes(side: int, window: int) -> None:
    check(tiny_classifier((side, side), window=window, options=True), naive_logits)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_plain_swin(stem: str) -> None:
    check(tiny_swin((64, 128), stem=stem), naive_logits)


def test_deit_composed() -> None:
    check(tiny_deit(), naive_deit)
    check(tiny_deit((24, 40), depth=2, reduced_from=0), naive_deit)


@pytest.mark.parametrize("head", ["linear", "setr", "mask", "pup"])
def test_the_segmenter(head: Any) -> None:
    check(tiny_segmenter(head=head, units=2 if head == "linear" else 1), naive_segmentation)


@some.composite
def backbones(draw: some.DrawFn) -> StvitBackboneSpec:
    window = draw(some.integers(2, 5))
    return StvitBackboneSpec(
        size=(draw(some.integers(16, 80)), draw(some.integers(16, 80))),
        # A norm over two channels is hardly more than a sign, which rounding turns over.
        width=draw(some.sampled_from([6, 8, 10])),
        depths=(draw(some.integers(1, 3)), 1, 6, 1),
        heads=(1, 2, draw(some.sampled_from([1, 2])), 2),
        window=window,
        hidden_ratio=draw(some.sampled_from([2.0, 4.0])),
        neighbourhoods=(draw(some.integers(window, 7)), draw(some.integers(window, 9))),
        recovery_neighbourhood=draw(some.integers(3, 11)),
        padding_mask=draw(some.sampled_from(["released", "exact", "none"])),
        local_convolution=draw(some.booleans()),
    )


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(spec=backbones(), seed=some.integers(0, 2**16))
def test_random_backbones(spec: StvitBackboneSpec, seed: int) -> None:
    check(spec, naive_features, seed=seed)


@pytest.mark.exhaustive
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(spec=backbones(), seed=some.integers(0, 2**16))
def test_more_random_backbones(spec: StvitBackboneSpec, seed: int) -> None:
    check(spec, naive_features, seed=seed)
