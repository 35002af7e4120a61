"""What is written beside a built engine: the key it was built under, and what can only be known at build time.

Without a driver an engine cannot be asked for its inputs, and an engine of unknown origin must not be deserialised: it
can carry code. So a sidecar says what the engine takes, what it was built from and what its bytes are.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from dovit_deploy.bundle.manifest import FileEntry, TokenCount
from dovit_deploy.bundle.spec import Noun

DTYPES = ("float16", "float32", "int64", "int32", "bool")


class EngineKey(Noun):
    """Everything that an engine depends on; engines of equal keys are interchangeable."""

    engine: str
    """tensorrt or tensorrt-rtx."""
    package_version: str
    precision: str
    weights: str
    """SHA-256 of the bundle's weights."""
    graphs: dict[str, str]
    """SHA-256 of each portable graph that is built, by its name (stage0, ..., dense)."""
    profiles: dict[str, tuple[TokenCount, ...]]
    """Lengths of `index` that each graph is tuned for; empty for graphs of one size."""
    plugins: bool
    plugin_code: str
    """SHA-256 of the code of the plugins and their kernels; empty where none are called."""
    compute_capabilities: tuple[str, ...]
    """As asked for; of `tensorrt`, the GPU that was built on."""
    forms: str
    """SHA-256 of the code that derives what TensorRT reads from the portable graphs."""

    @property
    def name(self) -> str:
        """The key as a folder name."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:24]


class TensorRecord(Noun):
    """An input or output."""

    name: str
    mode: Literal["input", "output"]
    dtype: str
    """One of `DTYPES`."""
    shape: tuple[int, ...]
    """-1 where the length of `index` stands."""


class LayerSummary(Noun):
    """What the builder's layer table says; of several profiles, of the one that is worst in each respect."""

    layers: int
    attention: int
    """Attentions in the graph."""
    fused_attention: int
    """Layers that are a whole attention: the scores never reach memory."""
    plugin_layers: int
    host_syncs: int
    """Layers that move data between host and device, and inputs or outputs that live on the host."""
    activation_bytes: int | None
    """Device memory for activations at the largest profile; None where the log does not say."""


class PluginRecord(Noun):
    """The plugins that an engine calls; it does not run where they are not registered."""

    namespace: str
    version: str
    calls: dict[str, int]
    sha256: str
    """Of the code of the plugins that it was built with, their kernels included."""


class EngineRecord(Noun):
    """The sidecar `<graph>.json` of `<graph>.engine`."""

    format: Literal["dovit-engine"] = "dovit-engine"
    version: Literal[1] = 1
    graph: str
    key: str
    """Name of the `EngineKey` under which it was built: so an engine cannot pass for that of another bundle."""
    engine: str
    package_version: str
    precision: str
    compute_capabilities: tuple[str, ...]
    """What it runs on."""
    tensors: tuple[TensorRecord, ...]
    profiles: tuple[TokenCount, ...]
    """In the engine's own order; empty for a graph of one size."""
    onnx: FileEntry
    """The derived graph that TensorRT read."""
    weights: FileEntry
    """The derived weights beside it."""
    file: FileEntry
    """The engine."""
    plugins: PluginRecord | None
    layers: LayerSummary
    seconds: float
    """What the build took."""
    peak_memory_bytes: int
    """Of the building process."""

    @property
    def inputs(self) -> tuple[TensorRecord, ...]:
        """In the engine's order."""
        return tuple(tensor for tensor in self.tensors if tensor.mode == "input")

    @property
    def outputs(self) -> tuple[TensorRecord, ...]:
        """In the engine's order."""
        return tuple(tensor for tensor in self.tensors if tensor.mode == "output")


class EngineEntry(Noun):
    """`entry.json` of a folder of engines: the key, and for whom it was built."""

    key: EngineKey
    bundle: str
    """Name of the bundle."""
    tool: str
    built_at: str
    """Date and time, ISO 8601, UTC."""
