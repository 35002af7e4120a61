"""The controls: as many tokens as the rule, and the oracles against one written out token by token."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.measure.controls import (
    first_gate_keep,
    gate_efficiency,
    gate_keep,
    oracle_keep,
    position_classes,
    random_keep,
    token_classes,
    unlimited_oracle_keep,
)
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import index_from_keep
from dovit_deploy.runtime.trace import Setting, Trace, trace_from_session
from tests.tiny import tiny_pixels, tiny_spec

SPEC = tiny_spec(gates=(1, 2, 3))


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.lists(st.integers(0, SPEC.patches), min_size=3, max_size=3), st.integers(0, 1000))
def test_random_stopping_keeps_the_counts_and_who_stopped_stays_stopped(counts, seed):
    kept = (SPEC.tokens, *(SPEC.extra_tokens + count for count in sorted(counts, reverse=True)))
    keep = random_keep(kept, SPEC, rng=np.random.default_rng(seed))
    index = index_from_keep(keep, SPEC)
    assert [len(entry) for entry in index] == list(kept[1:])


def test_random_stopping_is_spread_over_the_picture_and_follows_the_seed():
    kept = (SPEC.tokens, *[SPEC.extra_tokens + SPEC.patches // 2] * 3)
    drawn = [random_keep(kept, SPEC, rng=np.random.default_rng(seed)) for seed in range(400)]
    share = np.mean([keep[0] for keep in drawn], axis=0)
    assert abs(share - (SPEC.patches // 2) / SPEC.patches).max() < 0.12
    again = random_keep(kept, SPEC, rng=np.random.default_rng(7))
    np.testing.assert_array_equal(again, drawn[7])


def test_the_first_gate_stops_everything():
    assert [len(entry) for entry in index_from_keep(first_gate_keep(SPEC), SPEC)] == [SPEC.extra_tokens] * 3


def test_gate_efficiency():
    assert gate_efficiency(rule=60, random=50, oracle=70) == 0.5
    assert gate_efficiency(rule=45, random=50, oracle=60) == -0.5
    assert gate_efficiency(rule=60, random=60, oracle=60) is None
    assert gate_efficiency(rule=60, random=60, oracle=59) is None


# The oracles against one written out token by token, and on real graphs.

# Four times four positions of the logits in each patch.
ORACLE_SPEC = tiny_spec(head="setr", gates=(1, 2, 3))


class DrawnSession:
    """A session whose gates give what was drawn, and nothing for a token that has stopped."""

    def __init__(self, label, confidence) -> None:
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(spec=ORACLE_SPEC))
        self.backend = SimpleNamespace(download=lambda buffer: buffer)
        self.label, self.confidence = label, confidence

    def stages(self, pixels, settings, *, decide):
        running = np.ones(ORACLE_SPEC.patches, bool)
        for gate in range(len(ORACLE_SPEC.gates)):
            outputs = {
                "label": np.where(running, self.label[gate], -1),
                "confidence": np.where(running, self.confidence[gate], np.nan).astype(np.float32),
            }
            index = decide(gate, outputs)
            running = np.isin(np.arange(ORACLE_SPEC.patches), index - ORACLE_SPEC.extra_tokens)
            yield outputs, index
        yield {}, None


def naive_oracle(logits, label, confidence, kept) -> list[list[int]]:
    """Which patches run after each gate; `logits` (K, h, w)."""
    rows, columns = ORACLE_SPEC.grid
    scale = logits.shape[1] // rows
    running, after = list(range(rows * columns)), []
    for gate in range(len(ORACLE_SPEC.gates)):
        ranked = []
        for token in running:
            row, column = divmod(token, columns)
            same = 0
            for y in range(row * scale, row * scale + scale):
                for x in range(column * scale, column * scale + scale):
                    same += int(np.argmax(logits[:, y, x])) == label[gate][token]
            ranked.append((-same, -float(confidence[gate][token]), token))
        stopping = sorted(ranked)[: len(running) - (kept[gate + 1] - ORACLE_SPEC.extra_tokens)]
        stopped = {token for _, _, token in stopping}
        running = [token for token in running if token not in stopped]
        after.append(running)
    return after


@pytest.mark.parametrize("seed", range(20))
def test_as_many_as_the_rule_let_and_the_agreed_first(seed):
    rng = np.random.default_rng(seed)
    gates, classes = len(ORACLE_SPEC.gates), 3
    assert ORACLE_SPEC.logits_grid == (4 * ORACLE_SPEC.grid[0], 4 * ORACLE_SPEC.grid[1])
    logits = rng.normal(size=(ORACLE_SPEC.classes, *ORACLE_SPEC.logits_grid)).astype(np.float32)
    # Of three classes alone and with few different confidences, so that there are ties of both kinds.
    logits[classes:] = -9
    label = rng.integers(0, classes, (gates, ORACLE_SPEC.patches))
    confidence = rng.integers(1, 4, (gates, ORACLE_SPEC.patches)).astype(np.float32) / 4
    counts = sorted(rng.integers(0, ORACLE_SPEC.patches + 1, gates), reverse=True)
    kept = (ORACLE_SPEC.tokens, *(int(count) + ORACLE_SPEC.extra_tokens for count in counts))
    keep = oracle_keep(DrawnSession(label, confidence), np.zeros(()), logits[None], kept=kept)
    assert [np.flatnonzero(grid).tolist() for grid in keep] == naive_oracle(logits, label, confidence, kept)
    assert [len(entry) for entry in index_from_keep(keep, ORACLE_SPEC)] == list(kept[1:])


def test_who_agrees_stops_before_who_is_confident():
    logits = np.zeros((1, ORACLE_SPEC.classes, *ORACLE_SPEC.logits_grid), np.float32)
    logits[0, 2] = 1
    label = np.full((3, ORACLE_SPEC.patches), 1)
    label[:, 5] = 2
    confidence = np.full((3, ORACLE_SPEC.patches), 0.9)
    confidence[:, 5], confidence[:, 7] = 0.1, 0.95
    kept = (ORACLE_SPEC.tokens, ORACLE_SPEC.tokens - 1, ORACLE_SPEC.tokens - 2, ORACLE_SPEC.tokens - 3)
    keep = oracle_keep(DrawnSession(label, confidence), np.zeros(()), logits, kept=kept)
    assert [np.flatnonzero(~grid).tolist() for grid in keep] == [[5], [5, 7], [0, 5, 7]]


def test_the_class_of_a_token_is_that_of_its_cells():
    rows, columns = ORACLE_SPEC.grid
    scale = ORACLE_SPEC.logits_grid[0] // rows
    wanted = np.random.default_rng(0).integers(0, ORACLE_SPEC.classes, ORACLE_SPEC.grid)
    logits = np.random.default_rng(1).normal(0, 0.1, (ORACLE_SPEC.classes, *ORACLE_SPEC.logits_grid)).astype(np.float32)
    for row in range(rows):
        for column in range(columns):
            cells = (
                wanted[row, column],
                slice(row * scale, (row + 1) * scale),
                slice(column * scale, (column + 1) * scale),
            )
            logits[cells] += 1
    np.testing.assert_array_equal(token_classes(logits, ORACLE_SPEC), wanted.ravel())
    np.testing.assert_array_equal(
        position_classes(logits, ORACLE_SPEC), np.repeat(wanted.ravel()[:, None], scale**2, axis=1)
    )


def replayed(session: Session, pixels, keep) -> Trace:
    """Once more with the oracle's decisions replayed: what its gates saw."""
    spec = session.bundle.manifest.spec
    limits = np.ones((len(spec.gates), spec.classes), np.float32)
    return trace_from_session(session, Setting("", pixels, limits, np.float32(0)), replay=index_from_keep(keep, spec))


