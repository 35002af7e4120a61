"""Dividing pictures into a search part and a held-back check part, whole blocks of neighbours at a time.

Neighbouring images of a drive are almost copies of each other: divided one by one, the held-back ones would have been
seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.bootstrap import Blocks, blocks_from_stems

FEWEST_BLOCKS = 4
"""Two in each part, so that each has an interval."""


@dataclass(frozen=True)
class Halves:
    """Indices of the pictures of both parts, rising, and the block of every picture."""

    search: tuple[int, ...]
    check: tuple[int, ...]
    blocks: Blocks

    def blocks_of(self, indices: Sequence[int]) -> Blocks:
        """The blocks of these pictures, numbered from 0 again."""
        return Blocks(np.unique(self.blocks.number[list(indices)], return_inverse=True)[1].astype(np.int64))


def halves(stems: Sequence[str], *, seed: int) -> Halves:
    """Half of the blocks for the search, the other half held back, drawn by `seed`.

    Raises:
        DatasetError: fewer than four images.
    """
    blocks = blocks_from_stems(stems)
    if blocks.count < FEWEST_BLOCKS:
        raise DatasetError(f"{len(stems)} images given; at least {FEWEST_BLOCKS} are needed, since half are held back")
    drawn = np.random.default_rng(seed).permutation(blocks.count)
    searched = np.isin(blocks.number, drawn[: (blocks.count + 1) // 2])
    return Halves(tuple(np.flatnonzero(searched).tolist()), tuple(np.flatnonzero(~searched).tolist()), blocks)
