"""The exact class map of stretched logits, computed only where the answer is open.

Two resizes and the crop between them are one banded matrix per axis. Along one axis a bilinear resize with half-pixel
centres (`align_corners=False`, no antialiasing, as `torch.nn.functional.interpolate` does it) is a matrix (target,
source) with two weights in a row, and the product of two such matrices has at most four, so an image is stretched from
the token grid to its own size in one step.

Every pixel is thus a convex combination of a few nodes of the logits' grid. So within a tile of pixels a class cannot
win whose largest node is below the smallest node of some other class, or of the mean of two: it need not be
interpolated there, and a tile in which one class is left is filled. In the others the open classes are interpolated
one after another, many tiles at a time. Where hardly a class is ruled out, as of noise, all of them are interpolated
everywhere, some rows at a time. Nothing is approximated: a class is left out only when it is behind by more than
float32 rounding, and both ways give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dovit_deploy.runtime.results import ClassMap, Logits

Nodes = npt.NDArray[np.intp]
IsOpen = npt.NDArray[np.bool_]
"""(K, bands, tiles): whether a class can win somewhere in a tile."""

BAND = 24
"""Rows of a tile."""
TILE = 64
"""Columns of a tile, in which classes are ruled out together."""
CHUNK = 40 * BAND * TILE
"""Pixels decided together, at least one tile: their two float32 planes stay in the second-level cache."""
SAMPLED = 8
"""One of so many bands shows how many classes are open."""
HARDLY = 0.6
"""Share of classes that is open in a tile from which ruling out costs more than it saves."""
AT_ONCE = 200_000
"""Values of all classes that are compared together: with what is made of them they fit into the second-level cache."""
FEWEST_ROWS = 4
"""Compared together, however many classes there are: every step has a price of its own."""
MARGIN = 1e-5
"""Of the largest logit: more than the rounding error of two interpolated float32 values, which is below 1e-6."""


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
    of_bands, of_tiles = nodes_of_spans(rows, BAND), nodes_of_spans(columns, TILE)
    if _open_classes(logits, of_bands[::SAMPLED], of_tiles).mean() > HARDLY:
        return np.ascontiguousarray(_winners_of_all(logits, rows, tiles)[:, : columns.size])
    is_open = _open_classes(logits, of_bands, of_tiles)
    decider = _Decider(_stretched_columns(logits, tiles, TILE), padded_bands(rows, BAND))
    # Tiles in which as many classes are open come together: then a chunk has few steps, and none of them for nothing.
    counts = is_open.sum(axis=0)
    order = np.argsort(-counts, axis=None, kind="stable")
    # Of each tile the open classes first, in rising order.
    candidates = np.argsort(~is_open, axis=0, kind="stable").astype(np.uint8)
    canvas = np.empty((len(bands), BAND, len(tiles), TILE), dtype=np.uint8)
    by_tile = canvas.transpose(0, 2, 1, 3)
    for start in range(0, len(order), decider.chunk):
        band, tile = np.unravel_index(order[start : start + decider.chunk], counts.shape)
        by_tile[band, tile] = decider.winners(band, tile, candidates[:, band, tile], counts[band, tile])
    whole = canvas.reshape(len(bands) * BAND, -1)
    return np.ascontiguousarray(whole[: rows.size, : columns.size])


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


def _winners_of_all(logits: Logits, rows: Axis, tiles: Sequence[Span]) -> ClassMap:
    """The winner at each pixel (rows.size, len(tiles) * TILE), found by interpolating every class there."""
    classes, width = len(logits), len(tiles) * TILE
    (stretched,) = _stretched_columns(logits, tiles, width)
    step = max(FEWEST_ROWS, min(BAND, AT_ONCE // (classes * width)))
    values, best = np.empty((classes, step * width), dtype=np.float32), np.empty(step * width, dtype=np.float32)
    leads = np.empty(values.shape, dtype=np.bool_)
    # The lower the class the larger its code: of several that lead, the largest code is that of the lowest.
    codes = ~np.arange(classes, dtype=np.uint8)[:, None]
    winner = np.empty((rows.size, width), dtype=np.uint8)
    for band in spans(rows, step):
        height = band.stop - band.start
        # Rows are strung together: the fewer and longer the runs that NumPy works on, the faster.
        value, most, lead = values[:, : height * width], best[: height * width], leads[:, : height * width]
        nodes = stretched[:, band.first : band.last]
        np.matmul(band.matrix, nodes, out=value.reshape(classes, height, width))
        np.maximum.reduce(value, axis=0, out=most)
        coded = np.equal(value, most, out=lead).view(np.uint8)
        np.multiply(coded, codes, out=coded)
        np.maximum.reduce(coded, axis=0, out=winner[band.start : band.stop].reshape(-1))
    # Nothing leads among values that are no numbers.
    np.invert(winner, out=winner)
    return np.minimum(winner, np.uint8(classes - 1), out=winner)


class _Decider:
    """Finds the winners of a few tiles at a time, in memory that is taken once: fresh pages cost more than arithmetic.

    Args:
        stretched: (tiles, K, grid rows, columns): logits stretched along the columns.
        bands: how their rows are stretched.
    """

    def __init__(self, stretched: Logits, bands: PaddedBands) -> None:
        self._bands = bands
        tiles, self._classes, self._height, width = stretched.shape
        self._rows = stretched.reshape(-1, width)
        self.chunk = min(max(1, CHUNK // (BAND * width)), tiles * len(bands.first))
        """Tiles at a time."""
        shape = (self.chunk, BAND, width)
        self._nodes = np.empty((self.chunk, bands.matrices.shape[2], width), dtype=np.float32)
        self._best, self._value = (np.empty(shape, dtype=np.float32) for _ in range(2))
        self._ahead = np.empty(shape, dtype=np.bool_)
        self._winner, self._number = (np.empty(shape, dtype=np.uint8) for _ in range(2))

    def winners(self, band: Nodes, tile: Nodes, candidates: ClassMap, counts: Nodes) -> ClassMap:
        """The winners (n, BAND, columns) of the tiles at (band, tile), valid until the next call.

        Args:
            band, tile: (n,), n at most `chunk`.
            candidates: (K, n), the open classes of each first, in rising order.
            counts: (n,), how many are open, falling.
        """
        winner = self._winner[: len(band)]
        winner[:] = candidates[0, :, None, None]
        # Row of the stretched logits that a tile's band begins with: (K, n, nodes), by candidate.
        first = (tile * self._classes + candidates) * self._height + self._bands.first[band]
        rows = first[:, :, None] + np.arange(self._nodes.shape[1])
        matrices = self._bands.matrices[band]
        # Where one class is open alone, there is nothing to compute.
        alive = np.count_nonzero(np.where(counts == 1, 0, counts) > np.arange(counts[0])[:, None], axis=1).tolist()
        for rank, live in enumerate(alive):
            nodes, value = self._nodes[:live], (self._value if rank else self._best)[:live]
            # With `out`, any other mode would copy once more; all rows exist.
            np.take(self._rows, rows[rank, :live], axis=0, out=nodes, mode="clip")
            np.matmul(matrices[:live], nodes, out=value)
            if rank:
                self._raise(winner[:live], value, candidates[rank, :live, None, None])
        return winner

    def _raise(self, winner: ClassMap, value: Logits, numbers: ClassMap) -> None:
        live = len(value)
        best, ahead, number = self._best[:live], self._ahead[:live], self._number[:live]
        np.greater(value, best, out=ahead)
        # Candidates come in rising order, so the later of two winners is the larger number.
        np.multiply(ahead.view(np.uint8), numbers, out=number)
        np.maximum(winner, number, out=winner)
        np.maximum(best, value, out=best)


def _stretched_columns(logits: Logits, tiles: Sequence[Span], width: int) -> Logits:
    """(columns / width, K, grid rows, width), `width` a multiple of TILE; beyond the last column zeros."""
    classes, height, grid = logits.shape
    stretched = np.empty((len(tiles) * TILE // width, classes * height, width), dtype=np.float32)
    flat = np.ascontiguousarray(logits).reshape(classes * height, grid)
    for tile in tiles:
        number, start = divmod(tile.start, width)
        out = stretched[number, :, start : start + TILE]
        # Laid out anew: a product with a transposed matrix takes twice as long.
        matrix = np.ascontiguousarray(tile.matrix.T)
        np.matmul(flat[:, tile.first : tile.last], matrix, out=out[:, : tile.stop - tile.start])
        out[:, tile.stop - tile.start :] = 0
    return stretched.reshape(-1, classes, height, width)


def _open_classes(logits: Logits, rows: Nodes, columns: Nodes) -> IsOpen:
    """The classes that can win in each tile, of bands and tiles with these nodes (`nodes_of_spans`)."""
    most = _reduce(np.maximum, _reduce(np.maximum, logits, rows, axis=1), columns, axis=2)
    least = _reduce(np.minimum, _reduce(np.minimum, logits, rows, axis=1), columns, axis=2)
    beaten = np.maximum(least.max(axis=0), _leaders_mean(logits, most, rows, columns))
    margin = np.float32(MARGIN) * np.abs(logits).max()
    # Written so that NaN rules nothing out.
    return np.asarray(~(most < beaten - margin))


def _leaders_mean(logits: Logits, most: Logits, rows: Nodes, columns: Nodes) -> Logits:
    """The smallest node of the mean of a tile's two leading classes: (bands, tiles).

    The better of two classes is nowhere below their mean. Where two regions meet neither class is high at every
    node, but their mean is.
    """
    leaders = np.argpartition(-most, min(1, len(most) - 1), axis=0)[:2, :, :, None, None]
    values = logits[leaders, rows[:, None, :, None], columns[None, :, None, :]]
    return np.asarray(values.mean(axis=0).min(axis=(2, 3)), dtype=np.float32)


def _reduce(ufunc: np.ufunc, values: Logits, nodes: Nodes, *, axis: int) -> Logits:
    """The largest or smallest node of each part along `axis`."""
    result = values.take(nodes[:, 0], axis=axis)
    for step in range(1, nodes.shape[1]):
        ufunc(result, values.take(nodes[:, step], axis=axis), out=result)
    return result


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


@lru_cache(maxsize=32)
def nodes_of_spans(axis: Axis, step: int) -> Nodes:
    """The nodes of each of `spans(axis, step)`, the last repeated so that all have as many: (spans, longest)."""
    parts = spans(axis, step)
    longest = max(part.last - part.first for part in parts)
    return np.array([[min(part.first + step, part.last - 1) for step in range(longest)] for part in parts])


@dataclass(frozen=True)
class PaddedBands:
    """The spans of an axis with equally many outputs and nodes each, so that they are products of one shape."""

    first: npt.NDArray[np.intp]
    """(spans,): the first node."""
    matrices: npt.NDArray[np.float32]
    """(spans, step, nodes), zeros where a span is shorter."""


@lru_cache(maxsize=32)
def padded_bands(axis: Axis, step: int) -> PaddedBands:
    """`spans(axis, step)`, padded."""
    parts = spans(axis, step)
    nodes = max(part.last - part.first for part in parts)
    # The last ones end with the axis.
    first = np.array([min(part.first, axis.grid - nodes) for part in parts], dtype=np.intp)
    matrices = np.zeros((len(parts), step, nodes), dtype=np.float32)
    for part, begin, matrix in zip(parts, first, matrices, strict=True):
        matrix[: part.stop - part.start, part.first - begin : part.last - begin] = part.matrix
    return PaddedBands(first, matrices)


def _span(whole: Taps, start: int, stop: int) -> Span:
    nodes, weights = whole.nodes[start:stop], whole.weights[start:stop]
    read = nodes[weights > 0]
    first, last = int(read.min()), int(read.max()) + 1
    matrix = np.zeros((stop - start, last - first))
    # A node may occur twice in a row, and one without weight may lie just outside.
    inside = np.clip(nodes - first, 0, last - first - 1)
    np.add.at(matrix, (np.arange(stop - start)[:, None], inside), weights)
    return Span(start, stop, first, last, matrix.astype(np.float32))
