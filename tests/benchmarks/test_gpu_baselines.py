"""Dense baselines and traces as far as they go without a GPU: their code on tiny models, counts on a made trace."""

from __future__ import annotations

import contextlib
import copy
import time

import pytest
import torch
from gpu import baselines, traces
from gpu.baselines import Float8Linear, dense_in_fp8, dense_ways, in_fp8
from gpu.cases import conditions_on
from gpu.models import TINY_PIXELS, TinyCase, random_model, random_pixels
from gpu.packed_runner import DenseRunner
from gpu.result import BaselineRow, Gpu, Outcome
from gpu.section import Bench, NotDone, TimeBudget
from gpu.traces import covered, trace_row, traced_events

CPU = torch.device("cpu")
CASE = TinyCase("S", TINY_PIXELS, 1)


def bench(**fields) -> Bench:
    return Bench(CPU, TimeBudget(time.monotonic() + 600), lambda text: None, **fields)


def logits(model) -> torch.Tensor:
    return DenseRunner(model, 1).run(random_pixels(CASE.spec, 1, CPU)).clone()


def test_a_layer_in_fp8_is_the_layer_but_for_its_rounding() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 96)
    x = torch.randn(2, 5, 64)
    exact, rounded = linear(x), Float8Linear(linear)(x)
    assert rounded.shape == exact.shape and rounded.dtype == exact.dtype
    error = (exact - rounded).norm() / exact.norm()
    # Three bits behind the point: a few per cent; more if a scale is forgotten.
    assert 0.001 < error < 0.06
    assert torch.isfinite(Float8Linear(linear)(torch.zeros(1, 64))).all()
    assert torch.isfinite(Float8Linear(linear)(1e6 * x)).all(), "nothing is too large for its scale"


def test_fp8_covers_the_blocks_and_leaves_the_model_as_it_was() -> None:
    model = random_model(CASE.spec, CPU)
    before = logits(model)
    rounded = in_fp8(model)
    layers = [module for block in rounded.blocks for module in block.modules()]
    assert not any(isinstance(module, torch.nn.Linear) for module in layers)
    assert sum(isinstance(module, Float8Linear) for module in layers) == 6 * CASE.spec.depth
    assert isinstance(rounded.head, type(model.head)) and torch.equal(logits(model), before)
    error = (logits(rounded) - before).norm() / before.norm()
    assert 0.001 < error < 0.2


def test_a_way_that_fails_leaves_the_others(monkeypatch) -> None:
    def wrong(model):
        raise RuntimeError("no kernel image is available\nand more")

    def lacking(model):
        raise NotDone("torch.compile needs triton, which is not installed")

    ways = (
        baselines.DenseWay("wrong", wrong),
        baselines.DenseWay("lacking", lacking),
        baselines.DenseWay("copy", copy.deepcopy),
    )
    found = list(dense_ways(bench(), ways))
    assert [field for field, _ in found] == ["broken", "undone", "baselines"]
    assert found[0][1] == Outcome(
        name="ViT-S 80 px, 2 images, wrong", ok=False, detail="RuntimeError: no kernel image is available"
    )
    row = found[2][1]
    assert isinstance(row, BaselineRow) and row.agreement == 1.0 and row.way == "copy"
    assert row.images_per_s == pytest.approx(2000 / row.latency.p50)


def test_a_way_loses_no_time_in_its_context() -> None:
    """It is entered to capture; a frame that is measured only launches what was captured."""
    entered = []

    @contextlib.contextmanager
    def around():
        entered.append("in")
        yield
        entered.append("out")

    model, pixels = random_model(CASE.spec, CPU), random_pixels(CASE.spec, 1, CPU)
    runner = baselines.DenseWay("w", copy.deepcopy, around).captured(model, pixels)
    assert entered == ["in", "out"] and runner.logits.numel()
    runner.run(pixels)
    assert entered == ["in", "out"]


def test_what_a_compiler_lacks_is_said_before_it_fails(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(baselines.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(baselines.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NotDone, match="C compiler"):
        baselines.check_compiler()
    monkeypatch.setattr(baselines.shutil, "which", lambda name: name if name == "gcc" else None)
    with pytest.raises(NotDone, match=r"no .*Python\.h"):
        baselines.check_compiler()
    (tmp_path / "Python.h").touch()
    baselines.check_compiler()
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotDone, match="triton"):
        baselines.check_compiler()


def test_fp8_is_not_done_where_the_gpu_has_none() -> None:
    old = Gpu(name="G", compute_capability="8.6", memory_gb=24.0, torch_cuda="13.0")
    with pytest.raises(NotDone, match=r"8\.9 or more; this GPU has 8\.6"):
        list(dense_in_fp8(bench(gpu=old)))


# Traces


def event(name: str, ts: float, dur: float = 1.0, cat: str = "cuda_runtime") -> dict:
    return {"ph": "X", "name": name, "ts": ts, "dur": dur, "cat": cat}


def test_waits_are_counted_within_frames_only() -> None:
    frames = [event(traces.FRAME, start, 100, "user_annotation") for start in (1000, 2000)]
    calls = [
        event("cudaStreamSynchronize", 1010),
        event("cudaStreamSynchronize", 1020),
        event("cudaStreamSynchronize", 2020),
        event("cuMemcpyDtoH_v2", 2030, cat="cuda_driver"),
        # The wait at the end of the first frame, and one of the profiler's own.
        event("cudaDeviceSynchronize", 1150),
        event("cudaDeviceSynchronize", 10),
        # None of these waits.
        event("cudaMemcpyAsync", 1011),
        event("cudaGraphLaunch", 1012),
        event("cudaGraphLaunch", 2012),
        event("cudaLaunchKernel", 1013),
        event("cudaStreamWaitEvent", 1014),
        event("cudaEventRecord", 1015),
    ]
    work = [
        event("flash_fwd_kernel<x>", 1050, 10, "kernel"),
        event("gemm", 1055, 10, "kernel"),
        event("gemm", 2055, 10, "kernel"),
        event("Memcpy DtoH", 2065, 5, "gpu_memcpy"),
    ]
    mirrored = [event(traces.FRAME, 1000, 100, "gpu_user_annotation"), {"ph": "M", "name": "process_name"}]
    row = trace_row(CASE, "staged", [*frames, *calls, *work, *mirrored])
    assert row.frames == 2 and row.host_syncs == 2.0
    assert row.waits == {"cuMemcpyDtoH_v2": 0.5, "cudaStreamSynchronize": 1.5}
    assert (row.graph_launches, row.kernels, row.busy_us) == (1.0, 1.5, 15.0)
    assert row.attention == ("flash_fwd_kernel<x>",)


def test_overlapping_work_is_counted_once() -> None:
    assert covered([(0, 10), (5, 8), (20, 25), (9, 12)]) == 17
    assert covered([]) == 0


def test_frames_are_marked_in_a_real_trace() -> None:
    runner = DenseRunner(random_model(CASE.spec, CPU), 1)
    pixels = random_pixels(CASE.spec, 1, CPU)
    events = traced_events(lambda: runner.run(pixels), conditions_on(CPU).finish, runs=3)
    row = trace_row(CASE, "dense", events)
    assert row.frames == 3 and row.host_syncs == 0
    assert any(entry.get("cat") == "cpu_op" for entry in events)
