"""From logits to an answer: probabilities, and the most probable classes by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dovit_deploy.errors import CheckError

TOP = 5
"""Classes of an answer, where the model has as many."""


@dataclass(frozen=True)
class ClassScore:
    """A class and how probable the model holds it, 0..1."""

    id: int
    name: str
    probability: float


def probabilities_from_logits(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Softmax over all classes, (K,) -> (K,).

    Raises:
        CheckError: a logit is NaN or infinite, so the network's arithmetic has broken down.
    """
    if not np.isfinite(logits).all():
        raise CheckError(
            "the model's logits are not finite: its arithmetic overflows at this precision; try --precision fp32"
        )
    raised = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(raised / raised.sum(), dtype=np.float64)


def most_probable(probabilities: npt.NDArray[np.float64], *, top: int) -> npt.NDArray[np.intp]:
    """The ids of the `top` most probable classes, or of all; of equals the lower id comes first: (min(top, K),)."""
    return np.argsort(-probabilities, kind="stable")[:top]


def scores_from_probabilities(
    probabilities: npt.NDArray[np.float64], names: Sequence[str], *, top: int = TOP
) -> tuple[ClassScore, ...]:
    """The `top` most probable classes, the most probable first."""
    return tuple(
        ClassScore(int(number), names[number], float(probabilities[number]))
        for number in most_probable(probabilities, top=top)
    )
