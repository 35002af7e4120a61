"""Every graph of a bundle, in every form, written to a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
from torch import nn

from dovit_deploy.bundle.interface import graph_interfaces
from dovit_deploy.bundle.model_spec import ModelSpec
from dovit_deploy.export.attention_forms import with_fused_attention, with_standard_attention
from dovit_deploy.export.shared_weights import WeightsFile, with_shared_weights
from dovit_deploy.export.stitch import merged_from_stages
from dovit_deploy.export.to_onnx import onnx_from_module
from dovit_deploy.models.families import family_of

FORMS = {".onnx": with_standard_attention, ".ort.onnx": with_fused_attention}
"""File ending -> the pass that makes the form."""

Progress = Callable[[str], None]


def write_graphs(
    folder: Path,
    spec: ModelSpec,
    model: nn.Module,
    *,
    weights: WeightsFile,
    metadata: dict[str, str],
    progress: Progress,
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
        for ending, form in FORMS.items():
            finished = with_shared_weights(form(graph), weights)
            finished.metadata_props.update({**metadata, "dovit.graph": name})
            finished.graph.name = name
            ir.save(finished, folder / f"{name}{ending}")


def exported_graphs(spec: ModelSpec, model: nn.Module, *, progress: Progress) -> dict[str, ir.Model]:
    """The graphs with attention not yet lowered, by name."""
    interfaces, family = graph_interfaces(spec), family_of(spec)
    modules = {f"stage{number}": stage for number, stage in enumerate(family.stages(model))}
    if spec.has_dense:
        modules["dense"] = family.dense(model)
    graphs = {}
    for name, module in modules.items():
        progress(f"export {name}")
        graphs[name] = onnx_from_module(module.eval(), interfaces[name])
    stages = [graphs[name] for name in graphs if name != "dense"]
    if len(stages) == 1:
        graphs["merged"] = stages[0].clone()
    else:
        graphs["merged"] = merged_from_stages(stages, interfaces["merged"], spec.tokens)
    return graphs
