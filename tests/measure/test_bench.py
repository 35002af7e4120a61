"""Benchmarks on a clock that only a scripted session moves; the frames; the statistics."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dovit_deploy.errors import SourceError
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.parts import GateSpec, LinearHead
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.measure.bench import (
    DENSITIES,
    MOST_FRAMES,
    WARM_UP_RUNS,
    Clock,
    Contestant,
    benchmark,
    frames_from_source,
    median,
    median_ratio,
    percentiles,
    rendered_frames,
)
from dovit_deploy.runtime.results import RunTiming, TokenReport
from dovit_deploy.runtime.transforms import to_input
from dovit_deploy.sources.video_writer import open_video_writer
from tests.fakes import fake_manifest

SPEC = VisionTransformerSpec(
    family="fake",
    size=(32, 48),
    width=16,
    depth=4,
    heads=2,
    hidden=64,
    classes=3,
    gates=(GateSpec(layer=2, head=LinearHead()),),
    head=LinearHead(),
)
FRAMES = tuple(np.full((1, 3, 32, 48), number, dtype=np.float32) for number in range(3))
LABELS = ("a", "b", "c")
KEPT = ((7, 7), (7, 4), (7, 1))
"""Tokens that the scripted session keeps of each frame."""
WARM_UP = len(FRAMES) + WARM_UP_RUNS
"""Runs before the first that counts: every frame dynamically, and some dense ones."""


class Time:
    """A clock that only a session moves."""

    def __init__(self):
        self.wall_s = self.cpu_s = 0.0

    def clock(self):
        return Clock(wall=lambda: self.wall_s, cpu=lambda: self.cpu_s)


class ScriptedSession:
    """Takes `dense_ms` densely and `dense_ms / speedup` dynamically, times the load of the machine at that moment."""

    def __init__(self, time, log, *, name="", dense_ms=10.0, speedup=2.0, cpu_share=1.0, load=lambda run: 1.0):
        self.bundle = SimpleNamespace(manifest=fake_manifest())
        self.time, self.log, self.name, self.load = time, log, name, load
        self.dense_ms, self.speedup, self.cpu_share = dense_ms, speedup, cpu_share

    def run_one(self, pixels, settings):
        dense = settings.dense
        frame = int(pixels[0, 0, 0, 0])
        ms = (self.dense_ms if dense else self.dense_ms / self.speedup) * self.load(len(self.log))
        self.log.append((self.name, frame, dense))
        self.time.wall_s += ms / 1e3
        self.time.cpu_s += ms / 1e3 * self.cpu_share
        cost = cost_model(SPEC)
        kept = (SPEC.tokens, SPEC.tokens) if dense else KEPT[frame]
        actual = cost.dense() if dense else cost.actual(kept)
        report = TokenReport(kept, cost.dense().total / 1e9, actual.total / 1e9, (), (), RunTiming(ms, (ms,)))
        return np.zeros((1, 3, 2, 3), dtype=np.float32), report


def run(time, sessions, *, repeat=4):
    contestants = [Contestant(session.name, "fp32", session) for session in sessions]
    return benchmark(contestants, FRAMES, labels=LABELS, repeat=repeat, clock=time.clock())


def one(**options):
    time, log = Time(), []
    (result,) = run(time, [ScriptedSession(time, log, name="one", **options)])
    return result, log[WARM_UP:]


def test_latency_and_speedup_come_from_the_clock():
    result, _ = one(dense_ms=10.0, speedup=2.5, cpu_share=0.5)
    assert result.dense.latency_ms.p50 == pytest.approx(10.0) and result.dynamic.latency_ms.p99 == pytest.approx(4.0)
    assert result.dense.cpu_ms == pytest.approx(5.0) and result.dynamic.cpu_ms == pytest.approx(2.0)
    assert result.speedup == pytest.approx(2.5) and result.cpu_speedup == pytest.approx(2.5)
    assert result.engine_factor == 1.0


def test_prediction_is_the_ratio_of_macs_over_all_frames():
    result, _ = one(speedup=1.5)
    cost = cost_model(SPEC)
    expected = 3 * cost.dense().total / sum(cost.actual(kept).total for kept in KEPT)
    assert result.predicted_speedup == pytest.approx(expected)
    assert result.flops_saved == pytest.approx(1 - 1 / expected)
    assert result.realised_efficiency == pytest.approx(1.5 / expected)
    assert result.kept == pytest.approx((7.0, 4.0))


def test_every_frame_is_run_both_ways_in_both_orders():
    _, log = one()
    pairs = [(log[number], log[number + 1]) for number in range(0, len(log), 2)]
    assert len(pairs) == 12
    for first, second in pairs:
        assert first[1] == second[1] and first[2] != second[2]
    for frame in range(3):
        orders = [first[2] for first, _ in pairs if first[1] == frame]
        assert orders.count(True) == orders.count(False) == 2


def test_a_load_that_comes_and_goes_does_not_move_the_speedup():
    calm, _ = one(speedup=2.0)
    # Five-fold load from the middle of the measurement on; whole pairs, so each ratio stays what it is.
    loaded, _ = one(speedup=2.0, load=lambda number: 5.0 if number >= WARM_UP + 12 else 1.0)
    assert loaded.speedup == pytest.approx(calm.speedup)
    assert loaded.dense.latency_ms.p90 == pytest.approx(5 * calm.dense.latency_ms.p90)


def test_the_warm_up_is_not_counted():
    result, _ = one(load=lambda number: 100.0 if number < WARM_UP else 1.0)
    assert result.dense.latency_ms.p99 == pytest.approx(10.0) and result.dynamic.latency_ms.p99 == pytest.approx(5.0)


def test_what_a_frame_costs_when_it_is_new_is_reported_apart():
    """An engine that compiles what a frame needs when the first frame of its kind comes: here the last one's."""
    result, _ = one(load=lambda number: 30.0 if number == len(FRAMES) - 1 else 1.0)
    assert (result.first_runs.p50, result.first_runs.most) == pytest.approx((5.0, 150.0))
    assert result.first_runs.compiled_ms == pytest.approx(145.0)
    assert result.dynamic.latency_ms.p99 == pytest.approx(5.0) and result.speedup == pytest.approx(2.0)


