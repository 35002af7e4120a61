"""The oracles against one written out token by token, and on real graphs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dovit_deploy.bundle.directory import Bundle
from dovit_deploy.export.verify import Setting, Trace, trace_from_session
from dovit_deploy.measure.oracle import oracle_keep, position_classes, token_classes, unlimited_oracle_keep
from dovit_deploy.runtime.gate_inputs import index_from_keep
from dovit_deploy.runtime.session import Session
from tests.tiny import tiny_pixels, tiny_spec

# Four times four positions of the logits in each patch.
SPEC = tiny_spec(head="setr", gates=(1, 2, 3))


class DrawnSession:
    """A session whose gates say what was drawn, and nothing of a token that has stopped."""

    def __init__(self, label, confidence) -> None:
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(spec=SPEC))
        self.backend = SimpleNamespace(download=lambda buffer: buffer)
        self.label, self.confidence = label, confidence

    def stages(self, pixels, *, thresholds, floor, decide):
        running = np.ones(SPEC.patches, bool)
        for gate in range(len(SPEC.gates)):
            outputs = {
                "label": np.where(running, self.label[gate], -1),
                "confidence": np.where(running, self.confidence[gate], np.nan).astype(np.float32),
            }
            index = decide(gate, outputs)
            running = np.isin(np.arange(SPEC.patches), index - SPEC.extra_tokens)
            yield outputs, index
        yield {}, None


def naive_oracle(logits, label, confidence, kept) -> list[list[int]]:
    """Who runs after each gate; `logits` (K, h, w)."""
    rows, columns = SPEC.grid
    scale = logits.shape[1] // rows
    running, after = list(range(rows * columns)), []
    for gate in range(len(SPEC.gates)):
        ranked = []
        for token in running:
            row, column = divmod(token, columns)
            same = 0
            for y in range(row * scale, row * scale + scale):
                for x in range(column * scale, column * scale + scale):
                    same += int(np.argmax(logits[:, y, x])) == label[gate][token]
            ranked.append((-same, -float(confidence[gate][token]), token))
        stopping = sorted(ranked)[: len(running) - (kept[gate + 1] - SPEC.extra_tokens)]
        stopped = {token for _, _, token in stopping}
        running = [token for token in running if token not in stopped]
        after.append(running)
    return after


@pytest.mark.parametrize("seed", range(20))
def test_as_many_as_the_rule_let_and_the_agreed_first(seed):
    rng = np.random.default_rng(seed)
    gates, classes = len(SPEC.gates), 3
    assert SPEC.logits_grid == (4 * SPEC.grid[0], 4 * SPEC.grid[1])
    logits = rng.normal(size=(SPEC.classes, *SPEC.logits_grid)).astype(np.float32)
    # Of three classes alone and with few different confidences, so that there are ties of both kinds.
    logits[classes:] = -9
    label = rng.integers(0, classes, (gates, SPEC.patches))
    confidence = rng.integers(1, 4, (gates, SPEC.patches)).astype(np.float32) / 4
    counts = sorted(rng.integers(0, SPEC.patches + 1, gates), reverse=True)
    kept = (SPEC.tokens, *(int(count) + SPEC.extra_tokens for count in counts))
    keep = oracle_keep(DrawnSession(label, confidence), np.zeros(()), logits[None], kept=kept)
    assert [np.flatnonzero(grid).tolist() for grid in keep] == naive_oracle(logits, label, confidence, kept)
    assert [len(entry) for entry in index_from_keep(keep, SPEC)] == list(kept[1:])


def test_who_agrees_stops_before_who_is_confident():
    logits = np.zeros((1, SPEC.classes, *SPEC.logits_grid), np.float32)
    logits[0, 2] = 1
    label = np.full((3, SPEC.patches), 1)
    label[:, 5] = 2
    confidence = np.full((3, SPEC.patches), 0.9)
    confidence[:, 5], confidence[:, 7] = 0.1, 0.95
    kept = (SPEC.tokens, SPEC.tokens - 1, SPEC.tokens - 2, SPEC.tokens - 3)
    keep = oracle_keep(DrawnSession(label, confidence), np.zeros(()), logits, kept=kept)
    assert [np.flatnonzero(~grid).tolist() for grid in keep] == [[5], [5, 7], [0, 5, 7]]


def test_the_class_of_a_token_is_that_of_its_cells():
    rows, columns = SPEC.grid
    scale = SPEC.logits_grid[0] // rows
    wanted = np.random.default_rng(0).integers(0, SPEC.classes, SPEC.grid)
    logits = np.random.default_rng(1).normal(0, 0.1, (SPEC.classes, *SPEC.logits_grid)).astype(np.float32)
    for row in range(rows):
        for column in range(columns):
            cells = (
                wanted[row, column],
                slice(row * scale, (row + 1) * scale),
                slice(column * scale, (column + 1) * scale),
            )
            logits[cells] += 1
    np.testing.assert_array_equal(token_classes(logits, SPEC), wanted.ravel())
    np.testing.assert_array_equal(position_classes(logits, SPEC), np.repeat(wanted.ravel()[:, None], scale**2, axis=1))


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
            dense, _ = session.run_one(pixels, dense=True)
            rule = session.run_one(pixels)[1]
            keep = oracle_keep(session, pixels, dense, kept=rule.kept)
            assert session.run_one(pixels, keep=keep)[1].kept == rule.kept
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
            dense, _ = session.run_one(pixels, dense=True)
            keep = unlimited_oracle_keep(session, pixels, dense)
            trace = replayed(session, pixels, keep)
            final, running = token_classes(dense[0], spec), np.ones(spec.patches, bool)
            for gate, grid in enumerate(keep):
                stops = running & (trace.label[gate] == final)
                np.testing.assert_array_equal(grid.ravel(), running & ~stops)
                running, stopped = running & ~stops, stopped + int(stops.sum())
    assert stopped > 0
