"""Checkpoint -> bundle: export, verify against the reference, then rename into place in one step."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import safetensors.torch
from pydantic import ValidationError
from torch import nn

from dovit_deploy import __version__
from dovit_deploy.bundle.bundle import PARITY, WEIGHTS, Bundle, file_entry
from dovit_deploy.bundle.interface import DENSE, MERGED, graph_file, graph_interfaces, stage_name
from dovit_deploy.bundle.manifest import GateDefaults, Manifest, Preprocessing, Provenance, TokenCount
from dovit_deploy.bundle.parity import FormParity, ParityReport
from dovit_deploy.checkpoints.checkpoint import Checkpoint
from dovit_deploy.engines.onnxruntime import OnnxRuntimeBackend
from dovit_deploy.errors import ParityError, UsageError
from dovit_deploy.export.stitch import merged_from_stages
from dovit_deploy.export.to_onnx import onnx_from_module
from dovit_deploy.export.verify import Against, reference_runs, run_parity, settings_from_images, whole_parity
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.registry import family_of, model_from_spec, spec_at_size, state_at_size
from dovit_deploy.families.spec import SMALLEST_SIDE, ModelSpec
from dovit_deploy.files import written_aside
from dovit_deploy.graphs.forms import FAST, PORTABLE
from dovit_deploy.graphs.passes import applied
from dovit_deploy.graphs.weights import SharedWeights
from dovit_deploy.runtime.results import Pixels
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import thresholds_from

# Every graph of a bundle, in every form, written to a folder.

FORMS = {False: PORTABLE, True: FAST}
"""Whether it is the fast form for ONNX Runtime -> the passes that make it."""


def write_graphs(
    folder: Path,
    spec: ModelSpec,
    model: nn.Module,
    *,
    weights: SharedWeights,
    metadata: dict[str, str],
    progress: Callable[[str], None],
) -> None:
    """Write `stage0.onnx`, ..., `merged.onnx`, `dense.onnx` and their fast forms, all over the one weights file.

    Args:
        folder: where they go.
        spec: of the network.
        model: in deployment form.
        weights: the file that they point into.
        metadata: what other tools can read in each of them.
        progress: told what is being done.
    """
    for name, graph in exported_graphs(spec, model, progress=progress).items():
        for fast, passes in FORMS.items():
            finished = applied(graph, (*passes, weights)).model
            finished.metadata_props.update({**metadata, "dovit.graph": name})
            finished.graph.name = name
            ir.save(finished, folder / graph_file(name, fast=fast))


def exported_graphs(spec: ModelSpec, model: nn.Module, *, progress: Callable[[str], None]) -> dict[str, ir.Model]:
    """The graphs with attention not yet lowered, by name."""
    interfaces, family = graph_interfaces(spec), family_of(spec)
    modules = {stage_name(number): stage for number, stage in enumerate(family.stages(model))}
    if spec.has_dense:
        modules[DENSE] = family.dense(model)
    graphs = {}
    for name, module in modules.items():
        progress(f"export {name}")
        graphs[name] = onnx_from_module(module.eval(), interfaces[name])
    stages = [graphs[name] for name in graphs if name != DENSE]
    if len(stages) == 1:
        graphs[MERGED] = stages[0].clone()
    else:
        graphs[MERGED] = merged_from_stages(stages, interfaces[MERGED], spec.tokens)
    return graphs


@dataclass(frozen=True)
class ExportRequest:
    """What the user may choose about a bundle; None takes what the checkpoint says."""

    size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    thresholds: tuple[float, ...] | None = None
    """One for all gates, or one per gate."""


def bundle_from_checkpoint(
    checkpoint: Checkpoint,
    output: Path,
    *,
    request: ExportRequest,
    images: list[tuple[str, Pixels]],
    overwrite: bool,
    progress: Callable[[str], None],
) -> tuple[Bundle, ParityReport]:
    """Export `checkpoint` to the folder `output`, check it, and open it.

    Args:
        images: names and normalised pixels (1, 3, H, W) to verify with, at the bundle's size.
        progress: told what is being done.

    Raises:
        UsageError: `output` exists, or the thresholds are out of range or of the wrong number.
        ParityError: the graphs differ from PyTorch by more than rounding; nothing is left behind.
    """
    spec = bundle_spec(checkpoint, request)
    state = state_at_size(checkpoint.state, checkpoint.spec, spec.size)
    manifest = _manifest(output.stem, checkpoint, spec, request)
    with written_aside(output, overwrite=overwrite) as folder:
        tensors = {name: tensor.detach().numpy() for name, tensor in state.items()}
        weights = SharedWeights.write(folder / WEIGHTS, tensors, {"format": "dovit-weights"})
        model = model_from_spec(spec, state)
        write_graphs(folder, spec, model, weights=weights, metadata=_metadata(manifest), progress=progress)
        draft = Bundle(folder, manifest.model_copy(update={"files": _files(folder)}))
        report = parity_report(draft, images, progress=progress)
        (folder / PARITY).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        final = manifest.model_copy(update={"files": _files(folder), "counts": _counts(spec, report)})
        (folder / "manifest.json").write_text(final.to_json(), encoding="utf-8")
        checked = Bundle.open(folder)
        if report.failures:
            shown = "; ".join(report.failures[:3])
            raise ParityError(f"{len(report.failures)} parity failures: {shown}. Nothing was written to {output}")
        if not report.proves_something:
            raise ParityError(
                "no parity image keeps between 10 and 90 % of its tokens at any gate, so the check proves nothing; "
                "give images of the kind that the model was trained on with --parity-images"
            )
    # Checked a moment ago under its other name: hashing every file again would say nothing new.
    return Bundle(output.resolve(), checked.manifest), report


def bundle_spec(checkpoint: Checkpoint, request: ExportRequest) -> AnySpec:
    """The architecture at the size that the graphs will take."""
    size = request.size or checkpoint.slide_size or checkpoint.spec.size
    if min(size) < SMALLEST_SIDE:
        raise UsageError(f"size {size[0]}x{size[1]}: both sides must be at least {SMALLEST_SIDE} pixels")
    try:
        return spec_at_size(checkpoint.spec, size)
    except ValidationError as error:
        place = f"size {size[0]}x{size[1]}: "
        message = error.errors()[0]["msg"].removeprefix("Value error, ").removeprefix(place)
        raise UsageError(f"{place}{message}") from error


def bundle_preprocessing(checkpoint: Checkpoint, spec: AnySpec, request: ExportRequest) -> Preprocessing:
    """What pictures go through before the graphs; raises UsageError for a stride where no window can slide."""
    preprocessing = checkpoint.preprocessing.for_spec(spec)
    if request.stride is None:
        return preprocessing
    if spec.task != "segmentation":
        raise UsageError("--stride: only a segmentation network slides a window over larger images")
    return preprocessing.model_copy(update={"stride": request.stride})


def parity_report(bundle: Bundle, images: list[tuple[str, Pixels]], *, progress: Callable[[str], None]) -> ParityReport:
    """Compare both forms of every graph with PyTorch on `images`."""
    progress("verify reference")
    compare = _gated_parity if bundle.manifest.spec.gates else whole_parity
    with Session(bundle, engine="torch") as reference:
        against = compare(reference, images)
    forms = []
    for form, fast in (("portable", False), ("fast", True)):
        progress(f"verify {form}")
        with Session(bundle, backend=OnnxRuntimeBackend(fast=fast)) as candidate:
            forms.append(FormParity(form=form, engine=candidate.backend.name, runs=against(candidate)))
    packages = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
    versions = {"dovit-deploy": __version__}
    for package in packages:
        versions[package] = _version(package)
    return ParityReport(reference="torch", precision="fp32", forms=tuple(forms), versions=versions)


def _gated_parity(reference: Session, images: list[tuple[str, Pixels]]) -> Against:
    expected = reference_runs(reference, settings_from_images(reference, images))
    return lambda candidate: tuple(run_parity(candidate, run) for run in expected)


def _version(package: str) -> str:
    distributions = importlib.metadata.packages_distributions().get(package, [])
    return importlib.metadata.version(distributions[0]) if distributions else "unknown"


def _manifest(name: str, checkpoint: Checkpoint, spec: AnySpec, request: ExportRequest) -> Manifest:
    counts = tuple(
        TokenCount(minimum=spec.extra_tokens or 1, typical=spec.tokens, maximum=spec.tokens)
        for _ in range(len(spec.gates) + 1)
    )
    manifest = Manifest(
        name=name,
        task=spec.task,
        spec=spec,
        preprocessing=bundle_preprocessing(checkpoint, spec, request),
        classes=checkpoint.classes,
        defaults=GateDefaults(thresholds=()),
        counts=counts,
        provenance=Provenance(
            tool=f"dovit-deploy {__version__}",
            source=checkpoint.source,
            source_sha256=checkpoint.source_sha256,
            license=checkpoint.license,
        ),
        files={},
    )
    if not spec.gates:
        return manifest
    wanted = checkpoint.thresholds if request.thresholds is None else request.thresholds
    value = np.asarray(wanted[0] if len(wanted) == 1 else wanted, dtype=np.float64)
    table = thresholds_from(value, manifest)
    rows = tuple(tuple(round(float(entry), 7) for entry in row) for row in table)
    return manifest.model_copy(update={"defaults": GateDefaults(thresholds=rows, floor=checkpoint.floor)})


def _metadata(manifest: Manifest) -> dict[str, str]:
    """What other tools can read in each ONNX file."""
    preprocessing, spec = manifest.preprocessing, manifest.spec
    return {
        "dovit.format": manifest.format,
        "dovit.version": str(manifest.version),
        "dovit.family": spec.family,
        "dovit.size": f"{spec.size[0]}x{spec.size[1]}",
        "dovit.mean": ",".join(f"{value:g}" for value in preprocessing.mean),
        "dovit.std": ",".join(f"{value:g}" for value in preprocessing.std),
        "dovit.classes": ",".join(entry.name for entry in manifest.classes),
        "dovit.tool": manifest.provenance.tool,
    }


def _counts(spec: AnySpec, report: ParityReport) -> tuple[TokenCount, ...]:
    """Fewest, usual (over the parity images at the bundle's own thresholds) and most tokens of each stage."""
    runs = report.forms[0].runs
    first = TokenCount(minimum=spec.tokens, typical=spec.tokens, maximum=spec.tokens)
    if not spec.gates:
        return (first,)
    own = runs[: max(1, len(runs) // 2)]
    typical = [round(sum(column) / len(column)) for column in zip(*(run.kept for run in own), strict=True)]
    later = (
        TokenCount(minimum=spec.extra_tokens, typical=max(usual, spec.extra_tokens), maximum=spec.tokens)
        for usual in typical[1:]
    )
    return (first, *later)


def _files(folder: Path) -> dict[str, object]:
    return {path.name: file_entry(path) for path in sorted(folder.iterdir())}


# A bundle's network at another input size, for the reference engine alone: weights and manifest, no graphs.
#
# Position embeddings are resized as an export at that size would do it, so accuracy and MACs are those of
# such an export.


def reference_bundle_at_size(bundle: Bundle, size: tuple[int, int], folder: Path) -> Bundle:
    """What `engine="torch"` reads of a bundle, at `size`; it cannot be opened or run by another engine.

    Args:
        bundle: the deployed one.
        size: height and width in pixels.
        folder: an existing folder that outlives the result; one weights file is written into it.
    """
    spec = bundle.manifest.spec
    place = folder / f"{size[0]}x{size[1]}"
    place.mkdir()
    state = state_at_size(safetensors.torch.load_file(bundle.weights), spec, size)
    safetensors.torch.save_file(state, place / WEIGHTS)
    small = spec_at_size(spec, size)
    changed = {"spec": small, "preprocessing": bundle.manifest.preprocessing.for_spec(small)}
    return Bundle(place, bundle.manifest.model_copy(update=changed))
