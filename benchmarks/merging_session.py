"""A merging network in the project's own ONNX Runtime engine: same session options, same fused attention kernel.

It stands in for a `Session` behind a `Predictor`, so that pictures are prepared and read as for every other model.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np
import onnx_ir as ir
import safetensors.torch
from numpy.typing import NDArray
from token_merging import MergingNetwork, merging_macs

from dovit_deploy.bundle.bundle import Bundle, file_entry
from dovit_deploy.bundle.interface import graph_interfaces
from dovit_deploy.engines.base import as_float32
from dovit_deploy.engines.onnxruntime import OnnxRuntimeBackend
from dovit_deploy.export.attention import with_fused_attention
from dovit_deploy.export.to_onnx import onnx_from_module
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.registry import model_from_spec
from dovit_deploy.runtime.results import RunTiming, TokenReport
from dovit_deploy.runtime.settings import Keep, Thresholds


class MergingSession:
    """The weights of a bundle, run dense with `count` tokens merged in every layer.

    Args:
        bundle: its gates, if it has any, are not used.
        count: tokens merged per layer.
        folder: an existing folder that outlives the session; one graph is written into it.
    """

    def __init__(self, bundle: Bundle, count: int, *, folder: Path) -> None:
        self.bundle, self.count = bundle, count
        spec = bundle.manifest.spec
        self.module = MergingNetwork(model_from_spec(spec, safetensors.torch.load_file(bundle.weights)), count)
        graph = onnx_from_module(self.module.eval(), graph_interfaces(spec)["dense"])
        place = folder / f"{bundle.path.stem}-{count}"
        place.mkdir()
        path = place / "dense.ort.onnx"
        ir.save(with_fused_attention(graph), path)
        manifest = bundle.manifest.model_copy(update={"files": {path.name: file_entry(path)}})
        self.engine = OnnxRuntimeBackend(threads=1).load(Bundle(place, manifest), "dense")
        self.gmacs = merging_macs(spec, count) / 1e9
        self.gmacs_dense = cost_model(spec).dense().total / 1e9

    def run_one(
        self,
        pixels: NDArray[np.float32],
        *,
        thresholds: Thresholds | None = None,
        floor: float | None = None,
        keep: Keep | None = None,
        dense: bool = False,
    ) -> tuple[NDArray[np.float32], TokenReport]:
        """Logits (1, K, h, w) of one window (1, 3, H, W) and its report; there are no gates to steer."""
        del thresholds, floor, keep, dense
        start = perf_counter()
        logits = as_float32(self.engine.run({"pixels": pixels})["logits"])
        timing = RunTiming(1e3 * (perf_counter() - start), ())
        tokens = (self.bundle.manifest.spec.tokens,)
        return logits, TokenReport(tokens, self.gmacs_dense, self.gmacs, (), (), timing)
