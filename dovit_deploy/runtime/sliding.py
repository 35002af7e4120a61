"""The mean of overlapping windows, finished band by band, so that a large picture needs one row of windows in memory.

Source: mmsegmentation's `slide_inference` and Segmenter's `sliding_window`/`merge_windows`: *logits* are summed in
raster order and divided by how many windows saw the pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


def averaged_bands(placed: Iterable[tuple[int, int, Logits]], width: int) -> Iterator[tuple[int, Logits]]:
    """Average windows into bands of whole rows.

    Args:
        placed: top, left and logits (K, h, w) of each window, in raster order and without gaps.
        width: of the whole input, in pixels.

    Yields:
        Top and mean logits (K, rows, width) of each band, from top to bottom; together they are the whole input.
    """
    start = 0
    total: Logits | None = None
    count = np.zeros((0, width), dtype=np.float32)
    for top, left, logits in placed:
        classes, height, across = logits.shape
        if total is None:
            total = np.zeros((classes, height, width), dtype=np.float32)
            count = np.zeros((height, width), dtype=np.float32)
        if top > start:
            # No later window reaches above this one.
            yield start, total[:, : top - start] / count[: top - start]
            total, count = _shifted(total, top - start), _shifted(count[None], top - start)[0]
            start = top
        total[:, :, left : left + across] += logits
        count[:, left : left + across] += 1
    if total is not None:
        yield start, total / count


def _shifted(planes: Logits, rows: int) -> Logits:
    """`planes` (K, h, w) moved up by `rows`, zeros below."""
    moved = np.zeros_like(planes)
    moved[:, : planes.shape[1] - rows] = planes[:, rows:]
    return moved
