"""The parts of the naive reference that know nothing of stopping: stem, block, attention, heads.

Single vectors and dictionaries of them, NumPy float64; only the names of the weights are the package's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dovit_deploy.families.parts import ConvStem, FcnHead, LightHead, LinearHead, MaskHead, QueryHead, SetrHead
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.plain_maths import Array, convolve, gelu, layer_norm, resize, softmax, unit

Weights = Mapping[str, Array]
Tokens = dict[int, Array]
"""Patch tokens by their position in raster order."""


def stem(spec: VisionTransformerSpec, weights: Weights, image: Array) -> Array:
    """(3, H, W) -> (C, h, w)."""
    last = weights["stem.projection.weight"], weights["stem.projection.bias"]
    if not isinstance(spec.stem, ConvStem):
        return convolve(image, *last, stride=spec.patch, padding=0)
    for number in range(len(spec.stem.widths)):
        name = f"stem.down.{number}."
        image = convolve(image, weights[name + "weight"], weights[name + "bias"], stride=2, padding=1)
        image = np.maximum(image, 0.0)
        if number:
            name = f"stem.residual.{number - 1}.conv."
            added = convolve(image, weights[name + "weight"], weights[name + "bias"], stride=1, padding=1)
            image = np.maximum(image + added, 0.0)
    return convolve(image, *last, stride=2, padding=0)


def norm(token: Array, weights: Weights, name: str, eps: float) -> Array:
    return layer_norm(token, weights[name + "weight"], weights[name + "bias"], eps)


def linear(token: Array, weights: Weights, name: str) -> Array:
    result: Array = weights[name + "weight"] @ token
    return result + weights[name + "bias"] if name + "bias" in weights else result


def block(
    sequence: list[Array],
    weights: Weights,
    name: str,
    *,
    heads: int,
    eps: float,
    angles: Sequence[Array | None] | None = None,
    further: Sequence[tuple[Array, float]] = (),
) -> list[Array]:
    """A pre-norm block on a list of vectors; one with a gate beside its first layer is a SwiGLU.

    `angles`: by how much each token's queries and keys are turned, None for not at all; `further`: what is seen beside
    the sequence, and how many tokens each of these stands for.
    """
    normed = [norm(token, weights, name + "norm1.", eps) for token in sequence]
    seen = [(norm(token, weights, name + "norm1.", eps), count) for token, count in further]
    mixed = attention(normed, weights, name + "attention.", heads=heads, angles=angles, further=seen)
    sequence = [token + added for token, added in zip(sequence, mixed, strict=True)]
    result = []
    for token in sequence:
        normed_token = norm(token, weights, name + "norm2.", eps)
        inner = linear(normed_token, weights, name + "mlp.expand.")
        if name + "mlp.gate.weight" in weights:
            gate = linear(normed_token, weights, name + "mlp.gate.")
            inner = inner * gate / (1.0 + np.exp(-gate))
        else:
            inner = gelu(inner)
        result.append(token + linear(inner, weights, name + "mlp.contract."))
    return result


def attention(
    sequence: list[Array],
    weights: Weights,
    name: str,
    *,
    heads: int,
    angles: Sequence[Array | None] | None = None,
    further: Sequence[tuple[Array, float]] = (),
) -> list[Array]:
    """Every token asks every token of the sequence, head by head, and what is `further` seen.

    Whatever stands for several tokens weighs as much as if it were there so many times.
    """
    turns = [None] * len(sequence) if angles is None else angles
    turned = list(zip(sequence, turns, strict=True))
    queries = [turn(linear(token, weights, name + "query."), by, heads) for token, by in turned]
    keys = [turn(linear(token, weights, name + "key."), by, heads) for token, by in turned]
    values = [linear(token, weights, name + "value.") for token in sequence]
    keys += [linear(token, weights, name + "key.") for token, _ in further]
    values += [linear(token, weights, name + "value.") for token, _ in further]
    times = np.array([1.0] * len(sequence) + [count for _, count in further])
    head_width = len(queries[0]) // heads
    result = []
    for query in queries:
        parts = []
        for head in range(heads):
            own = slice(head * head_width, (head + 1) * head_width)
            scores = np.array([float(query[own] @ key[own]) / math.sqrt(head_width) for key in keys])
            weighed = times * np.exp(scores - scores.max())
            shares = weighed / weighed.sum()
            parts.append(sum(share * value[own] for share, value in zip(shares, values, strict=True)))
        result.append(linear(np.concatenate(parts), weights, name + "output."))
    return result


def turn(vector: Array, angles: Array | None, heads: int) -> Array:
    """(C,) with pair i of each head, its channels i and D / 2 + i, turned by `angles[i]` (D / 2,)."""
    if angles is None:
        return vector
    result = vector.copy()
    pairs = len(angles)
    for head in range(heads):
        for pair, angle in enumerate(angles):
            first = head * 2 * pairs + pair
            x, y = vector[first], vector[first + pairs]
            result[first] = x * math.cos(angle) - y * math.sin(angle)
            result[first + pairs] = x * math.sin(angle) + y * math.cos(angle)
    return result


def turning_angles(periods: Array, grid: tuple[int, int], position: int) -> Array:
    """(D / 2,) of the patch at `position`: by its row, then by its column, each from -1 to 1 over the image."""
    row, column = divmod(position, grid[1])
    down, across = (2 * row + 1) / grid[0] - 1, (2 * column + 1) / grid[1] - 1
    return np.array([2 * math.pi * along / period for along in (down, across) for period in periods])


def per_token(head: FcnHead | LinearHead, weights: Weights, name: str, token: Array) -> Array:
    """(C,) -> (K,) logits of a head that looks at one token alone; batch norm is in the weights already."""
    if isinstance(head, FcnHead):
        token = np.maximum(linear(token, weights, name + "hidden."), 0.0)
    return linear(token, weights, name + "classifier.")


def image_from_tokens(spec: VisionTransformerSpec, grid: Tokens) -> Array:
    """(C, h, w) of the tokens in raster order."""
    columns = spec.grid[1]
    image = np.zeros((len(grid[0]), *spec.grid))
    for position, token in grid.items():
        image[:, position // columns, position % columns] = token
    return image


def up_sampled(head: SetrHead, weights: Weights, name: str, image: Array) -> Array:
    """LayerNorm at each position, then convolutions that up-sample, then one to the classes."""
    image = image.copy()
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            image[:, row, column] = norm(image[:, row, column], weights, name + "norm.", head.norm_eps)
    for number in range(head.convs):
        at = f"{name}up.{number}."
        padding = (head.kernel - 1) // 2
        image = convolve(image, weights[at + "weight"], weights[at + "bias"], stride=1, padding=padding)
        image = np.maximum(image, 0.0)
        bigger = (image.shape[1] * head.up_scale, image.shape[2] * head.up_scale)
        image = resize(image, bigger, "bilinear")
    at = name + "classifier."
    return convolve(image, weights[at + "weight"], weights[at + "bias"], stride=1, padding=0)


def lit(head: LightHead, spec: VisionTransformerSpec, weights: Weights, grid: Tokens) -> Array:
    """(K, 2h, 2w): every token becomes a square of 2x2 positions, which a 3x3 convolution reads."""
    rows, columns = spec.grid
    fine = np.zeros((head.channels, 2 * rows, 2 * columns))
    for position, token in grid.items():
        spread = gelu(linear(norm(token, weights, "head.norm.", head.norm_eps), weights, "head.expand."))
        top, left = 2 * (position // columns), 2 * (position % columns)
        # One after the other: above left, above right, below left, below right.
        for number, (y, x) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            fine[:, top + y, left + x] = spread[number * head.channels : (number + 1) * head.channels]
    at = "head.conv."
    mixed = gelu(convolve(fine, weights[at + "weight"], weights[at + "bias"], stride=1, padding=1))
    at = "head.classifier."
    return convolve(mixed, weights[at + "weight"], weights[at + "bias"], stride=1, padding=0)


def queried(head: QueryHead, spec: VisionTransformerSpec, weights: Weights, extra: list[Array], grid: Tokens) -> Array:
    """(K, h, w): queries run on with all tokens, then every position asks each of them how much it is its class."""
    sequence = [*weights["head.queries"], *extra, *(grid[position] for position in range(len(grid)))]
    for layer in range(spec.depth - head.joined, spec.depth):
        sequence = block(sequence, weights, f"blocks.{layer}.", heads=spec.heads, eps=spec.norm_eps)
    if spec.final_norm:
        sequence = [norm(token, weights, "norm.", spec.norm_eps) for token in sequence]
    queries, patches = sequence[: head.queries], sequence[head.queries + len(extra) :]
    image = image_from_tokens(spec, dict(enumerate(patches)))
    for number in range(head.doublings):
        image = _doubled(image, weights, f"head.doublings.{number}.", head.norm_eps)
    answer = np.zeros((spec.classes, *image.shape[1:]))
    for query in queries:
        chances = softmax(linear(query, weights, "head.classifier."))
        for layer in range(2):
            query = gelu(linear(query, weights, f"head.mask.{layer}."))
        maker = linear(query, weights, "head.mask.2.")
        for row in range(image.shape[1]):
            for column in range(image.shape[2]):
                inside = 1.0 / (1.0 + math.exp(-float(maker @ image[:, row, column])))
                # The last class, no object, is nobody's.
                answer[:, row, column] += inside * chances[: spec.classes]
    return answer


def _doubled(image: Array, weights: Weights, name: str, eps: float) -> Array:
    """(C, h, w) -> (C, 2h, 2w)."""
    channels, rows, columns = image.shape
    fine = np.zeros((channels, 2 * rows, 2 * columns))
    for row in range(rows):
        for column in range(columns):
            spread = gelu(linear(image[:, row, column], weights, name + "expand."))
            for number, (y, x) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
                fine[:, 2 * row + y, 2 * column + x] = spread[number * channels : (number + 1) * channels]
    kernels = weights[name + "conv.weight"]
    nothing = np.zeros(1)
    own = [
        convolve(fine[channel : channel + 1], kernels[channel : channel + 1], nothing, stride=1, padding=1)
        for channel in range(channels)
    ]
    mixed = np.concatenate(own)
    for row in range(2 * rows):
        for column in range(2 * columns):
            mixed[:, row, column] = norm(mixed[:, row, column], weights, name + "norm.", eps)
    return mixed


def lens(token: Array, weights: Weights, name: str, eps: float) -> Array:
    """(C,) -> (C,): what a gate says that a later layer would have made of a token that stops there."""
    plain = layer_norm(token, np.ones_like(token), np.zeros_like(token), eps)
    return linear(plain, weights, name + "linear.")


def masks(head: MaskHead, weights: Weights, grid: Tokens) -> Tokens:
    """(K,) per position: patches and class embeddings attend together, then a normalised product."""
    count = len(grid)
    sequence = [linear(grid[position], weights, "head.embed.") for position in range(count)]
    sequence += list(weights["head.class_tokens"])
    for number in range(head.layers):
        name = f"head.blocks.{number}."
        sequence = block(sequence, weights, name, heads=head.heads, eps=head.norm_eps)
    sequence = [norm(token, weights, "head.norm.", head.norm_eps) for token in sequence]
    patches = [unit(linear(token, weights, "head.patch_projection.")) for token in sequence[:count]]
    classes = [unit(linear(token, weights, "head.class_projection.")) for token in sequence[count:]]
    result: Tokens = {}
    for position, patch in enumerate(patches):
        products = np.array([float(patch @ cls) for cls in classes])
        # The published heads leave this one norm at PyTorch's own epsilon, whatever the blocks use.
        result[position] = norm(products, weights, "head.mask_norm.", 1e-5)
    return result
