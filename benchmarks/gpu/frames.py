"""A frame as one CUDA graph against the same stages one by one, and against dense in every way that PyTorch runs it.

Dense is measured as PyTorch picks its attention, under the flash backend alone (packed attention is never cuDNN's,
which PyTorch prefers on some GPUs), and compiled. The best of them is what the efficiency is against.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dovit_deploy.families.vit.network import VisionTransformer
from gpu.baselines import WAYS as OTHER_WAYS
from gpu.baselines import DenseWay
from gpu.cases import BATCH, PARITY_PROFILE, Conditions
from gpu.latency import Paired, latency, paired
from gpu.models import (
    PROFILES,
    TINY_PIXELS,
    Case,
    TinyCase,
    predicted_speedup,
    random_model,
    random_pixels,
    thresholds_for,
)
from gpu.one_graph import GraphBuilder, OneGraphRunner, sizes_around
from gpu.packed_runner import StagedRunner
from gpu.packed_stages import masked_attention
from gpu.parity import HALF_TOLERANCE
from gpu.result import DenseRatio, OneGraphRow, Undone
from gpu.section import Bench, Found, attempted
from gpu.traces import traced

FRAME_PIXELS = 768
SECONDS_A_PAIR = 0.6
GUESS_S = {"S": 20.0, "B": 25.0, "L": 35.0}
"""Seconds for a case, compiling and capturing included, of one image: a guess until one was measured."""
BATCH_GUESS = 2.0
"""As many times as long for a batch."""

Run = Callable[[Tensor], object]
"""A frame from its pixels on the device."""


WAYS = (DenseWay("as PyTorch picks", lambda model: model), *OTHER_WAYS)
"""Ways to run dense, in the model's precision as one CUDA graph."""


def frame_cases(bench: Bench) -> Iterator[Case]:
    """Single images and then packed batches, the smallest model first: there a wait costs most."""
    if not bench.on_gpu:
        yield from (TinyCase("S", TINY_PIXELS, images) for images in (1, 3))
        return
    for images in (1, BATCH):
        yield from (Case(size, FRAME_PIXELS, images) for size in ("S", "B", "L"))


def frame_rows(
    cases: Iterable[Case], bench: Bench, conditions: Conditions, builder: Callable[[], GraphBuilder]
) -> Iterator[Found]:
    """Measure `cases` until the time is spent; `builder` is asked for each graph, whose captures share a pool."""
    for case in cases:
        what = f"one graph a frame, {case.name}"
        guess = GUESS_S[case.size] * (BATCH_GUESS if case.images > 1 else 1.0)
        if case.images > 1 and bench.on_gpu and conditions.attend is masked_attention:
            yield "undone", Undone(what=what, why="this PyTorch or GPU has no packed attention")
        elif (missing := bench.budget.lacks(what, guess)) is not None:
            yield "undone", missing
        else:
            bench.say(f"  {what}")
            yield from attempted(what, frame_case(case, conditions, builder))
            if bench.on_gpu:
                torch.cuda.empty_cache()


def frame_case(case: Case, conditions: Conditions, builder: Callable[[], GraphBuilder]) -> Iterator[Found]:
    """A row for each profile of one case; of a batch only for the middle one."""
    model = random_model(case.spec, conditions.device).to(conditions.dtype)
    pixels = random_pixels(case.spec, case.images, conditions.device).to(conditions.dtype)
    dense: dict[str, Run] = {}
    for way in WAYS:
        yield from attempted(f"{case.name}, dense {way.name}", _added(dense, way, model, pixels))
    for profile in PROFILES if case.images == 1 else (PARITY_PROFILE,):
        one = one_graph(model, pixels, profile, conditions, builder())
        yield "frames", measured_frame(Contest(case, profile, conditions, pixels, one, dense))
        one.close()


