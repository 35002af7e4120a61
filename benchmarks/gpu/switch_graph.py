"""One CUDA graph for a frame: captured stages as child graphs, and before each a switch that the device sets.

    stage 0 -> select -> switch -> select -> switch -> ...

A kernel (select_bucket.cuh) turns the count of a gate into the number of a bucket; the switch behind it runs the body
of that number, which holds the stage that was captured for this bucket. So the host reads nothing within a frame. Every
call here is one of NVIDIA's driver through cuda-bindings, and knows nothing of PyTorch.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovit_deploy import packages
from dovit_deploy.engines.cuda.bindings import checked
from dovit_deploy.engines.plugins.kernels import compiled_cubin
from dovit_deploy.errors import DeviceFailed, ProviderMissing

SELECT = "dovit_select_bucket"
MOST_BUCKETS = 6
"""Bodies of a switch: each is captured, instantiated and kept on the device, whether it runs or not."""
OLDEST = 12080
"""Version of the driver's CUDA that introduced SWITCH nodes, 12.8."""
IN_A_BODY = {"KERNEL", "EMPTY", "GRAPH", "MEMSET", "MEMCPY"}
"""Kinds of nodes that CUDA allows in a child graph within the body of a conditional node."""

Driver = Any
"""The module `cuda.bindings.driver`."""


@dataclass(frozen=True)
class Switch:
    """A stage in several sizes, of which each frame runs one."""

    name: str
    count: int
    """Address of the number of tokens () int64 on the device."""
    sizes: int
    """Address of the buckets' sizes (buckets,) int64 on the device, ascending; the last one holds every count."""
    chosen: int
    """Address () int32 on the device, where each frame writes the number of the bucket that ran."""
    graphs: tuple[int, ...]
    """The captured stage (cudaGraph_t) of each bucket."""


@dataclass(frozen=True)
class GraphCost:
    """What making a graph runnable took."""

    seconds: float
    nbytes: int
    """Device memory that was free before and is not now."""
    nodes: int
    """Nodes of all kinds, those in bodies and child graphs included."""


@dataclass
class FrameGraph:
    """A graph ready to run; `launch` is all that a frame needs.

    What was captured (the graphs, the memory pool behind them, every buffer) must live as long: the copies in here hold
    the same addresses.
    """

    driver: Driver
    handle: Any
    module: Any
    cost: GraphCost

    def launch(self, stream: int) -> None:
        """Enqueue one frame on `stream`."""
        checked(self.driver, self.driver.cuGraphLaunch(self.handle, stream))

    def close(self) -> None:
        """Free it; nothing that was launched may still be running."""
        if self.handle is not None:
            checked(self.driver, self.driver.cuGraphExecDestroy(self.handle))
            checked(self.driver, self.driver.cuModuleUnload(self.module))
            self.handle = self.module = None


def frame_graph(driver: Driver, first: int, switches: Sequence[Switch], *, cubin: bytes, stream: int) -> FrameGraph:
    """Build and instantiate the graph of a frame in the current context.

    Args:
        driver: the module `cuda.bindings.driver`.
        first: the captured stage (cudaGraph_t) that runs on all tokens.
        switches: the later stages, in order.
        cubin: the selecting kernel, see `select_cubin`.
        stream: to which the graph is uploaded, so that the first frame does not wait for it.

    Raises:
        ProviderMissing: the driver has no SWITCH nodes.
        DeviceFailed: something captured may not be in a body, or a call failed.
    """
    check_driver(driver)
    # In bodies, and around them: the first stage, and a selection and a switch for each other one.
    nodes = 1 + check_captured(driver, first, "stage0")
    nodes += sum(2 + check_switch(driver, switch) for switch in switches)
    module = checked(driver, driver.cuModuleLoadData(cubin))
    graph = checked(driver, driver.cuGraphCreate(0))
    try:
        select = checked(driver, driver.cuModuleGetFunction(module, SELECT.encode()))
        add_nodes(driver, graph, select, first, switches)
        handle, cost = _instantiated(driver, graph, stream, nodes)
    except BaseException:
        checked(driver, driver.cuModuleUnload(module))
        raise
    finally:
        # What was instantiated does not depend on it.
        checked(driver, driver.cuGraphDestroy(graph))
    return FrameGraph(driver, handle, module, cost)


def select_cubin(architecture: str) -> bytes:
    """The selecting kernel, compiled for a GPU ("sm_90"); raises what `compiled_cubin` raises."""
    return compiled_cubin(Path(__file__).with_name("select_bucket.cuh").read_text(), "select_bucket", architecture)


def opened_driver() -> Driver:
    """The module `cuda.bindings.driver`.

    Raises:
        PackageMissing: it is not installed.
        ProviderMissing: it is older than 13, whose calls for graphs are others.
    """
    driver = packages.load("cuda.bindings.driver")
    # 13 dropped the older call, and gave this one its name.
    if hasattr(driver, "cuGraphAddNode_v2"):
        raise ProviderMissing("one graph a frame needs cuda-bindings 13 or later; pip install -U 'cuda-bindings>=13'")
    return driver


def check_driver(driver: Driver) -> None:
    """Raise ProviderMissing where the driver is older than SWITCH nodes."""
    version = int(checked(driver, driver.cuDriverGetVersion()))
    if version < OLDEST:
        raise ProviderMissing(
            f"one graph a frame: the NVIDIA driver is for CUDA {_dotted(version)}, SWITCH nodes need "
            f"{_dotted(OLDEST)}; update the driver, or run staged"
        )


