"""What is written beside a built engine: the key it was built under, and what can only be known at build time.

Without a driver an engine cannot be asked for its inputs, and an engine of unknown origin must not be deserialised: it
can carry code. So a sidecar says what the engine takes, what it was built from and what its bytes are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dovit_deploy.bundle.bundle import WEIGHTS, Bundle
from dovit_deploy.bundle.manifest import FileEntry, TokenCount
from dovit_deploy.engines.cuda.driver import gpu_device
from dovit_deploy.engines.plugins.library import plugin_digest
from dovit_deploy.engines.tensorrt.package import TensorRtPackage
from dovit_deploy.errors import UsageError
from dovit_deploy.graphs.derived import PRECISIONS, forms_digest
from dovit_deploy.record import Record

DTYPES = ("float16", "float32", "int64", "int32", "bool")


class EngineKey(Record):
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


class TensorRecord(Record):
    """An input or output."""

    name: str
    mode: Literal["input", "output"]
    dtype: str
    """One of `DTYPES`."""
    shape: tuple[int, ...]
    """-1 where the length of `index` stands."""


class LayerSummary(Record):
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


class PluginRecord(Record):
    """The plugins that an engine calls; it does not run where they are not registered."""

    namespace: str
    version: str
    calls: dict[str, int]
    sha256: str
    """Of the code of the plugins that it was built with, their kernels included."""


class EngineRecord(Record):
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


class EngineEntry(Record):
    """`entry.json` of a folder of engines: the key, and for whom it was built."""

    key: EngineKey
    bundle: str
    """Name of the bundle."""
    tool: str
    built_at: str
    """Date and time, ISO 8601, UTC."""


# What engines are asked for, and the key that follows from it: nothing here builds, and `onnx` is not needed.


@dataclass(frozen=True)
class BuildRequest:
    """What a user may choose."""

    precision: str = "fp16"
    buckets: tuple[int, ...] = ()
    """Token counts to tune for, one profile each; empty: one profile over all counts, tuned for the usual one."""
    plugins: bool = True
    compute_capabilities: tuple[str, ...] = ()
    merged: bool = False
    """Also one engine of all stages: no count reaches the host, and no size is known before it runs."""


def engine_key(bundle: Bundle, request: BuildRequest, package: TensorRtPackage) -> EngineKey:
    """The key of what `request` builds; needs neither `onnx` nor, for TensorRT for RTX, a GPU.

    Raises:
        UsageError: a precision, bucket or compute capability that cannot be built.
        EnvironmentProblem: a compiled plugin library is named and not there.
        ProviderMissing: `tensorrt` builds for the GPU at hand, and there is none.
    """
    if request.precision not in PRECISIONS:
        raise UsageError(f"--precision: '{request.precision}' given; engines are built in: {', '.join(PRECISIONS)}")
    if request.merged and not request.plugins:
        raise UsageError("--merged: its sizes come from a plugin; leave out --no-plugins")
    for name in request.compute_capabilities:
        package.compute_capability(name)
    wanted = request.compute_capabilities
    if not package.default_compute_capabilities:
        wanted = (gpu_device().compute_capability,)
    files, names = bundle.manifest.files, graph_names(bundle, merged=request.merged)
    plugins = request.plugins and package.capabilities.plugins
    return EngineKey(
        engine=package.engine,
        package_version=package.version,
        precision=request.precision,
        weights=files[WEIGHTS].sha256,
        graphs={name: files[f"{name}.onnx"].sha256 for name in names},
        profiles=profiles_from(bundle, request.buckets, names),
        plugins=plugins,
        plugin_code=plugin_digest() if plugins else "",
        compute_capabilities=tuple(sorted(set(wanted), key=float)),
        forms=forms_digest(),
    )


def graph_names(bundle: Bundle, *, merged: bool = False) -> tuple[str, ...]:
    """The graphs that engines are built of: every stage, and the dense network where it is another one.

    Args:
        merged: also all stages in one, where there are several.
    """
    stages = tuple(f"stage{number}" for number in range(bundle.stages))
    if merged and bundle.stages > 1:
        stages = (*stages, "merged")
    another = len(bundle.manifest.spec.counts) > 1 and "dense.onnx" in bundle.manifest.files
    return (*stages, "dense") if another else stages


def profiles_from(bundle: Bundle, buckets: Sequence[int], names: Sequence[str]) -> dict[str, tuple[TokenCount, ...]]:
    """The profiles of each of the graphs `names`: none where no input has an open size.

    With buckets, a stage has a profile of exactly each bucket below its largest count, and one of that count, so that
    every count can be rounded up.

    Raises:
        UsageError: a bucket that no stage can have.
    """
    counts, total = bundle.manifest.counts, bundle.manifest.spec.tokens
    for bucket in buckets:
        if not 1 <= bucket <= total:
            raise UsageError(f"--buckets: {bucket} given; a stage of this bundle runs 1 to {total} tokens")
    profiles: dict[str, tuple[TokenCount, ...]] = dict.fromkeys(names, ())
    for number, count in enumerate(counts[1:], start=1):
        sizes = sorted({min(bucket, count.maximum) for bucket in buckets} | {count.maximum})
        exact = tuple(TokenCount(minimum=size, typical=size, maximum=size) for size in sizes)
        profiles[f"stage{number}"] = exact if buckets else (count,)
    return profiles
