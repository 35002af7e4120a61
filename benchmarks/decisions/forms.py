"""By what may a token be taken for sure? The forms of decisions that are compared, and what is fitted for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.spec import ModelSpec

PLAIN = "one threshold"
"""What all others are compared with."""
PRIOR = 20.0
"""Tokens that a curve needs before it says much against the one that it starts from."""

Mask = NDArray[np.bool_]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class AtGate:
    """What is known at a gate; (N,), by patch."""

    gate: int
    confidence: Numbers
    """NaN where the patch has stopped."""
    label: NDArray[np.int64]
    running: Mask
    grid: tuple[int, int]

    def around(self, values: Numbers, *, without: float) -> Numbers:
        """(9, N): `values` of the 3x3 neighbours; `without` where there is none that runs."""
        rows, columns = self.grid
        padded = np.full((rows + 2, columns + 2), without)
        padded[1:-1, 1:-1] = np.where(self.running, values, without).reshape(self.grid)
        shifts = [padded[down : down + rows, right : right + columns] for down in range(3) for right in range(3)]
        return np.stack([part.ravel() for part in shifts])


Score = Callable[[AtGate], Numbers]
"""How sure a token is, (N,); above the threshold it stops."""


def own(seen: AtGate) -> Numbers:
    """The gate's largest probability."""
    return seen.confidence


def least(seen: AtGate) -> Numbers:
    """Of the neighbours that run, the token among them."""
    return seen.around(seen.confidence, without=np.inf).min(axis=0)


def mean(seen: AtGate) -> Numbers:
    """Over the neighbours that run, the token among them."""
    around = seen.around(seen.confidence, without=np.nan)
    present = ~np.isnan(around)
    return np.where(present, around, 0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)


def same(seen: AtGate) -> Numbers:
    """The token's own, and 0 where a neighbour that runs has another class."""
    around = seen.around(seen.label.astype(np.float64), without=np.nan)
    other = (~np.isnan(around) & (around != seen.label)).any(axis=0)
    return np.where(other, 0.0, seen.confidence)


@dataclass(frozen=True)
class Curves:
    """How often a gate is right that is so sure: by gate and class a logistic curve over the log-odds."""

    slopes: Numbers
    """(gates, K)."""
    offsets: Numbers

    def __call__(self, seen: AtGate) -> Numbers:
        label = np.maximum(seen.label, 0)
        odds = self.slopes[seen.gate, label] * log_odds(seen.confidence) + self.offsets[seen.gate, label]
        return np.asarray(1 / (1 + np.exp(-odds)))


def log_odds(share: Numbers) -> Numbers:
    """Of probabilities, at most 14 either way."""
    inside = np.clip(share, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(inside / (1 - inside)))


@dataclass(frozen=True, eq=False)
class Form:
    """One kind of decision."""

    name: str
    score: Score
    kept: int = 0
    """Of each class so many of those that would stop run on."""

    def leaving(self, seen: AtGate, threshold: float) -> Mask:
        """(N,): who stops."""
        score = np.where(seen.running, self.score(seen), -np.inf)
        stops = score > threshold
        if self.kept:
            for label in np.unique(seen.label[stops]):
                of_class = np.flatnonzero(stops & (seen.label == label))
                surest = of_class[np.argsort(-seen.confidence[of_class], kind="stable")[: self.kept]]
                stops[surest] = False
        return stops


def forms(curves: Mapping[str, Curves]) -> tuple[Form, ...]:
    """All of them; the first is what the rest are compared with."""
    return (
        Form(PLAIN, own),
        *(Form(name, curve) for name, curve in curves.items()),
        Form("least of 3x3", least),
        Form("mean of 3x3", mean),
        Form("same in 3x3", same),
        *(Form(f"keep {count} per class", own, kept=count) for count in (2, 8)),
    )


# What is fitted to other images.


@dataclass(frozen=True)
class RecordedGates:
    """What each gate said of one image in which nothing stopped."""

    confidence: Numbers
    """(gates, N)."""
    label: NDArray[np.int64]
    final: NDArray[np.int64]
    """(N,): the class that the dense answer has in each patch."""


def fitted_curves(images: Sequence[RecordedGates], classes: int) -> dict[str, Curves]:
    """Those of each gate, and those of each gate and class, which start from these."""
    gates = len(images[0].confidence)
    by_gate, by_class = (Curves(np.ones((gates, classes)), np.zeros((gates, classes))) for _ in range(2))
    for gate in range(gates):
        odds = log_odds(np.concatenate([one.confidence[gate] for one in images]))
        label = np.concatenate([one.label[gate] for one in images])
        right = label == np.concatenate([one.final for one in images])
        slope, offset = logistic(odds, right, start=(1.0, 0.0))
        by_gate.slopes[gate], by_gate.offsets[gate] = slope, offset
        for number in range(classes):
            of = label == number
            own_curve = logistic(odds[of], right[of], start=(slope, offset))
            by_class.slopes[gate, number], by_class.offsets[gate, number] = own_curve
    return {"one per gate": by_gate, "one per class": by_class}


def logistic(odds: Numbers, right: Mask, *, start: tuple[float, float]) -> tuple[float, float]:
    """Slope and offset of the likeliest curve; few tokens leave it near `start`. The slope stays above 0."""
    design, prior = np.stack([odds, np.ones_like(odds)]), np.array(start)

    def loss(curve: Numbers) -> float:
        distance = curve - prior
        return float(np.logaddexp(0, np.where(right, -1, 1) * (curve @ design)).sum() + PRIOR / 2 * distance @ distance)

    found = prior.copy()
    for _ in range(30):
        share = 0.5 * (1 + np.tanh(found @ design / 2))
        gradient = design @ (right - share) - PRIOR * (found - prior)
        hessian = (design * (share * (1 - share))) @ design.T + PRIOR * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        # Newton's step is too long where the curve is far from flat.
        while loss(found + step) > loss(found) and abs(step).max() > 1e-9:
            step = step / 2
        found = found + step
    return max(float(found[0]), 0.05), float(found[1])


def predicted_saved(form: Form, threshold: float, images: Sequence[RecordedGates], spec: ModelSpec) -> float:
    """Share of the MACs, if gates said the same whatever has stopped before."""
    cost, macs = cost_model(spec), 0
    for one in images:
        running, kept = np.ones(spec.patches, dtype=bool), [spec.tokens]
        for gate, (confidence, label) in enumerate(zip(one.confidence, one.label, strict=True)):
            running = running & ~form.leaving(AtGate(gate, confidence, label, running, spec.grid), threshold)
            kept.append(spec.extra_tokens + int(running.sum()))
        macs += cost.actual(tuple(kept)).total
    return 1 - macs / (len(images) * cost.dense().total)


def threshold_for(form: Form, share: float, images: Sequence[RecordedGates], spec: ModelSpec) -> float:
    """At which `form` is predicted to save this share of the MACs."""
    # In log-odds, since savings change the most where thresholds are close to 1.
    low, high = -8.0, 14.0
    for _ in range(14):
        middle = (low + high) / 2
        if predicted_saved(form, 1 / (1 + np.exp(-middle)), images, spec) > share:
            low = middle
        else:
            high = middle
    return float(1 / (1 + np.exp(-(low + high) / 2)))
