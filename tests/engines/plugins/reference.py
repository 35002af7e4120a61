"""What the token kernels compute, in NumPy: the reference of every implementation of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Index = npt.NDArray[np.int64]


def gathered(tokens: Array, index: Index) -> Array:
    """Rows `index` (kept,) of `tokens` (N, C) -> (kept, C); a row outside [0, N) is zeros."""
    values = np.zeros((len(index), tokens.shape[1]), tokens.dtype)
    inside = (index >= 0) & (index < len(tokens))
    values[inside] = tokens[index[inside]]
    return values


def scattered(tokens: Array, index: Index, values: Array, valid: int | None = None) -> Array:
    """`tokens` (N, C) with rows `index` (kept,), each named once, replaced by `values` (kept, C).

    A row outside [0, N) is skipped, and so are all behind the first `valid`.
    """
    output = tokens.copy()
    index, values = index[:valid], values[:valid]
    inside = (index >= 0) & (index < len(tokens))
    output[index[inside]] = values[inside]
    return output


def compacted(keep: Array) -> tuple[Index, Index]:
    """Stable order of the mask `keep` (N,), whose entries are kept where they are not 0.

    Returns:
        `order` (N,) int64, kept positions in raster order and then the rest in raster order, and `count` () int64.
    """
    kept = np.asarray(keep) != 0
    order = np.concatenate([np.flatnonzero(kept), np.flatnonzero(~kept)]).astype(np.int64)
    return order, np.asarray(kept.sum(), dtype=np.int64)
