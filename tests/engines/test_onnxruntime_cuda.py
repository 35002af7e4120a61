"""`--engine cuda` as far as it can be tried without a GPU: against a fake runtime whose device is the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines import onnxruntime_cuda
from dovit_deploy.engines.cuda.driver import GpuDevice
from dovit_deploy.engines.onnxruntime_cuda import OnnxRuntimeCudaBackend, OrtArray, write_half_precision
from dovit_deploy.engines.registry import CUDA_INSTALL, ENGINES, backend_from_name
from dovit_deploy.engines.square import SQUARE_MODEL
from dovit_deploy.errors import DeviceFailed, DeviceOutOfMemory, GraphMismatch, PackageMissing, ProviderMissing
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.trace import settings_from_images, trace_from_session
from tests.bundle.test_hostile_bundle import signed
from tests.engines.cuda.fake_cuda_runtime import FakeCudaRuntime
from tests.graphs.test_half_precision import close, explained
from tests.tiny import tiny_pixels

Fail = onnxruntime.capi.onnxruntime_pybind11_state.Fail
HOST_INPUTS = {("Expand", 1), ("Reshape", 1), ("Slice", 1), ("Slice", 2), ("Tile", 1), ("ConstantOfShape", 0)}
"""Inputs that CUDA's kernels read on the host: whose makers ONNX Runtime need not move to the CPU."""


@pytest.fixture
def runtime(monkeypatch):
    fake = FakeCudaRuntime()
    monkeypatch.setattr(
        onnxruntime_cuda, "packages", SimpleNamespace(onnxruntime=lambda *, install: fake, onnx=packages.onnx)
    )
    monkeypatch.setattr(onnxruntime_cuda, "gpu_device", lambda: GpuDevice("a fake GPU", "9.0"))
    return fake


