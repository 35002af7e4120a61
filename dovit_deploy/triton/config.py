"""What does Triton know of a model before it loads it? `config.pbtxt`: tensors, batches, limits, warm-up, instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import (
    FLOOR,
    KEPT,
    MERGED,
    PIXELS,
    THRESHOLDS,
    GraphInterface,
    Port,
    graph_interfaces,
)
from dovit_deploy.engines.registry import engine_entry
from dovit_deploy.families.spec import ModelSpec

GMACS_DENSE, GMACS_ACTUAL, MILLISECONDS = "gmacs_dense", "gmacs_actual", "milliseconds"
OPTIONAL_INPUTS = (THRESHOLDS, FLOOR)
ANY = -1
"""A side that each request chooses."""
TYPES = {"float32": "TYPE_FP32", "float64": "TYPE_FP64", "int64": "TYPE_INT64"}
MAX_BATCH = 8
BATCHES_WAITING = 8
"""Full batches that may wait; what comes then is refused at once, so that nobody waits for long without knowing."""
LONGEST_WAIT_S = 10


@dataclass(frozen=True)
class ServingPlan:
    """What `dovit triton` was asked for, resolved."""

    bundle: Bundle
    name: str
    """Of the model: clients ask for it."""
    engine: str
    precision: str
    threads: int
    """Of an operator; images run side by side on as many cores as there are."""
    max_batch: int | None
    """Images that run together at most; None: MAX_BATCH."""
    merged: bool
    """Also the merged graph, for the ONNX Runtime backend."""

    @property
    def merged_name(self) -> str:
        """The model of the merged graph."""
        return f"{self.name}-merged"


def served_interface(spec: ModelSpec) -> GraphInterface:
    """What the staged model takes and gives for each image; Triton adds the batch before these shapes."""
    limits = (Port(THRESHOLDS, "float32", (ANY,)), Port(FLOOR, "float32", (1,))) if spec.gates else ()
    answers = tuple(Port(name, "float32", shape[1:]) for name, shape in spec.outputs.items())
    stages = len(spec.gates) + 1 if spec.gates else len(spec.counts)
    figures = (Port(name, "float64", (1,)) for name in (GMACS_DENSE, GMACS_ACTUAL, MILLISECONDS))
    pixels = Port(PIXELS, "float32", (3, *spec.size))
    return GraphInterface((pixels, *limits), (*answers, Port(KEPT, "int64", (stages,)), *figures))


def staged_config(plan: ServingPlan) -> str:
    """`config.pbtxt` of the staged model, which the Python backend runs."""
    manifest, interface = plan.bundle.manifest, served_interface(plan.bundle.manifest.spec)
    pixels, most = interface.takes[0], plan.max_batch or MAX_BATCH
    # A session runs on the first GPU that it sees: without the number there would be one more for each other GPU.
    kind = "KIND_GPU gpus: [ 0 ]" if engine_entry(plan.engine).on_gpu else "KIND_CPU"
    mean, std = manifest.preprocessing.mean, manifest.preprocessing.std
    return f"""\
# {plan.name}, staged: each image is answered as it would be alone. All versions of the model share this file.
name: "{plan.name}"
backend: "python"
max_batch_size: {most}

# pixels: (RGB - mean) / std of an image in 0..255; clients can ask for these parameters.
parameters {{ key: "mean" value {{ string_value: "{_numbers(mean)}" }} }}
parameters {{ key: "std" value {{ string_value: "{_numbers(std)}" }} }}
{_tensors("input", interface.takes)}
# {KEPT}: tokens that entered each stage.
{_tensors("output", interface.gives)}
# Requests that wait form a batch. Too many of them, or waiting too long, is answered with UNAVAILABLE (503).
dynamic_batching {{
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {LONGEST_WAIT_S * 1_000_000}
    allow_timeout_override: true
    max_queue_size: {BATCHES_WAITING * most}
  }}
}}

# Each instance is a process with weights of its own; within one, the images of a batch run side by side.
instance_group [ {{ count: 1 kind: {kind} }} ]

# A version is used once it has answered this.
model_warmup [
  {{
    name: "grey"
    batch_size: 1
    inputs {{
      key: "{pixels.name}"
      value {{ data_type: {TYPES[pixels.dtype]} {_dims(pixels.shape)} zero_data: true }}
    }}
  }}
]

# Versions side by side: each folder with a number is served, and the highest one answers who asks for none.
version_policy {{ all {{ }} }}
"""


def merged_config(plan: ServingPlan, *, file: str) -> str:
    """`config.pbtxt` of the merged graph in `file`, which the ONNX Runtime backend runs, one image at a time."""
    defaults = plan.bundle.manifest.defaults
    interface = graph_interfaces(plan.bundle.manifest.spec)[MERGED]
    own = f"# The bundle's own thresholds: {_rows(defaults.thresholds)}; floor: {defaults.floor:g}.\n"
    return f"""\
# {plan.merged_name}: all stages of {plan.name} in one ONNX graph, for servers with the ONNX Runtime backend.
name: "{plan.merged_name}"
backend: "onnxruntime"
default_model_filename: "{file}"
max_batch_size: 0

{own if plan.bundle.manifest.spec.gates else ""}{_tensors("input", interface.takes)}
{_tensors("output", interface.gives)}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
version_policy {{ all {{ }} }}
"""


def _tensors(field: str, ports: Sequence[Port]) -> str:
    """The fields `input` or `output`, a line each."""
    lines = (f'{field} {{ name: "{port.name}" data_type: {TYPES[port.dtype]} {_dims(port.shape)}' for port in ports)
    ends = (_end(port) if field == "input" else "" for port in ports)
    return "".join(f"{line}{end} }}\n" for line, end in zip(lines, ends, strict=True))


def _end(port: Port) -> str:
    optional = " optional: true" if port.name in OPTIONAL_INPUTS and port.shape in ((ANY,), (1,)) else ""
    # Without this, only requests that give as many thresholds would share a batch.
    return f"{optional} allow_ragged_batch: true" if ANY in port.shape else optional


def _dims(shape: Sequence[int | str]) -> str:
    """A scalar, which Triton has no shape for, is one number that is reshaped."""
    sides = ", ".join(str(side) for side in shape)
    return f"dims: [ {sides} ]" if shape else "dims: [ 1 ] reshape { shape: [ ] }"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(str(value) for value in values)


def _rows(rows: Sequence[Sequence[float]]) -> str:
    """One number for each gate whose classes share it."""
    return "; ".join(_numbers(row[:1] if len(set(row)) == 1 else row) for row in rows)