def one_graph(
    model: VisionTransformer, pixels: Tensor, profile: str, conditions: Conditions, builder: GraphBuilder
) -> OneGraphRunner:
    """The graph of a profile, with buckets around the counts that these very pixels have."""
    chooser = StagedRunner(model, len(pixels), conditions.attend, step=conditions.step)
    thresholds = thresholds_for(chooser, pixels, PROFILES[profile])
    counts = [sum(row) for row in chooser.run(pixels).counts]
    sizes = sizes_around(counts, chooser.total, conditions.step)
    staged = StagedRunner(model, len(pixels), conditions.attend, sizes=sizes)
    staged.set_thresholds(thresholds)
    return OneGraphRunner(staged, builder)


def frame_trace(case: Case, conditions: Conditions, builder: Callable[[], GraphBuilder]) -> Iterator[Found]:
    """How often the host waits within a frame, read from a trace."""
    model = random_model(case.spec, conditions.device).to(conditions.dtype)
    pixels = random_pixels(case.spec, case.images, conditions.device).to(conditions.dtype)
    one = one_graph(model, pixels, PARITY_PROFILE, conditions, builder())
    yield from traced(case, "one graph a frame", functools.partial(one.run, pixels), conditions)
    one.close()


def _added(dense: dict[str, Run], way: DenseWay, model: VisionTransformer, pixels: Tensor) -> Iterator[Found]:
    """Compile and capture a way to run dense; it counts only if it runs."""
    dense[way.name] = way.captured(model, pixels).run
    yield from ()


@dataclass(frozen=True)
class Contest:
    """What runs against what."""

    case: Case
    profile: str
    conditions: Conditions
    pixels: Tensor
    one: OneGraphRunner
    dense: dict[str, Run]


def measured_frame(contest: Contest) -> OneGraphRow:
    """One graph against each other way, in pairs.

    Raises:
        AssertionError: its results are not those of the staged run.
    """
    one, staged, pixels, finish = contest.one, contest.one.staged, contest.pixels, contest.conditions.finish
    counts = checked_counts(one, pixels)
    seconds = min(SECONDS_A_PAIR, contest.conditions.seconds)

    def against(run: Run) -> Paired:
        return paired(lambda: run(pixels), lambda: one.run(pixels), seconds=seconds, finish=finish)

    ways = {name: against(run) for name, run in contest.dense.items()}
    stages = against(staged.run)
    # Of all pairs: one graph ran in each of them.
    own = tuple(second for times in (*ways.values(), stages) for second in times.second)
    case = contest.case
    return OneGraphRow(
        model=case.size,
        pixels=case.pixels,
        images=case.images,
        profile=contest.profile,
        attention=contest.conditions.attention,
        kept=tuple(sum(row) / staged.total for row in counts),
        buckets=tuple(tuple(row) for row in staged.sizes or ()),
        chosen=tuple(one.chosen()),
        dense=tuple(
            DenseRatio(name=name, latency=latency(times.first), ratio=times.ratio) for name, times in ways.items()
        ),
        staged=latency(stages.first),
        staged_ratio=stages.ratio,
        one_graph=latency(own),
        images_per_s=case.images / statistics.median(own),
        predicted=predicted_speedup(case.spec, counts),
        graph_seconds=one.cost.seconds,
        graph_bytes=one.cost.nbytes,
        graph_nodes=one.cost.nodes,
    )


def checked_counts(one: OneGraphRunner, pixels: Tensor) -> list[list[int]]:
    """Per gate and image, the tokens that run on; the graph runs the same kernels on the same memory as the stages."""
    expected = one.staged.run(pixels)
    logits = expected.logits.clone()
    # What a frame does not write must not pass for its result.
    with torch.inference_mode():
        one.staged.logits.fill_(float("nan"))
    got = one.run(pixels)
    if one.counts() != expected.counts:
        raise AssertionError(f"one graph let {one.counts()} tokens on, the stages {expected.counts}")
    error = float((got - logits).abs().max() / logits.abs().max().clamp(min=1))
    # NaN is no error that is small enough.
    if not error <= HALF_TOLERANCE:
        raise AssertionError(f"the logits of one graph differ from those of the stages by {error:.3g} of the largest")
    return expected.counts
