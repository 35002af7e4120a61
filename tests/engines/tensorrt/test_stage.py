"""One engine with its buffers on a fake device: buckets, shapes, addresses, CUDA graphs, outputs of open size."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.manifest import FileEntry, TokenCount
from dovit_deploy.engines.cuda.memory import DeviceArray
from dovit_deploy.engines.tensorrt.context import TensorRtEngine
from dovit_deploy.engines.tensorrt.layers import LayerSummary
from dovit_deploy.engines.tensorrt.record import EngineRecord
from dovit_deploy.engines.tensorrt.stage import (
    MOST_GRAPHS,
    ONLY,
    STEPS,
    Bucket,
    TensorRtStage,
    bucket_for_count,
    buckets_from_profiles,
)
from dovit_deploy.engines.tensorrt.store import EngineCache
from dovit_deploy.errors import InputError
from dovit_deploy.graphs.forms import PRECISIONS
from dovit_deploy.runtime.session import Session
from tests.engines.cuda.fake_device import FakeMemory, view
from tests.engines.tensorrt.fake_builder import runnable_tensors
from tests.engines.tensorrt.fake_tensorrt import FakeTensorRt, fake_tensorrt
from tests.engines.tensorrt.run_fakes import BUCKETS, Bench, assert_nothing_is_left, built, pixels_of, since


def counts(minimum: int, maximum: int) -> TokenCount:
    return TokenCount(minimum=minimum, typical=(minimum + maximum) // 2, maximum=maximum)


def test_a_graph_of_one_size() -> None:
    assert buckets_from_profiles(()) == ONLY


def test_exact_profiles_are_buckets() -> None:
    profiles = (counts(128, 128), counts(256, 256), counts(1025, 1025))
    assert buckets_from_profiles(profiles) == (Bucket(128, 0), Bucket(256, 1), Bucket(1025, 2))


def test_of_two_profiles_the_narrower_runs_a_size() -> None:
    buckets = buckets_from_profiles((counts(1, 160), counts(40, 40), counts(41, 80)))
    assert {bucket.size: bucket.profile for bucket in buckets}[40] == 1
    assert {bucket.size: bucket.profile for bucket in buckets}[80] == 2
    assert {bucket.size: bucket.profile for bucket in buckets}[160] == 0


@settings(derandomize=True, deadline=None)
@given(minimum=st.integers(1, 50), more=st.integers(0, 3000), count=st.integers(1, 3050))
def test_a_range(minimum: int, more: int, count: int) -> None:
    """Every bucket lies within the profile, the largest count has one, and little runs in vain."""
    buckets = buckets_from_profiles((counts(minimum, minimum + more),))
    sizes = [bucket.size for bucket in buckets]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == minimum + more
    assert sizes[0] >= minimum
    assert len(sizes) <= STEPS
    if count > minimum + more:
        with pytest.raises(InputError, match=f"stage1: {count} tokens run, .* at most {minimum + more}"):
            bucket_for_count(buckets, count, graph="stage1")
        return
    bucket = bucket_for_count(buckets, count, graph="stage1")
    assert bucket.size >= count
    assert bucket.size - count <= max(minimum - count, -(-(minimum + more) // STEPS))


def test_every_bucket_is_run_and_captured_before_the_first_frame(session: Session, bench: Bench) -> None:
    runs = [line for line in bench.memory.log if line.startswith("run")]
    assert runs == ["run", *[f"run {size}" for size in (21, 16, 8, 4)] * 2]
    assert bench.memory.log.count("capture") == len(runs)
    assert [session.engine(f"stage{number}").graphs for number in range(3)] == [1, 4, 4]
    assert "launch" not in bench.memory.log
    assert not bench.memory.queue, "a failure is reported when the engine is loaded"


def test_counts_are_rounded_up_to_buckets(bundle: Bundle, bench: Bench) -> None:
    bench.state.capturable = False
    with Session(bundle, backend=bench.backend()) as session:
        for seed in range(6):
            start = len(bench.memory.log)
            report = session.run(pixels_of(bundle, seed))[1]
            sizes = [int(line.split()[1]) for line in since(bench, start) if line.startswith("run ")]
            assert sizes == [min(size for size in (*BUCKETS, 21) if size >= count) for count in report.kept[1:]]
    assert not bench.memory.launches


@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_buckets_sixteen_steps_of_the_range(
    precision: str, bundle: Bundle, plain: Session, tmp_path: Path
) -> None:
    bench = Bench(built(bundle, EngineCache(tmp_path), precision=precision), tmp_path)
    with Session(bundle, backend=bench.backend(precision=precision)) as session:
        assert [bucket.size for bucket in session.engine("stage1").buckets][-3:] == [19, 20, 21]
        logits, report = session.run(pixels_of(bundle))
        want, asked = plain.run(pixels_of(bundle), keep=report.keep)
        assert logits.dtype == np.float32
        assert report.kept == asked.kept
        np.testing.assert_allclose(logits, want, atol=1e-4 if precision == "fp32" else 0.05)
    assert_nothing_is_left(bench)


def test_too_many_tokens(bundle: Bundle, tmp_path: Path) -> None:
    """A bundle whose counts were narrower when it was built."""
    narrow = bundle.manifest.counts[1].model_copy(update={"maximum": 8, "typical": 4})
    manifest = bundle.manifest.model_copy(update={"counts": (bundle.manifest.counts[0], narrow, narrow)})
    small = Bundle(bundle.path, manifest)
    bench = Bench(built(small, EngineCache(tmp_path), precision="fp32"), tmp_path)
    with Session(bundle, backend=bench.backend()) as session:
        session.run(pixels_of(bundle), thresholds=0.0)
        with pytest.raises(InputError, match=r"stage1: 21 tokens run, .* at most 8; .*--buckets 21") as caught:
            session.run(pixels_of(bundle), keep=[np.ones(bundle.manifest.spec.grid, bool)] * 2)
        assert caught.value.exit_code == 3
        session.run(pixels_of(bundle), thresholds=0.0)
    assert_nothing_is_left(bench)


def test_an_index_with_nothing_behind_it_is_padded_on_the_host(session: Session, bench: Bench) -> None:
    """A caller's own, on the device: what lies behind its five entries is no position."""
    block = bench.memory.allocate(5 * 8)
    index = DeviceArray.of(block.address, (5,), np.int64)
    bench.memory.copy(index, np.asarray([0, 3, 7, 8, 20]))
    limits = {"thresholds": np.full(5, 0.7, np.float32), "floor": np.zeros((), np.float32)}
    tokens = np.random.default_rng(0).normal(size=(21, 16)).astype(np.float32)
    given = {"tokens": tokens, **limits}
    one = session.engine("stage1").run({**given, "index": index})
    one = {name: session.backend.download(value) for name, value in one.items()}
    other = session.engine("stage1").run({**given, "index": np.asarray([0, 3, 7, 8, 20])})
    for name, value in other.items():
        assert np.array_equal(one[name], session.backend.download(value), equal_nan=True)


