"""Numbers to colours, fast: one look-up of packed pixels instead of one per channel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.runtime.results import RGB


def colored(numbers: npt.NDArray[np.uint8], table: npt.NDArray[np.uint8]) -> RGB:
    """The colour of every number.

    Args:
        numbers: (H, W) uint8.
        table: (n, 3) uint8, n at most 256; what lies beyond is black.

    Returns:
        (H, W, 3) uint8.
    """
    cv2 = packages.opencv()
    packed = np.zeros((256, 4), dtype=np.uint8)
    packed[: len(table), :3] = table
    # OpenCV looks up whole int32 values in a third of the time that three channels take.
    pixels = cv2.LUT(np.ascontiguousarray(numbers), packed.view(np.int32)[:, 0])
    return np.asarray(cv2.cvtColor(pixels.view(np.uint8).reshape(*numbers.shape, 4), cv2.COLOR_RGBA2RGB))