def test_engines_take_turns_and_are_compared_with_the_first():
    time, log = Time(), []
    slow = ScriptedSession(time, log, name="slow", dense_ms=30.0, speedup=1.5)
    fast = ScriptedSession(time, log, name="fast", dense_ms=10.0, speedup=2.0)
    first, second = run(time, [slow, fast])
    assert (first.engine, second.engine) == ("slow", "fast")
    assert first.engine_factor == 1.0 and second.engine_factor == pytest.approx(3.0)
    assert second.total_factor == pytest.approx(6.0)
    turns = [log[number : number + 4] for number in range(2 * WARM_UP, len(log), 4)]
    assert all({entry[0] for entry in turn} == {"slow", "fast"} for turn in turns)
    leaders = [turn[0][0] for turn in turns]
    assert leaders.count("slow") == leaders.count("fast")


def test_frames_are_distinguished():
    result, _ = one()
    assert [entry.frame for entry in result.per_frame] == list(LABELS)
    assert [entry.kept for entry in result.per_frame] == list(KEPT)
    saved = [entry.flops_saved for entry in result.per_frame]
    assert saved[0] < saved[1] < saved[2]


def test_a_coarse_processor_clock_gives_no_cpu_speedup():
    result, _ = one(cpu_share=0.0)
    assert result.cpu_speedup is None and result.speedup == pytest.approx(2.0)


def test_without_a_dense_form_the_dynamic_run_alone_is_timed():
    time, log = Time(), []
    slow = ScriptedSession(time, log, name="slow", dense_ms=30.0, speedup=1.5)
    fast = ScriptedSession(time, log, name="fast", dense_ms=10.0, speedup=2.0)
    contestants = [Contestant(session.name, "fp32", session) for session in (slow, fast)]
    first, second = benchmark(contestants, FRAMES, labels=LABELS, repeat=2, dense=False, clock=time.clock())
    assert not any(dense for _, _, dense in log) and len(log) == 2 * 3 * len(FRAMES)
    for result in (first, second):
        assert result.dense is result.speedup is result.realised_efficiency is result.cpu_speedup is None
        assert result.predicted_speedup > 1 and all(entry.speedup is None for entry in result.per_frame)
    assert second.dynamic.latency_ms.p50 == pytest.approx(5.0)
    assert second.engine_factor == second.total_factor == pytest.approx(4.0)


def test_progress_counts_turns():
    time, log, seen = Time(), [], []
    contestant = Contestant("one", "fp32", ScriptedSession(time, log))
    benchmark(
        [contestant],
        FRAMES,
        labels=LABELS,
        repeat=2,
        clock=time.clock(),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(number, 6) for number in range(1, 7)]


LIMIT = 10**6


