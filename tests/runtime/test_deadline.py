"""Deadlines: caps are kept, the kept are the hardest, more time never stops more, and without need nothing changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.errors import UsageError
from dovit_deploy.runtime.deadline import Deadline, least_confident
from dovit_deploy.runtime.latency import LatencyModel, StageTime
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from tests.runtime.test_latency import model_of
from tests.tiny import tiny_pixels, tiny_spec

SPEC = tiny_spec()
"""21 tokens, two gates."""
LINEAR = StageTime(constant=1, linear=1, quadratic=0)
MODEL = model_of(StageTime(constant=5, linear=0, quadratic=0), LINEAR, LINEAR, outside_ms=0.5)
LEAST = 5.5 + 2 + 2

PARTS = st.floats(0, 5)
STAGES = st.builds(
    StageTime, constant=PARTS, linear=PARTS, quadratic=PARTS, sizes=st.sampled_from([(), (4, 9, 21), (21,)])
)
MODELS = st.lists(STAGES, min_size=3, max_size=3).map(lambda stages: model_of(*stages, outside_ms=0.1))
WANTED = st.lists(st.integers(1, 21), min_size=2, max_size=2).map(lambda counts: sorted(counts, reverse=True))


def kept_in(deadline: Deadline, wanted: list[int]) -> list[int]:
    """What enters each stage where the gates want `wanted` after them."""
    kept = [SPEC.tokens]
    for count in wanted:
        kept.append(min(count, kept[-1], deadline.cap(kept)))
    return kept


@given(model=MODELS, wanted=WANTED, more=st.floats(0, 200), slow=st.floats(0.9, 1.2))
def test_what_is_predicted_keeps_the_deadline(model: LatencyModel, wanted: list[int], more: float, slow: float) -> None:
    model = model.model_copy(update={"slow": slow})
    least = Deadline(1.0, model, SPEC).least
    deadline = Deadline.checked(least + more, model, SPEC)
    kept = kept_in(deadline, wanted)
    assert max(1, slow) * model.milliseconds(kept) <= deadline.milliseconds * (1 + 1e-9)
    assert min(kept) >= SPEC.extra_tokens


@given(model=MODELS, wanted=WANTED, times=st.tuples(st.floats(0.1, 300), st.floats(0.1, 300)))
def test_more_time_never_allows_fewer_tokens(
    model: LatencyModel, wanted: list[int], times: tuple[float, float]
) -> None:
    shorter, longer = (Deadline(milliseconds, model, SPEC) for milliseconds in sorted(times))
    for kept in ([21], [21, wanted[0]]):
        assert shorter.cap(kept) <= longer.cap(kept)


def test_the_margin_of_a_busy_machine_is_limited() -> None:
    least = [Deadline(1.0, MODEL.model_copy(update={"slow": slow}), SPEC).least for slow in (0.9, 1.1, 5.0)]
    assert least == [LEAST, pytest.approx(1.1 * LEAST), pytest.approx(1.25 * LEAST)]


def test_time_that_is_not_used_is_left_for_later_stages() -> None:
    deadline = Deadline.checked(30.0, MODEL, SPEC)
    # 24.5 are left: 1 + 12 and, for three quarters of its patches, 1 + 10 fit into them, and 10 may indeed run on.
    assert deadline.cap([21]) == 12
    assert kept_in(deadline, [21, 21]) == [21, 12, 10]
    assert kept_in(deadline, [21, 5]) == [21, 12, 5]
    # 1 + 8 leave time for more tokens than there are.
    assert kept_in(deadline, [8, 8]) == [21, 8, 8]


def test_where_there_is_time_for_all_tokens_nothing_is_capped() -> None:
    assert kept_in(Deadline.checked(5.5 + 22 + 22, MODEL, SPEC), [21, 21]) == [21, 21, 21]
    assert kept_in(Deadline.checked(1e9, MODEL, SPEC), [21, 21]) == [21, 21, 21]


def test_a_deadline_below_the_fixed_cost_is_refused_with_the_least() -> None:
    assert Deadline.checked(LEAST, MODEL, SPEC).least == pytest.approx(LEAST)
    with pytest.raises(
        UsageError, match=r"--deadline-ms 9\.4: onnxruntime fp32 takes 9\.5 ms here even .* at least 9\.5"
    ):
        Deadline.checked(9.4, MODEL, SPEC)
    with pytest.raises(UsageError, match=r"takes 19\.0 ms here for 2 windows one after another even"):
        Deadline.checked(12, MODEL, SPEC, rounds=2)


@given(
    confidence=st.lists(st.sampled_from([0.1, 0.2, 0.5, float("nan")]) | st.floats(0, 1, width=32), max_size=40),
    extra=st.integers(0, 2),
    data=st.data(),
)
def test_the_kept_are_the_least_confident_the_first_among_equals(confidence, extra: int, data) -> None:
    values = np.asarray(confidence, dtype=np.float32)
    running = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    patches = extra + np.flatnonzero(running)
    index = np.concatenate([np.arange(extra), patches]).astype(np.int64)
    cap = data.draw(st.integers(extra, len(index) + 2))
    found = least_confident(index, values, cap, extra=extra)
    # Python's sort is stable, and NaN is the hardest.
    keys = {position: -1.0 if np.isnan(values[position - extra]) else values[position - extra] for position in patches}
    hardest = sorted(patches, key=keys.__getitem__)[: cap - extra]
    np.testing.assert_array_equal(found, [*range(extra), *sorted(hardest)])
    assert found.dtype == np.int64


# Real runs.


@pytest.fixture(scope="module")
def session(tiny_bundle_path: Path):
    with Session(tiny_bundle_path, threads=1) as session:
        yield session


def settings_of(bundle: Bundle, deadline: Deadline | None) -> RunSettings:
    """Nothing stops by itself."""
    return dataclasses.replace(RunSettings.stop_nothing(bundle.manifest.spec), deadline=deadline)


@pytest.mark.parametrize("deadline", [None, Deadline(1e6, MODEL, SPEC)], ids=["none", "long"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_without_need_a_run_is_the_same_bit_for_bit(tiny_bundle_path: Path, engine: str, deadline) -> None:
    pytest.importorskip(engine)
    with Session(tiny_bundle_path, engine=engine, threads=1) as session:
        plain = RunSettings.resolve(session.bundle.manifest)
        for seed in (3, 4):
            pixels = tiny_pixels(SPEC.size, seed=seed).numpy()
            wanted, report = session.run(pixels)
            given_, reported = session.run_one(pixels, dataclasses.replace(plain, deadline=deadline))
            np.testing.assert_array_equal(given_, wanted)
            assert (reported.kept, reported.capped) == (report.kept, 0)
            np.testing.assert_array_equal(reported.keep, report.keep)


def test_the_hardest_run_on_and_the_report_counts_the_others(session: Session) -> None:
    pixels = tiny_pixels(SPEC.size, seed=3).numpy()
    settings = settings_of(session.bundle, Deadline.checked(30.0, MODEL, SPEC))
    answer, report = session.run_one(pixels, settings)
    assert report.kept == (21, 12, 10)
    assert report.capped == 9 + 2
    running = np.ones(SPEC.grid, dtype=bool)
    for keep, confidence in zip(report.keep, report.confidence, strict=True):
        assert (keep <= running).all()
        assert confidence[keep].max() <= confidence[running & ~keep].min()
        running = keep
    again, _ = session.run_one(pixels, settings)
    np.testing.assert_array_equal(again, answer)
    # The same tokens, replayed, give the same answer: what was cut has stopped like any other.
    replayed, _ = session.run(pixels, keep=list(report.keep))
    np.testing.assert_array_equal(replayed, answer)


def test_the_least_lets_extra_tokens_alone_run_on(session: Session) -> None:
    settings = settings_of(session.bundle, Deadline.checked(LEAST, MODEL, SPEC))
    _, report = session.run_one(tiny_pixels(SPEC.size, seed=3).numpy(), settings)
    assert report.kept == (21, 1, 1)


def test_windows_of_an_image_share_its_time(setr_bundle_path: Path) -> None:
    with Session(setr_bundle_path, threads=1) as session:
        spec = session.bundle.manifest.spec
        model = model_of(StageTime(constant=1, linear=0, quadratic=0), LINEAR)
        rgb = np.random.default_rng(0).integers(0, 256, (spec.size[0], spec.size[1] + 40, 3), dtype=np.uint8)
        settings = settings_of(session.bundle, Deadline.checked(24.0, model, spec))
        result = Predictor(session).run(rgb, settings)
        windows = [window.report.kept[1] for window in result.tokens.windows]
        assert windows == [10, 10], "each has 12 ms: 1, 1 and 10 tokens"
        assert result.tokens.capped == 2 * (spec.tokens - 10)
        assert dataclasses.replace(result.tokens, still=True).capped == 0
