"""Tokens kept from the frame before: without any it is the network, and frozen context of an equal frame is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reuse_context import FORMS, Computed, Network, ReusedRun, rivals, to_keep

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.runtime.session import Session
from tests.tiny import tiny_pixels


@pytest.fixture(scope="module")
def network(tiny_bundle_path) -> Network:
    return Network(Bundle.open(tiny_bundle_path))


def nothing(network: Network) -> torch.Tensor:
    return torch.zeros(network.spec.patches, dtype=torch.bool)


def alone(network: Network, pixels: torch.Tensor) -> ReusedRun:
    return network.run(pixels, "absent", None, nothing(network))


def halfway(network: Network, pixels: torch.Tensor) -> None:
    """Thresholds at which some of the patches stop at each gate."""
    network.thresholds = torch.zeros_like(network.thresholds)
    for gate in range(len(network.thresholds)):
        network.thresholds[gate:] = 1
        seen = network.model.gates[gate].look(alone(network, pixels).computed.tokens, torch.arange(network.spec.tokens))
        network.thresholds[gate] = seen.softmax(1).amax(1).median()


def test_nothing_kept_is_the_network_of_the_session(network, tiny_bundle_path):
    pixels = tiny_pixels(network.spec.size, 5)
    halfway(network, pixels)
    with Session(tiny_bundle_path, engine="torch") as session:
        logits, report = session.run(pixels.numpy(), thresholds=network.thresholds.numpy())
    ran = alone(network, pixels)
    np.testing.assert_array_equal(ran.classes.numpy(), logits[0].argmax(0))
    stopped = [int((ran.computed.exits < gate).sum()) for gate in range(1, len(report.kept))]
    assert [network.spec.tokens - count for count in stopped] == list(report.kept[1:])
    assert 0 < stopped[0] < stopped[-1] < network.spec.patches
    assert ran.macs == pytest.approx(1e9 * report.gmacs_actual)


@pytest.mark.slow
def test_frozen_context_of_an_equal_frame_changes_nothing(network):
    pixels = tiny_pixels(network.spec.size, 5)
    halfway(network, pixels)
    own = alone(network, pixels)
    kept = torch.arange(network.spec.patches) % 2 == 0
    runs = {form: network.run(pixels, form, own.computed, kept) for form in FORMS}
    frozen = runs["frozen"]
    extra = network.spec.extra_tokens
    expected = own.computed.tokens[extra:]
    torch.testing.assert_close(frozen.computed.tokens[extra:], expected)
    assert (frozen.classes == own.classes).all() and (frozen.computed.exits == own.computed.exits).all()
    assert frozen.macs < own.macs and frozen.kept == pytest.approx(float(kept.float().mean()))
    for form in ("absent", "pooled"):
        tokens = runs[form].computed.tokens[extra:]
        torch.testing.assert_close(tokens[kept], expected[kept])
        assert (tokens[~kept] - expected[~kept]).abs().max() > 1e-3


def test_those_are_kept_that_changed_least_since_they_ran():
    patches = torch.zeros(5, 3)
    before = torch.tensor([0.1, 3, 0.2, 0, 0.3])[:, None].expand(5, 3)
    computed = Computed(patches, torch.zeros(5), patches, patches, before)
    barred = torch.tensor([False, False, False, True, False])
    assert to_keep(computed, patches, 0.4, barred).tolist() == [True, False, True, False, False]
    assert to_keep(computed, patches, 1.0, barred).tolist() == [True, True, True, False, True]


def test_what_is_simpler_runs_one_of_n_frames(network):
    still = np.zeros((*network.spec.size, 3), np.uint8)
    own = [alone(network, tiny_pixels(network.spec.size, seed)).classes for seed in range(4)]
    found = {(row["form"], row["every"]): row for row in rivals(network, own, [still] * 4)}
    assert found["hold", 2]["macs"] == 0.5
    same = [(own[number] == own[number - 1]).float().mean() for number in (1, 3)]
    assert found["hold", 2]["agreement"] == pytest.approx((1 + float(np.mean(same))) / 2)
