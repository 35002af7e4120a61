"""The dense network as fast as PyTorch runs it, which token passing must beat: attention kernels, compiled, fp8.

Each way is compared with dense as the other tables have it, in turns: fp16, one CUDA graph, whichever attention PyTorch
picks. On recent GPUs that is cuDNN's, which packed attention never uses; so flash attention alone is measured, too.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dovit_deploy.families.vit.network import VisionTransformer
from gpu.cases import AIMED_PIXELS, BATCH, Conditions, conditions_on
from gpu.latency import latency, paired
from gpu.models import TINY_PIXELS, Case, TinyCase, random_model, random_pixels
from gpu.packed_runner import DenseRunner
from gpu.result import BaselineRow
from gpu.section import Bench, Found, NotDone, attempted

FLOAT8 = torch.float8_e4m3fn
LARGEST_FLOAT8 = 448.0
FP8_CAPABILITY = (8, 9)
"""The first GPUs that multiply in fp8."""
GUESS_WAY_S = {"S": 12.0, "B": 15.0, "L": 25.0}
"""Seconds for one way at 768 pixels, compiling included: a guess."""


@dataclass(frozen=True)
class DenseWay:
    """A way to run the dense network.

    Args:
        name: in tables.
        model: makes its own model of one in half precision.
        around: a context in which it is captured.
    """

    name: str
    model: Callable[[VisionTransformer], VisionTransformer]
    around: Callable[[], AbstractContextManager[object]] = nullcontext

    def captured(self, model: VisionTransformer, pixels: Tensor) -> DenseRunner:
        """A runner of this way that ran once: later runs launch its graph, and lose no time in `around`."""
        runner = DenseRunner(self.model(model), len(pixels))
        with self.around():
            runner.run(pixels)
        return runner


class Float8Linear(nn.Module):
    """A linear layer that multiplies in fp8 (e4m3): weights rounded once, inputs at every call, one scale a tensor."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = _scale(linear.weight)
        self.register_buffer("scale", scale)
        self.register_buffer("weight", _rounded(linear.weight, scale))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs) in the precision of `x`."""
        rows = x.flatten(0, -2)
        scale = _scale(rows)
        # Its second matrix is to lie column by column. Sums are as fast as they can be, as engines have them.
        product = torch._scaled_mm(
            *(_rounded(rows, scale), self.weight.t()),
            scale_a=scale,
            scale_b=self.scale,
            out_dtype=x.dtype,
            use_fast_accum=x.is_cuda,
        )
        return (product if self.bias is None else product + self.bias).view(*x.shape[:-1], -1)


def _scale(values: Tensor) -> Tensor:
    """() float32: `values` over it are at most the largest that fp8 holds."""
    return values.detach().abs().amax().float().clamp(min=1e-12) / LARGEST_FLOAT8


def _rounded(values: Tensor, scale: Tensor) -> Tensor:
    return (values.detach().float() / scale).clamp(-LARGEST_FLOAT8, LARGEST_FLOAT8).to(FLOAT8)


def in_fp8(model: VisionTransformer) -> VisionTransformer:
    """A copy whose blocks multiply in fp8; norms, attention, embedding and heads stay as they are."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.Linear):
                block.set_submodule(name, Float8Linear(module))
    return model


def compiled(model: VisionTransformer) -> VisionTransformer:
    """A copy whose blocks are compiled: one compilation serves all of them.

    Raises:
        NotDone: the compiler for GPUs, or what it needs, is not there.
    """
    on_gpu = model.positions.is_cuda
    if on_gpu:
        check_compiler()
    model = copy.deepcopy(model)
    for block in model.blocks:
        # On the CPU only that the code can be traced is proved: no compiler is needed for that.
        block.compile(dynamic=False, backend="inductor" if on_gpu else "eager")
    return model


def check_compiler() -> None:
    """Raise NotDone where triton, or what it compiles its launchers with, is missing."""
    if importlib.util.find_spec("triton") is None:
        raise NotDone("torch.compile needs triton, which is not installed")
    if not (os.environ.get("CC") or any(shutil.which(name) for name in ("gcc", "clang"))):
        raise NotDone("torch.compile needs a C compiler (gcc or clang), and there is none")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise NotDone(f"torch.compile needs the headers of Python, and there is no {header}")


def flash_alone() -> AbstractContextManager[object]:
    """Within it attention is PyTorch's flash kernel, or an error."""
    return sdpa_kernel(SDPBackend.FLASH_ATTENTION)


WAYS = (
    DenseWay("flash attention alone", copy.deepcopy, flash_alone),
    DenseWay("blocks compiled", compiled),
)
FP8_WAYS = (DenseWay("fp8, blocks compiled", lambda model: compiled(in_fp8(model))),)


def baseline_cases(bench: Bench) -> Iterator[Case]:
    """768 pixels, one image and a batch of 32; on the CPU a tiny model."""
    if not bench.on_gpu:
        yield TinyCase("S", TINY_PIXELS, 2)
        return
    for images in (1, BATCH):
        for size in ("L", "B", "S"):
            yield Case(size, AIMED_PIXELS, images)


def dense_baselines(bench: Bench) -> Iterator[Found]:
    """Other ways to run dense, in the model's own precision."""
    yield from dense_ways(bench, WAYS)


def dense_in_fp8(bench: Bench) -> Iterator[Found]:
    """Dense with fp8 multiplications, where the GPU and PyTorch have them."""
    if bench.gpu is not None and tuple(map(int, bench.gpu.compute_capability.split("."))) < FP8_CAPABILITY:
        raise NotDone(f"fp8 needs compute capability 8.9 or more; this GPU has {bench.gpu.compute_capability}")
    if not hasattr(torch, "_scaled_mm"):
        raise NotDone(f"PyTorch {torch.__version__} has no fp8 multiplication")
    yield from dense_ways(bench, FP8_WAYS)


def dense_ways(bench: Bench, ways: tuple[DenseWay, ...]) -> Iterator[Found]:
    """Every case in each of `ways`, as long as there is time."""
    conditions = conditions_on(bench.device)
    for case in baseline_cases(bench):
        for way in ways:
            what = f"{case.name}, {way.name}"
            if (missing := bench.budget.lacks(what, GUESS_WAY_S[case.size] if bench.on_gpu else 0.0)) is not None:
                yield "undone", missing
                continue
            bench.say(f"  {what}")
            yield from attempted(what, _measured(case, way, conditions))
            if bench.on_gpu:
                torch.cuda.empty_cache()


def _measured(case: Case, way: DenseWay, conditions: Conditions) -> Iterator[Found]:
    model = random_model(case.spec, conditions.device).to(conditions.dtype)
    pixels = random_pixels(case.spec, case.images, conditions.device).to(conditions.dtype)
    default, other = DenseRunner(model, case.images), way.captured(model, pixels)
    expected, got = default.run(pixels).argmax(1), other.run(pixels).argmax(1)
    agreement = float((expected == got).float().mean())
    times = paired(
        lambda: default.run(pixels), lambda: other.run(pixels), seconds=conditions.seconds, finish=conditions.finish
    )
    mine = latency(times.second)
    yield (
        "baselines",
        BaselineRow(
            model=case.size,
            pixels=case.pixels,
            images=case.images,
            way=way.name,
            dense=latency(times.first),
            latency=mine,
            images_per_s=1e3 * case.images / mine.p50,
            speedup=times.ratio,
            agreement=agreement,
        ),
    )
