"""DoViT again, token by token: the reference that the package is held against.

Written from the description of the published systems, in plain Python loops over tokens and dictionaries of
vectors, NumPy float64; nothing is shared with `dovit_deploy.models` but the names of the weights. Segmenter and SETR
are the same without gates. As in the released code the whole grid is rebuilt after every layer, and an auxiliary head
looks at every token, stopped ones too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dovit_deploy.bundle.spec import ConvStem, FcnHead, GateHead, LinearHead, MaskHead, ModelSpec, SetrHead
from tests.plain_maths import Array, convolve, gelu, layer_norm, pad_corner, resize, softmax, unit

Weights = Mapping[str, Array]
Tokens = dict[int, Array]
"""Patch tokens by their position in raster order."""


@dataclass(frozen=True)
class NaiveGate:
    """What one gate saw and decided."""

    seen: Array
    """(E + N, C): every token as the gate finds it, stopped ones frozen."""
    confidence: dict[int, float]
    """Of the tokens that ran until this gate."""
    label: dict[int, int]
    running: list[int]
    """Positions that go on, in raster order."""
    stopped: list[int]
    """All positions that do not, those of earlier gates too."""
    aggregated: bool
    """Whether the class token took in the stopped tokens' mean."""
    class_token: Array
    """(C,): as it enters the stage behind the gate."""


@dataclass(frozen=True)
class NaiveRun:
    """One image through one network."""

    gates: list[NaiveGate]
    kept: list[int]
    """Tokens entering each stage, extra tokens included."""
    tokens_per_layer: list[int]
    """Tokens that each layer ran on, extra tokens included."""
    logits: Array
    """(K, h, w) as the decode head gives them."""


def naive_run(
    spec: ModelSpec,
    weights: Weights,
    pixels: Array,
    *,
    thresholds: ArrayLike = 1.0,
    floor: float = 0.0,
    keep: Sequence[Sequence[bool]] | None = None,
) -> NaiveRun:
    """`pixels` (3, H, W) through the network of `spec`.

    `thresholds` broadcasts to (gates, K); `keep` replaces the gates' own decisions: per gate, per position, whether
    the token may go on.
    """
    limits = np.broadcast_to(np.asarray(thresholds, np.float64), (len(spec.gates), spec.classes))
    extra, grid = _embed(spec, weights, pixels)
    running = list(range(spec.patches))
    gates: list[NaiveGate] = []
    tokens_per_layer: list[int] = []
    for layer in range(spec.depth):
        for number, gate in enumerate(spec.gates):
            if gate.layer == layer:
                decision = None if keep is None else keep[number]
                found = _gate(spec, weights, number, extra, grid, running, limits[number], floor, decision)
                extra = [found.class_token, *extra[1:]]
                running = found.running
                gates.append(found)
        sequence = [*extra, *(grid[position] for position in running)]
        tokens_per_layer.append(len(sequence))
        sequence = _block(sequence, weights, f"blocks.{layer}.", heads=spec.heads, eps=spec.norm_eps)
        extra = sequence[: spec.extra_tokens]
        # The full sequence is rebuilt: what ran takes its new value, what stopped keeps the one it stopped with.
        moved = dict(zip(running, sequence[spec.extra_tokens :], strict=True))
        grid = {position: moved.get(position, frozen) for position, frozen in grid.items()}
    if spec.final_norm:
        grid = {position: _norm(token, weights, "norm.", spec.norm_eps) for position, token in grid.items()}
    kept = [spec.tokens, *(spec.extra_tokens + len(gate.running) for gate in gates)]
    return NaiveRun(gates, kept, tokens_per_layer, _decode(spec, weights, grid))


def naive_positions(positions: Array, spec: ModelSpec, size: tuple[int, int]) -> Array:
    """Position embeddings (E + N, C) of `spec` for another input size; only the number of tokens is looked at."""
    rows, columns = spec.grid
    target = (math.ceil(size[0] / spec.patch), math.ceil(size[1] / spec.patch))
    if target[0] * target[1] == rows * columns:
        return positions
    image = positions[spec.extra_tokens :].T.reshape(spec.width, rows, columns)
    resized = resize(image, target, spec.position_mode)
    return np.concatenate([positions[: spec.extra_tokens], resized.reshape(spec.width, -1).T])


