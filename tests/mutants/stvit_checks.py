"""What STViT's mutants must fail: networks against the naive reference, their cost against PyTorch's counter."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch

from dovit_deploy.families import folding
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.registry import family_of
from dovit_deploy.families.spec import ModelSpec
from tests.naive_stvit import naive_deit, naive_features, naive_logits
from tests.plain_maths import Array
from tests.tiny import tiny_pixels
from tests.tiny_stvit import tiny_backbone, tiny_classifier, tiny_deit, training_state

FOUR_WINDOWS = tiny_classifier((224, 224), window=7, units=2, options=True, ordinary=(1, 2, 1))
CASES: dict[str, tuple[ModelSpec, Callable[..., Array | list[Array]]]] = {
    "stvit classifier": (FOUR_WINDOWS, naive_logits),
    "stvit backbone": (tiny_backbone((70, 100)), naive_features),
    "stvit deit": (tiny_deit(), naive_deit),
}


@lru_cache
def expected(name: str) -> list[Array]:
    """What the reference says, computed once."""
    spec, naive = CASES[name]
    weights = {key: value.double().numpy() for key, value in training_state(spec).items()}
    found = naive(spec, weights, tiny_pixels(spec.size)[0].double().numpy())
    return found if isinstance(found, list) else [found]


def agrees_with_naive(name: str) -> None:
    """The trained form is folded, laid out and run as it is deployed; all answers are those of the reference."""
    spec, wanted = CASES[name][0], expected(name)
    model = family_of(spec).build(spec).eval()
    model.load_state_dict(folding.deployed(training_state(spec)))
    with torch.inference_mode():
        *answers, kept = family_of(spec).stages(model)[0](tiny_pixels(spec.size))
    assert tuple(kept.tolist()) == spec.counts
    for answer, reference in zip(answers, wanted, strict=True):
        assert np.abs(answer[0].numpy() - reference).max() <= 1e-4 * max(1.0, np.abs(reference).max())


def cost_is_what_pytorch_counts() -> None:
    """Multiply-adds of the classifier and the backbone by PyTorch's own counter."""
    from tests.families.stvit.test_cost import counted

    for name in ("stvit classifier", "stvit backbone"):
        spec = CASES[name][0]
        family = family_of(spec)
        total = counted(family.stages(family.build(spec))[0], spec.size)
        assert cost_model(spec).actual(spec.counts).total == total


CHECKS: dict[str, Callable[[], None]] = {
    **{name: partial(agrees_with_naive, name) for name in CASES},
    "stvit cost": cost_is_what_pytorch_counts,
}
