"""DoViT again, token by token: the reference that the package is held against.

Written from the description of the published systems, in plain Python loops over tokens and dictionaries of
vectors, NumPy float64; nothing is shared with `dovit_deploy.families` but the names of the weights. Segmenter and SETR
are the same without gates. As in the released code the whole grid is rebuilt after every layer, and an auxiliary head
looks at every token, stopped ones too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dovit_deploy.families.parts import FcnHead, GateHead, LightHead, LinearHead, MaskHead, QueryHead, SetrHead
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.naive_parts import (
    Tokens,
    Weights,
    block,
    image_from_tokens,
    lens,
    linear,
    lit,
    masks,
    norm,
    per_token,
    queried,
    stem,
    turning_angles,
    up_sampled,
)
from tests.plain_maths import Array, pad_around, pad_corner, resize, softmax


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
    spec: VisionTransformerSpec,
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
    answers: Tokens = {}
    # By class what each gate's lens makes of the tokens that stopped as it.
    pooled: dict[int, list[Array]] = {}
    at_taps: dict[int, Tokens] = {tap: {} for tap in spec.taps}
    tapped: list[Tokens] = []
    tokens_per_layer: list[int] = []
    joined = spec.head.joined if isinstance(spec.head, QueryHead) else 0
    for layer in range(spec.depth - joined):
        for number, gate in enumerate(spec.gates):
            if gate.layer == layer:
                decision = None if keep is None else keep[number]
                found = _gate(spec, weights, number, extra, grid, running, limits[number], floor, decision)
                # Of those that stop here, of nobody else: later gates do not see them again.
                leaving = [position for position in running if position not in found.running]
                if spec.answer == "gate":
                    head = f"gates.{number}.head."
                    answers |= {at: per_token(spec.gates[number].head, weights, head, grid[at]) for at in leaving}
                if spec.answer == "lens":
                    name = f"lenses.{number}."
                    answers |= {at: lens(grid[at], weights, name, spec.norm_eps) for at in leaving}
                if spec.context == "pooled":
                    for at in leaving:
                        shown = lens(grid[at], weights, f"lenses.{number}.", spec.norm_eps)
                        pooled.setdefault(found.label[at], []).append(shown)
                for tap in (tap for tap in spec.taps if spec.tap_answer == "lens" and tap > layer):
                    name = f"tap_lenses.{number}.{tap}."
                    at_taps[tap] |= {at: lens(grid[at], weights, name, spec.norm_eps) for at in leaving}
                extra = [found.class_token, *extra[1:]]
                running = found.running
                gates.append(found)
        sequence = [*extra, *(grid[position] for position in running)]
        tokens_per_layer.append(len(sequence))
        angles = None
        if spec.rotary:
            angles = [
                *[None] * len(extra),
                *(turning_angles(weights["rotary.periods"], spec.grid, at) for at in running),
            ]
        further = [
            (linear(sum(shown) / len(shown), weights, f"context_maps.{layer}."), float(len(shown)))
            for _, shown in sorted(pooled.items())
        ]
        name = f"blocks.{layer}."
        sequence = block(sequence, weights, name, heads=spec.heads, eps=spec.norm_eps, angles=angles, further=further)
        extra = sequence[: spec.extra_tokens]
        # The full sequence is rebuilt: what ran takes its new value, what stopped keeps the one it stopped with.
        moved = dict(zip(running, sequence[spec.extra_tokens :], strict=True))
        grid = {position: moved.get(position, frozen) for position, frozen in grid.items()}
        if layer + 1 in spec.taps:
            tapped.append({**grid, **at_taps[layer + 1]})
    if spec.answer == "lens":
        grid |= answers
    kept = [spec.tokens, *(spec.extra_tokens + len(gate.running) for gate in gates)]
    if isinstance(spec.head, QueryHead):
        tokens_per_layer += [spec.head.queries + spec.tokens] * joined
        return NaiveRun(gates, kept, tokens_per_layer, queried(spec.head, spec, weights, extra, grid))
    if spec.final_norm:
        grid = _normed(spec, weights, grid)
        tapped = [_normed(spec, weights, tokens) for tokens in tapped] if spec.tap_norm else tapped
    grid = {at: np.concatenate([*(tokens[at] for tokens in tapped), token]) for at, token in grid.items()}
    if spec.answer == "gate":
        assert isinstance(spec.head, LinearHead | FcnHead)
        asked = {at: per_token(spec.head, weights, "head.head.", grid[at]) for at in running}
        return NaiveRun(gates, kept, tokens_per_layer, image_from_tokens(spec, asked | answers))
    return NaiveRun(gates, kept, tokens_per_layer, _decode(spec, weights, grid))


def _normed(spec: VisionTransformerSpec, weights: Weights, grid: Tokens) -> Tokens:
    return {position: norm(token, weights, "norm.", spec.norm_eps) for position, token in grid.items()}


def naive_positions(positions: Array, spec: VisionTransformerSpec, size: tuple[int, int]) -> Array:
    """Position embeddings (E + N, C) of `spec` for another input size.

    The older modes look at the number of tokens alone.
    """
    rows, columns = spec.grid
    target = (math.ceil(size[0] / spec.patch), math.ceil(size[1] / spec.patch))
    same_number = target[0] * target[1] == rows * columns
    if target == (rows, columns) or (same_number and spec.position_mode in ("bicubic", "bilinear")):
        return positions
    image = positions[spec.extra_tokens :].T.reshape(spec.width, rows, columns)
    resized = resize(image, target, spec.position_mode)
    return np.concatenate([positions[: spec.extra_tokens], resized.reshape(spec.width, -1).T])


def _embed(spec: VisionTransformerSpec, weights: Weights, pixels: Array) -> tuple[list[Array], Tokens]:
    """Extra tokens, and patch tokens by position, both with their position embeddings where there are any."""
    around = pad_around if spec.padding == "centre" else pad_corner
    image = stem(spec, weights, around(np.asarray(pixels, np.float64), spec.patch))
    rows, columns = spec.grid
    positions = weights.get("positions", np.zeros((spec.tokens, spec.width)))
    extra = [weights["extra_tokens"][i] + positions[i] for i in range(spec.extra_tokens)]
    grid: Tokens = {}
    for row in range(rows):
        for column in range(columns):
            position = row * columns + column
            grid[position] = image[:, row, column] + positions[spec.extra_tokens + position]
    return extra, grid


def _gate(
    spec: VisionTransformerSpec,
    weights: Weights,
    number: int,
    extra: list[Array],
    grid: Tokens,
    running: list[int],
    limits: Array,
    floor: float,
    decision: Sequence[bool] | None,
) -> NaiveGate:
    """Look at the whole grid, stop the certain (and the hopeless), give the class token the mean of what stopped."""
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
    spec: VisionTransformerSpec, weights: Weights, name: str, head: GateHead, grid: Tokens
) -> dict[int, tuple[int, float]]:
    """Most likely class and its probability, by position; pooled over its own pixels where the head up-samples."""
    rows, columns = spec.grid
    if not isinstance(head, SetrHead):
        chances = {position: softmax(per_token(head, weights, name, token)) for position, token in grid.items()}
        return {position: (int(np.argmax(chance)), float(max(chance))) for position, chance in chances.items()}
    logits = up_sampled(head, weights, name, image_from_tokens(spec, grid))
    side = logits.shape[1] // rows
    result = {}
    for position in grid:
        top, left = position // columns * side, position % columns * side
        pixels = [softmax(logits[:, top + y, left + x]) for y in range(side) for x in range(side)]
        pooled = sum(pixels, np.zeros(spec.classes)) / len(pixels)
        result[position] = int(np.argmax(pooled)), sum(float(max(pixel)) for pixel in pixels) / len(pixels)
    return result


def _decode(spec: VisionTransformerSpec, weights: Weights, grid: Tokens) -> Array:
    """(K, h, w) logits of the decode head."""
    if isinstance(spec.head, SetrHead):
        return up_sampled(spec.head, weights, "head.", image_from_tokens(spec, grid))
    if isinstance(spec.head, LightHead):
        return lit(spec.head, spec, weights, grid)
    if isinstance(spec.head, MaskHead):
        return image_from_tokens(spec, masks(spec.head, weights, grid))
    name = "head.head."
    head = spec.head
    return image_from_tokens(
        spec, {position: per_token(head, weights, name, token) for position, token in grid.items()}
    )
