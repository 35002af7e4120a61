"""Stands for the process that builds: the environment variable FAKE_BUILDER says what it does."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dovit_deploy.engines.tensorrt.builder import BuilderJob, BuilderOutcome
from dovit_deploy.engines.tensorrt.layers import LayerSummary
from dovit_deploy.engines.tensorrt.package import TensorRtPackage, capabilities_of
from dovit_deploy.engines.tensorrt.record import TensorRecord
from dovit_deploy.interruption import die_with
from tests.engines.tensorrt.bindings import PLAIN, RTX, Bindings, all_bindings, fake_module

MODULE = "tests.engines.tensorrt.fake_builder"
VARIABLE = "FAKE_BUILDER"


def fake_package(
    engine: str | None = None, *, bindings: Bindings | None = None, fakes: dict[str, Any] | None = None
) -> TensorRtPackage:
    """The package of one version, of which only `fakes` do anything; by default TensorRT for RTX."""
    bindings = bindings or all_bindings()[RTX if engine in (None, "tensorrt-rtx") else PLAIN]
    module, name = fake_module(bindings, fakes), bindings.version.split()[0].replace("_", "-")
    # Fewer targets than the real package has by default, so that tests can name one that is missing.
    defaults = ("8.0", "8.6") if name == "tensorrt-rtx" else ()
    return TensorRtPackage(name, "1.7.1", capabilities_of(module), module, defaults)


def runnable(path: Path) -> tuple[bytes, tuple[TensorRecord, ...]]:
    """What a fake TensorRT runs: the derived graph with its weights inside, and its interface."""
    import onnx

    model = onnx.load(str(path))
    return model.SerializeToString(), runnable_tensors(model)


def runnable_tensors(model) -> tuple[TensorRecord, ...]:
    import onnx

    tensors = [
        TensorRecord(
            name=value.name,
            mode=mode,
            dtype=onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            shape=tuple(-1 if side.dim_param else side.dim_value for side in value.type.tensor_type.shape.dim),
        )
        for mode, values in (("input", model.graph.input), ("output", model.graph.output))
        for value in values
    ]
    return tuple(tensors)


def main(path: str) -> None:
    job = BuilderJob.model_validate_json(Path(path).read_bytes())
    die_with(job.parent)
    carry_out(job)


def carry_out(job: BuilderJob) -> None:
    behaviour, _, only = os.environ.get(VARIABLE, "").partition(":")
    if only and only != Path(job.onnx).stem:
        behaviour = ""
    if behaviour == "segfault":
        sys.stderr.write("Internal Error: CHECK(is_const()) failed.\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
    if behaviour == "exit":
        sys.exit(3)
    if behaviour in ("slow", "hang"):
        time.sleep(1.0 if behaviour == "slow" else 100.0)
    tensors = (TensorRecord(name="pixels", mode="input", dtype="float32", shape=(1,)),)
    if behaviour == "runnable":
        plan, tensors = runnable(Path(job.onnx))
    else:
        plan = Path(job.onnx).read_bytes()[:100]
    if behaviour == "refuse":
        outcome = BuilderOutcome(error="stage1: the parser of TensorRT refuses the graph: NonZero")
    else:
        Path(job.output).write_bytes(plan)
        Path(job.table).write_text("Layers:\n")
        layers = LayerSummary(
            layers=1, attention=job.attention, fused_attention=0, plugin_layers=0, host_syncs=0, activation_bytes=1
        )
        outcome = BuilderOutcome(tensors=tensors, layers=layers, seconds=1.5, peak_memory_bytes=1000)
    Path(job.outcome).write_text(outcome.model_dump_json())
