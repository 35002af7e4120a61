from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.bundle.directory import Bundle
from dovit_deploy.export.verify import Setting, trace_from_session
from dovit_deploy.measure.controls import first_gate_keep, gate_efficiency, oracle_keep, random_keep, token_classes
from dovit_deploy.runtime.gate_inputs import index_from_keep
from dovit_deploy.runtime.session import Session
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


def test_the_class_of_a_token_is_that_of_its_cells():
    spec = tiny_spec(head="setr", gate="setr", gates=(2,), depth=3)
    rows, columns = spec.grid
    scale = spec.logits_grid[0] // rows
    wanted = np.random.default_rng(0).integers(0, spec.classes, spec.grid)
    logits = np.random.default_rng(1).normal(0, 0.1, (spec.classes, *spec.logits_grid)).astype(np.float32)
    for row in range(rows):
        for column in range(columns):
            cells = (
                wanted[row, column],
                slice(row * scale, (row + 1) * scale),
                slice(column * scale, (column + 1) * scale),
            )
            logits[cells] += 1
    np.testing.assert_array_equal(token_classes(logits, spec), wanted.ravel())


@pytest.mark.parametrize("fixture", ["tiny_bundle_path", "setr_bundle_path"])
@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_the_oracle_stops_exactly_what_already_has_its_final_class(request, fixture, engine):
    bundle = Bundle.open(request.getfixturevalue(fixture))
    spec = bundle.manifest.spec
    stopped = 0
    with Session(bundle, engine=engine, threads=1) as session:
        for seed in range(6):
            pixels = np.ascontiguousarray(tiny_pixels(spec.size, seed=seed).numpy())
            dense, _ = session.run_one(pixels, dense=True)
            keep = oracle_keep(session, pixels, dense)
            replay = index_from_keep(keep, spec)
            limits = np.ones((len(spec.gates), spec.classes), np.float32)
            # Once more with the oracle's decisions replayed: the labels that its gates saw.
            trace = trace_from_session(session, Setting("", pixels, limits, np.float32(0)), replay=replay)
            final, running = token_classes(dense[0], spec), np.ones(spec.patches, bool)
            for gate, grid in enumerate(keep):
                stops = running & (trace.label[gate] == final)
                np.testing.assert_array_equal(grid.ravel(), running & ~stops)
                running, stopped = running & ~stops, stopped + int(stops.sum())
    assert stopped > 0


def test_gate_efficiency():
    assert gate_efficiency(rule=60, random=50, oracle=70) == 0.5
    assert gate_efficiency(rule=45, random=50, oracle=60) == -0.5
    assert gate_efficiency(rule=60, random=60, oracle=60) is None
    assert gate_efficiency(rule=60, random=60, oracle=59) is None
