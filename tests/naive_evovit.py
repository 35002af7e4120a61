"""Evo-ViT again, token by token: the reference that both of its networks are held against.

Written from the description of the published code, in plain loops over dictionaries of vectors by raster position,
NumPy float64; nothing is shared with `dovit_deploy.families` but the names of the weights. Nothing is sorted in place
and nothing is permuted: a token is its position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from dovit_deploy.families.evovit.spec import EvoDeitSpec, EvoLevitSpec, LevitStage, LevitSubsample, PooledHead
from dovit_deploy.families.parts import MaskHead, SetrHead
from tests.naive_parts import Tokens, Weights, linear, masks, norm, per_token, stem, up_sampled
from tests.plain_maths import Array, convolve, gelu, pad_corner, softmax

Scores = dict[int, float]


@dataclass
class NaiveEvoRun:
    """One image through one network."""

    kept: list[int]
    """All tokens, then those that run under each selection: extra tokens, chosen patches, a representative."""
    chosen: list[list[int]] = field(default_factory=list)
    """Per selection, the positions that run, rising, on the grid of that stage."""
    margins: list[float] = field(default_factory=list)
    """Per selection, what the last score chosen is above the first one not chosen."""
    tokens_per_layer: list[int] = field(default_factory=list)
    logits: Array = field(default_factory=lambda: np.empty(0))


def choose(scores: Scores, ratio: float, run: NaiveEvoRun) -> list[int]:
    """The positions of the int(N * ratio) highest scores."""
    count = int(len(scores) * ratio)
    best = sorted(scores, key=lambda position: -scores[position])
    run.chosen.append(sorted(best[:count]))
    if 0 < count < len(best):
        run.margins.append((scores[best[count - 1]] - scores[best[count]]) / scores[best[0]])
    return run.chosen[-1]


def updated(before: float | None, now: float, tradeoff: float) -> float:
    return now if before is None else (1 - tradeoff) * before + tradeoff * now


def mixed_values(query: Array, keys: list[Array], values: list[Array], heads: int) -> tuple[Array, Array]:
    """What one query takes from all values, and per key how much of it, summed over heads."""
    key_width, value_width = len(query) // heads, len(values[0]) // heads
    parts, seen = [], np.zeros(len(keys))
    for head in range(heads):
        own = slice(head * key_width, (head + 1) * key_width)
        shares = softmax(np.array([float(query[own] @ key[own]) / math.sqrt(key_width) for key in keys]))
        seen += shares
        part = slice(head * value_width, (head + 1) * value_width)
        parts.append(sum((share * value[part] for share, value in zip(shares, values, strict=True)), np.zeros(1)))
    return np.concatenate(parts), seen


# DeiT ---------------------------------------------------------------------------------------------------------------


def naive_deit(spec: EvoDeitSpec, weights: Weights, pixels: Array, *, dense: bool = False) -> NaiveEvoRun:
    """`pixels` (3, H, W) through Evo-ViT on DeiT, or with `dense` through the same with nothing selected."""
    image = stem(spec, weights, pad_corner(np.asarray(pixels, np.float64), spec.patch))
    positions = weights["positions"]
    cls = weights["extra_tokens"][0] + positions[0]
    columns = spec.grid[1]
    grid: Tokens = {
        position: image[:, position // columns, position % columns] + positions[1 + position]
        for position in range(spec.patches)
    }
    run = NaiveEvoRun(kept=[spec.tokens])
    scores: dict[int, float | None] = dict.fromkeys(grid)
    running = list(grid)
    for layer in range(spec.depth):
        for selection in () if dense else spec.selections:
            if selection.first == layer:
                running = choose({position: float(scores[position] or 0) for position in grid}, selection.ratio, run)
                run.kept.append(1 + len(running))
        run.tokens_per_layer.append(1 + len(running))
        sequence, seen = deit_block([cls, *(grid[position] for position in running)], weights, f"blocks.{layer}.", spec)
        cls = sequence[0]
        for position, token, now in zip(running, sequence[1:], seen[1:], strict=True):
            grid[position] = token
            scores[position] = updated(scores[position], now, spec.tradeoffs[layer]) if spec.selections else None
        ends = any(selection.last == layer + 1 for selection in spec.selections)
        if ends and (layer + 1 < spec.depth or spec.rejoin_last):
            running = list(grid)
    run.logits = deit_head(spec, weights, grid, running)
    return run


def deit_block(sequence: list[Array], weights: Weights, name: str, spec: EvoDeitSpec) -> tuple[list[Array], Array]:
    """The sequence after one layer, and the class token's attention to each of it, summed over heads."""
    normed = [norm(token, weights, name + "norm1.", spec.norm_eps) for token in sequence]
    queries, keys, values = (
        [linear(token, weights, f"{name}attention.{part}.") for token in normed] for part in ("query", "key", "value")
    )
    result, rows = [], []
    for token, query in zip(sequence, queries, strict=True):
        taken, seen = mixed_values(query, keys, values, spec.heads)
        rows.append(seen)
        token = token + linear(taken, weights, name + "attention.output.")
        inner = gelu(linear(norm(token, weights, name + "norm2.", spec.norm_eps), weights, name + "mlp.expand."))
        result.append(token + linear(inner, weights, name + "mlp.contract."))
    return result, rows[0]


