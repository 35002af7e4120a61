"""The Python plugins: their work on the CPU, and engines of TensorRT for RTX built with them in a child process."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dovit_deploy.engines.plugins import library
from dovit_deploy.engines.plugins.kernels import KERNELS, TokenKernels
from dovit_deploy.engines.plugins.library import KINDS, _plugin_class, plugin_creators
from dovit_deploy.graphs.plugins import DOMAIN, GATHER, INDEX, PARTITION, SCATTER, SCATTER_VALID, VERSION
from tests.csrc.host_kernels import HostDriver, host_library
from tests.engines.plugins.reference import compacted, gathered, scattered
from tests.engines.tensorrt.bindings import RTX, FakeOf, all_bindings, fake_module

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx (pip install tensorrt-rtx-cu13)"
)
NAMES = (GATHER, SCATTER, SCATTER_VALID, PARTITION, INDEX)
INTERFACES = ("IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime")


FAKE = fake_module(all_bindings()[RTX], {"PluginFieldCollection": list})
"""Only the Python side is tried here: its classes have the names of TensorRT's, and do nothing."""


class Description(FakeOf, of="PluginTensorDesc"):
    dims = type = None

    def __init__(self, array) -> None:
        super().__init__(all_bindings()[RTX])
        self.dims, self.type = array.shape, array.dtype


@pytest.fixture
def run(host_kernels, monkeypatch):
    """`enqueue` of the plugin called `name`, on the CPU."""
    monkeypatch.setattr(library, "current_kernels", lambda: host_kernels)

    def enqueue(name, inputs, outputs):
        plugin = _plugin_class(FAKE)(next(kind for kind in KINDS if kind.name == name)).attach_to_context(None)
        descriptions = [[Description(array) for array in arrays] for arrays in (inputs, outputs)]
        addresses = [[array.ctypes.data for array in arrays] for arrays in (inputs, outputs)]
        plugin.enqueue(*descriptions, *addresses, 0, 5)

    return enqueue


@pytest.fixture(scope="module")
def host_kernels(tmp_path_factory):
    driver = HostDriver(host_library(tmp_path_factory.mktemp("host")))
    return TokenKernels(driver, {kernel: kernel for kernel in KERNELS})


@pytest.mark.parametrize("version", list(all_bindings()))
def test_plugins_override_what_tensorrt_calls(version):
    """A method that is called otherwise would never run: TensorRT would call its own, which refuses."""
    classes = all_bindings()[version].classes
    called = {name for kind in ("IPluginV3", *INTERFACES) for name in classes[kind]}
    # TensorRT 10.0 lists it under another name than the one it calls.
    called |= {"get_output_data_types"}
    own = {name for name in vars(library._TokenPlugin) if not name.startswith("_")} - {"trt", "interfaces"}
    assert own <= called
    for kind in ("IPluginV3", *INTERFACES):
        for name in own & classes[kind].keys():
            taken = len(inspect.signature(getattr(library._TokenPlugin, name)).parameters) - 1
            counts = {len(parameters) for parameters in classes[kind][name].overloads}
            assert not counts or taken in counts, f"{name} takes {taken}"


