"""The runtime of TensorRT engines against a fake device and a fake TensorRT: sizes, order, buckets, graphs, leaks."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.manifest import FileEntry
from dovit_deploy.engines.cuda.memory import DeviceArray
from dovit_deploy.engines.tensorrt import run as tensorrt_run
from dovit_deploy.engines.tensorrt.context import TensorRtEngine
from dovit_deploy.engines.tensorrt.layers import LayerSummary
from dovit_deploy.engines.tensorrt.record import EngineRecord
from dovit_deploy.engines.tensorrt.stage import MOST_GRAPHS, TensorRtStage
from dovit_deploy.engines.tensorrt.store import EngineCache, EngineSet
from dovit_deploy.errors import (
    DeviceFailed,
    DeviceOutOfMemory,
    EngineInvalid,
    EngineMissing,
    InputError,
    PackageMissing,
    ProviderMissing,
)
from dovit_deploy.graphs.forms import PRECISIONS
from dovit_deploy.runtime.session import Session
from tests.engines.cuda.fake_device import FakeMemory, view
from tests.engines.tensorrt.fake_builder import runnable_tensors
from tests.engines.tensorrt.fake_tensorrt import FakeTensorRt, fake_tensorrt
from tests.engines.tensorrt.run_fakes import Bench, built
from tests.graphs.derived import DerivedBackend
from tests.tiny import tiny_pixels

BUCKETS = (4, 8, 16)


@pytest.fixture(scope="module")
def bundle(tiny_bundle_path: Path) -> Bundle:
    """Stages of 21, up to 21 and up to 21 tokens."""
    return Bundle.open(tiny_bundle_path)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def engines(bundle: Bundle, home: Path) -> EngineSet:
    return built(bundle, EngineCache(home), precision="fp32", buckets=BUCKETS)


@pytest.fixture
def bench(engines: EngineSet, home: Path) -> Bench:
    return Bench(engines, home)


@pytest.fixture
def session(bundle: Bundle, bench: Bench):
    with Session(bundle, backend=bench.backend()) as opened:
        yield opened
    assert_nothing_is_left(bench)


def assert_nothing_is_left(bench: Bench) -> None:
    assert bench.memory.closed
    assert not bench.memory.live
    assert not bench.memory.launches
    assert not bench.memory.queue


def pixels_of(bundle: Bundle, seed: int = 0) -> np.ndarray:
    return tiny_pixels(bundle.manifest.spec.size, seed).numpy()


def since(bench: Bench, start: int) -> list[str]:
    return bench.memory.log[start:]


def test_outputs_are_those_of_the_derived_graphs_bit_for_bit(bundle: Bundle, session: Session, tmp_path: Path) -> None:
    """What is padded on the device is what the reference pads on the host."""
    backend = DerivedBackend(bundle, tmp_path / "x", precision="fp32", plugins=False)
    with Session(bundle, backend=backend) as derived:
        for number in (1, 2):
            derived.engine(f"stage{number}").buckets = (*BUCKETS, 21)
        for seed in range(4):
            want, asked = derived.run(pixels_of(bundle, seed))
            got, report = session.run(pixels_of(bundle, seed))
            assert np.array_equal(want, got)
            assert asked.kept == report.kept
            for one, other in zip(asked.confidence, report.confidence, strict=True):
                assert np.array_equal(one, other, equal_nan=True)


@settings(max_examples=20, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 1), floor=st.sampled_from([0.0, 0.3]))
def test_decisions_are_those_of_the_plain_engine(
    bundle: Bundle, session: Session, plain: Session, seed: int, threshold: float, floor: float
) -> None:
    pixels = pixels_of(bundle, seed)
    want, asked = plain.run(pixels, thresholds=threshold, floor=floor)
    got, report = session.run(pixels, thresholds=threshold, floor=floor)
    looked = np.concatenate([gate[np.isfinite(gate)] for gate in asked.confidence])
    if min(np.abs(looked - np.float32(threshold)).min(), np.abs(looked - np.float32(floor)).min()) > 1e-4:
        assert report.kept == asked.kept
        assert all(np.array_equal(one, other) for one, other in zip(report.keep, asked.keep, strict=True))
        np.testing.assert_allclose(got, want, atol=1e-4 * max(1, np.abs(want).max()))


@pytest.fixture(scope="module")
def plain(bundle: Bundle):
    with Session(bundle, threads=1) as opened:
        yield opened


def test_dense_is_an_engine_of_its_own(bundle: Bundle, session: Session, plain: Session) -> None:
    pixels = pixels_of(bundle)
    np.testing.assert_allclose(session.run(pixels, dense=True)[0], plain.run(pixels, dense=True)[0], atol=1e-4)


def test_a_frame_is_one_launch_a_stage_and_only_the_count_comes_back(
    bundle: Bundle, session: Session, bench: Bench
) -> None:
    session.run(pixels_of(bundle, 1))
    start = len(bench.memory.log)
    report = session.run(pixels_of(bundle))[1]
    log = since(bench, start)
    # Its thresholds are those of the frame before: they are not brought again.
    assert log[:2] == ["copy host to device", "launch"]
    assert log.count("launch") == 3
    assert not [line for line in log if line.startswith(("run", "allocate", "capture"))]
    before_the_last = log[: len(log) - log[::-1].index("launch") - 1]
    assert before_the_last.count("copy device to host") == 2, "the counts of two gates"
    # Logits, and for the report an index and confidences of each gate, after everything was enqueued.
    assert log[-5:] == ["copy device to host"] * 5
    assert len(report.kept) == 3


def test_every_bucket_is_run_and_captured_before_the_first_frame(session: Session, bench: Bench) -> None:
    runs = [line for line in bench.memory.log if line.startswith("run")]
    assert runs == ["run", *[f"run {size}" for size in (21, 16, 8, 4)] * 2]
    assert bench.memory.log.count("capture") == len(runs)
    assert [session.engine(f"stage{number}").graphs for number in range(3)] == [1, 4, 4]
    assert "launch" not in bench.memory.log
    assert not bench.memory.queue, "what fails then is said when the engine is loaded"


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


def test_counts_are_rounded_up_to_buckets(bundle: Bundle, bench: Bench) -> None:
    bench.state.capturable = False
    with Session(bundle, backend=bench.backend()) as session:
        for seed in range(6):
            start = len(bench.memory.log)
            report = session.run(pixels_of(bundle, seed))[1]
            sizes = [int(line.split()[1]) for line in since(bench, start) if line.startswith("run ")]
            assert sizes == [min(size for size in (*BUCKETS, 21) if size >= count) for count in report.kept[1:]]
    assert not bench.memory.launches


def test_nothing_is_allocated_after_the_first_frames(bundle: Bundle, session: Session, bench: Bench) -> None:
    """Every buffer grows to what is needed once."""
    frames = [pixels_of(bundle, seed) for seed in range(4)]
    keep = session.run(frames[0])[1].keep
    session.run(frames[0], keep=keep)
    held, start = set(bench.memory.live), len(bench.memory.log)
    for frame in frames:
        session.run(frame, thresholds=0.4)
        session.run(frame, thresholds=0.95)
        session.run(frame, thresholds=[0.3, 0.99], floor=0.2)
    session.run(frames[0], keep=keep)
    assert "allocate" not in since(bench, start)
    assert set(bench.memory.live) == held


def test_replaying_a_runs_own_decisions_is_bit_equal(bundle: Bundle, session: Session) -> None:
    for seed in range(3):
        logits, report = session.run(pixels_of(bundle, seed))
        again, replayed = session.run(pixels_of(bundle, seed), keep=report.keep)
        assert np.array_equal(logits, again)
        assert replayed.kept == report.kept


def test_a_replay_may_keep_nothing_or_everything(bundle: Bundle, session: Session, plain: Session) -> None:
    grid = bundle.manifest.spec.grid
    for value in (False, True):
        keep = [np.full(grid, value)] * 2
        got, report = session.run(pixels_of(bundle), keep=keep)
        want, asked = plain.run(pixels_of(bundle), keep=keep)
        assert report.kept == asked.kept
        np.testing.assert_allclose(got, want, atol=1e-4)


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


@pytest.mark.parametrize(
    "capabilities",
    [{"runtime_config": False}, {"runtime_config": False, "given_memory": False}, {"reports_capturable": False}],
    ids=["tensorrt", "tensorrt 10.0", "untold"],
)
def test_other_packages(capabilities, bundle: Bundle, bench: Bench, session: Session) -> None:
    want = session.run(pixels_of(bundle))[0]
    other = Bench(bench.engines, bench.home)
    with Session(bundle, backend=other.backend(**capabilities)) as opened:
        assert np.array_equal(opened.run(pixels_of(bundle))[0], want)
    assert_nothing_is_left(other)


def test_compiled_kernels_are_kept_for_the_next_time(dense_bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(dense_bundle_path)
    engines = built(bundle, EngineCache(tmp_path), precision="fp32")
    first, second = Bench(engines, tmp_path), Bench(engines, tmp_path)
    with Session(bundle, backend=first.backend()):
        assert first.state.given_caches == []
    path = EngineCache(tmp_path).kernels_path(engines.entry.key, "stage0", "8.6")
    assert path.read_bytes() == b"kernels"
    with Session(bundle, backend=second.backend()):
        assert second.state.given_caches == [b"kernels"]
    path.unlink()
    path.mkdir()
    with Session(bundle, backend=Bench(engines, tmp_path).backend()):
        "A cache that cannot be written is no reason to fail."


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


@pytest.mark.parametrize("limit", [1000, 9000, 40_000, 60_000])
def test_out_of_device_memory_gives_everything_back(limit: int, bundle: Bundle, bench: Bench) -> None:
    bench.memory.limit = limit
    with pytest.raises(DeviceOutOfMemory, match="out of GPU memory") as caught:
        Session(bundle, backend=bench.backend())
    assert caught.value.exit_code == 5
    assert_nothing_is_left(bench)


@pytest.mark.parametrize(
    ("call", "logged", "error", "words"),
    [
        ("deserialize", "(cudaError 35: CUDA driver version is insufficient)", ProviderMissing, "nvidia-smi"),
        (
            "deserialize",
            "Serialization assertion header.magicTag failed",
            EngineInvalid,
            "dovit build BUNDLE --rebuild",
        ),
        (
            "deserialize",
            "no plugin TokenGather",
            EngineInvalid,
            "does not accept the engine: no plugin",
        ),
        ("deserialize", "(cudaError 2: out of memory)", DeviceOutOfMemory, "end other programs"),
        ("context", "no tactic", DeviceFailed, "stage0: no execution context for profile 0: no tactic"),
        ("execute", "illegal address", DeviceFailed, "TensorRT does not run: illegal address"),
        ("execute", "", DeviceFailed, "gave no reason"),
    ],
)
def test_what_tensorrt_refuses(call: str, logged: str, error, words: str, bundle: Bundle, bench: Bench) -> None:
    setattr(bench.state.faults, call, logged or "\n")
    with pytest.raises(error, match="stage0: ") as caught:
        Session(bundle, backend=bench.backend())
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert_nothing_is_left(bench)


def test_another_gpu(bundle: Bundle, bench: Bench) -> None:
    bench.memory.device = type(bench.memory.device)("another", "7.5")
    words = r"were built for compute capability 8\.0, 8\.6, this GPU has 7\.5; .*dovit build"
    with pytest.raises(EngineInvalid, match=words):
        Session(bundle, backend=bench.backend())
    assert not bench.state.engines, "TensorRT has not seen it"
    assert_nothing_is_left(bench)


def test_a_graph_that_was_not_built(bundle: Bundle, session: Session) -> None:
    with pytest.raises(EngineMissing, match=r"has no engine of merged; build it with: dovit build"):
        session.engine("merged")
    session.run(pixels_of(bundle))


def test_an_altered_engine_is_refused_before_tensorrt_sees_it(bundle: Bundle, tmp_path: Path) -> None:
    engines = built(bundle, EngineCache(tmp_path), precision="fp32")
    path = engines.engine_path("stage1")
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    bench = Bench(engines, tmp_path)
    with pytest.raises(EngineInvalid, match=r"stage1\.engine is not what its sidecar was written for"):
        Session(bundle, backend=bench.backend())
    assert len(bench.state.engines) == 1, "stage0 alone"
    assert_nothing_is_left(bench)


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
    """Two runs on the way at once: the second waits for the first one's copies alone."""
    stage = session.engine("stage0")
    limits = {"thresholds": np.full(5, 0.7, np.float32), "floor": np.zeros((), np.float32)}
    first, second = pixels_of(bundle, 1), pixels_of(bundle, 2)
    stage.run({"pixels": first, **limits})
    kept = bench.memory.pinned(stage.outputs["tokens"].nbytes).view(np.float32).reshape(21, 16)
    bench.memory.copy(kept, stage.outputs["tokens"])
    other = session.backend.download(stage.run({"pixels": second, **limits})["tokens"])
    assert not np.array_equal(kept, other)
    assert np.array_equal(kept, session.backend.download(stage.run({"pixels": first, **limits})["tokens"]))


