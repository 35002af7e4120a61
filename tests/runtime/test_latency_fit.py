"""Fitting a latency model: on a machine whose times are known it is exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import LOGITS
from dovit_deploy.runtime import latencies, latency_fit
from dovit_deploy.runtime.latencies import (
    LatencyCache,
    graphs_digest,
    has_latency_model,
    latency_model_here,
    measured_anew,
    timed_as,
)
from dovit_deploy.runtime.latency import StageTime
from dovit_deploy.runtime.latency_fit import clock_for, fit_latency, patterns, run_every_size
from dovit_deploy.runtime.session import Session
from tests.runtime.test_latency import model_of

SIZES = (5, 10, 15, 21)
LAW = model_of(
    StageTime(constant=4, linear=0, quadratic=0),
    StageTime(constant=1, linear=0.2, quadratic=0.01),
    StageTime(constant=2, linear=0.1, quadratic=0.02, sizes=SIZES),
    outside_ms=0.5,
)


class KnownSession:
    """Stands in for a session of the tiny bundle whose stages take what `LAW` says, and compute nothing."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.threads = bundle, 1
        self.backend = SimpleNamespace(name="known", precision="fp32", download=lambda buffer: buffer)
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def size_run(self, number: int, count: int) -> int:
        return next(size for size in SIZES if size >= count) if number == 2 else count

    def stages(self, pixels, settings) -> Iterator[tuple[dict[str, float], object]]:
        kept = (self.bundle.manifest.spec.tokens, *map(len, settings.replay))
        for number, (stage, count) in enumerate(zip(LAW.stages, kept, strict=True)):
            self.now += 1e-3 * float(stage.at(count))
            yield {LOGITS: 0.0}, settings.replay[number] if number < len(settings.replay) else None

    def run_one(self, pixels, settings) -> None:
        list(self.stages(pixels, settings))
        self.now += 1e-3 * LAW.outside_ms


@pytest.fixture(scope="module")
def tiny(tiny_bundle_path: Path) -> Bundle:
    return Bundle.open(tiny_bundle_path)


def test_known_times_are_found_again(tiny: Bundle) -> None:
    known = KnownSession(tiny)
    tokens = tiny.manifest.spec.tokens
    assert tokens == SIZES[-1]
    model = fit_latency(known, clock=known.clock)
    assert (model.clock, model.threads, model.held_out) == ("cpu", 1, latency_fit.HELD_OUT)
    assert model.error < 1e-6 and model.slow == pytest.approx(1)
    assert [stage.sizes for stage in model.stages] == [(), (), SIZES]
    for kept in ((tokens, 1, 1), (tokens, 17, 3), (tokens, tokens, tokens)):
        assert model.milliseconds(kept) == pytest.approx(LAW.milliseconds(kept), rel=1e-6)


def test_patterns_never_rise_and_those_to_check_with_were_not_fitted(tiny: Bundle) -> None:
    spec = tiny.manifest.spec
    fit, held_out = patterns(spec)
    for pattern in (*fit, *held_out):
        assert pattern[0] == spec.tokens and min(pattern) >= spec.extra_tokens
        assert list(pattern) == sorted(pattern, reverse=True)
    assert {spec.extra_tokens, spec.tokens} <= {pattern[-1] for pattern in fit}
    assert (fit, held_out) == patterns(spec)


def test_a_real_session_is_measured_in_every_engine_that_pads_or_not(tiny: Bundle) -> None:
    for engine in ("onnxruntime", "openvino"):
        pytest.importorskip(engine)
        with Session(tiny, engine=engine, threads=1) as session:
            model = fit_latency(session, seconds=0)
        assert len(model.stages) == 3 and model.error < 1
        assert bool(model.stages[1].sizes) == (engine == "openvino")
        assert model.milliseconds((21, 21, 21)) >= model.milliseconds((21, 1, 1)) > 0


def test_no_size_is_compiled_for_a_frame_once_all_were_run(tiny: Bundle) -> None:
    pytest.importorskip("openvino")
    with Session(tiny, engine="openvino", threads=1) as session:
        run_every_size(session, 21)
        compiled = [session.engine(graph).buckets for graph in ("stage1", "stage2")]
        for count in range(1, 22):
            assert [session.size_run(number, count) in sizes for number, sizes in enumerate(compiled, 1)] == [True] * 2
        run_every_size(session, 3)
        assert [session.engine(graph).buckets for graph in ("stage1", "stage2")] == compiled


def test_one_thread_is_timed_in_processor_time_and_several_in_wall_time() -> None:
    assert [clock_for(threads) for threads in (1, 2, None)] == ["cpu", "wall", "wall"]


def test_it_is_measured_once_and_said(tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latencies, "SHORT_SECONDS", 0)
    lines: list[str] = []
    cache = LatencyCache(tmp_path)
    with Session(tiny, threads=1) as session:
        first = latency_model_here(session, remark=lines.append, cache=cache)
        assert lines[0].startswith("no latency model of onnxruntime fp32 on 1 thread yet: a short one is measured; ")
        assert lines[0].endswith(
            f"dovit bench {tiny.path} --engine onnxruntime --precision fp32 --threads 1 makes a better one"
        )
        assert latency_model_here(session, remark=lines.append, cache=cache) == first
        assert lines[-1].startswith(f"latency model of {first.date[:10]}: ")
        (entry,) = cache.entries()
        assert entry.situation == timed_as(session)
        # A file that somebody edited is no reason to fail.
        cache.remember(timed_as(session), first.model_copy(update={"stages": first.stages[:1]}))
        assert len(latency_model_here(session, remark=lines.append, cache=cache).stages) == 3
    with Session(tiny, threads=2) as other:
        assert cache.recall(timed_as(other)) is None
    with Session(tiny) as other:
        # The one that `bench` makes of as many threads as there are cores.
        assert timed_as(other).threads == latencies.this_machine().cores
        assert measured_anew(other).endswith(f"--precision fp32 --threads {latencies.this_machine().cores}")


def test_thresholds_take_no_time(tiny: Bundle) -> None:
    defaults = tiny.manifest.defaults.model_copy(update={"floor": 0.25})
    changed = dataclasses.replace(tiny, manifest=tiny.manifest.model_copy(update={"defaults": defaults}))
    files = {name: entry for name, entry in tiny.manifest.files.items() if not name.startswith("stage0")}
    fewer = dataclasses.replace(tiny, manifest=tiny.manifest.model_copy(update={"files": files}))
    assert graphs_digest(changed) == graphs_digest(tiny) != graphs_digest(fewer)


def test_a_model_without_gates_has_none(dense_bundle_path: Path, tiny: Bundle) -> None:
    with Session(dense_bundle_path) as dense, Session(tiny) as gated:
        assert (has_latency_model(dense), has_latency_model(gated)) == (False, True)


def test_order_of_tokens_is_nested_and_in_raster_order(tiny: Bundle) -> None:
    measuring = latency_fit._Measuring(KnownSession(tiny), lambda: 0.0)
    former: set[int] = set()
    for count in range(1, tiny.manifest.spec.tokens + 1):
        index = measuring._index(count)
        assert len(index) == count and index.dtype == np.int64 and (np.diff(index) > 0).all()
        assert former <= set(index.tolist())
        former = set(index.tolist())
