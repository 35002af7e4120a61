"""What a gate's rule must beat: the same number of tokens stopped at random, and all of them at the first gate.

Each control is a set of decisions that the deployed graphs replay; none needs a graph of its own. The oracles are in
oracle.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dovit_deploy.bundle.model_spec import ModelSpec
from dovit_deploy.runtime.gate_inputs import Keep


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


def gate_efficiency(*, rule: float, random: float, oracle: float) -> float | None:
    """(rule - random) / (oracle - random) of the mIoUs of three choices of equal cost.

    None where the oracle is no better than chance.
    """
    span = oracle - random
    return (rule - random) / span if span > 1e-9 else None
