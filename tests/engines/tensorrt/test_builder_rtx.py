"""Engines built for real by TensorRT for RTX, which needs no GPU: layer types, interfaces, determinism, refusals."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import graph_interfaces, is_crossing
from dovit_deploy.bundle.manifest import TokenCount
from dovit_deploy.engines.tensorrt.build import build_engines, build_graph
from dovit_deploy.engines.tensorrt.builder import configure
from dovit_deploy.engines.tensorrt.layers import layers_from_table
from dovit_deploy.engines.tensorrt.package import TensorRtPackage, tensorrt_package
from dovit_deploy.engines.tensorrt.record import BuildRequest, engine_key
from dovit_deploy.engines.tensorrt.store import EngineCache, EngineSet
from dovit_deploy.errors import EngineBuildFailed
from dovit_deploy.graphs.forms import derive_graphs
from tests.bundles import export_tiny
from tests.tiny import tiny_spec

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed (requirements-dev.txt)"
)


@pytest.fixture(scope="module")
def package() -> TensorRtPackage:
    return tensorrt_package("tensorrt-rtx")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two stages of one block whose heads are wide enough for a fused kernel; the first gives more than tokens."""
    spec = tiny_spec(
        head="light", width=64, heads=2, size=(64, 80), gates=(1,), depth=2, gate="fcn", answer="lens", taps=(1,)
    )
    return export_tiny(spec, tmp_path_factory.mktemp("wide") / "wide.dovit")[0]


@pytest.fixture(scope="module")
def engines(bundle: Bundle, package: TensorRtPackage, tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    """Half precision, without plugins."""
    cache = EngineCache(tmp_path_factory.mktemp("cache"))
    request = BuildRequest(plugins=False)
    return build_engines(bundle, request, package=package, cache=cache, progress=lambda step: None)[0]


def stage1(bundle: Bundle, folder: Path, package: TensorRtPackage, **choices):
    """Build `stage1` alone; gives the outcome, and the folder with `stage1.engine` and `stage1.layers.txt`."""
    key = engine_key(bundle, BuildRequest(**choices), package)
    graphs, _ = derive_graphs(bundle, ["stage1"], folder, precision=key.precision, plugins=key.plugins)
    return build_graph(folder, graphs[0], key, package)


@pytest.mark.parametrize("capturable", [True, False])
def test_what_an_engine_is_built_with(capturable: bool, package: TensorRtPackage) -> None:
    """TF32 is on in a new configuration; whatever a network may run at is in the engine."""
    trt = package.module
    config = trt.Builder(package.logger(everything=False)).create_builder_config()
    assert config.get_flag(trt.BuilderFlag.TF32)
    configure(package, config, capturable=capturable)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION) == capturable
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


def test_fused_attention_no_host_syncs_no_plugins(engines: EngineSet) -> None:
    for graph, record in engines.records.items():
        assert record.layers.fused_attention == record.layers.attention == (2 if graph == "dense" else 1)
        assert record.layers.host_syncs == record.layers.plugin_layers == 0
        assert record.layers.layers > 5
        assert record.layers.activation_bytes
        table = (engines.folder / f"{graph}.layers.txt").read_text()
        assert len(layers_from_table(table)) == record.layers.layers


def test_the_sidecar_has_the_interface_of_the_bundle(engines: EngineSet, bundle: Bundle) -> None:
    interfaces = graph_interfaces(bundle.manifest.spec)
    for graph, record in engines.records.items():
        takes = {port.name: port for port in interfaces[graph].takes}
        assert [tensor.name for tensor in record.inputs if tensor.name != "valid"] == list(takes)
        assert [tensor.name for tensor in record.outputs] == list(interfaces[graph].outputs)
        for tensor in record.inputs:
            if tensor.name == "valid":
                assert (tensor.dtype, tensor.shape) == ("int64", ())
                continue
            port = takes[tensor.name]
            assert tensor.shape == tuple(-1 if side == "kept" else side for side in port.shape)
            assert tensor.dtype == ("float16" if is_crossing(port.name) else port.dtype)
    assert engines.records["stage1"].profiles == (bundle.manifest.counts[1],)
    assert engines.records["stage1"].compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
    assert engines.records["stage1"].peak_memory_bytes > 50e6


def test_byte_identical_in_another_process(
    engines: EngineSet, bundle: Bundle, package: TensorRtPackage, tmp_path: Path
) -> None:
    stage1(bundle, tmp_path, package, plugins=False)
    assert (tmp_path / "stage1.engine").read_bytes() == engines.engine_path("stage1").read_bytes()


def test_fp32_has_no_fused_attention(bundle: Bundle, package: TensorRtPackage, tmp_path: Path) -> None:
    outcome = stage1(bundle, tmp_path, package, plugins=False, precision="fp32", compute_capabilities=("8.6",))
    assert outcome.layers is not None
    assert (outcome.layers.fused_attention, outcome.layers.attention) == (0, 1)
    assert all(tensor.dtype != "float16" for tensor in outcome.tensors)


