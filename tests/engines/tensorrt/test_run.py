"""TensorRT engines as a backend, on a fake device with a fake TensorRT: results, order of work, refusals, leaks."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.cuda.driver import GpuDevice
from dovit_deploy.engines.plugins.library import VARIABLE
from dovit_deploy.engines.tensorrt import run as tensorrt_run
from dovit_deploy.engines.tensorrt.store import EngineCache, EngineSet
from dovit_deploy.errors import (
    DeviceFailed,
    DeviceOutOfMemory,
    EngineInvalid,
    EngineMissing,
    PackageMissing,
    ProviderMissing,
    UsageError,
)
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from tests.engines.cuda.fake_device import FakeMemory
from tests.engines.tensorrt.bindings import RTX, all_bindings
from tests.engines.tensorrt.fake_tensorrt import fake_tensorrt
from tests.engines.tensorrt.run_fakes import BUCKETS, Bench, assert_nothing_is_left, built, pixels_of, since
from tests.graphs.derived import DerivedBackend
from tests.tiny import tiny_pixels


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
    evaluated = np.concatenate([gate[np.isfinite(gate)] for gate in asked.confidence])
    if min(np.abs(evaluated - np.float32(threshold)).min(), np.abs(evaluated - np.float32(floor)).min()) > 1e-4:
        assert report.kept == asked.kept
        assert all(np.array_equal(one, other) for one, other in zip(report.keep, asked.keep, strict=True))
        np.testing.assert_allclose(got, want, atol=1e-4 * max(1, np.abs(want).max()))


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
    # Its thresholds are those of the frame before: they are not copied again.
    assert log[:2] == ["copy host to device", "launch"]
    assert log.count("launch") == 3
    assert not [line for line in log if line.startswith(("run", "allocate", "capture"))]
    before_the_last = log[: len(log) - log[::-1].index("launch") - 1]
    # The counts of two gates come back; the next stage reads each where it is, so nothing goes there again.
    between = before_the_last[2:]
    assert between == ["copy device to host", "launch", "copy device to host"]
    # Logits, and for the report an index and confidences of each gate, after everything was enqueued.
    assert log[-5:] == ["copy device to host"] * 5
    assert len(report.kept) == 3


def test_of_a_gate_the_host_reads_the_count_and_writes_nothing(
    bundle: Bundle, session: Session, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls of a frame whose counts are others than those before: one copy to the device, and no event of a stage's own
    but that of this copy (with `valid` from the host it was two copies and two events more)."""
    before = session.run(pixels_of(bundle), thresholds=0.99)[1]
    session.run(pixels_of(bundle), thresholds=0.4)
    marks: list[int] = []
    mark = FakeMemory.mark
    monkeypatch.setattr(FakeMemory, "mark", lambda memory: marks.append(1) or mark(memory))
    start = len(bench.memory.log)
    report = session.run(pixels_of(bundle), thresholds=0.4)[1]
    assert before.kept[1:] != report.kept[1:]
    log = since(bench, start)
    assert log.count("copy host to device") == 1, "the pixels"
    assert len(marks) == 1 + log.count("copy device to host") == 1 + 2 + 5


