"""What a gate's rule must beat: the same number of tokens stopped at random, all at the first gate, and an oracle.

Each control is a set of decisions that the deployed graphs replay; none needs a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.bundle.spec import ModelSpec
from dovit_deploy.engines.base import Buffer
from dovit_deploy.runtime.gate_inputs import Keep, Thresholds, index_from_keep
from dovit_deploy.runtime.results import TokenReport
from dovit_deploy.runtime.session import Logits, Pixels, Session

Steer = Callable[[int, Pixels], tuple[Logits, TokenReport]]
"""Runs one window of a picture: its number and its pixels (1, 3, H, W) -> logits (1, K, h, w) and what was done."""


class SteeredSession:
    """What a `Predictor` needs of a session: the windows of one picture, each run as `steer` says."""

    def __init__(self, session: Session, steer: Steer) -> None:
        self.bundle, self.steer = session.bundle, steer
        self._window = 0

    def run_one(
        self,
        pixels: Pixels,
        *,
        thresholds: Thresholds | None = None,
        floor: float | None = None,
        keep: Keep | None = None,
        dense: bool = False,
    ) -> tuple[Logits, TokenReport]:
        """The next window; what else is asked for is not heard, `steer` has the say."""
        del thresholds, floor, keep, dense
        answer = self.steer(self._window, pixels)
        self._window += 1
        return answer


def first_gate_keep(spec: ModelSpec) -> Keep:
    """Everything stops at the first gate: what the layers behind it are worth."""
    return [np.zeros(spec.grid, dtype=bool)] * len(spec.gates)


def random_keep(kept: Sequence[int], spec: ModelSpec, *, rng: np.random.Generator) -> Keep:
    """As many tokens running after each gate as in `kept`, which ones is drawn; who has stopped stays stopped.

    Args:
        kept: of a report: tokens entering each stage, extra tokens included, falling.
    """
    order = rng.permutation(spec.patches)
    grids = []
    for count in kept[1:]:
        cells = np.zeros(spec.patches, dtype=bool)
        cells[order[: count - spec.extra_tokens]] = True
        grids.append(cells.reshape(spec.grid))
    return grids


def oracle_keep(session: Session, pixels: Pixels, dense_logits: Logits) -> Keep:
    """The decisions of a gate that stops exactly those tokens whose own label is the final dense class already.

    Args:
        session: of a bundle with gates.
        pixels: (1, 3, H, W), one window.
        dense_logits: (1, K, h, w) of the same window with nothing stopped.
    """
    spec, download = session.bundle.manifest.spec, session.backend.download
    final = token_classes(dense_logits[0], spec)
    running = np.ones(spec.patches, dtype=bool)
    grids: list[NDArray[np.bool_]] = []

    def decide(gate: int, outputs: Mapping[str, Buffer]) -> NDArray[np.int64]:
        nonlocal running
        running = running & (np.asarray(download(outputs["label"])) != final)
        grids.append(running.reshape(spec.grid))
        return index_from_keep(grids + [grids[-1]] * (len(spec.gates) - len(grids)), spec)[gate]

    limits = np.ones((len(spec.gates), spec.classes), dtype=np.float32)
    for _ in session.stages(pixels, thresholds=limits, floor=np.float32(0), decide=decide):
        # The last stage decides nothing any more.
        if len(grids) == len(spec.gates):
            break
    return grids


def token_classes(logits: Logits, spec: ModelSpec) -> NDArray[np.int64]:
    """The class of each patch, (N,): that of the mean logits (K, h, w) of its cells."""
    rows, columns = spec.grid
    cells = logits.reshape(len(logits), rows, logits.shape[1] // rows, columns, logits.shape[2] // columns)
    classes: NDArray[np.int64] = cells.mean(axis=(2, 4)).reshape(len(logits), -1).argmax(axis=0)
    return classes


def gate_efficiency(*, rule: float, random: float, oracle: float) -> float | None:
    """(rule - random) / (oracle - random) of three mIoUs; None where the oracle is no better than chance."""
    span = oracle - random
    return (rule - random) / span if span > 1e-9 else None
