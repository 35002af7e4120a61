"""The self-test: the code that runs on the GPU, on CPU tensors with tiny models."""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dovit_deploy.engines.plugins.kernels import KERNELS, TokenKernels
from dovit_deploy.engines.registry import backend_from_name
from gpu.cases import conditions_on, run_case
from gpu.engines import engine_rows, random_bundle
from gpu.kernels import FEW_MASKS, FEW_TOTALS, kernel_checks
from gpu.models import TINY_PIXELS, TinyCase
from gpu.result import EngineRow, GpuReport, Outcome, ParityRow, Undone
from gpu.section import ABSENT, Found, NotDone, TimeBudget, error_line, said
from gpu.tables import TABLES

CPU = torch.device("cpu")


def selftest() -> Iterator[Found]:
    """Everything that can be tried without a GPU."""
    rows: list[Found] = []
    for images in (1, 3):
        yield _tried(f"packed stages, batch of {images}", functools.partial(_stages, rows, images))
    yield _tried("engines on a bundle", _engines)
    if shutil.which("g++") is None:
        yield "undone", Undone(what="kernels' source on the CPU", why="g++ is not installed")
    else:
        yield _tried("kernels' source on the CPU", _kernels)
    yield _tried("device memory's contract, on a fake", _memory)
    yield _tried("tables", functools.partial(_tables, rows))


def _tried(name: str, check: Callable[[], str]) -> Found:
    """The outcome of `check`; whatever goes wrong is a finding, to be reported before the next check runs."""
    try:
        return "selftest", Outcome(name=name, ok=True, detail=check())
    # What this machine lacks is not wrong.
    except ABSENT as error:
        return "undone", Undone(what=name, why=said(error))
    except Exception as error:  # noqa: BLE001
        return "selftest", Outcome(name=name, ok=False, detail=error_line(error))


def _stages(rows: list[Found], images: int) -> str:
    rows += run_case(TinyCase("S", TINY_PIXELS, images), conditions_on(CPU))
    parity = [row for _, row in rows if isinstance(row, ParityRow)][-1]
    if parity.failures:
        raise AssertionError(parity.failures[0])
    return f"agree with the reference; floats at {parity.float_error:.1%} of what is allowed"


def _engines() -> str:
    with tempfile.TemporaryDirectory(prefix="dovit-") as folder:
        bundle = random_bundle(TinyCase("S", TINY_PIXELS, 1).spec, Path(folder))
        cpu = [("onnxruntime", "fp32", lambda: backend_from_name("onnxruntime", threads=1))]
        ((_, row),) = engine_rows(bundle, cpu, TimeBudget(math.inf), seconds=0.0)
    if isinstance(row, Undone):
        raise NotDone(row.why)
    if not isinstance(row, EngineRow) or row.parity:
        raise AssertionError(row.parity[0] if isinstance(row, EngineRow) else str(row))
    return "onnxruntime on the CPU agrees with the reference"


def _kernels() -> str:
    # The tests compile the kernels for the CPU; so this takes a checkout.
    from tests.csrc.host_kernels import HostDriver, host_library

    with tempfile.TemporaryDirectory(prefix="dovit-") as folder:
        kernels = TokenKernels(HostDriver(host_library(Path(folder))), {name: name for name in KERNELS})
        outcomes = kernel_checks(kernels, CPU, stream=0, totals=FEW_TOTALS, masks=FEW_MASKS)
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


def _tables(rows: list[Found]) -> str:
    report = GpuReport(command="", date="", machine={}, versions={}, minutes=0, gpu=None)
    for found in rows:
        report = report.with_found(*found)
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
