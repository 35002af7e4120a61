"""Oracles: gates that know the final dense answer, which no rule does; how much a better rule could gain.

`oracle_keep` lets as many tokens run on as the rule did, so that it costs the same and only the choice differs.
`unlimited_oracle_keep` stops every token that has its final class already, however many those are. Why both:
docs/decisions/0006-oracle-at-equal-counts.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.bundle.model_spec import ModelSpec
from dovit_deploy.engines.base import Buffer
from dovit_deploy.runtime.gate_inputs import Keep, index_from_keep
from dovit_deploy.runtime.session import Logits, Pixels, Session

Running = NDArray[np.bool_]
"""(N,): which patches run."""

Choose = Callable[[int, Running, NDArray[np.int64], NDArray[np.float32]], Running]
"""Who runs on: from the gate's number, who runs, and labels (N,) and confidences (N,), which only count for them."""


def oracle_keep(session: Session, pixels: Pixels, dense_logits: Logits, *, kept: Sequence[int]) -> Keep:
    """At each gate as many tokens run on as in `kept`; those stop first whose class the final answer shares most.

    The share is that of the positions of the decode head's logits inside the token's patch whose dense class is the
    gate's label. Among equals the more confident stops first, then the one that comes first in raster order.

    Args:
        session: of a bundle with gates.
        pixels: (1, 3, H, W), one window.
        dense_logits: (1, K, h, w) of the same window with nothing stopped.
        kept: of the rule's report of that window: tokens entering each stage, extra tokens included, falling.
    """
    spec = session.bundle.manifest.spec
    final = position_classes(dense_logits[0], spec)

    def choose(gate: int, running: Running, label: NDArray[np.int64], confidence: NDArray[np.float32]) -> Running:
        candidates = np.flatnonzero(running)
        same = (final[candidates] == label[candidates, None]).sum(axis=1)
        # Sorted by the last key first; the sort is stable, so raster order decides among equals.
        order = candidates[np.lexsort((-confidence[candidates], -same))]
        after = running.copy()
        after[order[: len(candidates) - (kept[gate + 1] - spec.extra_tokens)]] = False
        return after

    return _chosen(session, pixels, choose)


def unlimited_oracle_keep(session: Session, pixels: Pixels, dense_logits: Logits) -> Keep:
    """Exactly those tokens stop whose own label is the final dense class of their patch already.

    Args:
        session, pixels, dense_logits: as `oracle_keep` takes them.
    """
    final = token_classes(dense_logits[0], session.bundle.manifest.spec)
    return _chosen(session, pixels, lambda gate, running, label, confidence: running & (label != final))


def _chosen(session: Session, pixels: Pixels, choose: Choose) -> Keep:
    """The decisions of `choose`, each from what the gate says in the run that the ones before it steered."""
    spec, download = session.bundle.manifest.spec, session.backend.download
    grids: list[NDArray[np.bool_]] = []

    def decide(gate: int, outputs: Mapping[str, Buffer]) -> NDArray[np.int64]:
        running = grids[-1].ravel() if grids else np.ones(spec.patches, dtype=bool)
        label, confidence = np.asarray(download(outputs["label"])), np.asarray(download(outputs["confidence"]))
        grids.append(choose(gate, running, label, confidence).reshape(spec.grid))
        return index_from_keep(grids + [grids[-1]] * (len(spec.gates) - len(grids)), spec)[gate]

    limits = np.ones((len(spec.gates), spec.classes), dtype=np.float32)
    for _ in session.stages(pixels, thresholds=limits, floor=np.float32(0), decide=decide):
        # The last stage decides nothing any more.
        if len(grids) == len(spec.gates):
            break
    return grids


def position_classes(logits: Logits, spec: ModelSpec) -> NDArray[np.int64]:
    """The classes that the positions of `logits` (K, h, w) inside each patch have: (N, positions of a patch)."""
    classes: NDArray[np.int64] = _cells(logits, spec).argmax(axis=0)
    return classes


def token_classes(logits: Logits, spec: ModelSpec) -> NDArray[np.int64]:
    """The class of each patch, (N,): that of the mean of the logits (K, h, w) inside it."""
    classes: NDArray[np.int64] = _cells(logits, spec).mean(axis=2).argmax(axis=0)
    return classes


def _cells(logits: Logits, spec: ModelSpec) -> Logits:
    """(K, h, w) -> (K, N, positions of a patch)."""
    rows, columns = spec.grid
    fine = logits.reshape(len(logits), rows, logits.shape[1] // rows, columns, logits.shape[2] // columns)
    return fine.transpose(0, 1, 3, 2, 4).reshape(len(logits), spec.patches, -1)
