"""The exact class map of stretched logits, computed only where the answer is open.

Two resizes and the crop between them are one banded matrix per axis. Along one axis a bilinear resize with half-pixel
centres (`align_corners=False`, no antialiasing, as `torch.nn.functional.interpolate` does it) is a matrix (target,
source) with two weights in a row, and the product of two such matrices has at most four, so an image is stretched from
the token grid to its own size in one step.

Every pixel is thus a convex combination of a few nodes of the logits' grid. So within a tile of pixels a class cannot
win whose largest node is below the smallest node of some other class, or of the mean of two: it need not be
interpolated there, and a tile in which one class is left is filled. The rest is interpolated in bands that stay in
the cache. Nothing is approximated: a class is left out only when it is behind by more than float32 rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dovit_deploy.runtime.results import ClassMap, Logits

Nodes = npt.NDArray[np.intp]

BAND = 48
"""Rows decided together: two float32 planes of 1280 columns stay in the second-level cache."""
TILE = 64
"""Columns of a tile in which classes are ruled out."""
STARTING_COST = 400
"""What starting another run costs, in columns of a band; measured."""
FILLING_COST = 40
"""What filling a run with one class costs, in the same unit."""
MARGIN = 1e-5
"""Of the largest logit: more than the rounding error of two interpolated float32 values, which is below 1e-6."""


class _Run(NamedTuple):
    """Neighbouring tiles of a band, decided together: columns start..stop-1, classes as the bits of a number."""

    start: int
    stop: int
    classes: int


def stretched_class_map(logits: Logits, rows: Axis, columns: Axis) -> ClassMap:
    """The class with the largest logit at each pixel, the lowest of them when several are equal.

    Args:
        logits: (K, rows.grid, columns.grid) float32, K at most 256.
        rows: how the grid's rows become the image's.
        columns: how its columns do.

    Returns:
        (rows.size, columns.size) uint8.
    """
    bands, tiles = spans(rows, BAND), spans(columns, TILE)
    wide = _stretch_columns(logits, tiles, columns.size)
    result = np.empty((rows.size, columns.size), dtype=np.uint8)
    scratch = _Scratch(min(BAND, rows.size) * columns.size)
    for band, masks in zip(bands, _open_classes(logits, bands, tiles), strict=True):
        for run in _runs(masks, tiles):
            out = result[band.start : band.stop, run.start : run.stop]
            _decide(run, band, wide[:, band.first : band.last, run.start : run.stop], out, scratch)
    return result


def class_map(logits: Logits) -> ClassMap:
    """The class map (H, W) uint8 of logits (K, H, W) that need no stretching."""
    result = np.zeros(logits.shape[1:], dtype=np.uint8)
    for start in range(0, len(result), BAND):
        winner = result[start : start + BAND]
        best = logits[0, start : start + BAND].copy()
        for number in range(1, len(logits)):
            value = logits[number, start : start + BAND]
            # Classes come in rising order, so the later of two winners is the larger number.
            np.maximum(winner, np.greater(value, best).view(np.uint8) * np.uint8(number), out=winner)
            np.maximum(best, value, out=best)
    return result


class _Scratch:
    """Memory for one run, taken once per image: fresh pages cost more than the arithmetic."""

    def __init__(self, pixels: int) -> None:
        self.best = np.empty(pixels, dtype=np.float32)
        self.value = np.empty(pixels, dtype=np.float32)
        self.ahead = np.empty(pixels, dtype=np.bool_)
        self.number = np.empty(pixels, dtype=np.uint8)
        self.winner = np.empty(pixels, dtype=np.uint8)


def _stretch_columns(logits: Logits, tiles: Sequence[Span], width: int) -> Logits:
    classes, height, grid = logits.shape
    wide = np.empty((classes * height, width), dtype=np.float32)
    flat = np.ascontiguousarray(logits).reshape(classes * height, grid)
    for tile in tiles:
        np.matmul(flat[:, tile.first : tile.last], tile.matrix.T, out=wide[:, tile.start : tile.stop])
    return wide.reshape(classes, height, width)


def _open_classes(logits: Logits, bands: Sequence[Span], tiles: Sequence[Span]) -> list[list[int]]:
    """Per band and tile, the classes that can win there, as the bits of a number."""
    rows, columns = _nodes(bands), _nodes(tiles)
    most = _reduce(np.maximum, _reduce(np.maximum, logits, rows, axis=1), columns, axis=2)
    least = _reduce(np.minimum, _reduce(np.minimum, logits, rows, axis=1), columns, axis=2)
    beaten = np.maximum(least.max(axis=0), _leaders_mean(logits, most, rows, columns))
    margin = np.float32(MARGIN) * np.abs(logits).max()
    # Written so that NaN rules nothing out.
    possible = ~(most < beaten - margin)
    # Up to 256 classes: too many for the bits of an int64, so a mask is an integer of Python.
    packed = np.packbits(possible, axis=0, bitorder="little").transpose(1, 2, 0)
    return [[int.from_bytes(tile.tobytes(), "little") for tile in band] for band in packed]


def _leaders_mean(logits: Logits, most: Logits, rows: Nodes, columns: Nodes) -> Logits:
    """The smallest node of the mean of a tile's two leading classes: (bands, tiles).

    The better of two classes is nowhere below their mean. Where two regions meet neither class is high at every
    node, but their mean is.
    """
    leaders = np.argpartition(-most, min(1, len(most) - 1), axis=0)[:2, :, :, None, None]
    values = logits[leaders, rows[:, None, :, None], columns[None, :, None, :]]
    return np.asarray(values.mean(axis=0).min(axis=(2, 3)), dtype=np.float32)


def _nodes(parts: Sequence[Span]) -> Nodes:
    """The nodes of each part, the last repeated so that all have as many: (parts, longest)."""
    longest = max(part.last - part.first for part in parts)
    return np.array([[min(part.first + step, part.last - 1) for step in range(longest)] for part in parts])


def _reduce(ufunc: np.ufunc, values: Logits, nodes: Nodes, *, axis: int) -> Logits:
    """The largest or smallest node of each part along `axis`."""
    result = values.take(nodes[:, 0], axis=axis)
    for step in range(1, nodes.shape[1]):
        ufunc(result, values.take(nodes[:, step], axis=axis), out=result)
    return result


def _runs(masks: Sequence[int], tiles: Sequence[Span]) -> Iterator[_Run]:
    """Join neighbouring tiles while that is cheaper than deciding them apart."""
    start, stop, classes = tiles[0].start, tiles[0].stop, masks[0]
    cost = _cost(stop - start, classes)
    for tile, mask in zip(tiles[1:], masks[1:], strict=True):
        alone = _cost(tile.stop - tile.start, mask)
        together = _cost(tile.stop - start, classes | mask)
        if together <= cost + alone:
            stop, classes, cost = tile.stop, classes | mask, together
        else:
            yield _Run(start, stop, classes)
            start, stop, classes, cost = tile.start, tile.stop, mask, alone
    yield _Run(start, stop, classes)


def _cost(width: int, classes: int) -> int:
    """What a run takes, in columns of a band."""
    count = classes.bit_count()
    return FILLING_COST if count == 1 else count * (width + STARTING_COST)


def _decide(run: _Run, band: Span, nodes: Logits, out: ClassMap, scratch: _Scratch) -> None:
    """Fill `out` (rows, columns) with the winners among the run's classes; `nodes`: (K, band's nodes, columns)."""
    classes = [number for number in range(len(nodes)) if run.classes >> number & 1]
    if len(classes) == 1:
        out.fill(classes[0])
        return
    best, value = (memory[: out.size].reshape(out.shape) for memory in (scratch.best, scratch.value))
    ahead, number, winner = scratch.ahead[: out.size], scratch.number[: out.size], scratch.winner[: out.size]
    np.matmul(band.matrix, nodes[classes[0]], out=best)
    winner.fill(classes[0])
    for candidate in classes[1:]:
        np.matmul(band.matrix, nodes[candidate], out=value)
        np.greater(value.reshape(-1), best.reshape(-1), out=ahead)
        # Candidates come in rising order, so the later of two winners is the larger number.
        np.multiply(ahead.view(np.uint8), np.uint8(candidate), out=number)
        np.maximum(winner, number, out=winner)
        # What the last candidate reached is compared with nothing.
        if candidate != classes[-1]:
            np.maximum(best, value, out=best)
    out[...] = winner.reshape(out.shape)


@dataclass(frozen=True)
class Taps:
    """The nodes that each of n outputs of an axis reads, and their weights, which sum to 1 in every row."""

    nodes: npt.NDArray[np.intp]
    """(n, t) indices into the source."""
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
    # In float64: the composition is then nearer to the true value than two steps that are rounded.
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


# Every frame of a video has the same two axes.
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