def test_a_model_without_gates(dense_bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(dense_bundle_path)
    bench = Bench(built(bundle, EngineCache(tmp_path), precision="fp32"), tmp_path)
    with Session(bundle, threads=1) as plain, Session(bundle, backend=bench.backend()) as session:
        want, got = plain.run(pixels_of(bundle)), session.run(pixels_of(bundle))
        np.testing.assert_allclose(got[0], want[0], atol=1e-4)
        assert got[1].kept == want[1].kept
    assert_nothing_is_left(bench)


def test_all_stages_in_one_engine(bundle: Bundle, plain: Session, tmp_path: Path, monkeypatch) -> None:
    """Its sizes come from plugins, whose bodies ONNX Runtime runs; nothing of it can be captured."""
    monkeypatch.setattr(tensorrt_run, "check_plugins_run", lambda: None)
    monkeypatch.setattr(tensorrt_run, "registered_plugins", lambda package: None)
    bench = Bench(built(bundle, EngineCache(tmp_path), precision="fp32", plugins=True, merged=True), tmp_path)
    bench.state.capturable = False
    with Session(bundle, backend=bench.backend()) as session:
        limits = {"thresholds": np.full((2, 5), 0.7, np.float32), "floor": np.zeros((), np.float32)}
        outputs = session.engine("merged").run({"pixels": pixels_of(bundle), **limits})
        want, report = plain.run(pixels_of(bundle), thresholds=0.7)
        np.testing.assert_allclose(session.backend.download(outputs["logits"]), want, atol=1e-4)
        assert tuple(session.backend.download(outputs["kept"])) == report.kept
    assert_nothing_is_left(bench)


def test_plugins_are_asked_for_before_tensorrt_sees_an_engine(bundle: Bundle, tmp_path: Path, monkeypatch) -> None:
    bench = Bench(built(bundle, EngineCache(tmp_path), precision="fp32", plugins=True), tmp_path)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(PackageMissing, match="pip install cuda-bindings"):
        Session(bundle, backend=bench.backend())
    assert not bench.state.engines
    assert_nothing_is_left(bench)


def growing_stage(memory: FakeMemory) -> TensorRtStage:
    """An engine that gives the places of what is not 0: as many as there are."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("NonZero", ["pixels"], ["places"])],
        "places",
        [value("pixels", onnx.TensorProto.FLOAT, [200])],
        [value("places", onnx.TensorProto.INT64, [1, "found"])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    plan = model.SerializeToString()
    tensors, entry = runnable_tensors(model), FileEntry(sha256="0" * 64, bytes=len(plan))
    record = EngineRecord(
        graph="places",
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
    engine = TensorRtEngine(fake_tensorrt(FakeTensorRt()), plan, name="places")
    return TensorRtStage(engine, record, memory, closed=lambda: None)


def test_an_output_whose_size_the_data_decide() -> None:
    """An allocator places it: it grows when it must and never shrinks, and nothing is captured."""
    memory = FakeMemory()
    stage = growing_stage(memory)
    sizes, allocated = [3, 100, 40, 0, 150, 100], []
    for size in sizes:
        pixels = (np.arange(200) < size).astype(np.float32)
        places = stage.run({"pixels": pixels})["places"]
        assert places.shape == (1, size)
        out = np.empty((1, size), np.int64)
        memory.copy(out, places)
        memory.mark().wait()
        assert np.array_equal(out[0], np.arange(size))
        allocated.append(memory.log.count("allocate"))
    assert [after > before for before, after in itertools.pairwise(allocated)] == [True, False, False, True, False]
    assert "capture" not in memory.log
    stage.close()
    assert not memory.live
    stage.close()


def test_a_batch_gives_what_each_gives_alone(bundle: Bundle, session: Session) -> None:
    batch = tiny_pixels(bundle.manifest.spec.size, images=3).numpy()
    logits, reports = session.run(batch)
    assert isinstance(reports, list)
    for number in range(3):
        alone, report = session.run(batch[number : number + 1])
        assert np.array_equal(alone, logits[number : number + 1])
        assert report.kept == reports[number].kept


def test_outputs_are_where_they_say(bundle: Bundle, session: Session, bench: Bench) -> None:
    limits = {"thresholds": np.full(5, 0.7, np.float32), "floor": np.zeros((), np.float32)}
    outputs = session.engine("stage0").run({"pixels": pixels_of(bundle), **limits})
    bench.memory.mark().wait()
    order = view(outputs["order"])
    assert sorted(order) == list(range(21))
    assert outputs["order"].stream == bench.memory.stream
