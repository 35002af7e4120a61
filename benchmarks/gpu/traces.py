"""What a frame does, read from a trace of PyTorch's profiler: calls by which the host waits, launches, idle time.

A profiler slows what it observes: these are counts and shares, no speeds.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from gpu.cases import AIMED_PIXELS, PARITY_PROFILE, Conditions, conditions_on
from gpu.models import PROFILES, TINY_PIXELS, Case, TinyCase, random_model, random_pixels, thresholds_for
from gpu.packed_runner import DenseRunner, StagedRunner
from gpu.result import TraceRow
from gpu.section import Bench, Found, NotDone, attempted

FRAME = "dovit: one frame"
RUNS = 10
GUESS_TRACE_S = 15.0
CALLS = ("cuda_runtime", "cuda_driver")
"""Categories of the host's calls in a trace."""
WORK = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of what the device does."""
WAITS = re.compile(r"Synchronize|^cu(da)?Memcpy(?!.*Async)|^cu(da)?Free(?!Async|Host)")
"""Calls that wait for the device, as the CUDA documentation has them."""
ATTENTION = re.compile(r"flash|fmha|attention|sdpa", re.IGNORECASE)

Event = dict[str, Any]
"""An entry of a Chrome trace; times in microseconds."""


def traced_events(run: Callable[[], object], finish: Callable[[], object], runs: int = RUNS) -> list[Event]:
    """The trace of `runs` frames, each marked as `FRAME` from its call until the device has nothing left to do."""
    # Unmeasured: compiling, capturing and the first allocations belong to no frame.
    run()
    finish()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with tempfile.TemporaryDirectory(prefix="dovit-") as folder:
        with profile(activities=activities) as observed:
            for _ in range(runs):
                with record_function(FRAME):
                    run()
                finish()
        path = Path(folder) / "trace.json"
        observed.export_chrome_trace(str(path))
        return list(json.loads(path.read_text())["traceEvents"])


def trace_row(case: Case, way: str, events: Iterable[Event]) -> TraceRow:
    """What happens in a frame, on average; the wait at the end of a frame is not counted.

    Args:
        events: see `traced_events`.
    """
    timed = [event for event in events if "dur" in event and "ts" in event]
    frames = [_span(event) for event in timed if event.get("name") == FRAME and event.get("cat") == "user_annotation"]
    calls = [
        event["name"]
        for event in timed
        if event.get("cat") in CALLS and any(start <= event["ts"] < end for start, end in frames)
    ]
    work = [event for event in timed if event.get("cat") in WORK]
    spans = [_span(event) for event in work]
    waits = Counter(name for name in calls if WAITS.search(name))
    return TraceRow(
        model=case.size,
        pixels=case.pixels,
        images=case.images,
        way=way,
        frames=len(frames),
        host_syncs=sum(waits.values()) / len(frames),
        waits={name: count / len(frames) for name, count in sorted(waits.items())},
        graph_launches=sum("GraphLaunch" in name for name in calls) / len(frames),
        kernels=sum(event["cat"] == "kernel" for event in work) / len(frames),
        busy_us=covered(spans) / len(frames),
        attention=tuple(sorted({str(event["name"])[:80] for event in work if ATTENTION.search(str(event["name"]))})),
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of `spans`."""
    length, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, until))
        until = max(until, end)
    return length


def _span(event: Event) -> tuple[float, float]:
    return float(event["ts"]), float(event["ts"]) + float(event["dur"])


def frame_traces(bench: Bench) -> Iterator[Found]:
    """Dense and staged, one image, each observed over some frames."""
    conditions = conditions_on(bench.device)
    sizes = ("S", "B", "L") if bench.on_gpu else ("S",)
    for size in sizes:
        case = Case(size, AIMED_PIXELS, 1) if bench.on_gpu else TinyCase(size, TINY_PIXELS, 1)
        what = f"trace of {case.name}"
        if (missing := bench.budget.lacks(what, GUESS_TRACE_S if bench.on_gpu else 0.0)) is not None:
            yield "undone", missing
        else:
            yield from attempted(what, _traces(case, conditions))


def _traces(case: Case, conditions: Conditions) -> Iterator[Found]:
    model = random_model(case.spec, conditions.device).to(conditions.dtype)
    pixels = random_pixels(case.spec, case.images, conditions.device).to(conditions.dtype)
    dense = DenseRunner(model, case.images)
    staged = StagedRunner(model, case.images, conditions.attend, step=conditions.step)
    thresholds_for(staged, pixels, PROFILES[PARITY_PROFILE])
    for way, run in (("dense", lambda: dense.run(pixels)), ("staged", lambda: staged.run(pixels))):
        yield from traced(case, way, run, conditions)


def traced(case: Case, way: str, run: Callable[[], object], conditions: Conditions) -> Iterator[Found]:
    """The row of `run`; raises NotDone where a GPU's calls cannot be observed."""
    events = traced_events(run, conditions.finish)
    if conditions.device.type == "cuda" and not any(event.get("cat") in CALLS for event in events):
        raise NotDone("the profiler shows no calls of CUDA (CUPTI cannot be used here)")
    yield "traces", trace_row(case, way, events)
