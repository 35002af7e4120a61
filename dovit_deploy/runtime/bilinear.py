"""Bilinear resizing as small matrices: two resizes and the crop between them are one banded matrix per axis.

Half-pixel centres (`align_corners=False`), no antialiasing, as `torch.nn.functional.interpolate` does it.
Along one axis a resize is a matrix (target, source) with two weights in a row, and the product of two such
matrices has at most four, so a picture is stretched from the token grid to its own size in one step.
Weights are computed in float64: the composition is nearer to the true value than two rounded steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Taps:
    """Where each of n outputs of an axis reads, and how much of it; weights sum to 1 in every row."""

    nodes: npt.NDArray[np.intp]
    """(n, t) source positions."""
    weights: npt.NDArray[np.float64]
    """(n, t), none negative."""


@dataclass(frozen=True)
class Axis:
    """What happens to one axis: `grid` nodes stretched to `canvas` pixels, cut to `visible`, stretched to `size`."""

    grid: int
    canvas: int
    visible: int
    size: int


@dataclass(frozen=True)
class Span:
    """A run of outputs of an axis with the few nodes that they depend on."""

    start: int
    stop: int
    """Outputs start..stop-1."""
    first: int
    last: int
    """Nodes first..last-1."""
    matrix: npt.NDArray[np.float32]
    """(stop - start, last - first): outputs = matrix @ nodes."""


def taps(source: int, target: int) -> Taps:
    """The bilinear resize of `source` samples to `target` samples."""
    position = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = position.astype(np.intp)
    high = np.minimum(low + 1, source - 1)
    share = position - low
    return Taps(np.stack([low, high], axis=1), np.stack([1 - share, share], axis=1))


def composed(first: Taps, second: Taps) -> Taps:
    """`first`, then `second`; the outputs of `first` that `second` never reads are cropped away."""
    nodes = first.nodes[second.nodes]
    weights = first.weights[second.nodes] * second.weights[:, :, None]
    return Taps(nodes.reshape(len(nodes), -1), weights.reshape(len(weights), -1))


@lru_cache(maxsize=32)
def spans(axis: Axis, step: int) -> tuple[Span, ...]:
    """The whole of `axis` in runs of `step` outputs, in order; the last may be shorter."""
    whole = composed(taps(axis.grid, axis.canvas), taps(axis.visible, axis.size))
    return tuple(_span(whole, start, min(start + step, axis.size)) for start in range(0, axis.size, step))


def _span(whole: Taps, start: int, stop: int) -> Span:
    nodes, weights = whole.nodes[start:stop], whole.weights[start:stop]
    read = nodes[weights > 0]
    first, last = int(read.min()), int(read.max()) + 1
    matrix = np.zeros((stop - start, last - first))
    # A node may occur twice in a row, and one without weight may lie just outside.
    inside = np.clip(nodes - first, 0, last - first - 1)
    np.add.at(matrix, (np.arange(stop - start)[:, None], inside), weights)
    return Span(start, stop, first, last, matrix.astype(np.float32))