def save(path, level, size=(40, 50)):
    Image.fromarray(np.full((*size, 3), level, dtype=np.uint8)).save(path)


def test_rendered_streets_come_in_every_density_and_are_the_same_every_time(monkeypatch):
    monkeypatch.setattr("dovit_deploy.measure.bench.SCENES_PER_DENSITY", 1)
    frames, again = rendered_frames(fake_manifest()), rendered_frames(fake_manifest())
    assert len(frames.pixels) == len(set(frames.labels)) == len(DENSITIES)
    assert all(pixels.shape == (1, 3, 64, 96) and pixels.dtype == np.float32 for pixels in frames.pixels)
    # The same street at another density is another image.
    assert not np.array_equal(frames.pixels[0], frames.pixels[1])
    assert all(map(np.array_equal, frames.pixels, again.pixels))


def test_images_are_resized_even_where_windows_would_slide(tmp_path):
    save(tmp_path / "a.png", 90, size=(300, 400))
    manifest = fake_manifest(stride=(32, 48))
    frames = frames_from_source(str(tmp_path / "a.png"), manifest, max_pixels=LIMIT)
    plain = to_input(np.full((300, 400, 3), 90, dtype=np.uint8), fake_manifest().preprocessing, (64, 96))
    np.testing.assert_array_equal(frames.pixels[0], plain)


def test_a_bad_image_is_reported_and_the_others_are_taken(tmp_path):
    save(tmp_path / "a.png", 10)
    (tmp_path / "b.png").write_bytes(b"not an image")
    save(tmp_path / "c.png", 200)
    frames = frames_from_source(str(tmp_path), fake_manifest(), max_pixels=LIMIT)
    assert frames.labels == ("a.png 0", "c.png 2")
    assert len(frames.failures) == 1 and "b.png" in frames.failures[0]


def test_nothing_readable_is_an_error(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"not an image")
    with pytest.raises(SourceError, match=r"a\.png"):
        frames_from_source(str(tmp_path), fake_manifest(), max_pixels=LIMIT)


@pytest.mark.parametrize(("total", "taken"), [(MOST_FRAMES, 16), (MOST_FRAMES + 1, 9), (5 * MOST_FRAMES, 16)])
def test_many_frames_are_thinned_evenly(tmp_path, total, taken):
    for number in range(total):
        save(tmp_path / f"{number:03}.png", number, size=(4, 4))
    frames = frames_from_source(str(tmp_path), fake_manifest(), max_pixels=LIMIT)
    assert len(frames.pixels) == taken
    assert frames.taken_from == (None if total == taken else total)
    steps = np.diff([int(label.split()[1]) for label in frames.labels])
    assert set(steps) == {-(-total // MOST_FRAMES)}


def test_a_video_is_a_source(tmp_path):
    path = tmp_path / "clip.mp4"
    with open_video_writer(path, size=(48, 64), rate=Fraction(25)) as writer:
        for number in range(20):
            writer.write(np.full((48, 64, 3), 10 * number, dtype=np.uint8), Fraction(number, 25))
    frames = frames_from_source(str(path), fake_manifest(), max_pixels=LIMIT)
    assert len(frames.pixels) == 10 and frames.taken_from == 20
    assert frames.labels[1] == "clip.mp4 2"


TIMES = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=30)


def test_percentiles_of_known_values():
    found = percentiles([float(value) for value in range(101)][::-1])
    assert found.model_dump() == {"mean": 50.0, "p50": 50.0, "p90": 90.0, "p99": 99.0}


def test_one_value_is_all_of_its_percentiles():
    assert set(percentiles([7.5]).model_dump().values()) == {7.5}


def test_ratios_are_taken_before_the_median():
    # Both halves of the second pair are slow: the ratio of medians would be 30 / 20.
    assert median_ratio([2.0, 300.0, 30.0], [1.0, 150.0, 20.0]) == 2.0
    assert median([3.0, 1.0, 2.0]) == 2.0


@settings(max_examples=50, derandomize=True)
@given(TIMES)
def test_percentiles_rise_and_stay_within_the_values(values):
    found = percentiles(values)
    slack = 1e-9 * max(values)
    assert min(values) - slack <= found.p50 <= found.p90 + slack <= found.p99 + 2 * slack <= max(values) + 3 * slack


@settings(max_examples=50, derandomize=True)
@given(TIMES, st.floats(0.5, 4.0))
def test_a_drifting_machine_does_not_change_the_ratio(values, factor):
    assert median_ratio([factor * value for value in values], values) == pytest.approx(factor)
