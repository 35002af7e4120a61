"""The sections of the proof, in their order: what only a GPU can show first, and of that the aims; engines last.

To add one, write a function like `gpu.section.Find` and add a line to `SECTIONS`. Each runs in a process of its own.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from dovit_deploy.engines.plugins.kernels import TokenKernels
from gpu.baselines import dense_baselines, dense_in_fp8
from gpu.cases import cases_on, conditions_on, run_cases
from gpu.engines import bundle_spec, engine_rows, gpu_backends, random_bundle
from gpu.frames import frame_cases, frame_rows, frame_trace
from gpu.kernels import MASKS, TOTALS, bandwidths, kernel_checks
from gpu.one_graph import gpu_builder
from gpu.programs import memory_outcomes, plugin_outcomes
from gpu.result import Gpu, Outcome
from gpu.section import Bench, Found, NotDone, ProofSection
from gpu.selftest import one_thread, selftest
from gpu.traces import frame_traces

PROGRAM_S, ENGINE_SECONDS = 100.0, 1.5


def gpu_itself(bench: Bench) -> Iterator[Found]:
    """The GPU as PyTorch describes it."""
    if not torch.cuda.is_available():
        raise NotDone(f"PyTorch {torch.__version__} sees no GPU")
    properties = torch.cuda.get_device_properties(bench.device)
    yield (
        "gpu",
        Gpu(
            name=properties.name,
            compute_capability=f"{properties.major}.{properties.minor}",
            memory_gb=round(properties.total_memory / 1e9, 1),
            torch_cuda=str(torch.version.cuda),
        ),
    )


def kernels_alone(bench: Bench) -> Iterator[Found]:
    """The token kernels, compiled for this GPU: against the reference, and their bandwidth beside that of a copy."""
    # The kernels are loaded into the current context: PyTorch's, which its first tensor makes current.
    torch.zeros(1, device=bench.device)
    kernels = TokenKernels.on_current_device()
    stream = torch.cuda.current_stream(bench.device).cuda_stream
    for outcome in kernel_checks(kernels, bench.device, stream=stream, totals=TOTALS, masks=MASKS):
        yield "kernels", outcome
    ceiling, found = bandwidths(kernels, bench.device)
    yield "copy_gb_per_s", ceiling
    for row in found:
        yield "bandwidth", row


def device_memory(bench: Bench) -> Iterator[Found]:
    """Both packages for device memory."""
    del bench
    yield from memory_outcomes(seconds=PROGRAM_S / 4)


def plugins(bench: Bench) -> Iterator[Found]:
    """The C++ plugins, compiled here."""
    if bench.gpu is None:
        raise NotDone("there is no GPU")
    headers = os.environ.get("TENSORRT_INCLUDE")
    yield from plugin_outcomes(bench.gpu.compute_capability, seconds=PROGRAM_S, headers=headers)


def staged_against_dense(bench: Bench, *, batches: bool, aimed: bool) -> Iterator[Found]:
    """Single images or packed batches, at the size that has aims or at the others."""
    yield from run_cases(cases_on(bench, batches=batches, aimed=aimed), bench, conditions_on(bench.device))


def frames(bench: Bench, *, batches: bool) -> Iterator[Found]:
    """A frame, or packed batches, as one CUDA graph, against stages and dense."""
    cases = [case for case in frame_cases(bench) if (case.images > 1) == batches]
    yield from frame_rows(cases, bench, conditions_on(bench.device), lambda: gpu_builder(bench.device))


def trace_of_a_frame(bench: Bench) -> Iterator[Found]:
    """The host's waits within a frame that is one graph: apart, because a profiler has not met such graphs either."""
    conditions = conditions_on(bench.device)
    for case in itertools.islice(frame_cases(bench), 1):
        yield from frame_trace(case, conditions, lambda: gpu_builder(bench.device))


def engines(bench: Bench) -> Iterator[Found]:
    """The registry's engines for GPUs, on a bundle that is exported here."""
    with tempfile.TemporaryDirectory(prefix="dovit-") as folder:
        # Engines of random weights do not belong in the user's cache.
        os.environ["XDG_CACHE_HOME"] = folder
        bundle = random_bundle(bundle_spec(), Path(folder))
        yield from engine_rows(bundle, gpu_backends(bundle), bench.budget, seconds=ENGINE_SECONDS)


def on_the_cpu(bench: Bench) -> Iterator[Found]:
    """The code of the other sections on CPU tensors and tiny models."""
    with one_thread():
        for field, found in selftest():
            yield field, found
            if isinstance(found, Outcome):
                bench.say(f"  {'ok' if found.ok else 'WRONG'}  {found.name}: {found.detail}")


SINGLE, BATCHES = (partial(staged_against_dense, batches=batches) for batches in (False, True))
GPU_ITSELF = ProofSection("the GPU", gpu_itself, seconds=60, only_gpu=True)
SECTIONS = (
    ProofSection("token kernels and their bandwidth", kernels_alone, seconds=60, only_gpu=True),
    ProofSection("staged against dense: 768 px, one image", partial(SINGLE, aimed=True), seconds=120),
    ProofSection("one graph a frame: one image", partial(frames, batches=False), seconds=120, only_gpu=True),
    ProofSection("host syncs, counted in traces", frame_traces, seconds=60),
    ProofSection("host syncs of one graph a frame", trace_of_a_frame, seconds=45, only_gpu=True),
    ProofSection("one graph a frame: batches", partial(frames, batches=True), seconds=200, only_gpu=True),
    ProofSection("staged against dense: 768 px, batches", partial(BATCHES, aimed=True), seconds=150),
    ProofSection("dense baselines", dense_baselines, seconds=120),
    ProofSection("dense in fp8", dense_in_fp8, seconds=90),
    ProofSection("device memory by cuda-core and PyCUDA", device_memory, seconds=60, only_gpu=True),
    ProofSection("staged against dense: other sizes, one image", partial(SINGLE, aimed=False), 240, only_gpu=True),
    ProofSection("staged against dense: other sizes, batches", partial(BATCHES, aimed=False), 300, only_gpu=True),
    ProofSection("the C++ plugins' enqueue", plugins, seconds=240, only_gpu=True),
    ProofSection("self-test on the CPU", on_the_cpu, seconds=180, everywhere=True),
    ProofSection("engines of the registry", engines, seconds=300, least=60, only_gpu=True),
)
