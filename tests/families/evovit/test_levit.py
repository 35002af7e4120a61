"""LeViT as the dense baseline: against loops over tokens from its official keys, and what its files must say."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dovit_deploy.checkpoints.checkpoint import Checkpoint, checkpoint_from_path
from dovit_deploy.errors import CheckpointMismatch, ConfigError, UsageError
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.evovit.levit_reader import levit_key_map
from dovit_deploy.families.evovit.spec import LevitSpec
from dovit_deploy.families.registry import family_of, model_from_spec, state_at_size
from dovit_deploy.runtime.session import Session
from tests.bundles import export
from tests.families.official_state import random_state
from tests.families.vit.test_cost import counted
from tests.naive_evovit import hardswish
from tests.plain_maths import Array, convolve, softmax
from tests.tiny import tiny_pixels
from tests.tiny_evovit import tiny_levit_spec

SETTINGS: dict[str, Any] = {"C": "8_12_16", "D": 4, "X": "2_2_1", "N": "1_2_3", "num_classes": 5}


def spec() -> LevitSpec:
    """What SETTINGS describes, at 80 pixels: grids of 5, 3 and 2."""
    fields = tiny_levit_spec(size=80).model_dump(include={"size", "stages", "subsamples", "classes", "distilled"})
    return LevitSpec.model_validate(fields)


def official_state() -> dict[str, Tensor]:
    """Random weights under official names, with the source's buffers, made as its constructor makes them."""
    state = random_state(levit_key_map(spec()), spec(), seed=2)
    for name in list(state):
        if name.endswith("c.weight"):
            state[name] *= 4
        if name.endswith("attention_biases"):
            state[name] *= 10
            stride = 1 if ".m." in name else 2
            side = round(state[name].shape[1] ** 0.5)
            state[name.replace("biases", "bias_idxs")] = offsets(side, stride)
    return state