def deit_head(spec: EvoDeitSpec, weights: Weights, grid: Tokens, running: list[int]) -> Array:
    if isinstance(spec.head, PooledHead):
        mean = sum((grid[position] for position in running), np.zeros(spec.width)) / len(running)
        return linear(norm(mean, weights, "norm.", spec.norm_eps), weights, "head.classifier.")
    normed = {position: norm(token, weights, "norm.", spec.norm_eps) for position, token in grid.items()}
    if isinstance(spec.head, SetrHead):
        return up_sampled(spec.head, weights, "head.", as_image(normed, spec.grid))
    if isinstance(spec.head, MaskHead):
        return as_image(masks(spec.head, weights, normed), spec.grid)
    head = spec.head
    return as_image(
        {position: per_token(head, weights, "head.head.", token) for position, token in normed.items()}, spec.grid
    )


def as_image(grid: Tokens, shape: tuple[int, int]) -> Array:
    """(C, h, w) of tokens by position."""
    image = np.zeros((len(grid[0]), *shape))
    for position, token in grid.items():
        image[:, position // shape[1], position % shape[1]] = token
    return image


# LeViT --------------------------------------------------------------------------------------------------------------


def hardswish(vector: Array) -> Array:
    return np.array([value * min(max(value + 3.0, 0.0), 6.0) / 6.0 for value in np.ravel(vector)]).reshape(vector.shape)


def naive_levit(spec: EvoLevitSpec, weights: Weights, pixels: Array, *, dense: bool = False) -> NaiveEvoRun:
    """`pixels` (3, H, W) through Evo-ViT on LeViT; batch norms are in the weights already."""
    image = np.asarray(pixels, np.float64)
    for number in range(4):
        image = convolve(
            hardswish(image) if number else image,
            weights[f"stem.down.{number}.weight"],
            weights[f"stem.down.{number}.bias"],
            stride=2,
            padding=1,
        )
    columns = spec.grid[1]
    cls = weights["class_token"][0] + weights["positions"][0]
    grid: Tokens = {
        position: image[:, position // columns, position % columns] + weights["positions"][1 + position]
        for position in range(spec.patches)
    }
    run = NaiveEvoRun(kept=[spec.tokens])
    scores: dict[int, float | None] = dict.fromkeys(grid)
    for number, (first, last) in enumerate(spec.stage_layers):
        if number:
            cls, grid, scores = subsampled(spec, weights, number - 1, cls, grid, scores)
        selections = [] if dense else [one for one in spec.selections if first <= one.first < last]
        layer = first
        for selection in selections:
            for whole in range(layer, selection.first):
                cls, grid, scores, _ = levit_layer(spec, weights, whole, number, cls, grid, scores, None, run)
            cls, grid, scores = represented(spec, weights, number, selection, cls, grid, scores, run)
            layer = selection.last
        for whole in range(layer, last):
            cls, grid, scores, _ = levit_layer(spec, weights, whole, number, cls, grid, scores, None, run)
    mean = sum(grid.values(), np.zeros(spec.stages[-1].width)) / len(grid)
    run.logits = linear(mean, weights, "head.classifier.")
    if spec.distilled:
        run.logits = (run.logits + linear(mean, weights, "head.distilled.")) / 2
    return run


def represented(spec, weights, number, selection, cls, grid, scores, run):
    """A selection's layers: the scored mean of those left out runs along as one token and hands them its changes."""
    running = choose(scores, selection.ratio, run)
    out = [position for position in grid if position not in running]
    run.kept.append(1 + len(running) + bool(out))
    total = sum(scores[position] for position in out)
    width = spec.stages[number].width
    merged = None
    if out:
        merged = sum((scores[position] / total * grid[position] for position in out), np.zeros(width))
    inner = {position: grid[position] for position in running}
    inner_scores = {position: scores[position] for position in running}
    # As the source has it: a single token left out is scored by what its representative gets.
    lonely = out[0] if len(out) == 1 else None
    if lonely is not None:
        inner_scores[lonely] = scores[lonely]
    change = np.zeros(width)
    for layer in range(selection.first, selection.last):
        cls, inner, inner_scores, (merged, added) = levit_layer(
            spec, weights, layer, number, cls, inner, inner_scores, merged, run, lonely=lonely
        )
        change = change + added
    waiting = {position: grid[position] + change for position in out}
    waiting_scores = {position: scores[position] for position in out}
    return cls, {**waiting, **inner}, {**waiting_scores, **inner_scores}


def levit_layer(spec, weights, layer, number, cls, grid, scores, merged, run, lonely=None):
    """Attention and MLP on class token, patches and, if there is one, the representative at the end."""
    stage: LevitStage = spec.stages[number]
    name = f"layers.{layer}."
    order = sorted(grid)
    sequence = [cls, *(grid[position] for position in order), *([] if merged is None else [merged])]
    run.tokens_per_layer.append(len(sequence))
    raws, seen = levit_attention(stage, weights, name + "attention.", sequence, sequence)
    tradeoff = tradeoff_of(spec, weights, name)
    scored = list(order) if lonely is None else [*order, lonely]
    scores = {
        position: updated(scores[position], now, tradeoff)
        for position, now in zip(scored, seen[1 : 1 + len(scored)], strict=True)
    }
    added = raws[-1]
    sequence = [token + raw for token, raw in zip(sequence, raws, strict=True)]
    raws = [levit_mlp(weights, name + "mlp.", token) for token in sequence]
    added = added + raws[-1]
    sequence = [token + raw for token, raw in zip(sequence, raws, strict=True)]
    grid = dict(zip(order, sequence[1:], strict=False))
    return sequence[0], grid, scores, (sequence[-1] if merged is not None else None, added)


def levit_attention(
    part: LevitStage | LevitSubsample, weights: Weights, name: str, asking: list[Array], tokens: list[Array]
) -> tuple[list[Array], Array]:
    """What attention adds to each of `asking`, and the first one's attention to `tokens`, the mean over heads."""
    keys = [linear(token, weights, name + "key.") for token in tokens]
    values = [linear(token, weights, name + "value.") for token in tokens]
    raws, rows = [], []
    for token in asking:
        taken, seen = mixed_values(linear(token, weights, name + "query."), keys, values, part.heads)
        rows.append(seen / part.heads)
        raws.append(linear(hardswish(taken), weights, name + "output."))
    return raws, rows[0]


def levit_mlp(weights: Weights, name: str, token: Array) -> Array:
    return linear(hardswish(linear(token, weights, name + "expand.")), weights, name + "contract.")


def tradeoff_of(spec: EvoLevitSpec, weights: Weights, name: str) -> float:
    if spec.tradeoff is not None:
        return spec.tradeoff
    return float(1 / (1 + np.exp(-weights[name + "attention.tradeoff"][0])))


def subsampled(spec, weights, number, cls, grid, scores):
    """Every second row and column asks the whole grid; scores keep their sum."""
    part: LevitSubsample = spec.subsamples[number]
    name = f"downs.{number}."
    rows, columns = spec.stage_grids[number]
    fewer_columns = spec.stage_grids[number + 1][1]
    embeddings = weights[name + "positions"]
    tokens = [cls + embeddings[0], *(grid[position] + embeddings[1 + position] for position in sorted(grid))]
    stays = [row * columns + column for row in range(0, rows, part.stride) for column in range(0, columns, part.stride)]
    raws, seen = levit_attention(
        part, weights, name + "attention.", [tokens[0], *(tokens[1 + p] for p in stays)], tokens
    )
    tradeoff = tradeoff_of(spec, weights, name)
    total = sum(scores.values())
    mixed = {position: updated(scores[position], seen[1 + position], tradeoff) for position in stays}
    scale = total / sum(mixed.values())
    raws = [token + levit_mlp(weights, name + "mlp.", token) for token in raws]
    fewer, fewer_scores = {}, {}
    for position, token in zip(stays, raws[1:], strict=True):
        at = position // columns // part.stride * fewer_columns + position % columns // part.stride
        fewer[at], fewer_scores[at] = token, mixed[position] * scale
    return raws[0], fewer, fewer_scores