def check_switch(driver: Driver, switch: Switch) -> int:
    """The number of nodes in all bodies.

    Raises:
        ValueError: too many buckets, or none.
        DeviceFailed: see `check_captured`.
    """
    if not 1 <= len(switch.graphs) <= MOST_BUCKETS:
        raise ValueError(f"{switch.name}: {len(switch.graphs)} buckets given, 1 to {MOST_BUCKETS} are possible")
    bodies = enumerate(switch.graphs)
    return sum(1 + check_captured(driver, graph, f"{switch.name}, bucket {number}") for number, graph in bodies)


def check_captured(driver: Driver, graph: int, name: str) -> int:
    """The number of nodes that were captured.

    Raises:
        DeviceFailed: among them is what a body may not hold (allocations, events, calls of the host), or what a child
            graph may not (another switch).
    """
    kinds = [kind for kind, _ in nodes_in(driver, graph)]
    refused = sorted(set(kinds) - IN_A_BODY)
    if refused:
        raise DeviceFailed(f"one graph a frame: {name} has nodes that no body may hold: {', '.join(refused)}")
    return len(kinds)


def nodes_in(driver: Driver, graph: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Kind and handle of every node of a graph, and of the child graphs in it."""
    handle = driver.CUgraph(int(graph))
    # The first call gives the number alone.
    status, _, count = driver.cuGraphGetNodes(handle, 0)
    checked(driver, (status,))
    if not count:
        return
    status, nodes, count = driver.cuGraphGetNodes(handle, count)
    checked(driver, (status,))
    for node in nodes[:count]:
        kind = checked(driver, driver.cuGraphNodeGetType(node)).name.removeprefix("CU_GRAPH_NODE_TYPE_")
        yield kind, node
        if kind == "GRAPH":
            yield from nodes_in(driver, checked(driver, driver.cuGraphChildGraphNodeGetGraph(node)))


def add_nodes(driver: Driver, graph: Any, select: Any, first: int, switches: Sequence[Switch]) -> None:  # noqa: ANN401
    """Fill an empty graph; every node waits for the one before it."""
    last = add_child(driver, graph, [], first)
    for switch in switches:
        handle = conditional_handle(driver, graph, default=len(switch.graphs) - 1)
        selected = add_selection(driver, graph, [last], select, switch, handle)
        last = add_switch(driver, graph, [selected], switch, handle)


def conditional_handle(driver: Driver, graph: Any, *, default: int) -> Any:  # noqa: ANN401
    """A conditional's value, `default` at the beginning of every launch: the largest bucket is right for any count."""
    context = checked(driver, driver.cuCtxGetCurrent())
    flag = driver.CU_GRAPH_COND_ASSIGN_DEFAULT
    return checked(driver, driver.cuGraphConditionalHandleCreate(graph, context, default, flag))


def add_selection(driver: Driver, graph: Any, after: list[Any], select: Any, switch: Switch, handle: Any) -> Any:  # noqa: ANN401
    """A node of the kernel that sets `handle`, at every launch."""
    parameters = driver.CUgraphNodeParams()
    parameters.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL
    kernel = parameters.kernel
    kernel.func = select
    kernel.gridDimX = kernel.gridDimY = kernel.gridDimZ = 1
    kernel.blockDimX = kernel.blockDimY = kernel.blockDimZ = 1
    pointer = ctypes.c_void_p
    kernel.kernelParams = (
        (switch.count, switch.sizes, len(switch.graphs), int(handle), switch.chosen),
        (pointer, pointer, ctypes.c_uint, ctypes.c_ulonglong, pointer),
    )
    return _added(driver, graph, after, parameters)


def add_switch(driver: Driver, graph: Any, after: list[Any], switch: Switch, handle: Any) -> Any:  # noqa: ANN401
    """A node with a body for each bucket, of which the one runs whose number `handle` holds."""
    parameters = driver.CUgraphNodeParams()
    parameters.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
    conditional = parameters.conditional
    conditional.handle = handle
    conditional.type = driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_SWITCH
    conditional.size = len(switch.graphs)
    conditional.ctx = checked(driver, driver.cuCtxGetCurrent())
    node = _added(driver, graph, after, parameters)
    # The driver made an empty body for each number.
    for body, captured in zip(parameters.conditional.phGraph_out, switch.graphs, strict=True):
        add_child(driver, body, [], captured)
    return node


def add_child(driver: Driver, graph: Any, after: list[Any], captured: int) -> Any:  # noqa: ANN401
    """A node that runs a copy of `captured`, made now."""
    parameters = driver.CUgraphNodeParams()
    parameters.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_GRAPH
    parameters.graph.graph = driver.CUgraph(captured)
    return _added(driver, graph, after, parameters)


def _added(driver: Driver, graph: Any, after: list[Any], parameters: Any) -> Any:  # noqa: ANN401
    return checked(driver, driver.cuGraphAddNode(graph, after, None, len(after), parameters))


def _instantiated(driver: Driver, graph: Any, stream: int, nodes: int) -> tuple[Any, GraphCost]:  # noqa: ANN401
    before, start = _free_memory(driver), time.perf_counter()
    handle = checked(driver, driver.cuGraphInstantiate(graph, 0))
    checked(driver, driver.cuGraphUpload(handle, stream))
    checked(driver, driver.cuStreamSynchronize(stream))
    seconds = time.perf_counter() - start
    return handle, GraphCost(seconds, before - _free_memory(driver), nodes)


def _free_memory(driver: Driver) -> int:
    status, unused, _ = driver.cuMemGetInfo()
    checked(driver, (status,))
    return int(unused)


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