def test_addresses_that_move_about_do_not_pile_up_graphs(bundle: Bundle, session: Session, bench: Bench) -> None:
    """A caller's own buffers on the device."""
    stage = session.engine("stage0")
    limits = {"thresholds": np.full(5, 0.7, np.float32), "floor": np.zeros((), np.float32)}
    wanted = None
    for _ in range(MOST_GRAPHS + 3):
        block = bench.memory.allocate(pixels_of(bundle).nbytes)
        array = DeviceArray.of(block.address, pixels_of(bundle).shape, np.float32)
        bench.memory.copy(array, pixels_of(bundle))
        tokens = session.backend.download(stage.run({"pixels": array, **limits})["tokens"])
        wanted = tokens if wanted is None else wanted
        assert np.array_equal(tokens, wanted)
    assert stage.graphs == MOST_GRAPHS


def test_what_cannot_be_captured_runs_all_the_same(bundle: Bundle, bench: Bench, session: Session) -> None:
    want = session.run(pixels_of(bundle))[0]
    other = Bench(bench.engines, bench.home)
    other.memory.refuse_capture = True
    with Session(bundle, backend=other.backend()) as refused:
        assert np.array_equal(refused.run(pixels_of(bundle))[0], want)
        assert refused.engine("stage1").graphs == 0
    assert_nothing_is_left(other)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"tokens": np.zeros((20, 16), np.float32)}, r"tokens of shape \(20, 16\) given, \(21, 16\) needed"),
        ({"thresholds": np.zeros((), np.float32)}, r"thresholds of shape \(\) given"),
        ({"index": np.arange(22)}, "22 tokens run"),
    ],
)
def test_inputs_of_a_wrong_shape(inputs, words: str, session: Session) -> None:
    right = {
        "tokens": np.zeros((21, 16), np.float32),
        "index": np.arange(5),
        "thresholds": np.zeros(5, np.float32),
        "floor": np.zeros((), np.float32),
    }
    session.engine("stage1").run(right)
    with pytest.raises(InputError, match=words):
        session.engine("stage1").run({**right, **inputs})


