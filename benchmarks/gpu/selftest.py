"""The self-test: the code that runs on the GPU, on CPU tensors with tiny models."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dovit_deploy.engines.plugins.kernels import KERNELS, TokenKernels
from dovit_deploy.engines.registry import backend_from_name
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from gpu.cases import CaseResults, Conditions, run_case
from gpu.engines import engine_rows, random_bundle
from gpu.kernels import kernel_checks
from gpu.models import Case, vit_spec
from gpu.packed_stages import masked_attention
from gpu.result import GpuReport, Outcome, Undone
from gpu.tables import TABLES

CPU = torch.device("cpu")
TINY_PIXELS, TINY_STEP = 80, 8


class TinyCase(Case):
    """A case of a model small enough for the CPU; its size is called S because tables need one of the known names."""

    @property
    def spec(self) -> VisionTransformerSpec:
        """Four layers, 26 tokens."""
        return vit_spec(32, 4, 4, self.pixels)


def selftest() -> tuple[list[Outcome], list[Undone]]:
    """Everything that can be tried without a GPU."""
    results, outcomes, undone = CaseResults(), [], []
    for images in (1, 3):
        outcomes.append(_tried(f"packed stages, batch of {images}", lambda images=images: _stages(results, images)))
    outcomes.append(_tried("engines on a bundle", _engines))
    if shutil.which("g++") is None:
        undone.append(Undone(what="kernels' source on the CPU", why="g++ is not installed"))
    else:
        outcomes.append(_tried("kernels' source on the CPU", _kernels))
    outcomes.append(_tried("device memory's contract, on a fake", _memory))
    outcomes.append(_tried("tables", lambda: _tables(results)))
    return outcomes, undone


def _tried(name: str, check: Callable[[], str]) -> Outcome:
    """The outcome of `check`; whatever goes wrong is a finding, to be reported before the next check runs."""
    try:
        return Outcome(name=name, ok=True, detail=check())
    except Exception as error:  # noqa: BLE001
        return Outcome(name=name, ok=False, detail=f"{type(error).__name__}: {error}".partition("\n")[0])


def _stages(results: CaseResults, images: int) -> str:
    conditions = Conditions(CPU, torch.float32, masked_attention, "masked", lambda: None, seconds=0.0, step=TINY_STEP)
    run_case(TinyCase("S", TINY_PIXELS, images), results, conditions)
    parity = results.parity[-1]
    if parity.failures:
        raise AssertionError(parity.failures[0])
    return f"agree with the reference; floats at {parity.float_error:.1%} of what is allowed"


def _engines() -> str:
    with tempfile.TemporaryDirectory(prefix="dovit-") as folder:
        bundle = random_bundle(TinyCase("S", TINY_PIXELS, 1).spec, Path(folder))
        cpu = [("onnxruntime", "fp32", lambda: backend_from_name("onnxruntime", threads=1))]
        rows, undone = engine_rows(bundle, cpu, seconds=0.0, allows=lambda what, seconds: True)
    if undone:
        return f"not tried: {undone[0].why}"
    if rows[0].parity:
        raise AssertionError(rows[0].parity[0])
    return "onnxruntime on the CPU agrees with the reference"


def _kernels() -> str:
    # The tests compile the kernels for the CPU; so this takes a checkout.
    from tests.csrc.host_kernels import HostDriver, host_library

    with tempfile.TemporaryDirectory(prefix="dovit-") as folder:
        kernels = TokenKernels(HostDriver(host_library(Path(folder))), {name: name for name in KERNELS})
        outcomes = kernel_checks(kernels, CPU, stream=0)
    wrong = [outcome.detail for outcome in outcomes if not outcome.ok]
    if wrong:
        raise AssertionError(wrong[0])
    return "; ".join(f"{outcome.name}: {outcome.detail}" for outcome in outcomes)


def _memory() -> str:
    from tests.engines.cuda.fake_device import FakeMemory
    from tests.engines.cuda.memory_contract import CHECKS

    for check in CHECKS:
        memory = FakeMemory()
        check(memory)
        memory.close()
    return f"{len(CHECKS)} promises kept"


def _tables(results: CaseResults) -> str:
    report = GpuReport(
        command="",
        date="",
        machine={},
        versions={},
        minutes=0,
        gpu=None,
        selftest=(),
        parity=tuple(results.parity),
        staged=tuple(results.staged),
        boundaries=tuple(results.boundaries),
    )
    again = GpuReport.model_validate_json(report.model_dump_json())
    lines = sum(table(again).count("\n") for table in TABLES.values())
    return f"{len(TABLES)} tables of {lines} lines"


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: more only slow tiny models down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
