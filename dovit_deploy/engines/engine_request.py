"""What engines are asked for, and the key that follows from it: nothing here builds, and `onnx` is not needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovit_deploy.bundle.directory import WEIGHTS, Bundle
from dovit_deploy.bundle.manifest import TokenCount
from dovit_deploy.engines.engine_graphs import PRECISIONS, forms_digest
from dovit_deploy.engines.engine_record import EngineKey
from dovit_deploy.engines.gpu_device import gpu_device
from dovit_deploy.engines.plugin_library import plugin_digest
from dovit_deploy.engines.tensorrt_package import TensorRtPackage
from dovit_deploy.errors import UsageError


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
