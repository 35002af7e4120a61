"""One graph a frame on the stand-in driver: the real cuda-bindings, the real selecting kernel, stages on CPU tensors.

`python -m tests.benchmarks.one_graph_on_host FOLDER` runs every check and prints what failed, by name, as JSON; FOLDER
has what tests/csrc/stand_in.py compiles. It is a process of its own because the driver is found by its name. Nothing
here says that a GPU accepts these graphs: the stand-in does what NVIDIA documents.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import sys
import traceback
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from cuda.bindings import driver

from tests.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from gpu import frames, switch_graph
from gpu.baselines import DenseWay
from gpu.cases import conditions_on
from gpu.frames import checked_counts, frame_cases, frame_rows, frame_trace
from gpu.models import random_model, random_pixels, vit_spec
from gpu.one_graph import GraphBuilder, OneGraphRunner, sizes_around
from gpu.packed_runner import StagedRunner
from gpu.packed_stages import masked_attention
from gpu.section import Bench, NotDone, TimeBudget
from gpu.switch_graph import Switch, add_nodes, check_captured, frame_graph, nodes_in

from dovit_deploy.errors import DeviceFailed, ProviderMissing

CPU = torch.device("cpu")
SPEC = vit_spec(32, 4, 4, 80)
POISON = -77.0
ANY = b"the stand-in knows kernels by their names"
works: list[Callable[[], None]] = []
"""What the kernel `host_work` of the stand-in does, by number."""
CALL = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_void_p))


@CALL
def host_work(parameters) -> None:
    works[ctypes.cast(parameters[0], ctypes.POINTER(ctypes.c_uint)).contents.value]()


@CALL
def host_nothing(parameters) -> None:
    """Stands for a selection that never happens."""


class Graphs:
    """The stand-in's library, and graphs made by hand."""

    def __init__(self, folder: Path) -> None:
        self.library = ctypes.CDLL(str(folder / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
        select = ctypes.CDLL(str(folder / "select_on_host.so"))
        assert select.host_register_select() == 0
        sizes = (ctypes.c_size_t * 1)(4)
        assert self.library.host_driver_register(b"host_work", host_work, sizes, 1) == 0
        of_a_selection = (ctypes.c_size_t * 5)(8, 8, 4, 8, 8)
        assert self.library.host_driver_register(b"host_nothing", host_nothing, of_a_selection, 5) == 0
        value(driver.cuInit(0))
        value(driver.cuCtxSetCurrent(value(driver.cuDevicePrimaryCtxRetain(value(driver.cuDeviceGet(0))))))
        self.module = value(driver.cuModuleLoadData(ANY))
        self.stream = value(driver.cuStreamCreate(0))

    def live(self) -> int:
        return self.library.host_driver_live_graphs()

    def of_kind(self, kind: str):
        """A graph of one node that is no kernel."""
        graph, parameters = value(driver.cuGraphCreate(0)), driver.CUgraphNodeParams()
        parameters.type = getattr(driver.CUgraphNodeType, f"CU_GRAPH_NODE_TYPE_{kind}")
        value(driver.cuGraphAddNode(graph, [], None, 0, parameters))
        return graph

    def working(self, work: Callable[[], None]):
        """A graph of one kernel that does `work`."""
        graph, parameters = value(driver.cuGraphCreate(0)), driver.CUgraphNodeParams()
        parameters.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL
        parameters.kernel.func = value(driver.cuModuleGetFunction(self.module, b"host_work"))
        parameters.kernel.kernelParams = ((len(works),), (ctypes.c_uint,))
        works.append(work)
        value(driver.cuGraphAddNode(graph, [], None, 0, parameters))
        return graph

    def builder(self) -> GraphBuilder:
        return GraphBuilder(driver, lambda work: Captured(self, work), ANY, lambda: int(self.stream))


class Captured:
    """A FAKE of `torch.cuda.CUDAGraph(keep_graph=True)`: work that runs where the stand-in runs a kernel.

    As with the real one, what was captured may not run once this is gone: its memory is somebody else's then.
    """

    def __init__(self, graphs: Graphs, work: Callable[[], None]) -> None:
        for _ in range(2):
            work()
        self._graph = graphs.working(self._run)
        self._work = work
        weakref.finalize(self, driver.cuGraphDestroy, self._graph)

    def _run(self) -> None:
        with torch.inference_mode():
            self._work()

    def raw_cuda_graph(self) -> int:
        return int(self._graph)


def value(answer):
    status, *values = answer
    assert status == driver.CUresult.CUDA_SUCCESS, status
    return values[0] if values else None


class WithinBounds(StagedRunner):
    """On a GPU, tokens beyond the bucket would be read from memory of others."""

    def later_stage(self, number: int, bucket: int) -> None:
        bounds = self.bounds[number - 1]
        assert bounds[-1] <= bucket and bounds[-2] < bucket, (number, bucket, bounds)
        super().later_stage(number, bucket)


def runner(images: int, sizes) -> StagedRunner:
    return WithinBounds(random_model(SPEC, CPU), images, masked_attention, sizes=sizes)


def switch_of(graphs: Graphs, results: list[str], count: torch.Tensor, sizes: torch.Tensor, chosen: torch.Tensor):
    bodies = [graphs.working(lambda number=number: results.append(f"body {number}")) for number in range(len(sizes))]
    return Switch("stage1", count.data_ptr(), sizes.data_ptr(), chosen.data_ptr(), tuple(map(int, bodies)))


def nodes_and_edges(graphs: Graphs) -> None:
    """Stage 0, then a selection and a switch for each later stage, each behind the one before."""
    count, sizes, chosen = torch.tensor(3), torch.tensor([2, 4]), torch.tensor(-1, dtype=torch.int32)
    switches = [switch_of(graphs, [], count, sizes, chosen) for _ in range(2)]
    first, graph = graphs.working(lambda: None), value(driver.cuGraphCreate(0))
    select = value(driver.cuModuleGetFunction(graphs.module, b"dovit_select_bucket"))
    add_nodes(driver, graph, select, int(first), switches)
    _, nodes, found = driver.cuGraphGetNodes(graph, 20)
    kinds = [value(driver.cuGraphNodeGetType(node)).name.removeprefix("CU_GRAPH_NODE_TYPE_") for node in nodes[:found]]
    assert kinds == ["GRAPH", "KERNEL", "CONDITIONAL", "KERNEL", "CONDITIONAL"], kinds
    status, before, after, _, edges = driver.cuGraphGetEdges(graph, 20)
    assert edges == 4, (status, edges)
    order = [int(node) for node in nodes[:found]]
    pairs = {(order.index(int(a)), order.index(int(b))) for a, b in zip(before[:4], after[:4], strict=True)}
    assert pairs == {(0, 1), (1, 2), (2, 3), (3, 4)}, pairs
    assert [kind for kind, _ in nodes_in(driver, first)] == ["KERNEL"]
    value(driver.cuGraphDestroy(graph))


def every_count_runs_the_smallest_bucket_that_holds_it(graphs: Graphs) -> None:
    results: list[str] = []
    count, sizes, chosen = torch.tensor(0), torch.tensor([4, 5, 9, 16]), torch.tensor(-1, dtype=torch.int32)
    switch = switch_of(graphs, results, count, sizes, chosen)
    frame = frame_graph(driver, int(graphs.working(lambda: None)), [switch], cubin=ANY, stream=graphs.stream)
    for tokens in range(17):
        count.fill_(tokens)
        frame.launch(graphs.stream)
        expected = sum(tokens > size for size in (4, 5, 9))
        assert results == [f"body {expected}"] and int(chosen) == expected, (tokens, results)
        results.clear()
    # More than there can be is no reason to run nothing.
    count.fill_(1000)
    frame.launch(graphs.stream)
    assert results == ["body 3"], results
    frame.close()


def without_a_selection_the_largest_bucket_runs(graphs: Graphs) -> None:
    """What the default is for; and the value of one launch must not last until the next."""
    results: list[str] = []
    count, sizes, chosen = torch.tensor(1), torch.tensor([4, 9, 16]), torch.tensor(-1, dtype=torch.int32)
    switch, graph = switch_of(graphs, results, count, sizes, chosen), value(driver.cuGraphCreate(0))
    idle = value(driver.cuModuleGetFunction(graphs.module, b"host_nothing"))
    add_nodes(driver, graph, idle, int(graphs.working(lambda: None)), [switch])
    runnable = value(driver.cuGraphInstantiate(graph, 0))
    value(driver.cuGraphLaunch(runnable, graphs.stream))
    assert results == ["body 2"], results
    value(driver.cuGraphDestroy(graph))


def a_number_that_no_body_has_runs_none(graphs: Graphs) -> None:
    """So it is with CUDA, and the results of the frame before would pass for new ones: poison shows it."""
    output = torch.full((1,), POISON)
    count, sizes, chosen = torch.tensor(1), torch.tensor([4, 16]), torch.tensor(-1, dtype=torch.int32)
    bodies = tuple(int(graphs.working(lambda: output.fill_(1.0))) for _ in range(2))
    switch = Switch("stage1", count.data_ptr(), sizes.data_ptr(), chosen.data_ptr(), bodies)
    graph = value(driver.cuGraphCreate(0))
    handle = switch_graph.conditional_handle(driver, graph, default=1)
    wrong = graphs.working(lambda: graphs.library.host_driver_set_conditional(ctypes.c_uint64(int(handle)), 2))
    last = switch_graph.add_child(driver, graph, [], int(wrong))
    switch_graph.add_switch(driver, graph, [last], switch, handle)
    runnable = value(driver.cuGraphInstantiate(graph, 0))
    value(driver.cuGraphLaunch(runnable, graphs.stream))
    assert float(output) == POISON


def frames_equal_staged_frames(graphs: Graphs) -> None:
    """To the bit, for one image and three, at thresholds under which every bucket runs; outputs are poisoned before."""
    for images in (1, 3):
        total = images * SPEC.tokens
        sizes = [sorted({images, total // 4, total // 2, 3 * total // 4, total})] * 3
        staged = runner(images, sizes)
        one = OneGraphRunner(staged, graphs.builder())
        pixels, ran = random_pixels(SPEC, images, CPU), set()
        for threshold in (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 2.0):
            staged.set_thresholds([threshold] * 3)
            expected = staged.run(pixels)
            logits = expected.logits.clone()
            orders = [decision.order.clone() for decision in staged.decisions]
            poisoned(staged)
            got = one.run(pixels)
            assert got is staged.logits and torch.equal(got, logits), f"{images} images, {threshold}: logits differ"
            assert one.counts() == expected.counts
            assert all(torch.equal(a.order, b) for a, b in zip(staged.decisions, orders, strict=True))
            assert one.chosen() == [staged.bucket(sum(row), gate) for gate, row in enumerate(expected.counts)]
            ran |= set(one.chosen())
        assert len(ran) >= 4, ran
        one.close()


def poisoned(staged: StagedRunner) -> None:
    """Everything that a frame must write."""
    with torch.inference_mode():
        for tensor in (*staged.tokens, staged.logits, *(decision.confidence for decision in staged.decisions)):
            tensor.fill_(POISON)
        for decision in staged.decisions:
            decision.order.fill_(0)
            decision.counts.fill_(1)
        for bounds in staged.bounds:
            bounds.copy_(torch.arange(len(bounds)))


def forget_works() -> None:
    """What the stand-in's kernel does keeps alive what was captured; the numbers of the others stay."""
    works[:] = [lambda: None] * len(works)
    gc.collect()


def what_was_captured_outlives_the_graph(graphs: Graphs) -> None:
    forget_works()
    before = graphs.live()
    staged = runner(1, [[8, SPEC.tokens]] * 3)
    one = OneGraphRunner(staged, graphs.builder())
    captured = [weakref.ref(graph) for row in one._captured for graph in row]
    assert len(captured) == 1 + 3 * 2
    gc.collect()
    assert all(reference() is not None for reference in captured)
    pixels = random_pixels(SPEC, 1, CPU)
    one.run(pixels)
    one.close()
    one.close()
    forget_works()
    assert not any(reference() is not None for reference in captured)
    assert graphs.live() == before, (graphs.live(), before)


def what_a_body_may_not_hold_is_refused_by_name(graphs: Graphs) -> None:
    fine = graphs.working(lambda: None)
    for kind in ("MEM_ALLOC", "MEM_FREE", "EVENT_RECORD", "WAIT_EVENT", "HOST", "CONDITIONAL"):
        if kind == "CONDITIONAL":
            wrong = value(driver.cuGraphCreate(0))
            handle = switch_graph.conditional_handle(driver, wrong, default=0)
            switch_graph.add_switch(driver, wrong, [], Switch("x", 0, 0, 0, (int(fine),)), handle)
        else:
            wrong = graphs.of_kind(kind)
        before = graphs.live()
        for first, bodies, named in ((wrong, [fine], "stage0"), (fine, [fine, wrong], "stage1, bucket 1")):
            switch = Switch("stage1", 0, 0, 0, tuple(map(int, bodies)))
            with pytest.raises(DeviceFailed, match=f"{named} has nodes that no body may hold: {kind}"):
                frame_graph(driver, int(first), [switch], cubin=ANY, stream=graphs.stream)
        assert graphs.live() == before
    nested = value(driver.cuGraphCreate(0))
    switch_graph.add_child(driver, nested, [], int(graphs.of_kind("EVENT_RECORD")))
    with pytest.raises(DeviceFailed, match="EVENT_RECORD"):
        check_captured(driver, int(nested), "stage0")


def too_many_buckets_and_wrong_ones_are_refused(graphs: Graphs) -> None:
    builder, total = graphs.builder(), SPEC.tokens
    for sizes, words in (
        (None, "buckets are needed behind every gate"),
        ([[total]] * 2, "buckets are needed behind every gate"),
        ([[8, 8, total]] * 3, "must ascend"),
        ([[8, total - 1]] * 3, f"must ascend to all {total} tokens"),
        ([[0, total]] * 3, "at least one for each"),
        ([[*range(2, 8), total]] * 3, "7 buckets given, at most 6 are possible"),
    ):
        with pytest.raises(ValueError, match=words):
            OneGraphRunner(runner(1, sizes), builder)
    graph = int(graphs.working(lambda: None))
    with pytest.raises(ValueError, match="stage1: 7 buckets given, 1 to 6 are possible"):
        frame_graph(driver, graph, [Switch("stage1", 0, 0, 0, (graph,) * 7)], cubin=ANY, stream=0)


def an_old_driver_is_refused(graphs: Graphs) -> None:
    graphs.library.host_driver_version(12040)
    try:
        with pytest.raises(ProviderMissing, match=r"driver is for CUDA 12\.4, SWITCH nodes need 12\.8"):
            frame_graph(driver, int(graphs.working(lambda: None)), [], cubin=ANY, stream=0)
    finally:
        graphs.library.host_driver_version(13000)


def the_cost_is_reported(graphs: Graphs) -> None:
    one = OneGraphRunner(runner(1, [[8, SPEC.tokens]] * 3), graphs.builder())
    # Stage 0 with its kernel; three selections and switches; six bodies of a child with its kernel.
    assert one.cost.nodes == 2 + 3 * 2 + 6 * 2 and one.cost.seconds > 0 and one.cost.nbytes == 0
    one.close()


@contextmanager
def ways_to_run_dense(*ways: DenseWay):
    """What the section compares with, meanwhile; compiling blocks would take longer than all other checks."""
    before, frames.WAYS = frames.WAYS, ways
    try:
        yield
    finally:
        frames.WAYS = before


def the_section_measures_every_profile(graphs: Graphs) -> None:
    """The whole section on tiny models; a batch has one profile."""
    bench = Bench(CPU, TimeBudget(math.inf), lambda line: None)
    with ways_to_run_dense(*frames.WAYS[:2]):
        found = list(frame_rows(frame_cases(bench), bench, conditions_on(CPU), graphs.builder))
    assert [field for field, _ in found] == ["frames"] * 4, found
    rows = [row for _, row in found]
    assert [(row.images, row.profile) for row in rows] == [(1, "p70"), (1, "p45"), (1, "p12"), (3, "p45")]
    for row in rows:
        assert [way.name for way in row.dense] == ["as PyTorch picks", "flash attention alone"]
        assert all(chosen in sizes for chosen, sizes in zip(row.chosen, row.buckets, strict=True))
        assert row.graph_nodes > 10 and row.images_per_s > 0 and row.efficiency > 0
    assert rows[0].predicted < rows[1].predicted < rows[2].predicted
    ((field, trace),) = frame_trace(next(iter(frame_cases(bench))), conditions_on(CPU), graphs.builder)
    assert (field, trace.way, trace.host_syncs) == ("traces", "one graph a frame", 0)


def a_dense_way_that_is_missing_is_named(graphs: Graphs) -> None:
    def missing(model):
        raise NotDone("no compiler")

    bench = Bench(CPU, TimeBudget(math.inf), lambda line: None)
    with ways_to_run_dense(frames.WAYS[0], DenseWay("compiled", missing)):
        first = next(iter(frame_cases(bench)))
        (field, undone), *rows = frame_rows([first], bench, conditions_on(CPU), graphs.builder)
    assert (field, undone.what, undone.why) == ("undone", "ViT-S 80 px, 1 image, dense compiled", "no compiler")
    assert len(rows) == 3 and [way.name for way in rows[0][1].dense] == ["as PyTorch picks"]


def a_graph_that_runs_no_stage_is_found_out(graphs: Graphs) -> None:
    """Its logits are those of the frame before, or none."""
    one = OneGraphRunner(runner(1, [[8, SPEC.tokens]] * 3), graphs.builder())
    pixels = random_pixels(SPEC, 1, CPU)
    assert checked_counts(one, pixels)
    one._graph.launch = lambda stream: None
    with pytest.raises(AssertionError, match="differ from those of the stages by nan"):
        checked_counts(one, pixels)


def buckets_lie_around_what_is_expected(graphs: Graphs) -> None:
    del graphs
    assert sizes_around([1000, 500, 90], 2304, 128) == [
        [768, 1024, 1152, 1408, 2304],
        [384, 512, 640, 768, 2304],
        [128, 2304],
    ]
    assert sizes_around([2304], 2304, 128) == [[1792, 2176, 2304]]


CHECKS = (
    nodes_and_edges,
    every_count_runs_the_smallest_bucket_that_holds_it,
    without_a_selection_the_largest_bucket_runs,
    a_number_that_no_body_has_runs_none,
    frames_equal_staged_frames,
    what_was_captured_outlives_the_graph,
    what_a_body_may_not_hold_is_refused_by_name,
    too_many_buckets_and_wrong_ones_are_refused,
    an_old_driver_is_refused,
    the_cost_is_reported,
    the_section_measures_every_profile,
    a_dense_way_that_is_missing_is_named,
    a_graph_that_runs_no_stage_is_found_out,
    buckets_lie_around_what_is_expected,
)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    graphs, failures = Graphs(Path(folder)), {}
    for check in CHECKS:
        try:
            check(graphs)
        except Exception:  # noqa: BLE001  every check is reported
            failures[check.__name__] = traceback.format_exc()
    print(json.dumps({"checks": [check.__name__ for check in CHECKS], "failures": failures}))


if __name__ == "__main__":
    main(sys.argv[1])