@pytest.fixture(params=["tiny_bundle_path", "setr_bundle_path", "dense_bundle_path"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return Bundle.open(request.getfixturevalue(request.param))


@pytest.fixture(params=["tiny_bundle_path", "setr_bundle_path"])
def gated(request: pytest.FixtureRequest) -> Bundle:
    return Bundle.open(request.getfixturevalue(request.param))


def pixels_of(bundle: Bundle, seed: int = 3) -> np.ndarray:
    return tiny_pixels(bundle.manifest.spec.size, seed=seed).numpy()


def test_it_gives_what_the_cpu_engine_gives(runtime, bundle) -> None:
    with Session(bundle) as cpu, Session(bundle, engine="cuda") as gpu:
        for dense in (False, True):
            want, expected = cpu.run(pixels_of(bundle), dense=dense)
            got, report = gpu.run(pixels_of(bundle), dense=dense)
            np.testing.assert_array_equal(got, want)
            assert report.kept == expected.kept and got.dtype == np.float32


def test_nothing_but_the_counts_leaves_the_device_between_stages(runtime, gated) -> None:
    spec = gated.manifest.spec
    with Session(gated, engine="cuda") as gpu:
        settings = RunSettings.resolve(gated.manifest, thresholds=0.7, floor=0.0)
        before_the_end = []
        for _, index in gpu.stages(pixels_of(gated), settings):
            if index is not None:
                before_the_end = list(runtime.copied)
        assert before_the_end == [()] * len(spec.gates)
        runtime.copied.clear()
        gpu.run(pixels_of(gated))
        counts = len(spec.gates)
        assert runtime.copied[:counts] == [()] * counts and len(runtime.copied[counts]) == 4, "then the logits"


def test_an_order_is_narrowed_where_it_lies(runtime, gated) -> None:
    with Session(gated, engine="cuda") as gpu:
        settings = RunSettings.resolve(gated.manifest, thresholds=0.7, floor=0.0)
        orders = [
            (outputs["order"].value.data_ptr(), index.count)
            for outputs, index in gpu.stages(pixels_of(gated), settings)
            if index is not None
        ]
    assert [(address, shape[0]) for _, shape, address in runtime.narrowed] == orders
    assert all(name == "index" for name, _, _ in runtime.narrowed)


def test_a_narrowed_array_is_its_front(runtime) -> None:
    backend = OnnxRuntimeCudaBackend()
    whole = backend.upload(np.arange(12, dtype=np.float32).reshape(6, 2))
    front = backend.narrow(whole, 4)
    assert front.shape == [4, 2] and front.value is whole.value
    np.testing.assert_array_equal(backend.download(front), np.arange(8, dtype=np.float32).reshape(4, 2))
    assert backend.narrow(front, 0).shape == [0, 2]


def test_uploads_are_copies_of_any_layout(runtime) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    uploaded = OnnxRuntimeCudaBackend().upload(array)
    assert isinstance(uploaded, OrtArray)
    np.testing.assert_array_equal(uploaded.numpy(), array)
    assert OnnxRuntimeCudaBackend().upload(np.float32(0.5)).shape == []


def test_fp16_agrees_with_fp32_by_the_contracts_rule(runtime, gated) -> None:
    """The CPU has no fp16 kernels: ONNX Runtime casts around each, so roundings between operators are tried."""
    with Session(gated) as reference, Session(gated, engine="cuda", precision="fp16") as half:
        assert half.backend.precision == "fp16"
        for setting in settings_from_images(reference, [("pixels", pixels_of(gated))]):
            want = trace_from_session(reference, setting)
            got = trace_from_session(half, setting, replay=want.index)
            for gate in range(len(want.keep)):
                explained(want, got, gate, setting)
                close(want.tokens[gate], got.tokens[gate])
                assert got.tokens[gate].dtype == np.float16
            close(want.logits, got.logits)
        logits, _ = half.run(pixels_of(gated), dense=True)
        close(reference.run(pixels_of(gated), dense=True)[0], logits)
        assert logits.dtype == np.float32


def test_fp16_attention_is_fused_and_in_fp16(bundle, tmp_path) -> None:
    path = write_half_precision(bundle.graph("dense", fast=True), bundle.weights, tmp_path)
    graph = onnx.load(str(path)).graph
    makers = {name: node for node in graph.node for name in node.output}
    attentions = [node for node in graph.node if node.op_type == "MultiHeadAttention"]
    depth = bundle.manifest.spec.depth
    assert len(attentions) >= depth
    halves = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    for node in attentions:
        for name in node.input:
            gemm = makers[makers[name].input[0]]
            assert gemm.op_type == "Gemm" and set(gemm.input[1:]) <= halves, "no cast between a product and attention"


@pytest.mark.parametrize("fast", [True, False])
def test_no_graph_has_arithmetic_on_shapes(bundle, fast) -> None:
    """ONNX Runtime would run it on the CPU, and the session would be refused on every GPU (decision 0007)."""
    for name in (*(f"stage{number}" for number in range(bundle.stages)), "dense"):
        graph = onnx.load(str(bundle.graph(name, fast=fast)), load_external_data=False).graph
        for node in graph.node:
            if node.op_type in ("Shape", "Size"):
                users = {
                    (user.op_type, list(user.input).index(node.output[0]))
                    for user in graph.node
                    if node.output[0] in user.input
                }
                assert users <= HOST_INPUTS, f"{name}: {users}"


def test_a_session_that_fell_back_is_refused(runtime) -> None:
    runtime.session_providers = ["CPUExecutionProvider"]
    with pytest.raises(ProviderMissing, match="not on the GPU"):
        onnxruntime_cuda.session_on_gpu(runtime, SQUARE_MODEL, described="x.onnx")


def test_what_onnxruntime_refuses_to_put_on_the_cpu_is_refused(runtime, tmp_path) -> None:
    message = (
        "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the default CPU EP, "
        "but fallback to CPU EP has been explicitly disabled by the user."
    )
    runtime.fails_to_load = Fail(message)
    with pytest.raises(ProviderMissing, match=r"x\.onnx would not run on the GPU alone") as raised:
        onnxruntime_cuda.session_on_gpu(runtime, SQUARE_MODEL, described="x.onnx")
    assert raised.value.exit_code == 5
    # The library of the provider that does not load says why.
    library = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    library.parent.mkdir()
    library.write_bytes(b"no library")
    runtime.__file__ = str(tmp_path / "__init__.py")
    with pytest.raises(ProviderMissing, match=r"CUDA provider does not load: .*cudnn"):
        onnxruntime_cuda.session_on_gpu(runtime, SQUARE_MODEL, described="x.onnx")
    assert runtime.levels == [4, 2] * 2, "its log is silent meanwhile"


def test_a_graph_that_is_none_is_refused(runtime) -> None:
    with pytest.raises(GraphMismatch, match=r"cannot load x\.onnx"):
        onnxruntime_cuda.session_on_gpu(runtime, b"none", described="x.onnx")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_graph_that_does_not_fit_the_manifest_is_refused(runtime, bundle_copy, precision) -> None:
    one = {"minimum": 1, "typical": 1, "maximum": 1}
    counts = [one] * len(Bundle.open(bundle_copy).manifest.counts)
    signed(bundle_copy, lambda body: (body["spec"].update(size=[64, 72]), body.update(counts=counts)))
    with pytest.raises(GraphMismatch, match="promises"):
        OnnxRuntimeCudaBackend(precision=precision).load(Bundle.open(bundle_copy), "stage0")


def test_too_little_memory_is_said(runtime, gated) -> None:
    runtime.fails_to_load = Fail("CUDA failure 2: out of memory ; GPU=0")
    with pytest.raises(DeviceOutOfMemory, match="too little memory for"):
        Session(gated, engine="cuda")
    runtime.fails_to_load = None
    runtime.fails_to_run = Fail("Failed to allocate memory for requested buffer of size 123\nmore")
    with Session(gated, engine="cuda") as gpu:
        with pytest.raises(DeviceOutOfMemory, match=r"too little memory for this run.*123$"):
            gpu.run(pixels_of(gated))
        runtime.fails_to_run = Fail("CUDA failure 700: an illegal memory access was encountered ; GPU=0\nmore")
        with pytest.raises(DeviceFailed, match=r"the GPU failed in this run: CUDA failure 700.*GPU=0$") as caught:
            gpu.run(pixels_of(gated))
        assert caught.value.exit_code == 5
        runtime.fails_to_run = Fail("something else")
        with pytest.raises(Fail, match="something else"):
            gpu.run(pixels_of(gated))


def test_the_library_loader_prints_nothing(runtime, capsys) -> None:
    assert onnxruntime_cuda.cuda_runtime() is runtime
    assert capsys.readouterr().out == ""


def test_the_onnxruntime_of_the_cpu_is_refused(runtime) -> None:
    runtime.available = ["CPUExecutionProvider"]
    with pytest.raises(ProviderMissing, match="onnxruntime-gpu") as raised:
        backend_from_name("cuda")
    assert CUDA_INSTALL in str(raised.value) and "one folder" in str(raised.value)


def test_without_a_gpu_it_is_refused(runtime, monkeypatch) -> None:
    def none():
        raise ProviderMissing("no NVIDIA driver here")

    monkeypatch.setattr(onnxruntime_cuda, "gpu_device", none)
    with pytest.raises(ProviderMissing, match="no NVIDIA driver"):
        backend_from_name("cuda")


def test_without_onnxruntime_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(PackageMissing, match="gpu") as raised:
        backend_from_name("cuda")
    assert str(raised.value).endswith(CUDA_INSTALL)
    with pytest.raises(PackageMissing, match="cpu"):
        backend_from_name("onnxruntime")


def test_the_command_line_refuses_with_code_5(dovit, tiny_bundle_path, tmp_path) -> None:
    """With the installed ONNX Runtime; not on a machine with a GPU and onnxruntime-gpu, where nothing is refused."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    onnx_file = tmp_path / "image.png"
    from PIL import Image

    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(onnx_file)
    done = dovit("run", onnx_file, "--bundle", tiny_bundle_path, "--engine", "cuda", "-o", "out")
    assert done.returncode == 5, done.stderr
    assert "onnxruntime-gpu" in done.stderr and len(done.stderr.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()
    assert dovit("run", onnx_file, "--engine", "cuda", "--precision", "int8").returncode == 2


def test_the_fake_has_nothing_that_onnxruntime_lacks(runtime, gated) -> None:
    """It may show more than the installed ONNX Runtime does only where that is a build without a GPU."""
    own = {"available", "session_providers", "fails_to_load", "fails_to_run", "copied", "narrowed", "addresses"}
    own |= {"sessions", "levels"}
    assert {name for name in dir(runtime) if not name.startswith("_")} - own <= set(dir(onnxruntime))
    with Session(gated, engine="cuda"):
        session = runtime.sessions[0]
        for fake, real, internal in (
            (session, onnxruntime.InferenceSession, {"real", "runtime", "options"}),
            (session.io_binding(), onnxruntime.IOBinding, {"real", "runtime"}),
            (session.options, onnxruntime.SessionOptions, {"entries"}),
        ):
            shown = {name for name in dir(fake) if not name.startswith("_")} - internal
            assert shown <= set(dir(real)), real.__name__


def test_the_registry_knows_it() -> None:
    assert ENGINES["cuda"].precisions == ("fp32", "fp16")
