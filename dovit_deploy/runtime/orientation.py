"""The eight ways a picture may lie in its file, and how to put it upright.

Cameras store the sensor's rows as they come and note beside them how to turn the picture: as the
EXIF tag "Orientation" (1..8) in photographs, as a display matrix in videos. Both mean the same
eight turns, so both are brought to the EXIF number.
"""

from __future__ import annotations

import numpy as np

from dovit_deploy.runtime.results import RGB

EXIF_ORIENTATION_TAG = 0x0112
UPRIGHT = 1
_TRANSPOSED = (5, 6, 7, 8)


def upright(rgb: RGB, orientation: int) -> RGB:
    """Turn (H, W, 3) as the EXIF number says; contiguous; (W, H, 3) for 5 to 8.

    Numbers outside 1..8 mean nothing and leave the picture as it is, as viewers do.
    """
    if orientation in _TRANSPOSED:
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


def upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """(height, width) after the turn."""
    return (width, height) if orientation in _TRANSPOSED else (height, width)


def orientation_from_matrix(a: int, b: int, c: int, d: int) -> int:
    """EXIF number of a display matrix that maps a pixel (x, y) to (a*x + c*y, b*x + d*y).

    Signs decide; a turn that is not a multiple of 90 degrees is taken to the nearest that is.
    Source: `libavutil/display.h`; ISO/IEC 14496-12, 8.3.2 (`tkhd`).
    """
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return {(False, False): 1, (True, False): 2, (True, True): 3, (False, True): 4}[a < 0, d < 0]
    return {(False, False): 5, (True, False): 6, (True, True): 7, (False, True): 8}[c < 0, b < 0]