def test_an_index_other_than_the_gates_own_brings_its_count(
    bundle: Bundle, session: Session, plain: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that takes less of the order than the gate let on: the count on the device would be wrong."""
    settings = RunSettings.resolve(bundle.manifest, thresholds=0.9)

    def halved(running: Session) -> np.ndarray:
        def half(number: int, outputs) -> object:
            read = int(running.backend.download(outputs["count"]))
            return running.backend.narrow(outputs["order"], max(1, read // 2))

        frames = running.stages(pixels_of(bundle), settings, decide=half)
        return next(running.backend.download(outputs["logits"]) for outputs, index in frames if index is None)

    # What `half` gives is on the device already.
    monkeypatch.setattr(session.backend, "upload", lambda value: value)
    np.testing.assert_allclose(halved(session), halved(plain), atol=1e-4)


def test_nothing_is_allocated_after_the_first_frames(bundle: Bundle, session: Session, bench: Bench) -> None:
    """Every buffer grows once, to what is needed."""
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


@pytest.mark.parametrize("version", [version for version in all_bindings() if version != RTX])
def test_every_version_of_tensorrt_runs(version: str, bundle: Bundle, session: Session, home: Path) -> None:
    """Of plain TensorRT, none has CUDA graphs of its own, a cache of kernels, or says what can be captured."""
    want = session.run(pixels_of(bundle))[0]
    engines = built(bundle, EngineCache(home), version=version, precision="fp32", buckets=BUCKETS)
    other = Bench(engines, home, version=version)
    with Session(bundle, backend=other.backend()) as opened:
        assert np.array_equal(opened.run(pixels_of(bundle))[0], want)
        assert opened.engine("stage1").graphs > 0
    assert not other.state.configs and not other.state.given_caches
    assert_nothing_is_left(other)


def test_rtx_compiles_before_the_capture_and_leaves_capturing_to_us(session: Session, bench: Bench) -> None:
    trt = fake_tensorrt(bench.state).module
    assert bench.state.configs
    for config in bench.state.configs:
        assert config.cuda_graph_strategy == trt.CudaGraphStrategy.DISABLED
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        assert config.dynamic_shapes_kernel_specialization_strategy == eager


def test_compiled_kernels_are_kept_for_the_next_time(dense_bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(dense_bundle_path)
    engines = built(bundle, EngineCache(tmp_path), precision="fp32")
    first, second = Bench(engines, tmp_path), Bench(engines, tmp_path)
    with Session(bundle, backend=first.backend()):
        assert first.state.given_caches == []
    path = EngineCache(tmp_path).kernels_path(engines.entry.key, "stage0", first.memory.device)
    assert path.read_bytes() == b"kernels"
    with Session(bundle, backend=second.backend()):
        assert second.state.given_caches == [b"kernels"]
    path.unlink()
    path.mkdir()
    with Session(bundle, backend=Bench(engines, tmp_path).backend()):
        "A cache that cannot be written is no reason to fail."


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
        ("start", "CUDA initialization failure with error: 35. Please check", ProviderMissing, "nvidia-smi"),
        ("start", "", ProviderMissing, "TensorRT does not start: it gave no reason"),
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


@pytest.mark.parametrize("damaged", [b"ker", b"", b"PK\x03\x04 of another program"])
def test_compiled_kernels_that_are_cut_short_or_foreign(
    damaged: bytes, dense_bundle_path: Path, tmp_path: Path
) -> None:
    """They are compiled again and the file is replaced; what fails later is not explained by what was logged of it."""
    bundle = Bundle.open(dense_bundle_path)
    engines = built(bundle, EngineCache(tmp_path), precision="fp32")
    bench, failing = Bench(engines, tmp_path), Bench(engines, tmp_path)
    path = EngineCache(tmp_path).kernels_path(engines.entry.key, "stage0", bench.memory.device)
    path.parent.mkdir(parents=True)
    path.write_bytes(damaged)
    for state in (bench.state, failing.state):
        state.faults.cache = "Serialization assertion size failed"
    with Session(bundle, backend=bench.backend()) as session:
        session.run(pixels_of(bundle))
        assert bench.state.given_caches == [damaged]
    assert path.read_bytes() == b"kernels"
    failing.state.faults.execute = "no tactic"
    with pytest.raises(DeviceFailed, match="TensorRT does not run: no tactic"):
        Session(bundle, backend=failing.backend())


def test_a_card_of_the_same_capability_compiles_its_own_kernels(engines: EngineSet, tmp_path: Path) -> None:
    cache, key = EngineCache(tmp_path), engines.entry.key
    one, other = GpuDevice("NVIDIA RTX A6000", "8.6"), GpuDevice("NVIDIA A10/24 (../x)", "8.6")
    assert cache.kernels_path(key, "stage0", one).name == "stage0-NVIDIA-RTX-A6000-8.6.bin"
    assert cache.kernels_path(key, "stage0", other).name == "stage0-NVIDIA-A10-24-x-8.6.bin"


def test_another_thread_runs_what_this_one_loaded(bundle: Bundle, session: Session) -> None:
    want = session.run(pixels_of(bundle))[0]
    with ThreadPoolExecutor(1) as pool:
        assert np.array_equal(pool.submit(lambda: session.run(pixels_of(bundle))[0]).result(), want)


def test_another_thread_loads_and_closes(bundle: Bundle, bench: Bench) -> None:
    with ThreadPoolExecutor(1) as pool:
        session = pool.submit(lambda: Session(bundle, backend=bench.backend())).result()
        session.run(pixels_of(bundle), dense=True)
    session.close()
    assert_nothing_is_left(bench)


def test_closed_twice_and_by_two_threads_at_once_it_frees_everything_once(bundle: Bundle, bench: Bench) -> None:
    session = Session(bundle, backend=bench.backend())
    session.run(pixels_of(bundle))
    with ThreadPoolExecutor(2) as pool:
        for closing in [pool.submit(session.close) for _ in range(2)]:
            closing.result()
    session.close()
    assert_nothing_is_left(bench)
    for use in (session, Session(bundle, backend=bench.backend())):
        use.close()
        with pytest.raises(UsageError, match="is closed; make a new one"):
            use.run(pixels_of(bundle))


def test_engines_that_are_built_again_meanwhile_are_taken_by_the_next_session(dense_bundle_path: Path, tmp_path: Path):
    """`dovit build --rebuild`, and the same beside a session that runs: it has its engines, and keeps its kernels."""
    bundle, cache = Bundle.open(dense_bundle_path), EngineCache(tmp_path)
    bench = Bench(built(bundle, cache, precision="fp32"), tmp_path)
    with Session(bundle, backend=bench.backend()) as session:
        want = session.run(pixels_of(bundle))[0]
        again = built(bundle, cache, rebuild=True, precision="fp32")
        assert np.array_equal(session.run(pixels_of(bundle))[0], want)
    assert_nothing_is_left(bench)
    second = Bench(again, tmp_path)
    with Session(bundle, backend=second.backend()) as session:
        assert np.array_equal(session.run(pixels_of(bundle))[0], want)


def test_after_a_failure_that_stays_closing_frees_everything(bundle: Bundle, bench: Bench) -> None:
    session = Session(bundle, backend=bench.backend())
    bench.memory.failed = True
    with pytest.raises(DeviceFailed, match="ILLEGAL_ADDRESS") as caught:
        session.run(pixels_of(bundle))
    assert caught.value.exit_code == 5
    session.close()
    session.close()
    assert_nothing_is_left(bench)


def test_the_probe_of_the_doctor_says_that_the_gpu_is_not_supported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_run, "tensorrt_package", lambda engine: fake_tensorrt(bench.state))
    monkeypatch.setattr(tensorrt_run, "opened_memory", bench.opened_memory)
    assert "compute capability 8.6" in tensorrt_run.probe_tensorrt_rtx()
    bench.memory.device = GpuDevice("NVIDIA H200", "9.0")
    with pytest.raises(ProviderMissing, match="does not support this GPU"):
        tensorrt_run.probe_tensorrt_rtx()
    assert_nothing_is_left(bench)


@pytest.mark.parametrize("built_before", [True, False], ids=["built", "none built"])
def test_a_gpu_that_rtx_does_not_support(built_before: bool, bundle: Bundle, bench: Bench, tmp_path: Path) -> None:
    """Building again would not help: what does is said, also where nothing was built."""
    bench.memory.device = GpuDevice("NVIDIA H200", "9.0")
    bench.home = bench.home if built_before else tmp_path
    words = r"tensorrt-rtx 1\.7\.1 does not support this GPU \(compute capability 9\.0; .* use --engine tensorrt, or"
    with pytest.raises(ProviderMissing, match=words) as caught:
        Session(bundle, backend=bench.backend())
    assert "dovit build" not in str(caught.value)
    assert not bench.state.engines
    assert_nothing_is_left(bench)


def test_another_gpu(bundle: Bundle, bench: Bench) -> None:
    bench.memory.device = GpuDevice("another", "7.5")
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
    monkeypatch.setattr(tensorrt_run, "HeldKernels", mock.MagicMock())
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


def test_a_plugin_library_of_another_version(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(built(bundle, EngineCache(tmp_path), precision="fp32", plugins=True), tmp_path)
    (tmp_path / "other.so").write_bytes(b"another library")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other.so"))
    with pytest.raises(EngineInvalid, match=r"were built with other plugins than .*; build them again with") as caught:
        Session(bundle, backend=bench.backend())
    assert caught.value.exit_code == 6
    assert not bench.state.engines


def test_kernels_are_held_once_a_session_and_released_before_the_memory(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(built(bundle, EngineCache(tmp_path), precision="fp32", plugins=True), tmp_path)
    held: list[str] = []

    class Held:
        def __init__(self) -> None:
            held.append("loaded")

        def release(self) -> None:
            held.append("released after close" if bench.memory.closed else "released")

    monkeypatch.setattr(tensorrt_run, "HeldKernels", Held)
    monkeypatch.setattr(tensorrt_run, "registered_plugins", lambda package: held.append("registered"))
    with Session(bundle, backend=bench.backend()):
        assert held[:2] == ["loaded", "registered"]
    assert held.count("loaded") == 1 and held[-1] == "released"
    assert_nothing_is_left(bench)


def test_a_batch_gives_what_each_gives_alone(bundle: Bundle, session: Session) -> None:
    batch = tiny_pixels(bundle.manifest.spec.size, images=3).numpy()
    logits, reports = session.run(batch)
    assert isinstance(reports, list)
    for number in range(3):
        alone, report = session.run(batch[number : number + 1])
        assert np.array_equal(alone, logits[number : number + 1])
        assert report.kept == reports[number].kept