def _embed(spec: ModelSpec, weights: Weights, pixels: Array) -> tuple[list[Array], Tokens]:
    """Extra tokens, and patch tokens by position, both with their position embeddings."""
    image = _stem(spec, weights, pad_corner(np.asarray(pixels, np.float64), spec.patch))
    rows, columns = spec.grid
    positions = weights["positions"]
    extra = [weights["extra_tokens"][i] + positions[i] for i in range(spec.extra_tokens)]
    grid: Tokens = {}
    for row in range(rows):
        for column in range(columns):
            place = row * columns + column
            grid[place] = image[:, row, column] + positions[spec.extra_tokens + place]
    return extra, grid


def _stem(spec: ModelSpec, weights: Weights, image: Array) -> Array:
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


def _norm(token: Array, weights: Weights, name: str, eps: float) -> Array:
    return layer_norm(token, weights[name + "weight"], weights[name + "bias"], eps)


def _linear(token: Array, weights: Weights, name: str) -> Array:
    result: Array = weights[name + "weight"] @ token
    return result + weights[name + "bias"] if name + "bias" in weights else result


def _block(sequence: list[Array], weights: Weights, name: str, *, heads: int, eps: float) -> list[Array]:
    """A pre-norm block on a list of vectors."""
    normed = [_norm(token, weights, name + "norm1.", eps) for token in sequence]
    mixed = _attention(normed, weights, name + "attention.", heads=heads)
    sequence = [token + added for token, added in zip(sequence, mixed, strict=True)]
    result = []
    for token in sequence:
        inner = _linear(_norm(token, weights, name + "norm2.", eps), weights, name + "mlp.expand.")
        result.append(token + _linear(gelu(inner), weights, name + "mlp.contract."))
    return result


def _attention(sequence: list[Array], weights: Weights, name: str, *, heads: int) -> list[Array]:
    """Every token asks every token of the sequence, head by head."""
    queries = [_linear(token, weights, name + "query.") for token in sequence]
    keys = [_linear(token, weights, name + "key.") for token in sequence]
    values = [_linear(token, weights, name + "value.") for token in sequence]
    head_width = len(queries[0]) // heads
    result = []
    for query in queries:
        parts = []
        for head in range(heads):
            own = slice(head * head_width, (head + 1) * head_width)
            scores = np.array([float(query[own] @ key[own]) / math.sqrt(head_width) for key in keys])
            shares = softmax(scores)
            parts.append(sum(share * value[own] for share, value in zip(shares, values, strict=True)))
        result.append(_linear(np.concatenate(parts), weights, name + "output."))
    return result


def _gate(
    spec: ModelSpec,
    weights: Weights,
    number: int,
    extra: list[Array],
    grid: Tokens,
    running: list[int],
    limits: Array,
    floor: float,
    decision: Sequence[bool] | None,
) -> NaiveGate:
    """Look at the whole grid, stop the certain (and the hopeless), tell the class token of those that stopped."""
    everywhere = _confidences(spec, weights, f"gates.{number}.head.", spec.gates[number].head, grid)
    still: list[int] = []
    for position in running:
        label, confidence = everywhere[position]
        certain = np.float32(confidence) > np.float32(limits[label])
        stop = bool(certain or np.float32(confidence) < np.float32(floor))
        if decision is not None:
            stop = not decision[position]
        if not stop:
            still.append(position)
    stopped = [position for position in sorted(grid) if position not in still]
    class_token = extra[0]
    aggregated = len(stopped) / (spec.extra_tokens + len(grid)) > spec.aggregate_rate
    if aggregated:
        mean = sum((grid[position] for position in stopped), np.zeros(spec.width)) / len(stopped)
        class_token = 0.5 * (mean + class_token)
    return NaiveGate(
        seen=np.array([*extra, *(grid[position] for position in sorted(grid))]),
        confidence={position: everywhere[position][1] for position in running},
        label={position: everywhere[position][0] for position in running},
        running=still,
        stopped=stopped,
        aggregated=aggregated,
        class_token=class_token,
    )


