"""One case after another, as long as time allows: a model at a size and a batch, staged against dense."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dovit_deploy.bundle.parity import RunParity
from gpu.latency import latency, paired
from gpu.models import (
    EVERYTHING,
    PIXELS,
    PROFILES,
    TINY_PIXELS,
    Case,
    TinyCase,
    predicted_speedup,
    random_model,
    random_pixels,
    thresholds_for,
)
from gpu.packed_runner import DenseRunner, StagedRunner
from gpu.packed_stages import PackedAttend, masked_attention, varlen_attention
from gpu.parity import parity
from gpu.result import Boundary, ParityRow, StagedRow, Undone
from gpu.section import Bench, Found, attempted

BATCH = 32
TINY_STEP = 8
PARITY_PROFILE = "p45"
NEVER = 2.0
"""A threshold that no probability reaches, rounding included."""
SECONDS_A_PROFILE = 1.5
GUESS_S = {"S": 10.0, "B": 13.0, "L": 20.0}
"""Seconds for a case of one image at 768 pixels, capturing included: a guess until one was measured."""


@dataclass(frozen=True)
class Conditions:
    """How cases run."""

    device: torch.device
    dtype: torch.dtype
    attend: PackedAttend
    attention: str
    """The name of `attend` in tables."""
    finish: Callable[[], object]
    """Returns when the device has nothing left to do."""
    seconds: float = SECONDS_A_PROFILE
    step: int = 128
    """Token counts are rounded up to multiples of it."""


def conditions_on(device: torch.device) -> Conditions:
    """Half precision and the fastest packed attention that works on a GPU; on the CPU what tiny models take."""
    if device.type == "cpu":
        return Conditions(device, torch.float32, masked_attention, "masked", lambda: None, seconds=0.0, step=TINY_STEP)
    attend, attention = fastest_attention(device)
    return Conditions(device, torch.float16, attend, attention, torch.cuda.synchronize)


AIMED_PIXELS = 768
"""The size for which there are aims."""


def cases_on(bench: Bench, *, batches: bool, aimed: bool) -> Iterator[Case]:
    """Single images or batches, of the size that has aims or of the others; on the CPU a tiny case of either."""
    if not bench.on_gpu:
        return iter((TinyCase("S", TINY_PIXELS, 3 if batches else 1),))
    return (case for case in all_cases() if (case.images > 1) == batches and (case.pixels == AIMED_PIXELS) == aimed)


def all_cases() -> Iterator[Case]:
    """Single images, then batches; in each the size with aims first."""
    for images in (1, BATCH):
        for pixels in (AIMED_PIXELS, *(other for other in PIXELS if other != AIMED_PIXELS)):
            for size in ("L", "B", "S"):
                yield Case(size, pixels, images)


def run_cases(cases: Iterable[Case], bench: Bench, conditions: Conditions) -> Iterator[Found]:
    """Measure `cases` until the budget is spent."""
    for case in cases:
        if case.images > 1 and bench.on_gpu and conditions.attend is masked_attention:
            yield "undone", Undone(what=case.name, why="this PyTorch or GPU has no packed attention")
        elif (missing := bench.budget.lacks(case.name, guess_s(case))) is not None:
            yield "undone", missing
        else:
            bench.say(f"  {case.name}")
            # One case too large for this GPU is no reason to lose the others.
            yield from attempted(case.name, run_case(case, conditions))
            if bench.on_gpu:
                torch.cuda.empty_cache()


def guess_s(case: Case) -> float:
    """About how long a case takes, in seconds: grows with the number of pixels and, less than they do, of images."""
    return GUESS_S[case.size] * (case.pixels / 768) ** 2 * (1 + 0.05 * (case.images - 1))


def fastest_attention(device: torch.device) -> tuple[PackedAttend, str]:
    """The packed kernel where it works on this device, else the masked one."""
    # 9 real rows of 16: the kernel must also accept rows that belong to no image.
    rows = torch.zeros((16, 64), dtype=torch.float16, device=device)
    bounds = torch.tensor([0, 9], dtype=torch.int32, device=device)
    try:
        with torch.inference_mode():
            varlen_attention(rows, rows, rows, 1, bounds, 16)
    # Absent before PyTorch 2.10; present, but not for every GPU or build.
    except (ImportError, RuntimeError, NotImplementedError):
        return masked_attention, "masked"
    return varlen_attention, "packed (torch.nn.attention.varlen)"


def run_case(case: Case, conditions: Conditions) -> Iterator[Found]:
    """Parity, all profiles and the boundary of one case."""
    spec = case.spec
    reference = random_model(spec, conditions.device)
    model = copy.deepcopy(reference).to(conditions.dtype)
    pixels = random_pixels(spec, case.images, conditions.device)
    runner = StagedRunner(model, case.images, conditions.attend, step=conditions.step)
    dense = DenseRunner(model, case.images)
    thresholds = thresholds_for(runner, pixels, PROFILES[PARITY_PROFILE])
    # The reference is fp32: PyTorch lets convolutions round their inputs to TF32 by default.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        runs = parity(runner, reference, pixels, thresholds)
    yield "parity", parity_row(case.name, str(conditions.dtype).removeprefix("torch."), runs)
    # The measurements below need the memory: a ViT-L in fp32 takes more than a gigabyte.
    del reference
    for profile, shares in {EVERYTHING: None, **PROFILES}.items():
        chosen = [NEVER] * len(spec.gates) if shares is None else thresholds_for(runner, pixels, shares)
        runner.set_thresholds(chosen)
        row, difference = measured(case, runner, dense, pixels.to(conditions.dtype), profile, conditions)
        yield "staged", row.model_copy(update={"thresholds": tuple(chosen)})
        if shares is None:
            micros = 1e6 * difference / len(spec.gates)
            yield "boundaries", Boundary(model=case.size, pixels=case.pixels, images=case.images, microseconds=micros)


def measured(
    case: Case, runner: StagedRunner, dense: DenseRunner, pixels: Tensor, profile: str, conditions: Conditions
) -> tuple[StagedRow, float]:
    """Staged against dense at the runner's thresholds, and the median of staged less dense in seconds."""
    # Once unmeasured: captures the graphs of these thresholds, and gives the counts.
    counts = runner.run(pixels).counts
    times = paired(
        lambda: dense.run(pixels), lambda: runner.run(pixels), seconds=conditions.seconds, finish=conditions.finish
    )
    row = StagedRow(
        model=case.size,
        pixels=case.pixels,
        images=case.images,
        profile=profile,
        attention=conditions.attention,
        thresholds=(),
        kept=tuple(sum(row) / runner.total for row in counts),
        dense=latency(times.first),
        staged=latency(times.second),
        runs=len(times.first),
        predicted=predicted_speedup(case.spec, counts),
        speedup=times.ratio,
        graphs=runner.captured,
    )
    return row, times.difference


def parity_row(name: str, precision: str, runs: list[RunParity]) -> ParityRow:
    """One row for all images of a case."""
    gates = [gate for run in runs for gate in run.gates]
    return ParityRow(
        name=name,
        precision=precision,
        explained=sum(gate.explained for gate in gates),
        failures=tuple(f"{run.image}: {failure}" for run in runs for failure in run.failures),
        confidence_error=max((gate.confidence_error for gate in gates), default=0.0),
        float_error=max(entry.error / entry.allowed for run in runs for entry in run.floats),
    )