def test_a_device_array_of_another_type(session: Session, bench: Bench) -> None:
    block = bench.memory.allocate(21 * 16 * 4)
    tokens = DeviceArray.of(block.address, (21, 16), np.float16)
    limits = {"thresholds": np.zeros(5, np.float32), "floor": np.zeros((), np.float32)}
    with pytest.raises(InputError, match="tokens: float16 given, float32 needed"):
        session.engine("stage1").run({"tokens": tokens, "index": np.arange(5), **limits})


def test_pinned_memory_is_not_written_while_it_is_read(bundle: Bundle, session: Session, bench: Bench) -> None:
    """Two runs enqueued at once: the second waits for the first one's copies alone."""
    stage = session.engine("stage0")
    limits = {"thresholds": np.full(5, 0.7, np.float32), "floor": np.zeros((), np.float32)}
    first, second = pixels_of(bundle, 1), pixels_of(bundle, 2)
    stage.run({"pixels": first, **limits})
    kept = bench.memory.pinned(stage.outputs["tokens"].nbytes).view(np.float32).reshape(21, 16)
    bench.memory.copy(kept, stage.outputs["tokens"])
    other = session.backend.download(stage.run({"pixels": second, **limits})["tokens"])
    assert not np.array_equal(kept, other)
    assert np.array_equal(kept, session.backend.download(stage.run({"pixels": first, **limits})["tokens"]))


def test_outputs_are_where_they_say(bundle: Bundle, session: Session, bench: Bench) -> None:
    limits = {"thresholds": np.full(5, 0.7, np.float32), "floor": np.zeros((), np.float32)}
    outputs = session.engine("stage0").run({"pixels": pixels_of(bundle), **limits})
    bench.memory.mark().wait()
    order = view(outputs["order"])
    assert sorted(order) == list(range(21))
    assert outputs["order"].stream == bench.memory.stream


def growing_stage(memory: FakeMemory) -> TensorRtStage:
    """An engine that returns the positions of all values but 0, whose number the data decide."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("NonZero", ["pixels"], ["positions"])],
        "positions",
        [value("pixels", onnx.TensorProto.FLOAT, [200])],
        [value("positions", onnx.TensorProto.INT64, [1, "found"])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    plan = model.SerializeToString()
    tensors, entry = runnable_tensors(model), FileEntry(sha256="0" * 64, bytes=len(plan))
    record = EngineRecord(
        graph="positions",
        key="k",
        engine="tensorrt-rtx",
        package_version="1.7.1",
        precision="fp32",
        compute_capabilities=("8.6",),
        tensors=tensors,
        profiles=(),
        onnx=entry,
        weights=entry,
        file=entry,
        plugins=None,
        layers=LayerSummary(
            layers=1, attention=0, fused_attention=0, plugin_layers=0, host_syncs=1, activation_bytes=None
        ),
        seconds=1.0,
        peak_memory_bytes=1,
    )
    engine = TensorRtEngine(fake_tensorrt(FakeTensorRt()), plan, name="positions")
    return TensorRtStage(engine, record, memory, closed=lambda: None)


def test_an_output_whose_size_the_data_decide() -> None:
    """Its memory grows when it must and never shrinks, and nothing is captured."""
    memory = FakeMemory()
    stage = growing_stage(memory)
    sizes, allocated = [3, 100, 40, 0, 150, 100], []
    for size in sizes:
        pixels = (np.arange(200) < size).astype(np.float32)
        positions = stage.run({"pixels": pixels})["positions"]
        assert positions.shape == (1, size)
        out = np.empty((1, size), np.int64)
        memory.copy(out, positions)
        memory.mark().wait()
        assert np.array_equal(out[0], np.arange(size))
        allocated.append(memory.log.count("allocate"))
    assert [after > before for before, after in itertools.pairwise(allocated)] == [True, False, False, True, False]
    assert "capture" not in memory.log
    stage.close()
    assert not memory.live
    stage.close()