def offsets(side: int, stride: int) -> Tensor:
    """The source numbers distances in the order in which it meets them."""
    seen: dict[tuple[int, int], int] = {}
    rows = []
    for one in itertools.product(range((side - 1) // stride + 1), repeat=2):
        row = []
        for other in itertools.product(range(side), repeat=2):
            apart = abs(one[0] * stride - other[0]), abs(one[1] * stride - other[1])
            row.append(seen.setdefault(apart, len(seen)))
        rows.append(row)
    return torch.tensor(rows)


def read(tmp_path: Path, state: dict[str, Tensor], settings: dict[str, Any] | None = None) -> Checkpoint:
    torch.save({"model": state}, tmp_path / "levit.pth")
    (tmp_path / "settings.json").write_text(json.dumps({"model_kwargs": SETTINGS if settings is None else settings}))
    return checkpoint_from_path(tmp_path / "levit.pth", config=tmp_path / "settings.json")


class Naive:
    """The network by its official entries, float64, a token at a time."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name: tensor.double().numpy() for name, tensor in state.items()}

    def normed(self, name: str, vector: Array) -> Array:
        """BN1d(Linear)."""
        scale = self.state[f"{name}.bn.weight"] / np.sqrt(self.state[f"{name}.bn.running_var"] + 1e-5)
        raw = self.state[f"{name}.c.weight"] @ vector
        return (raw - self.state[f"{name}.bn.running_mean"]) * scale + self.state[f"{name}.bn.bias"]

    def stem(self, image: Array) -> Array:
        for number in range(4):
            name = f"patch_embed.{2 * number}"
            weight = self.state[f"{name}.c.weight"]
            raw = convolve(hardswish(image) if number else image, weight, np.zeros(len(weight)), stride=2, padding=1)
            scale = self.state[f"{name}.bn.weight"] / np.sqrt(self.state[f"{name}.bn.running_var"] + 1e-5)
            shift = self.state[f"{name}.bn.bias"] - self.state[f"{name}.bn.running_mean"] * scale
            image = raw * scale[:, None, None] + shift[:, None, None]
        return image

    def attention(
        self, name: str, queries: list[Array], keys: list[Array], values: list[Array], heads: int
    ) -> list[Array]:
        biases, index = self.state[f"{name}.attention_biases"], self.state[f"{name}.attention_bias_idxs"].astype(int)
        result = []
        for position, query in enumerate(queries):
            parts = []
            for head in range(heads):
                scores = [float(query[head] @ key[head]) / 2.0 for key in keys]
                shares = softmax(np.array(scores) + biases[head][index[position]])
                parts.append(sum(share * value[head] for share, value in zip(shares, values, strict=True)))
            result.append(self.normed(f"{name}.proj.1", hardswish(np.concatenate(parts))))
        return result

    def mlp(self, number: int, tokens: list[Array]) -> list[Array]:
        name = f"blocks.{number}.m"
        return [token + self.normed(f"{name}.2", hardswish(self.normed(f"{name}.0", token))) for token in tokens]

    def run(self, pixels: Array) -> Array:
        image = self.stem(pixels)
        side, number = image.shape[1], 0
        tokens = [image[:, position // side, position % side] for position in range(side * side)]
        for stage, (depth, heads) in enumerate([(2, 1), (2, 2), (1, 3)]):
            if stage:
                packed = [self.normed(f"blocks.{number}.kv", t).reshape(-1, 20) for t in tokens]
                stays = [p for p in range(side * side) if p // side % 2 == 0 and p % side % 2 == 0]
                asked = [self.normed(f"blocks.{number}.q.1", tokens[p]).reshape(-1, 4) for p in stays]
                keys, values = [p[:, :4] for p in packed], [p[:, 4:] for p in packed]
                tokens = self.attention(f"blocks.{number}", asked, keys, values, len(asked[0]))
                tokens = self.mlp(number + 1, tokens)
                side, number = (side + 1) // 2, number + 2
            for _ in range(depth):
                packed = [self.normed(f"blocks.{number}.m.qkv", t).reshape(heads, 16) for t in tokens]
                query, key, value = ([p[:, part] for p in packed] for part in (slice(4), slice(4, 8), slice(8, 16)))
                raws = self.attention(f"blocks.{number}.m", query, key, value, heads)
                tokens = self.mlp(number + 1, [t + raw for t, raw in zip(tokens, raws, strict=True)])
                number += 2
        mean = sum(tokens) / len(tokens)
        return (self.head("head", mean) + self.head("head_dist", mean)) / 2

    def head(self, name: str, mean: Array) -> Array:
        scale = self.state[f"{name}.bn.weight"] / np.sqrt(self.state[f"{name}.bn.running_var"] + 1e-5)
        normed = (mean - self.state[f"{name}.bn.running_mean"]) * scale + self.state[f"{name}.bn.bias"]
        return self.state[f"{name}.l.weight"] @ normed + self.state[f"{name}.l.bias"]


def test_the_network_is_that_of_its_official_entries(tmp_path: Path) -> None:
    state, pixels = official_state(), tiny_pixels((80, 80), 3)
    checkpoint = read(tmp_path, state)
    assert checkpoint.spec == spec()
    assert checkpoint.spec.counts == (25,)
    model = model_from_spec(checkpoint.spec, checkpoint.state)
    with torch.inference_mode():
        logits, kept = family_of(checkpoint.spec).stages(model)[0](pixels)
        dense = family_of(checkpoint.spec).dense(model)(pixels)
    expected = Naive(state).run(pixels[0].double().numpy())
    assert np.abs(logits[0].numpy() - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())
    assert torch.equal(dense, logits)
    assert kept.tolist() == [25]
    macs, _ = counted(family_of(checkpoint.spec).dense(model), pixels)
    assert cost_model(checkpoint.spec).dense().total == macs == cost_model(checkpoint.spec).actual((25,)).total


@pytest.mark.exhaustive
def test_the_exported_graphs_are_the_network(tmp_path: Path) -> None:
    """Biases are gathered inside the graph; export itself compares every form with PyTorch."""
    bundle, report = export(read(tmp_path, official_state()), tmp_path / "levit.dovit")
    assert not report.failures
    pixels = tiny_pixels((80, 80), 3)
    expected = Naive(official_state()).run(pixels[0].double().numpy())
    with Session(bundle, threads=1) as session:
        logits, found = session.run(pixels.numpy())
    assert found.kept == (25,)
    assert np.abs(np.asarray(logits)[0] - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def test_a_vanilla_levit_where_tokens_are_to_be_selected_is_refused(tmp_path: Path) -> None:
    settings = {**SETTINGS, "prune_ratio": [[1, 1, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]}
    with pytest.raises(
        CheckpointMismatch, match=r"is a vanilla LeViT .* leave 'prune_ratio' out to export it as the dense"
    ):
        read(tmp_path, official_state(), settings)


def test_other_indices_and_missing_entries_are_refused(tmp_path: Path) -> None:
    state = official_state()
    turned = {**state, "blocks.0.m.attention_bias_idxs": state["blocks.0.m.attention_bias_idxs"].flip(0)}
    with pytest.raises(CheckpointMismatch, match=r"biases assigned in another way .* blocks\.0\.m"):
        read(tmp_path, turned)
    without = {name: tensor for name, tensor in state.items() if not name.endswith("idxs")}
    assert read(tmp_path, without).spec == spec()
    del without["blocks.4.attention_biases"]
    with pytest.raises(CheckpointMismatch, match=r"missing: blocks\.4\.attention_biases"):
        read(tmp_path, without)
    with pytest.raises(ConfigError, match="'X' is 4x4x4"):
        read(tmp_path, state, {**SETTINGS, "X": "4_4_4"})


def test_the_size_is_the_trained_one(tmp_path: Path) -> None:
    checkpoint = read(tmp_path, official_state())
    with pytest.raises(
        UsageError, match=r"size 96x96: layers\.0\.attention\.biases was trained for another; give 80x80"
    ):
        state_at_size(checkpoint.state, checkpoint.spec, (96, 96))
