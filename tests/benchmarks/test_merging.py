"""Token merging: nothing merged is dense, duplicates merge without a trace, each step is what a plain loop makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from why_not.merging import (
    MergingNetwork,
    MergingSession,
    merge,
    merges,
    merging_macs,
    proportional_attention,
)

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.layers import attention
from dovit_deploy.families.stages import DenseNetwork
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from tests.tiny import tiny_model, tiny_pixels, tiny_spec

SPEC = tiny_spec(gates=(), depth=3)
"""20 patches and a class token."""


@pytest.fixture(scope="module")
def model():
    return tiny_model(SPEC)


def in_plain_loops(tokens, sizes, similar, extra, count):
    """The step as the paper describes it, on lists of groups of patches."""
    first, second = range(extra, len(tokens), 2), range(extra + 1, len(tokens), 2)
    unit = similar / np.linalg.norm(similar, axis=1, keepdims=True)
    nearest = {a: max(second, key=lambda b: unit[a] @ unit[b]) for a in first}
    leaving = sorted(first, key=lambda a: -(unit[a] @ unit[nearest[a]]))[:count]
    groups = [[row] for row in (*range(extra), *(a for a in first if a not in leaving), *second)]
    for a in leaving:
        next(group for group in groups if group[0] == nearest[a]).append(a)
    values = [sum(tokens[i] * sizes[i] for i in group) / sum(sizes[i] for i in group) for group in groups]
    totals = [sum(sizes[i] for i in group) for group in groups]
    row = [next(n for n, group in enumerate(groups) if patch in group) for patch in range(extra, len(tokens))]
    return np.array(values), np.array(totals), np.array(row)


@pytest.mark.parametrize(("patches", "extra", "count"), [(9, 1, 3), (8, 0, 4), (11, 2, 5), (12, 1, 1)])
def test_a_step_is_what_plain_loops_make(patches, extra, count) -> None:
    draw = np.random.default_rng(patches)
    tokens, similar = draw.normal(size=(2, extra + patches, 6)).astype(np.float32)
    sizes = draw.integers(1, 5, (extra + patches, 1)).astype(np.float32)
    step = merge(*(torch.from_numpy(values) for values in (tokens, sizes, similar)), extra=extra, count=count)
    values, totals, row = in_plain_loops(tokens, sizes, similar, extra, count)
    np.testing.assert_allclose(step.tokens, values, atol=1e-5)
    np.testing.assert_array_equal(step.sizes, totals)
    np.testing.assert_array_equal(step.row, row)


def test_a_key_of_size_three_counts_as_three_keys() -> None:
    query, key, value = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 5, 8))).float()
    sizes = torch.tensor([[1.0], [3.0], [1.0], [2.0], [1.0]])
    repeated = torch.repeat_interleave(torch.arange(5), sizes[:, 0].long())
    expected = attention(query, key[repeated], value[repeated], 2)
    torch.testing.assert_close(proportional_attention(query, key, value, sizes, 2), expected, atol=1e-5, rtol=0)


def test_nothing_merged_is_dense(model) -> None:
    pixels = tiny_pixels(SPEC.size)
    torch.testing.assert_close(MergingNetwork(model, 0)(pixels), DenseNetwork(model)(pixels), atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [2, 4])
def test_merging_duplicates_changes_nothing(model, count) -> None:
    draw = np.random.default_rng(3)
    kinds = torch.from_numpy(draw.normal(size=(2, SPEC.width))).float()
    patches = kinds[torch.from_numpy(draw.permutation(np.arange(SPEC.patches) % 2))]
    tokens = torch.cat([model.extra_tokens, patches])
    expected = tokens
    for block in model.blocks:
        expected = block(expected)
    merged = MergingNetwork(model, count).advance(tokens)
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=0)


def test_merging_others_changes_something(model) -> None:
    pixels = tiny_pixels(SPEC.size)
    assert (MergingNetwork(model, 4)(pixels) - DenseNetwork(model)(pixels)).abs().max() > 1e-2


def test_no_layer_merges_more_than_half() -> None:
    assert merges(SPEC, 3) == (3, 3, 3)
    assert merges(SPEC, 8) == (8, 6, 3)


@pytest.mark.parametrize("count", [0, 3, 8])
def test_macs_are_those_that_run(model, count) -> None:
    """PyTorch's own counter sees one channel more per head in QK^T, which the cost leaves out."""
    network = MergingNetwork(model, count)
    with FlopCounterMode(display=False) as counter:
        network(tiny_pixels(SPEC.size))
    tokens, extra = SPEC.tokens, 0
    for number, merged in enumerate(network.counts):
        extra += SPEC.heads * tokens * tokens if number and count else 0
        tokens -= merged
    assert counter.get_total_flops() // 2 == merging_macs(SPEC, count) + extra
    assert merging_macs(SPEC, 0) == cost_model(SPEC).dense().total


@pytest.mark.parametrize("count", [0, 4])
def test_the_engine_gives_what_the_module_gives(dense_bundle_path, tmp_path, count) -> None:
    bundle = Bundle.open(dense_bundle_path)
    session = MergingSession(bundle, count, folder=tmp_path)
    pixels = tiny_pixels(bundle.manifest.spec.size, seed=2)
    logits, report = session.run_one(pixels.numpy(), RunSettings.resolve(bundle.manifest, dense=True))
    torch.testing.assert_close(torch.from_numpy(logits), session.module(pixels), atol=1e-4, rtol=0)
    assert report.gmacs_actual == pytest.approx(merging_macs(bundle.manifest.spec, count) / 1e9)
    if not count:
        with Session(bundle, threads=1) as plain:
            np.testing.assert_allclose(logits, plain.run(pixels.numpy(), dense=True)[0], atol=1e-4)
