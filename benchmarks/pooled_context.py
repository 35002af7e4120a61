"""Do pooled keys and values of stopped tokens pay? A frozen network whose later layers also attend to them.

    python benchmarks/pooled_context.py CHECKPOINT IMAGES --size 294x392 -o benchmarks/results/pooled_context.json

Gates and lenses are fitted to half of the images by what `dovit adapt` fits with; the other half is run at several
thresholds. Compared is how much of the logits' grid has the dense network's class, at equal MACs of each image:

    none         layers behind a gate see what runs, as `dovit adapt` makes it
    6x8          they also see two keys for each cell of a 6x8 grid: the mean of the most frequent class of what
                 has stopped, and that of the rest. What lenses make of the tokens is averaged, and goes through one
                 ridge map a layer to the layer's input, then through the layer's own key and value; the logarithm of
                 how many tokens it stands for is added to its scores
    3x4          the same with cells twice as wide and high
    classes      one key for each class, of what has stopped in the whole image
    6x8 classes  one key for each class of each cell; only keys that stand for something are counted, which no graph of
                 static shapes could do
    true         every stopped token is a key as the dense network has it there, at no cost: no map can do better
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from report import output_file
from torch import Tensor

from dovit_deploy.adapt.features import patch_answers
from dovit_deploy.adapt.fitting import fitted_gate
from dovit_deploy.adapt.network import empty_parts, gated
from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.layers import Block
from dovit_deploy.families.registry import model_from_spec, spec_at_size, state_at_size
from dovit_deploy.families.vit.network import Lens, TokenGate, VisionTransformer
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.measure.intervals import Blocks, mean_interval
from dovit_deploy.sources.images import read_image
from dovit_deploy.train.fitted import fit_lens


@dataclass(frozen=True)
class Pooling:
    """How stopped tokens become keys."""

    cells: tuple[int, int]
    """Rows and columns of cells."""
    by_class: bool
    """A key for each class of a cell, instead of one for the most frequent and one for the rest."""

    def groups(self, classes: int) -> int:
        """How many keys there are, empty ones too."""
        return self.cells[0] * self.cells[1] * (classes if self.by_class else 2)


POOLINGS = {
    "6x8": Pooling((6, 8), by_class=False),
    "3x4": Pooling((3, 4), by_class=False),
    "classes": Pooling((1, 1), by_class=True),
    "6x8 classes": Pooling((6, 8), by_class=True),
}
FORMS = ("none", *POOLINGS, "true")
FloatArray = NDArray[np.float64]
EMPTY = -1e4
"""Score of a group that nothing is in."""


@dataclass(frozen=True)
class Keys:
    """What a layer sees beside what runs: (P, C) before its first norm, and what is added to their scores (P,)."""

    tokens: Tensor
    bias: Tensor


@dataclass
class StoppedPatches:
    """The tokens of one image that have stopped, by patch; -1 in `gate`: it runs."""

    gate: Tensor
    """(N,) int64."""
    label: Tensor
    """(N,) int64, what its gate took it for."""


def groups_of(pooling: Pooling, label: Tensor, stopped: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """(P, N) of 0 and 1: the patches of each group. Group 2c is the most frequent class among those of cell c that are
    `stopped` (N,), group 2c + 1 what else has stopped there; or there is one for each class."""
    rows, columns = (torch.arange(side) * cells // side for side, cells in zip(grid, pooling.cells, strict=True))
    total = pooling.cells[0] * pooling.cells[1]
    cell = functional.one_hot((rows[:, None] * pooling.cells[1] + columns[None]).flatten(), total).float()
    each = functional.one_hot(label, classes).float() * stopped[:, None]
    if pooling.by_class:
        return (cell[:, :, None] * each[:, None]).flatten(1).T
    counts = cell.T @ each
    frequent = counts.argmax(1)
    same = (cell @ frequent.float()[:, None])[:, 0] == label
    first, rest = (cell * (stopped & one)[:, None] for one in (same, ~same))
    return torch.stack([first, rest], 2).flatten(1).T


def blocked(block: Block, x: Tensor, keys: Keys | None) -> Tensor:
    """`x` (n, C) after `block`, whose queries also see `keys`."""
    if keys is None:
        return block(x)  # type: ignore[no-any-return]
    seen = block.norm1(torch.cat([x, keys.tokens]))
    layer = block.attention

    def split(tokens: Tensor) -> Tensor:
        return tokens.reshape(len(tokens), layer.heads, -1).transpose(0, 1)

    query, key, value = layer.query(seen[: len(x)]), layer.key(seen), layer.value(seen)
    bias = torch.cat([torch.zeros(len(x)), keys.bias])[None, None]
    mixed = functional.scaled_dot_product_attention(split(query)[None], split(key)[None], split(value)[None], bias)
    x = x + layer.output(mixed[0].transpose(0, 1).flatten(1))
    return x + block.mlp(block.norm2(x))  # type: ignore[no-any-return]


def layer_inputs(model: VisionTransformer, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
    """(E + N, C) as it enters each layer and leaves the last, and the logits; nothing stops."""
    tokens = [model.embed(pixels)]
    for block in model.blocks:
        tokens.append(block(tokens[-1]))
    return tokens, model.decode(tokens[-1])


class PooledRun:
    """One image through the network, in one form."""

    def __init__(self, model: VisionTransformer, maps: Mapping[int, Lens], dense: list[Tensor], form: str) -> None:
        self.model, self.maps, self.dense, self.form, self.spec = model, maps, dense, form, model.spec
        self.macs = 0
        """Of all that pooled keys cost, so far."""

    def logits(self, threshold: float) -> tuple[Tensor, tuple[int, ...]]:
        """(1, K, h, w), and how many tokens entered each stage."""
        spec, extra = self.spec, self.spec.extra_tokens
        # Before the first gate nothing has stopped.
        self.macs = 0
        tokens = self.dense[spec.gates[0].layer].clone()
        state = StoppedPatches(torch.full((spec.patches,), -1), torch.zeros(spec.patches, dtype=torch.int64))
        answers, kept = tokens.clone(), [spec.tokens]
        for number, (first, last) in enumerate(spec.stage_layers[1:]):
            running = (state.gate < 0).nonzero()[:, 0]
            confidence, label = (
                cast("TokenGate", self.model.gates[number]).head(tokens[extra + running]).softmax(1).max(1)
            )
            leaving = running[confidence > threshold]
            state.gate[leaving], state.label[leaving] = number, label[confidence > threshold]
            answers[extra + leaving] = self.model.lenses[number](tokens[extra + leaving])
            index = torch.cat([torch.arange(extra), extra + (state.gate < 0).nonzero()[:, 0]])
            kept.append(len(index))
            x = tokens[index]
            for layer in range(first, last):
                x = blocked(cast("Block", self.model.blocks[layer]), x, self._keys(layer, answers, state))
            tokens = tokens.index_copy(0, index, x)
        return self.model.decode(answers.index_copy(0, index, x)), tuple(kept)

    def _keys(self, layer: int, answers: Tensor, state: StoppedPatches) -> Keys | None:
        spec, stopped = self.spec, state.gate >= 0
        if self.form == "none" or not stopped.any():
            return None
        if self.form == "true":
            return Keys(self.dense[layer][spec.extra_tokens :][stopped], torch.zeros(int(stopped.sum())))
        pooling = POOLINGS[self.form]
        groups = groups_of(pooling, state.label, stopped, spec.grid, spec.classes)
        count = groups.sum(1)
        means = groups @ self.maps[layer].norm(answers[spec.extra_tokens :]) / count.clamp(min=1)[:, None]
        self._count(pooling, layer, int((count > 0).sum()), spec.tokens - int(stopped.sum()))
        bias = torch.where(count > 0, count.clamp(min=1).log(), EMPTY)
        return Keys(self.maps[layer].linear(means), bias)

    def _count(self, pooling: Pooling, layer: int, filled: int, running: int) -> None:
        """MACs of the keys in one layer: map, key, value, and attention to them; behind a gate the sums, too."""
        spec = self.spec
        keys = filled if pooling.by_class and pooling.cells != (1, 1) else pooling.groups(spec.classes)
        self.macs += keys * (3 * spec.width**2 + 2 * running * spec.width)
        if any(gate.layer == layer for gate in spec.gates):
            cells = pooling.cells[0] * pooling.cells[1]
            self.macs += spec.patches * (keys * spec.width + cells * spec.classes)


def pixels_of(path: Path, size: tuple[int, int], mean: Tensor, std: Tensor) -> Tensor:
    """(1, 3, H, W), normalised."""
    rgb = torch.from_numpy(np.ascontiguousarray(read_image(path))).permute(2, 0, 1)[None].float()
    resized = functional.interpolate(rgb, size=size, mode="bilinear", align_corners=False, antialias=True)
    return (resized - mean[:, None, None]) / std[:, None, None]


def fit(model: VisionTransformer, images: Iterator[Tensor]) -> dict[int, Lens]:
    """Fit the gates and lenses of `model` to `images`, and a map to the input of each layer behind a gate."""
    spec, first = model.spec, model.spec.gates[0].layer
    columns: list[list[Tensor]] = [[] for _ in range(first, spec.depth + 1)]
    shares: list[Tensor] = []
    for pixels in images:
        tokens, logits = layer_inputs(model, pixels)
        for column, one in zip(columns, tokens[first:], strict=True):
            column.append(one[spec.extra_tokens :])
        shares.append(patch_answers(logits, spec))
    layers = {first + number: torch.cat(column) for number, column in enumerate(columns)}
    answers, draw = torch.cat(shares), np.random.default_rng(0)
    for number, gate in enumerate(spec.gates):
        cast("TokenGate", model.gates[number]).head.classifier = fitted_gate(layers[gate.layer], answers, draw)
        fit_lens(cast("Lens", model.lenses[number]), layers[gate.layer], layers[spec.depth])
    maps = {}
    for layer in range(first, spec.depth):
        reached = [number for number, gate in enumerate(spec.gates) if gate.layer <= layer]
        seen = torch.cat([model.lenses[number](layers[spec.gates[number].layer]) for number in reached])
        maps[layer] = Lens(spec)
        fit_lens(maps[layer], seen, layers[layer].repeat(len(reached), 1))
    return maps


def network(path: Path, size: tuple[int, int]) -> tuple[VisionTransformer, Tensor, Tensor]:
    """The dense network of a checkpoint with empty gates and lenses, and its mean and standard deviation."""
    checkpoint = checkpoint_from_path(path)
    assert isinstance(checkpoint.spec, VisionTransformerSpec)
    plain = VisionTransformerSpec.model_validate({**checkpoint.spec.model_dump(), "gates": []})
    spec = gated(plain, None, answer="lens")
    state = {name: one for name, one in checkpoint.state.items() if name.partition(".")[0] != "gates"}
    state = state_at_size({**state, **empty_parts(spec)}, spec, size)
    model = model_from_spec(spec_at_size(spec, size), state).requires_grad_(False)
    given = checkpoint.preprocessing
    return model, torch.tensor(given.mean), torch.tensor(given.std)


def curve(
    model: VisionTransformer,
    maps: Mapping[int, Lens],
    images: Sequence[Tensor],
    thresholds: Sequence[float],
    forms: Sequence[str],
) -> FloatArray:
    """(images, forms, thresholds, 2): share of the MACs saved, and of the positions with the dense class."""
    cost, found = cost_model(model.spec), np.zeros((len(images), len(forms), len(thresholds), 2))
    dense_macs = cost.dense().total
    for number, pixels in enumerate(images):
        dense, wanted = layer_inputs(model, pixels)
        for row, form in enumerate(forms):
            run = PooledRun(model, maps, dense, form)
            for column, threshold in enumerate(thresholds):
                logits, kept = run.logits(threshold)
                same = (logits.argmax(1) == wanted.argmax(1)).double().mean().item()
                found[number, row, column] = 1 - (cost.actual(kept).total + run.macs) / dense_macs, same
        print(f"{number + 1} of {len(images)} images", file=sys.stderr, flush=True)
    return found


def table(
    found: FloatArray, thresholds: Sequence[float], forms: Sequence[str], nothing: float
) -> list[dict[str, object]]:
    """Each form at each threshold, beside the first, `none`, at as many MACs.

    `nothing`: what is saved when nothing stops.
    """
    rows: list[dict[str, object]] = []
    for form, by_form in zip(forms, found.swapaxes(0, 1), strict=True):
        for column, threshold in enumerate(thresholds):
            saved, same = by_form[:, column].T
            plain = [
                np.interp(at, [nothing, *none[:, 0]], [1.0, *none[:, 1]])
                for at, none in zip(saved, found[:, 0], strict=True)
            ]
            gain = same - np.array(plain)
            interval = mean_interval(gain.tolist(), Blocks(np.arange(len(gain))))
            rows.append(
                {
                    "form": form,
                    "threshold": threshold,
                    "saved": float(saved.mean()),
                    "agreement": float(same.mean()),
                    "none_there": float(np.mean(plain)),
                    "gain": float(gain.mean()),
                    "gain_interval": interval,
                }
            )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="pooled_context.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path, help="a folder")
    parser.add_argument("--size", default="294x392", help="HxW (default 294x392)")
    parser.add_argument("--count", type=int, default=32, help="images, half of them fitted to (default 32)")
    parser.add_argument("--forms", default=",".join(FORMS[1:]), help="beside `none`, comma-separated (default all)")
    parser.add_argument("--thresholds", default="0.96,0.91,0.83", help="comma-separated")
    parser.add_argument("-o", "--output", type=output_file, required=True)
    given = parser.parse_args()
    forms = ["none", *given.forms.split(",")]
    if not set(forms) <= set(FORMS):
        parser.error(f"--forms {given.forms}: there are {', '.join(FORMS[1:])}")
    torch.set_num_threads(1)
    rows, columns = map(int, given.size.split("x"))
    model, mean, std = network(given.checkpoint, (rows, columns))
    paths = sorted(given.images.iterdir())
    # Two halves of the sequence, so that a held-out image has no neighbour among those fitted to.
    chosen = [paths[number] for number in np.linspace(0, len(paths) - 1, given.count).round().astype(int)]
    half = given.count // 2
    thresholds = sorted((float(one) for one in given.thresholds.split(",")), reverse=True)
    with torch.no_grad():
        maps = fit(model, (pixels_of(path, (rows, columns), mean, std) for path in chosen[half:]))
        images = [pixels_of(path, (rows, columns), mean, std) for path in chosen[:half]]
        found = curve(model, maps, images, thresholds, forms)
    cost = cost_model(model.spec)
    nothing = 1 - cost.actual(model.spec.counts).total / cost.dense().total
    figures = {"size": given.size, "fitted": given.count - half, "held_out": half}
    measured = table(found, thresholds, forms, nothing)
    for row in measured:
        print(row)
    given.output.write_text(json.dumps({**figures, "rows": measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
