"""How does a checkpoint become a bundle? Export, verify against the reference, then rename into place in one step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import safetensors.torch
from torch import nn

from dovit_deploy.bundle.bundle import MANIFEST, PARITY, WEIGHTS, Bundle, file_entry, foreign_in_bundle
from dovit_deploy.bundle.interface import DENSE, GRAPH_NAME, MERGED, graph_file, graph_interfaces, stage_name
from dovit_deploy.bundle.manifest import FileEntry, Manifest, TokenCount
from dovit_deploy.bundle.parity import MAX_DROP, ParityReport, PrecisionParity
from dovit_deploy.errors import ParityError
from dovit_deploy.export.compact import Compacted, compacted
from dovit_deploy.export.plan import ExportPlan
from dovit_deploy.export.quantise import QuantisePlan
from dovit_deploy.export.sensitivity import quantised_bundle
from dovit_deploy.export.stitch import merged_from_stages
from dovit_deploy.export.to_onnx import onnx_from_module
from dovit_deploy.export.verify import parity_report
from dovit_deploy.families.folding import State
from dovit_deploy.families.registry import (
    family_of,
    model_from_spec,
    spec_at_size,
    state_at_size,
    state_from_bundle,
    widened_state,
)
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.files import reported_writes, written_aside
from dovit_deploy.graphs.forms import FAST, PORTABLE
from dovit_deploy.graphs.passes import applied
from dovit_deploy.graphs.weights import SharedWeights
from dovit_deploy.progress import StepProgress
from dovit_deploy.runtime.trace import Image

FORMS = {False: PORTABLE, True: FAST}
"""Whether it is the fast form for ONNX Runtime -> the passes that make it."""

Losses = Callable[[Bundle], tuple[PrecisionParity, ...]]
"""Measures what the further precisions of a bundle lose; refuses one that loses too much."""


def bundle_from_plan(
    plan: ExportPlan,
    *,
    images: list[Image],
    progress: StepProgress,
    int8: QuantisePlan | None = None,
    losses: Losses = lambda bundle: (),
    max_drop: float = MAX_DROP,
) -> tuple[Bundle, ParityReport]:
    """Export what is planned, check it, and open it.

    Args:
        plan: from `ExportPlan.resolve`.
        images: names and normalised pixels (1, 3, H, W) to verify with, at the bundle's size.
        progress: is told of each step.
        int8: what forms in 8 bits are made with; None: fp32 alone.
        losses: called with the bundle in all its precisions; its answer becomes part of the report.
        max_drop: points that each of them may lose, for the report.

    Raises:
        UsageError: the output exists and may not be replaced, or another run writes there.
        ParityError: the graphs differ from PyTorch by more than rounding; nothing is left behind.
        CheckError: int8 loses too much, or compact weights do; nothing is left behind.
    """
    spec, manifest = plan.manifest.spec, plan.manifest
    state = state_at_size(plan.checkpoint.state, plan.checkpoint.spec, spec.size)
    if plan.compact:
        progress.begin("round weights")
    compact = compacted(manifest, state, images) if plan.compact else Compacted(state)
    with written_aside(plan.output, overwrite=plan.overwrite, mark=foreign_in_bundle) as folder:
        tensors = {name: tensor.detach().numpy() for name, tensor in compact.stored.items()}
        weights = SharedWeights.write(folder / WEIGHTS, tensors, {"format": "dovit-weights"})
        model = model_from_spec(spec, widened_state(compact.stored))
        write_graphs(folder, spec, model, weights=weights, metadata=_metadata(manifest), progress=progress)
        # The sessions that verify want a bundle, which is complete only with their report.
        draft = _listed(Bundle(folder, manifest))
        report = parity_report(draft, images, progress=progress)
        _refuse_failures(report, plan.output)
        if int8 is not None:
            draft = _listed(quantised_bundle(draft, int8, progress=progress))
        measured = {"precisions": losses(draft), "max_drop": max_drop, "compact": compact.record}
        report = report.model_copy(update=measured)
        (folder / PARITY).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        final = _listed(draft).manifest.model_copy(update={"counts": _counts(manifest, report)})
        (folder / MANIFEST).write_text(final.to_json(), encoding="utf-8")
        # A failure leaves the block with an error, and then the folder is removed.
        checked = Bundle.open(folder)
    # Checked a moment ago under its other name: hashing every file again would say nothing new.
    return Bundle(plan.output.resolve(), checked.manifest), report


def write_graphs(
    folder: Path,
    spec: ModelSpec,
    model: nn.Module,
    *,
    weights: SharedWeights,
    metadata: dict[str, str],
    progress: StepProgress,
) -> None:
    """Write `stage0.onnx`, ..., `merged.onnx`, `dense.onnx` and their fast forms to `folder`.

    Args:
        folder: of the bundle.
        spec: of the network.
        model: in deployment form.
        weights: the file that all of them point into.
        metadata: what other tools can read in each of them.
        progress: is told of each step.
    """
    for name, graph in _exported_graphs(spec, model, progress=progress).items():
        for fast, passes in FORMS.items():
            finished = applied(graph, (*passes, weights)).model
            finished.metadata_props.update({**metadata, GRAPH_NAME: name})
            finished.graph.name = name
            ir.save(finished, folder / graph_file(name, fast=fast))


def _exported_graphs(spec: ModelSpec, model: nn.Module, *, progress: StepProgress) -> dict[str, ir.Model]:
    """The graphs with attention not yet lowered, by name."""
    interfaces, family = graph_interfaces(spec), family_of(spec)
    modules = {stage_name(number): stage for number, stage in enumerate(family.stages(model))}
    if spec.has_dense:
        modules[DENSE] = family.dense(model)
    graphs = {}
    for name, module in modules.items():
        progress.begin(f"export {name}")
        graphs[name] = onnx_from_module(module.eval(), interfaces[name], always=spec.extra_tokens)
    stages = [graph for name, graph in graphs.items() if name != DENSE]
    if len(stages) == 1:
        graphs[MERGED] = stages[0]
    else:
        graphs[MERGED] = merged_from_stages(stages, interfaces[MERGED], spec.tokens)
    return graphs


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


def _listed(bundle: Bundle) -> Bundle:
    """The bundle with the files that lie in its folder now."""
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"files": _files(bundle.path)}))


def _files(folder: Path) -> dict[str, FileEntry]:
    return {path.name: file_entry(path) for path in sorted(folder.iterdir())}


def _counts(manifest: Manifest, report: ParityReport) -> tuple[TokenCount, ...]:
    """The planned counts, with what the parity images usually keep at the bundle's own thresholds."""
    # Stage 0 takes all tokens, whatever the gates decide.
    first, *later = manifest.counts
    if not later:
        return (first,)
    runs = report.forms[0].runs
    # The second half of the runs is at thresholds that were chosen to stop half of the tokens.
    own = runs[: max(1, len(runs) // 2)]
    usual = [round(sum(column) / len(column)) for column in zip(*(run.kept for run in own), strict=True)]
    changed = (
        count.model_copy(update={"typical": max(kept, count.minimum)})
        for count, kept in zip(later, usual[1:], strict=True)
    )
    return (first, *changed)


def _refuse_failures(report: ParityReport, output: Path) -> None:
    if report.failures:
        shown = "; ".join(report.failures[:3])
        raise ParityError(f"{len(report.failures)} parity failures: {shown}. Nothing was written to {output}")
    if not report.proves_something:
        raise ParityError(
            "no parity image keeps between 10 and 90 % of its tokens at any gate, so the check proves nothing; "
            "give images of the kind that the model was trained on with --parity-images"
        )


def reference_bundle_at_size(bundle: Bundle, size: tuple[int, int], folder: Path) -> Bundle:
    """What `engine="torch"` reads of a bundle, at `size`: weights and manifest without graphs, for that engine alone.

    Position embeddings are resized as an export at that size would do it, so accuracy and MACs are those of such an
    export.

    Args:
        bundle: the deployed one.
        size: height and width in pixels.
        folder: an existing folder that outlives the result; one weights file is written into it.
    """
    spec = bundle.manifest.spec
    small, path = spec_at_size(spec, size), folder / f"{size[0]}x{size[1]}"
    preprocessing = bundle.manifest.preprocessing.for_spec(small)
    manifest = bundle.manifest.model_copy(update={"spec": small, "preprocessing": preprocessing})
    return reference_bundle(manifest, state_at_size(state_from_bundle(bundle), spec, size), path)


def reference_bundle(manifest: Manifest, state: State, path: Path) -> Bundle:
    """What `engine="torch"` reads of a bundle: weights and manifest without graphs, for that engine alone.

    Args:
        manifest: of the bundle.
        state: the weights of its network, in deployment form.
        path: a folder that is made, and outlives the result; one weights file is written into it.
    """
    path.mkdir()
    with reported_writes(path):
        (path / WEIGHTS).write_bytes(safetensors.torch.save(state))
    return Bundle(path, manifest.model_copy(update={"files": _files(path)}))