@pytest.mark.parametrize("kept", [0, 1, 9, 21])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_plugins_do_what_the_reference_does(run, kept, dtype):
    draw = np.random.default_rng(kept)
    tokens, index = draw.standard_normal((21, 24)).astype(dtype), draw.permutation(21)[:kept]
    values, taken, output = (draw.standard_normal(shape).astype(dtype) for shape in ((kept, 24), (kept, 24), (21, 24)))
    run(GATHER, [tokens, index], [taken])
    run(SCATTER, [tokens, index, values], [output])
    np.testing.assert_array_equal(taken, gathered(tokens, index))
    np.testing.assert_array_equal(output, scattered(tokens, index, values))
    for valid in {0, kept // 2, kept}:
        run(SCATTER_VALID, [tokens, index, values, np.asarray(valid, np.int64)], [output])
        np.testing.assert_array_equal(output, scattered(tokens, index, values, valid))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_mask_plugins_do_what_the_reference_does(run, share):
    keep = (np.random.default_rng(1).random(50) < share).astype(np.int64)
    order, count = np.full(50, -1, np.int64), np.full((), -1, np.int64)
    index, size = np.full(50, -1, np.int64), np.full((), -1, np.int32)
    run(PARTITION, [keep], [order, count])
    run(INDEX, [keep], [index, size])
    expected, expected_count = compacted(keep)
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(index[:expected_count], expected[:expected_count])
    assert count == size == expected_count


def test_creators_bear_the_names_that_the_graphs_call():
    creators = plugin_creators(FAKE)
    assert [(creator.name, creator.plugin_namespace, creator.plugin_version) for creator in creators] == [
        (name, DOMAIN, VERSION) for name in NAMES
    ]
    for creator in creators:
        plugin = creator.create_plugin("layer", None, None)
        assert (plugin.plugin_name, plugin.plugin_namespace, plugin.plugin_version) == (creator.name, DOMAIN, VERSION)
        assert plugin.num_outputs == (2 if creator.name in (PARTITION, INDEX) else 1)
        assert plugin.clone().kind is plugin.kind


BUILD = """
import json, sys
import numpy
import onnx_ir as ir
import tensorrt_rtx as trt
from dovit_deploy.graphs.passes import applied
from dovit_deploy.graphs.plugins import plugin_calls, plugin_form
from dovit_deploy.engines.plugins.library import register_plugins
from dovit_deploy.graphs.padding import weighted_sums
from dovit_deploy.errors import EnvironmentProblem

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.messages = []

    def log(self, severity, message):
        self.messages.append(message)

path, smallest = sys.argv[1], int(sys.argv[2])
creators, log = register_plugins(trt), Log()
model = applied(ir.load(path), [weighted_sums, plugin_form]).model
builder = trt.Builder(log)
network = builder.create_network(0)
parser = trt.OnnxParser(network, log)
# The path is where external data is looked for: no weights are copied.
text = ir.to_proto(model).SerializeToString()
assert parser.parse(text, path), [parser.get_error(i).desc() for i in range(parser.num_errors)]
config, profile = builder.create_builder_config(), builder.create_optimization_profile()
config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
for number in range(network.num_inputs):
    value = network.get_input(number)
    if -1 in tuple(value.shape):
        profile.set_shape(value.name, [smallest], [10], [21])
        config.add_optimization_profile(profile)
plan = builder.build_serialized_network(network, config)
assert plan is not None, log.messages[-3:]
table = next(message for message in log.messages if message.startswith("Layers:"))
layers = [line.split("LayerType: ")[0:2] for line in table.splitlines() if "LayerType: " in line]
try:
    plugin = creators[0].create_plugin("layer", None, None)
    plugin.enqueue([], [], [], [], 0, 0)
    refused = ""
except EnvironmentProblem as error:
    refused = str(error)
print(json.dumps({
    "calls": plugin_calls(model), "bytes": len(memoryview(plan)), "refused": refused,
    "layers": [[name.removeprefix("Name: "), kind.split(",")[0]] for name, kind in layers],
}))
"""


@needs_rtx
@pytest.mark.parametrize(
    ("bundle", "name", "smallest"),
    [
        ("tiny", "stage0", 1),
        ("tiny", "stage1", 0),
        ("tiny", "stage2", 1),
        ("tiny", "merged", 1),
        ("setr", "stage1", 1),
    ],
)
def test_engines_are_built_with_the_plugins(tmp_path, tiny_bundle_path, setr_bundle_path, bundle, name, smallest):
    """Every call of a plugin in the graph is a layer of the engine; in one engine of all stages sizes are data."""
    folder = {"tiny": tiny_bundle_path, "setr": setr_bundle_path}[bundle]
    built = built_in_child(folder / f"{name}.onnx", smallest, links_in(tmp_path))
    plugins = [layer for layer in built["layers"] if layer[0].startswith("Token")]
    assert {layer[1] for layer in plugins} <= {"custom_layer", "PluginV3"}
    found = {call: sum(layer[0].startswith(f"{call}.") for layer in plugins) for call in built["calls"]}
    assert found == built["calls"] and found
    assert built["bytes"] > 1000
    if not Path("/proc/driver/nvidia/version").exists():
        assert "NVIDIA GPU" in built["refused"], "without a driver the plugin says so"


def links_in(folder: Path) -> Path:
    """The parser opens the libraries by names that the wheel does not ship."""
    import tensorrt_rtx_libs

    links = folder / "links"
    links.mkdir()
    for path in Path(tensorrt_rtx_libs.__file__).parent.glob("*.so.*"):
        (links / f"{path.name.partition('.so')[0]}.so").symlink_to(path)
    return links


def built_in_child(path: Path, smallest: int, links: Path) -> dict:
    """What the child says of the engine that it built."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(links), "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, "-c", BUILD, str(path), str(smallest)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return json.loads(child.stdout.splitlines()[-1])