def _confidences(
    spec: ModelSpec, weights: Weights, name: str, head: GateHead, grid: Tokens
) -> dict[int, tuple[int, float]]:
    """Most likely class and its probability, by position; pooled over its own pixels where the head up-samples."""
    rows, columns = spec.grid
    if not isinstance(head, SetrHead):
        chances = {position: softmax(_per_token(head, weights, name, token)) for position, token in grid.items()}
        return {position: (int(np.argmax(chance)), float(max(chance))) for position, chance in chances.items()}
    logits = _setr(head, weights, name, _image(spec, grid))
    side = logits.shape[1] // rows
    result = {}
    for position in grid:
        top, left = position // columns * side, position % columns * side
        pixels = [softmax(logits[:, top + y, left + x]) for y in range(side) for x in range(side)]
        pooled = sum(pixels, np.zeros(spec.classes)) / len(pixels)
        result[position] = int(np.argmax(pooled)), sum(float(max(pixel)) for pixel in pixels) / len(pixels)
    return result


def _per_token(head: FcnHead | LinearHead, weights: Weights, name: str, token: Array) -> Array:
    """(C,) -> (K,) logits of a head that looks at one token alone; batch norm is in the weights already."""
    if isinstance(head, FcnHead):
        token = np.maximum(_linear(token, weights, name + "hidden."), 0.0)
    return _linear(token, weights, name + "classifier.")


def _image(spec: ModelSpec, grid: Tokens) -> Array:
    """(C, h, w) of the tokens in raster order."""
    columns = spec.grid[1]
    image = np.zeros((len(grid[0]), *spec.grid))
    for position, token in grid.items():
        image[:, position // columns, position % columns] = token
    return image


def _setr(head: SetrHead, weights: Weights, name: str, image: Array) -> Array:
    """LayerNorm at each position, then convolutions that up-sample, then one to the classes."""
    image = image.copy()
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            image[:, row, column] = _norm(image[:, row, column], weights, name + "norm.", head.norm_eps)
    for number in range(head.convs):
        at = f"{name}up.{number}."
        padding = (head.kernel - 1) // 2
        image = convolve(image, weights[at + "weight"], weights[at + "bias"], stride=1, padding=padding)
        image = np.maximum(image, 0.0)
        bigger = (image.shape[1] * head.up_scale, image.shape[2] * head.up_scale)
        image = resize(image, bigger, "bilinear")
    at = name + "classifier."
    return convolve(image, weights[at + "weight"], weights[at + "bias"], stride=1, padding=0)


def _decode(spec: ModelSpec, weights: Weights, grid: Tokens) -> Array:
    """(K, h, w) logits of the decode head."""
    if isinstance(spec.head, SetrHead):
        return _setr(spec.head, weights, "head.", _image(spec, grid))
    if isinstance(spec.head, MaskHead):
        return _image(spec, _masks(spec.head, weights, grid))
    name = "head.head."
    head = spec.head
    return _image(spec, {place: _per_token(head, weights, name, token) for place, token in grid.items()})


def _masks(head: MaskHead, weights: Weights, grid: Tokens) -> Tokens:
    """(K,) per position: patches and class embeddings attend together, then a normalised product."""
    count = len(grid)
    sequence = [_linear(grid[position], weights, "head.embed.") for position in range(count)]
    sequence += list(weights["head.class_tokens"])
    for number in range(head.layers):
        name = f"head.blocks.{number}."
        sequence = _block(sequence, weights, name, heads=head.heads, eps=head.norm_eps)
    sequence = [_norm(token, weights, "head.norm.", head.norm_eps) for token in sequence]
    patches = [unit(_linear(token, weights, "head.patch_projection.")) for token in sequence[:count]]
    classes = [unit(_linear(token, weights, "head.class_projection.")) for token in sequence[count:]]
    result: Tokens = {}
    for position, patch in enumerate(patches):
        products = np.array([float(patch @ cls) for cls in classes])
        # The published heads leave this one norm at PyTorch's own epsilon, whatever the blocks use.
        result[position] = _norm(products, weights, "head.mask_norm.", 1e-5)
    return result
