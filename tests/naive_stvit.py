"""STViT-R and STViT again, token by token: the reference that the package is held against.

Written from the description of the published systems and their behaviour, in plain loops over positions (row, column),
NumPy float64; nothing is shared with `dovit_deploy.families` but the names of the weights, which are those of the form
that is trained: batch norms, layer scales and tables of biases apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dovit_deploy.families.parts import MaskHead, SetrHead
from dovit_deploy.families.stvit.spec import StvitBackboneSpec, StvitDeitSpec, StvitSegmenterSpec, StvitSwinSpec
from dovit_deploy.families.stvit.swin_spec import SwinSpec
from tests.naive_parts import Weights, linear, masks, per_token, up_sampled
from tests.plain_maths import Array, convolve, gelu, pad_corner, softmax

Position = tuple[int, int]
Grid = dict[Position, Array]
"""Tokens by row and column."""
Size = tuple[int, int]
AnySize = StvitBackboneSpec | StvitSegmenterSpec


def norm(token: Array, weights: Weights, name: str) -> Array:
    """All of these networks use one epsilon."""
    spread = token - token.mean()
    return spread / math.sqrt((spread * spread).mean() + 1e-5) * weights[name + "weight"] + weights[name + "bias"]


def hardswish(values: Array) -> Array:
    result: Array = values * np.clip(values + 3.0, 0.0, 6.0) / 6.0
    return result


def conv_stem(weights: Weights, image: Array) -> Array:
    """Convolution, batch norm, Hardswish, twice."""
    for part in ("first", "second"):
        name = f"stem.{part}."
        kernel = weights[name + "projection.weight"]
        image = convolve(image, kernel, np.zeros(len(kernel)), stride=2, padding=1)
        mean, variance = weights[name + "norm.running_mean"], weights[name + "norm.running_var"]
        scale = weights[name + "norm.weight"] / np.sqrt(variance + 1e-5)
        image = (image - mean[:, None, None]) * scale[:, None, None] + weights[name + "norm.bias"][:, None, None]
        image = hardswish(image)
    return image


def patch_stem(weights: Weights, image: Array) -> Array:
    """One convolution, then a norm over the channels."""
    image = convolve(image, weights["stem.projection.weight"], weights["stem.projection.bias"], stride=4, padding=0)
    for position in np.ndindex(*image.shape[1:]):
        image[:, *position] = norm(image[:, *position], weights, "stem.norm.")
    return image


def grid_from_image(image: Array) -> Grid:
    return {position: image[:, *position] for position in np.ndindex(*image.shape[1:])}


def image_from_grid(grid: Grid) -> Array:
    rows, columns = (1 + max(position[axis] for position in grid) for axis in (0, 1))
    return np.array([[grid[row, column] for column in range(columns)] for row in range(rows)]).transpose(2, 0, 1)


def ask(
    query: Array, keys: Sequence[Array], values: Sequence[Array], heads: int, added: Callable[[int, int], float]
) -> Array:
    """One query over keys and values; `added(head, number of the key)` to the score."""
    width, parts = len(query) // heads, []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = [query[own] @ key[own] / math.sqrt(width) + added(head, n) for n, key in enumerate(keys)]
        parts.append(softmax(np.array(scores)) @ np.array([value[own] for value in values]))
    return np.concatenate(parts)


def scaled(token: Array, weights: Weights, name: str) -> Array:
    return token * weights[name + ".factor"] if name + ".factor" in weights else token


def after_attention(token: Array, weights: Weights, name: str) -> Array:
    """The second half of every block."""
    inner = gelu(linear(norm(token, weights, name + "norm2."), weights, name + "mlp.expand."))
    return token + scaled(linear(inner, weights, name + "mlp.contract."), weights, name + "scale2")


def swin_block(grid: Grid, weights: Weights, name: str, *, heads: int, window: int, shift: int) -> Grid:
    """Attention among the tokens of a window; behind the padded edge are zeros, which were not normed."""
    rows, columns = (1 + max(position[axis] for position in grid) for axis in (0, 1))
    sides = [math.ceil(rows / window) * window, math.ceil(columns / window) * window]
    at = name + "attention."
    normed = {position: norm(token, weights, name + "norm1.") for position, token in grid.items()}
    nothing = np.zeros(len(normed[0, 0]))
    table = weights[at + "bias.table"]

    def key_and_value(position: Position) -> tuple[Array, Array]:
        token = normed.get(position, nothing)
        return linear(token, weights, at + "key."), linear(token, weights, at + "value.")

    known = {position: key_and_value(position) for position in np.ndindex(sides[0], sides[1])}

    def region(rolled: int, side: int) -> int:
        return 0 if rolled < side - window else 1 if rolled < side - shift else 2

    result: Grid = {}
    for position, token in normed.items():
        # Where the token is after the grid was rolled up and to the left.
        mine = [(position[axis] - shift) % sides[axis] for axis in (0, 1)]
        top, left = (one // window * window for one in mine)
        others = [(row, column) for row in range(top, top + window) for column in range(left, left + window)]

        def added(head: int, number: int, others: list[Position] = others, mine: list[int] = mine) -> float:
            row, column = others[number]
            step = (mine[0] - row + window - 1) * (2 * window - 1) + mine[1] - column + window - 1
            apart = shift and any(
                region(mine[axis], sides[axis]) != region(others[number][axis], sides[axis]) for axis in (0, 1)
            )
            return float(table[step, head]) - (100.0 if apart else 0.0)

        met = [known[(row + shift) % sides[0], (column + shift) % sides[1]] for row, column in others]
        mixed = ask(linear(token, weights, at + "query."), *zip(*met, strict=True), heads=heads, added=added)
        result[position] = linear(mixed, weights, at + "output.")
    return {
        position: after_attention(grid[position] + scaled(mixed, weights, name + "scale1"), weights, name)
        for position, mixed in result.items()
    }


def merge(grid: Grid, weights: Weights, name: str) -> Grid:
    """Four neighbours become one; outside are zeros."""
    rows, columns = (1 + max(position[axis] for position in grid) for axis in (0, 1))
    nothing = np.zeros(len(grid[0, 0]))
    result: Grid = {}
    for row in range(math.ceil(rows / 2)):
        for column in range(math.ceil(columns / 2)):
            corners = [(2 * row, 2 * column), (2 * row + 1, 2 * column), (2 * row, 2 * column + 1)]
            corners.append((2 * row + 1, 2 * column + 1))
            four = np.concatenate([grid.get(corner, nothing) for corner in corners])
            result[row, column] = linear(norm(four, weights, name + "norm."), weights, name + "reduction.")
    return result


def ordinary_stage(
    grid: Grid, weights: Weights, name: str, *, depth: int, heads: int, window: int, shifted: bool
) -> Grid:
    for number in range(depth):
        shift = window // 2 if shifted and number % 2 else 0
        grid = swin_block(grid, weights, f"{name}blocks.{number}.", heads=heads, window=window, shift=shift)
    return grid


def cross_block(
    token: Array,
    seen: Sequence[Array],
    weights: Weights,
    name: str,
    heads: int,
    *,
    added: Callable[[int, int], float] = lambda head, number: 0.0,
    residual: bool = True,
) -> Array:
    """One token looks at others, all normed by the same norm."""
    at = name + "attention."
    query = linear(norm(token, weights, name + "norm1."), weights, at + "query.")
    keys, values = [], []
    for other in seen:
        normed = norm(other, weights, name + "norm1.")
        keys.append(linear(normed, weights, at + "key."))
        values.append(linear(normed, weights, at + "value."))
    mixed = linear(ask(query, keys, values, heads, added), weights, at + "output.")
    mixed = scaled(mixed, weights, name + "scale1")
    return after_attention(token + mixed if residual else mixed, weights, name)


def largest(tokens: Iterable[Array]) -> Array:
    return np.max(list(tokens), axis=0)


def pooled_windows(grid: Grid, weights: Weights, name: str, window: int) -> Grid:
    """Three by three semantic tokens from every window, on a grid of their own."""
    rows, columns = (1 + max(position[axis] for position in grid) for axis in (0, 1))
    nothing = np.zeros(len(grid[0, 0]))
    bins = [range(n * window // 3, -(-(n + 1) * window // 3)) for n in range(3)]
    result: Grid = {}
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            own = np.zeros((3, 3, len(nothing)))
            for row in range(3):
                for column in range(3):
                    positions = [(top + y, left + x) for y in bins[row] for x in bins[column]]
                    own[row, column] = largest(grid.get(position, nothing) for position in positions)
            own = own + _convolved(own, weights, name + "pool.convolution.")
            for row in range(3):
                for column in range(3):
                    result[top // window * 3 + row, left // window * 3 + column] = own[row, column]
    return result


def _convolved(own: Array, weights: Weights, name: str) -> Array:
    """Each channel of one window with a kernel of its own; nothing where there is no convolution."""
    if name + "weight" not in weights:
        return np.zeros_like(own)
    kernels, biases = weights[name + "weight"], weights[name + "bias"]
    channels = [
        convolve(own[None, ..., n], kernels[[n]], biases[[n]], stride=1, padding=1) for n in range(own.shape[-1])
    ]
    return np.concatenate(channels).transpose(1, 2, 0)


def local_and_everywhere(semantic: Grid, weights: Weights, name: str, heads: int) -> Grid:
    """Semantic tokens look at those of their window, then at all; with biases where the weights have any."""
    at = name + "local."
    local: Grid = {}
    for (row, column), token in semantic.items():
        top, left = row // 3 * 3, column // 3 * 3
        positions = [(top + y, left + x) for y in range(3) for x in range(3)]
        added = _relative(weights, at + "attention.bias.table", (row, column), positions, 3)
        local[row, column] = cross_block(token, [semantic[p] for p in positions], weights, at, heads, added=added)
    at, positions = name + "everywhere.", sorted(local)
    side = 1 + max(row for row, _ in positions)
    result: Grid = {}
    for position, token in local.items():
        added = _relative(weights, at + "attention.bias.table", position, positions, side)
        result[position] = cross_block(token, [local[p] for p in positions], weights, at, heads, added=added)
    return result


def _relative(
    weights: Weights, name: str, own: Position, others: Sequence[Position], side: int
) -> Callable[[int, int], float]:
    if name not in weights:
        return lambda head, number: 0.0
    table = weights[name]

    def added(head: int, number: int) -> float:
        row, column = own[0] - others[number][0] + side - 1, own[1] - others[number][1] + side - 1
        return float(table[row * (2 * side - 1) + column, head])

    return added


def classifying_unit(grid: Grid, weights: Weights, name: str, spec: StvitSwinSpec, guide: Array | None) -> Grid:
    heads, window = spec.heads[2], spec.window
    grid = swin_block(grid, weights, name + "entry.", heads=heads, window=window, shift=0)
    pooled = pooled_windows(grid, weights, name, window)
    semantic: Grid = {}
    for (row, column), token in pooled.items():
        top, left = row // 3, column // 3
        seen = [pooled[top * 3 + y, left * 3 + x] for y in range(3) for x in range(3)]
        seen += [grid[top * 4 + y, left * 4 + x] for y in range(10) for x in range(10)]
        semantic[row, column] = cross_block(
            token, seen, weights, name + "pooling.", heads, residual=spec.pooled_residual
        )
    everything = [semantic[position] for position in sorted(semantic)] + [grid[position] for position in sorted(grid)]
    guided = dict(semantic)
    if guide is not None:
        guided = {position: semantic[position] + guide[number] for number, position in enumerate(sorted(semantic))}
    semantic = {
        position: cross_block(token, everything, weights, name + "exchange.", heads)
        for position, token in guided.items()
    }
    semantic = local_and_everywhere(semantic, weights, name, heads)
    seen = [semantic[position] for position in sorted(semantic)]
    return {position: cross_block(token, seen, weights, name + "recovery.", heads) for position, token in grid.items()}


def any_size_unit(grid: Grid, weights: Weights, name: str, spec: AnySize) -> Grid:
    heads, window = spec.heads[2], spec.window
    grid = swin_block(grid, weights, name + "entry.", heads=heads, window=window, shift=0)
    rows, columns = (1 + max(position[axis] for position in grid) for axis in (0, 1))
    padding = (-rows % window, -columns % window)
    whole = (rows + padding[0], columns + padding[1])
    semantic = pooled_windows(grid, weights, name, window)
    for part, span in zip(("pooling", "exchange"), spec.neighbourhoods, strict=True):
        looked: Grid = {}
        for (row, column), token in semantic.items():
            corner = (row // 3 * window, column // 3 * window)
            positions = around(corner, span, window)
            hidden = hidden_positions(spec, whole, padding, (rows, columns))
            looked[row, column] = look(token, grid, positions, hidden, weights, f"{name}{part}.", heads)
        semantic = looked
    semantic = local_and_everywhere(semantic, weights, name, heads)
    few = (whole[0] // window * 3, whole[1] // window * 3)
    result: Grid = {}
    for (row, column), token in grid.items():
        corner = (row // window * 3, column // window * 3)
        positions = around(corner, spec.recovery_neighbourhood, 3)
        hidden = hidden_positions(spec, few, padding, few)
        result[row, column] = look(token, semantic, positions, hidden, weights, name + "recovery.", heads)
    return result


def around(corner: Position, span: int, inner: int) -> list[Position]:
    """The square of side `span` around the square of side `inner` at `corner`; the smaller half of the rest before."""
    before = (span - inner) // 2
    return [(corner[0] + y - before, corner[1] + x - before) for y in range(span) for x in range(span)]


def hidden_positions(spec: AnySize, whole: Size, padding: Size, real: Size) -> Callable[[Position], bool]:
    """Which positions around a grid are hidden: outside `whole`, and inside what the slices [-padding:] take."""
    if spec.padding_mask == "none":
        return lambda position: False
    if spec.padding_mask == "exact":
        return lambda position: not (0 <= position[0] < real[0] and 0 <= position[1] < real[1])
    cut_rows, cut_columns = (list(range(side))[-cut:] for side, cut in zip(whole, padding, strict=True))

    def hidden(position: Position) -> bool:
        outside = not (0 <= position[0] < whole[0] and 0 <= position[1] < whole[1])
        return outside or (position[0] in cut_rows and position[1] in cut_columns)

    return hidden


def look(
    token: Array,
    grid: Grid,
    positions: list[Position],
    hidden: Callable[[Position], bool],
    weights: Weights,
    name: str,
    heads: int,
) -> Array:
    """A token looks at positions, some of them empty (zeros, which are normed), some of them hidden."""
    nothing = np.zeros(len(token))
    seen = [grid.get(position, nothing) for position in positions]
    return cross_block(
        token, seen, weights, name, heads, added=lambda head, number: -1000.0 if hidden(positions[number]) else 0.0
    )


def naive_stages(spec: StvitSwinSpec | SwinSpec | AnySize, weights: Weights, pixels: Array) -> list[Grid]:
    """`pixels` (3, H, W) -> what leaves each stage."""
    image = pad_corner(np.asarray(pixels, np.float64), 4)
    grid = grid_from_image(conv_stem(weights, image) if spec.stem == "conv" else patch_stem(weights, image))
    left = []
    for stage, depth in enumerate(spec.depths):
        if stage:
            grid = merge(grid, weights, f"merges.{stage - 1}.")
        name, side = f"stages.{stage}.", 1 + max(position[0] for position in grid)
        if stage == 2 and not isinstance(spec, SwinSpec):
            for number in range(depth // 6):
                unit = f"{name}units.{number}."
                if isinstance(spec, StvitSwinSpec):
                    guide = weights.get(f"{name}global_tokens") if number == 0 else None
                    grid = classifying_unit(grid, weights, unit, spec, guide)
                else:
                    grid = any_size_unit(grid, weights, unit, spec)
        else:
            classifying = isinstance(spec, StvitSwinSpec | SwinSpec)
            shifted = not classifying or side > spec.window
            window = min(spec.window, side) if classifying else spec.window
            grid = ordinary_stage(
                grid, weights, name, depth=depth, heads=spec.heads[stage], window=window, shifted=shifted
            )
        left.append(grid)
    return left


def naive_logits(spec: StvitSwinSpec | SwinSpec, weights: Weights, pixels: Array) -> Array:
    """(K,)"""
    last = naive_stages(spec, weights, pixels)[-1]
    mean = sum(norm(token, weights, "norm.") for token in last.values()) / len(last)
    return linear(np.asarray(mean), weights, "head.")


def naive_features(spec: StvitBackboneSpec, weights: Weights, pixels: Array) -> list[Array]:
    """(C, h, w) of each stage."""
    features = []
    for stage, grid in enumerate(naive_stages(spec, weights, pixels)):
        features.append(image_from_grid({p: norm(token, weights, f"norms.{stage}.") for p, token in grid.items()}))
    return features


def naive_segmentation(spec: StvitSegmenterSpec, weights: Weights, pixels: Array) -> Array:
    """(K, h, w) as the decode head gives them."""
    last = naive_stages(spec, weights, pixels)[-1]
    image = image_from_grid({position: norm(token, weights, "norm.") for position, token in last.items()})
    if isinstance(spec.head, SetrHead):
        return up_sampled(spec.head, _folded(weights), "head.", image)
    tokens = dict(enumerate(image.reshape(image.shape[0], -1).T))
    if isinstance(spec.head, MaskHead):
        logits = masks(spec.head, weights, tokens)
    else:
        logits = {position: per_token(spec.head, weights, "head.head.", token) for position, token in tokens.items()}
    return np.array([logits[position] for position in range(len(logits))]).T.reshape(-1, *image.shape[1:])


def _folded(weights: Weights) -> dict[str, Array]:
    """Convolutions of an up-sampling head with their batch norms taken in."""
    result = dict(weights)
    for name in [name.removesuffix(".norm.running_var") for name in weights if name.startswith("head.up.")]:
        if name + ".projection.weight" not in weights:
            continue
        scale = weights[name + ".norm.weight"] / np.sqrt(weights[name + ".norm.running_var"] + 1e-5)
        result[name + ".weight"] = weights[name + ".projection.weight"] * scale[:, None, None, None]
        result[name + ".bias"] = weights[name + ".norm.bias"] - weights[name + ".norm.running_mean"] * scale
    return result


def naive_deit(spec: StvitDeitSpec, weights: Weights, pixels: Array) -> Array:
    """(K,) of the composed STViT on DeiT."""
    name, heads, side = "blocks.", spec.heads, spec.samples
    projection = weights["projection.weight"], weights["projection.bias"]
    image = convolve(np.asarray(pixels, np.float64), *projection, stride=spec.patch, padding=0)
    rows, columns = image.shape[1:]
    tokens = [image[:, n // columns, n % columns] + weights["positions"][n] for n in range(rows * columns)]
    for number in range(spec.reduced_from):
        tokens = [cross_block(token, tokens, weights, f"{name}{number}.", heads) for token in tokens]
    few = []
    for row in range(side):
        for column in range(side):
            positions = [
                y * columns + x
                for y in range(row * rows // side, -(-(row + 1) * rows // side))
                for x in range(column * columns // side, -(-(column + 1) * columns // side))
            ]
            few.append(largest(tokens[position] for position in positions))
    number = spec.reduced_from
    few = [cross_block(token, tokens, weights, f"{name}{number}.", heads) for token in few]
    guided = [token + weights["global_tokens"][n] for n, token in enumerate(few)]
    few = [cross_block(token, few + tokens, weights, f"{name}{number + 1}.", heads) for token in guided]
    for number in range(spec.reduced_from + 2, spec.depth):
        few = [cross_block(token, few, weights, f"{name}{number}.", heads) for token in few]
    mean = sum(norm(token, weights, "norm.") for token in few) / len(few)
    return linear(np.asarray(mean), weights, "head.")