@pytest.mark.parametrize("fixture", ["tiny_bundle_path", "setr_bundle_path"])
@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_on_graphs_no_token_runs_that_agrees_more_than_one_that_stops(request, fixture, engine):
    bundle = Bundle.open(request.getfixturevalue(fixture))
    spec, stopped = bundle.manifest.spec, 0
    with Session(bundle, engine=engine, threads=1) as session:
        for seed in range(4):
            pixels = np.ascontiguousarray(tiny_pixels(spec.size, seed=seed).numpy())
            dense, _ = session.run(pixels, dense=True)
            rule = session.run(pixels)[1]
            keep = oracle_keep(session, pixels, dense, kept=rule.kept)
            assert session.run(pixels, keep=keep)[1].kept == rule.kept
            trace, final = replayed(session, pixels, keep), position_classes(dense[0], spec)
            running = np.ones(spec.patches, bool)
            for gate, grid in enumerate(keep):
                same = (final == np.asarray(trace.label[gate])[:, None]).sum(axis=1)
                stops, runs = running & ~grid.ravel(), grid.ravel()
                if stops.any() and runs.any():
                    assert same[stops].min() >= same[runs].max()
                running, stopped = runs, stopped + int(stops.sum())
    assert stopped > 0


@pytest.mark.parametrize("fixture", ["tiny_bundle_path", "setr_bundle_path"])
@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_the_unlimited_oracle_stops_exactly_what_already_has_its_final_class(request, fixture, engine):
    bundle = Bundle.open(request.getfixturevalue(fixture))
    spec = bundle.manifest.spec
    stopped = 0
    with Session(bundle, engine=engine, threads=1) as session:
        for seed in range(6):
            pixels = np.ascontiguousarray(tiny_pixels(spec.size, seed=seed).numpy())
            dense, _ = session.run(pixels, dense=True)
            keep = unlimited_oracle_keep(session, pixels, dense)
            trace = replayed(session, pixels, keep)
            final, running = token_classes(dense[0], spec), np.ones(spec.patches, bool)
            for gate, grid in enumerate(keep):
                stops = running & (trace.label[gate] == final)
                np.testing.assert_array_equal(grid.ravel(), running & ~stops)
                running, stopped = running & ~stops, stopped + int(stops.sum())
    assert stopped > 0


def test_everything_stops_at_one_gate_and_nothing_before_it() -> None:
    spec = tiny_spec(gates=(1, 2, 3))
    for gate in range(3):
        assert [bool(grid.all()) for grid in gate_keep(spec, gate)] == [number < gate for number in range(3)]
        assert [bool(grid.any()) for grid in gate_keep(spec, gate)] == [number < gate for number in range(3)]
    for mine, theirs in zip(first_gate_keep(spec), gate_keep(spec, 0), strict=True):
        np.testing.assert_array_equal(mine, theirs)
