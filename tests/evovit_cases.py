"""The golden cases of Evo-ViT: what each says of counts and choices, in the terms of a session."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tests.golden import Case


def counts(case: Case) -> tuple[int, ...]:
    """All tokens, then those that run under each selection, from the case's own figures.

    DeiT's say so; LeViT's name the patches, beside which run the class token and the representative.
    """
    facts = case.facts
    if "gathers" in facts:
        whole = (facts["img_size"] // 16) ** 2 + 1
        return (whole, *(one["kept"] + 2 for one in facts["selections"]))
    whole = (facts["img_size"] // 16) ** 2 + 1
    return (whole, *(one["tokens_in_block"] for one in facts["selections"]))


def chosen(case: Case, io: dict[str, Tensor], image: int) -> list[NDArray[np.bool_]]:
    """Per selection the grid (h, w) of chosen patches; LeViT's numbers are those of the first grid throughout."""
    facts = case.facts
    side = facts["img_size"] // 16
    found = []
    for number, one in enumerate(facts["selections"]):
        gathers = "gather" in one
        kept = io[f"gather{one['gather']}.kept" if gathers else f"sel{number + 1}.kept"][image].numpy()
        own = round(one["n"] ** 0.5) if gathers else side
        stride = -(-side // own)
        cells = np.zeros((side, side), dtype=bool)
        cells[kept // side, kept % side] = True
        assert cells.sum() == cells[::stride, ::stride].sum(), "a number that is not on the subsampled grid"
        found.append(cells[::stride, ::stride])
    return found


def agrees(report: Any, logits: NDArray[np.float32], case: Case, io: dict[str, Tensor], image: int) -> None:
    """Counts and choices exactly, logits within 1e-4."""
    assert report.kept == counts(case)
    wanted = chosen(case, io, image)
    assert len(report.keep) == len(wanted)
    for mine, theirs in zip(report.keep, wanted, strict=True):
        assert np.array_equal(mine, theirs)
    reference = io["logits"][image : image + 1].numpy()
    assert logits.shape == reference.shape
    assert np.abs(logits - reference).max() <= 1e-4 * max(1.0, np.abs(reference).max())
