"""In which order things are painted: the painter's algorithm for boxes on the ground.

Of two boxes, A can hide B unless some line between them has the camera on B's side. Whoever can only be hidden
is painted first. Sorting by distance alone is wrong beside the camera: somebody on the pavement is nearer than
the far end of the parked car that hides them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float32]
"""(n, 4) float32: x from, x to, z from, z to in view coordinates (the camera stands at 0, 0), metres."""


def paint_order(boxes: Boxes) -> list[int]:
    """Indices of `boxes`, first to paint first; ties and cycles are broken by distance, then by index."""
    hides = _can_hide(boxes)
    # before[a, b]: a must be painted before b, because b can hide a and not the other way round.
    before = hides.T & ~hides
    distance = boxes[:, 2] + boxes[:, 3]
    farthest_first = np.argsort(-distance, kind="stable")
    waiting = before.sum(axis=0)
    painted = np.zeros(len(boxes), bool)
    order: list[int] = []
    for _ in range(len(boxes)):
        index = _next(farthest_first, painted, waiting)
        painted[index] = True
        waiting -= before[index]
        order.append(index)
    return order


def _next(farthest_first: npt.NDArray[np.intp], painted: npt.NDArray[np.bool_], waiting: npt.NDArray[np.int64]) -> int:
    free = ~painted[farthest_first]
    ready = free & (waiting[farthest_first] <= 0)
    # Three boxes can hide one another in a ring; then the farthest goes first.
    chosen = ready if ready.any() else free
    return int(farthest_first[int(np.argmax(chosen))])


def _can_hide(boxes: Boxes) -> npt.NDArray[np.bool_]:
    """(n, n): entry a, b says whether box a can stand between the camera and box b."""
    left, right, near, far = (boxes[:, k] for k in range(4))
    slack = 1e-3
    beyond = near[:, None] >= far[None, :] - slack
    outside_right = (left[:, None] >= right[None, :] - slack) & (left[:, None] >= 0)
    outside_left = (right[:, None] <= left[None, :] + slack) & (right[:, None] <= 0)
    return ~(beyond | outside_right | outside_left)