def test_plugins_are_layers_of_the_engine(bundle: Bundle, package: TensorRtPackage, tmp_path: Path) -> None:
    outcome = stage1(bundle, tmp_path, package, buckets=(10,))
    calls = [node.op_type for node in onnx.load(str(tmp_path / "stage1.onnx")).graph.node if node.domain == "dovit"]
    assert outcome.layers is not None
    # Two profiles, of 10 and of all tokens: each has all layers.
    assert outcome.layers.plugin_layers == len(calls) > 0
    assert outcome.layers.fused_attention == 1
    table = layers_from_table((tmp_path / "stage1.layers.txt").read_text())
    scatters = [layer.profile for layer in table if layer.name.startswith("TokenScatter")]
    assert scatters == [0, 1]
    assert calls.count("TokenScatterValid") == 1


@pytest.mark.exhaustive
def test_a_stage_that_sees_what_has_stopped(package: TensorRtPackage, tmp_path: Path) -> None:
    """Sums by class are products of matrices that follow from an index of open length; keys are more than what runs."""
    spec = tiny_spec(
        head="linear", gate="linear", width=64, heads=2, gates=(1, 2), depth=3, answer="gate", context="pooled"
    )
    pooled = export_tiny(spec, tmp_path / "pooled.dovit")[0]
    (tmp_path / "built").mkdir()
    outcome = stage1(pooled, tmp_path / "built", package, plugins=False)
    assert outcome.layers is not None
    assert outcome.layers.host_syncs == 0
    assert outcome.layers.fused_attention == outcome.layers.attention == 1
    carried = {tensor.name: (tensor.dtype, tensor.shape) for tensor in outcome.tensors if "context" in tensor.name}
    assert carried == {"carry.context": ("float16", (5, 65))}


def test_all_stages_in_one_engine(tiny_bundle_path: Path, package: TensorRtPackage, tmp_path: Path) -> None:
    """In half precision; the plugins decide its sizes, so that the host must wait within a run, once a gate."""
    tiny = Bundle.open(tiny_bundle_path)
    key = engine_key(tiny, BuildRequest(merged=True), package)
    graphs, _ = derive_graphs(tiny, ["merged"], tmp_path, precision="fp16", plugins=True)
    outcome = build_graph(tmp_path, graphs[0], key, package)
    assert outcome.layers is not None
    assert outcome.layers.plugin_layers == sum(graphs[0].plugin_calls.values()) > 0
    assert outcome.layers.host_syncs == len(tiny.manifest.spec.gates)
    outputs = {tensor.name: tensor.shape for tensor in outcome.tensors if tensor.mode == "output"}
    assert outputs == {port.name: port.shape for port in graph_interfaces(tiny.manifest.spec)["merged"].gives}


def test_the_parsers_own_words(bundle: Bundle, package: TensorRtPackage, tmp_path: Path) -> None:
    graphs, _ = derive_graphs(bundle, ["stage1"], tmp_path, precision="fp16", plugins=False)
    broken = onnx.load(str(graphs[0].path), load_external_data=False)
    broken.graph.node.append(onnx.helper.make_node("NonZero", ["index"], ["positions"], name="the_culprit"))
    broken.graph.output.append(onnx.helper.make_tensor_value_info("positions", onnx.TensorProto.INT64, [1, "found"]))
    graphs[0].path.write_bytes(broken.SerializeToString())
    key = engine_key(bundle, BuildRequest(plugins=False), package)
    with pytest.raises(EngineBuildFailed, match=r"stage1: the (parser|builder) of TensorRT refuses.*(NonZero|culprit)"):
        build_graph(tmp_path, graphs[0], key, package)
    assert not (tmp_path / "stage1.engine").exists()


def test_a_profile_that_the_builder_refuses(bundle: Bundle, package: TensorRtPackage, tmp_path: Path) -> None:
    graphs, _ = derive_graphs(bundle, ["stage1"], tmp_path, precision="fp16", plugins=False)
    key = engine_key(bundle, BuildRequest(plugins=False), package)
    upside_down = (TokenCount(minimum=9, typical=5, maximum=3),)
    key = key.model_copy(update={"profiles": {"stage1": upside_down}})
    with pytest.raises(EngineBuildFailed, match="stage1: "):
        build_graph(tmp_path, graphs[0], key, package)


@pytest.mark.exhaustive
@pytest.mark.parametrize("plugins", [False, True], ids=["plain", "plugins"])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("fixture", ["tiny_bundle_path", "setr_bundle_path", "dense_bundle_path"])
def test_every_stage_builds(
    fixture: str, precision: str, plugins: bool, package: TensorRtPackage, tmp_path: Path, request
) -> None:
    tiny = Bundle.open(request.getfixturevalue(fixture))
    wanted = BuildRequest(precision=precision, plugins=plugins)
    built, _ = build_engines(tiny, wanted, package=package, cache=EngineCache(tmp_path), progress=lambda step: None)
    for record in built.records.values():
        assert record.layers.host_syncs == 0
        assert record.layers.plugin_layers == (sum(record.plugins.calls.values()) if record.plugins else 0)
    assert any(record.plugins for record in built.records.values()) == (plugins and fixture != "dense_bundle_path")
