"""What an engine depends on, and what is written beside it: requests, keys, and the records of a build.

Without a driver TensorRT does not list the inputs of an engine, and an engine of unknown origin must not be
deserialised, because it can carry code. So a sidecar states what the engine takes, what it was built from and its
digest.
Nothing here builds, and `onnx` is not needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dovit_deploy.bundle.bundle import WEIGHTS, Bundle
from dovit_deploy.bundle.interface import DENSE, MERGED, graph_file, stage_name
from dovit_deploy.bundle.manifest import FileEntry, TokenCount
from dovit_deploy.engines.cuda.driver import gpu_device
from dovit_deploy.engines.plugins.library import plugin_digest
from dovit_deploy.engines.tensorrt.layers import LayerSummary
from dovit_deploy.engines.tensorrt.package import TensorRtPackage
from dovit_deploy.errors import UsageError
from dovit_deploy.graphs.forms import PRECISIONS, forms_digest
from dovit_deploy.record import Record

DTYPES = ("float16", "float32", "int64", "int32", "bool")

BUILDER_VERSION = 2
"""Raise it when builder.py makes another engine of the same graph than before (flags, profiles, verbosity)."""


@dataclass(frozen=True)
class BuildRequest:
    """What a user may choose."""

    precision: str = "fp16"
    buckets: tuple[int, ...] = ()
    """Token counts to tune for, one profile each; empty: one profile over all counts, tuned for the typical one."""
    plugins: bool = True
    compute_capabilities: tuple[str, ...] = ()
    merged: bool = False
    """Also one engine of all stages: no count reaches the host, and no size is known before it runs."""


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
    """Lengths of `index` for which each graph is tuned; empty for graphs of one size."""
    plugins: bool
    plugin_code: str
    """`plugin_digest()`; empty without plugins."""
    compute_capabilities: tuple[str, ...]
    """As requested; for `tensorrt`, that of the GPU on which it was built."""
    forms: str
    """`build_digest()`."""

    @property
    def name(self) -> str:
        """The key as a folder name."""
        # Sorted and without spaces: equal keys must give equal bytes. 24 digits are 96 bits, enough never to collide.
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:24]


class TensorRecord(Record):
    """An input or output."""

    name: str
    mode: Literal["input", "output"]
    dtype: str
    """One of `DTYPES`."""
    shape: tuple[int, ...]
    """-1 for the length of `index`."""


class PluginRecord(Record):
    """The plugins that an engine calls; it runs only where they are registered."""

    namespace: str
    version: str
    calls: dict[str, int]
    sha256: str
    """`plugin_digest()` when it was built."""


class EngineRecord(Record):
    """The sidecar `<graph>.json` of `<graph>.engine`."""

    format: Literal["dovit-engine"] = "dovit-engine"
    version: Literal[1] = 1
    graph: str
    key: str
    """Name of its `EngineKey`: so an engine cannot be taken for that of another bundle."""
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
    """`<graph>.engine`."""
    plugins: PluginRecord | None
    layers: LayerSummary
    seconds: float
    """Duration of the build."""
    peak_memory_bytes: int
    """Largest resident set of the building process."""

    @property
    def inputs(self) -> tuple[TensorRecord, ...]:
        """Input tensors, in the engine's order."""
        return tuple(tensor for tensor in self.tensors if tensor.mode == "input")

    @property
    def outputs(self) -> tuple[TensorRecord, ...]:
        """Output tensors, in the engine's order."""
        return tuple(tensor for tensor in self.tensors if tensor.mode == "output")


class BuildRecord(Record):
    """`entry.json` of a folder of engines: their key, and when, for which bundle and by what they were built."""

    key: EngineKey
    bundle: str
    """Name of the bundle."""
    tool: str
    built_at: str
    """Date and time, ISO 8601, UTC."""


def engine_key(bundle: Bundle, request: BuildRequest, package: TensorRtPackage) -> EngineKey:
    """The key of what `request` builds; needs neither `onnx` nor, for TensorRT for RTX, a GPU.

    Raises:
        UsageError: a precision, bucket or compute capability that cannot be built.
        EnvironmentProblem: a compiled plugin library is named and does not exist.
        ProviderMissing: `tensorrt` builds for the GPU of this machine, and there is none.
    """
    if request.precision not in PRECISIONS:
        raise UsageError(f"--precision: '{request.precision}' given; engines are built in: {', '.join(PRECISIONS)}")
    if request.merged and not request.plugins:
        raise UsageError("--merged: its sizes come from a plugin; leave out --no-plugins")
    for name in request.compute_capabilities:
        package.compute_capability(name)
    capabilities = request.compute_capabilities
    if not package.default_compute_capabilities:
        # Such a package builds for the GPU of this machine only; another GPU needs other engines.
        capabilities = (gpu_device().compute_capability,)
    files, names = bundle.manifest.files, graph_names(bundle, merged=request.merged)
    # A package without plugins gets graphs of standard operators, whatever was requested.
    plugins = request.plugins and package.capabilities.plugins
    return EngineKey(
        engine=package.engine,
        package_version=package.version,
        precision=request.precision,
        weights=files[WEIGHTS].sha256,
        graphs={name: files[graph_file(name)].sha256 for name in names},
        profiles=profiles_for(bundle, request.buckets, names),
        plugins=plugins,
        plugin_code=plugin_digest() if plugins else "",
        # As numbers: "12.0" comes after "8.6".
        compute_capabilities=tuple(sorted(set(capabilities), key=float)),
        forms=build_digest(),
    )


def build_digest() -> str:
    """SHA-256 of what decides, besides the graphs themselves, what is in an engine: derived forms and builder."""
    return hashlib.sha256(f"{forms_digest()} {BUILDER_VERSION}".encode()).hexdigest()


def graph_names(bundle: Bundle, *, merged: bool = False) -> tuple[str, ...]:
    """The graphs that engines are built from: every stage, and the dense network where it differs from them.

    Args:
        merged: also all stages in one graph, where there are several.
    """
    stages = tuple(stage_name(number) for number in range(bundle.stages))
    if merged and bundle.stages > 1:
        stages = (*stages, MERGED)
    # Where every layer runs all tokens, `stage0` is the dense network already.
    dense_differs = len(bundle.manifest.spec.counts) > 1 and graph_file(DENSE) in bundle.manifest.files
    return (*stages, DENSE) if dense_differs else stages


def profiles_for(bundle: Bundle, buckets: Sequence[int], names: Sequence[str]) -> dict[str, tuple[TokenCount, ...]]:
    """The profiles of each of the graphs `names`: none where all sizes are fixed.

    With buckets, a stage has one profile of exactly each bucket below its largest count and one of that count, so that
    every count can be rounded up.

    Raises:
        UsageError: a bucket larger than any token count.
    """
    counts, total = bundle.manifest.counts, bundle.manifest.spec.tokens
    for bucket in buckets:
        if not 1 <= bucket <= total:
            raise UsageError(f"--buckets: {bucket} given; a stage of this bundle runs 1 to {total} tokens")
    profiles: dict[str, tuple[TokenCount, ...]] = dict.fromkeys(names, ())
    # Stage 0 takes all tokens, and so do `merged` and `dense`: their sizes are fixed.
    for number, count in enumerate(counts[1:], start=1):
        sizes = sorted({min(bucket, count.maximum) for bucket in buckets} | {count.maximum})
        exact = tuple(TokenCount(minimum=size, typical=size, maximum=size) for size in sizes)
        profiles[stage_name(number)] = exact if buckets else (count,)
    return profiles
