"""Peers, ready to run in the place of this project's session (`RunsOne`).

Every engine gets the same number of threads, and OpenVINO the properties that this project sets, explicitly.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.base import as_float32
from dovit_deploy.engines.openvino import DEVICE, arithmetic, compile_properties
from dovit_deploy.families.cost import cost_model
from dovit_deploy.runtime.results import Pixels, RunTiming, TokenReport
from dovit_deploy.runtime.settings import RunSettings, RunsOne
from on_cpu.models import NNCF_MODEL, CaseFiles, bench_spec
from on_cpu.result import DEFAULT, CpuCell

COMPILERS = ("c++", "g++", "clang++", "cl")
"""One of them compiles what `torch.compile` writes."""
MATMUL = "medium"
"""PyTorch's float32 matmul precision: fp32-accurate here, and without it MKL takes a slow path on AMD."""


class Unavailable(Exception):
    """A peer that cannot run here, and why."""


class PeerRunner:
    """A function of pixels (1, 3, H, W) that gives logits, as what a predictor runs."""

    def __init__(self, bundle: Bundle, run: Callable[[Pixels], Any]) -> None:
        self.bundle, self._run = bundle, run
        self._gmacs = cost_model(bundle.manifest.spec).dense().total / 1e9

    def run_one(self, pixels: Pixels, settings: RunSettings) -> tuple[Any, TokenReport]:
        """Logits (1, K, h, w) and a report in which nothing stopped."""
        del settings
        logits = as_float32(self._run(pixels))
        tokens = (self.bundle.manifest.spec.tokens,)
        return logits, TokenReport(tokens, self._gmacs, self._gmacs, (), (), RunTiming(0.0, ()))


def peer(cell: CpuCell, files: CaseFiles, *, actual_gmacs: float) -> RunsOne:
    """The way of `cell`, which is not one of this project's; merging saves as much as `actual_gmacs` leave.

    Raises:
        Unavailable: a package, a compiler or an instruction set that the peer needs is not there.
        DovitError: an engine that cannot run here.
    """
    bundle, way = Bundle.open(files.bundle_path), cell.way
    if way.runs == "plain":
        make = plain_onnxruntime if way.engine == "onnxruntime" else plain_openvino
        return PeerRunner(bundle, make(files.plain_graph(), way.precision, cell.threads))
    if way.runs == "nncf":
        return PeerRunner(bundle, quantised_by_nncf(files, cell.threads))
    if way.runs == "merging":
        return merging_runner(bundle, files.folder, actual_gmacs)
    return PeerRunner(bundle, in_pytorch(cell, files, bundle))


def plain_onnxruntime(path: Path, precision: str, threads: int) -> Callable[[Pixels], Any]:
    """The ONNX file as it is, in ONNX Runtime."""
    del precision
    runtime = packages.onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = runtime.InferenceSession(str(path), options)
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})[0]


def plain_openvino(path: Path, precision: str, threads: int) -> Callable[[Pixels], Any]:
    """The ONNX file as it is, in OpenVINO."""
    core = packages.openvino_core()
    if precision.upper() not in capabilities(core):
        raise Unavailable(f"this CPU does not compute in {precision}")
    return compiled(core, core.read_model(str(path)), precision, threads)


def quantised_by_nncf(files: CaseFiles, threads: int) -> Callable[[Pixels], Any]:
    """The dense graph in 8 bits, by NNCF; the rest runs in bf16 where the CPU computes in it."""
    core, path = packages.openvino_core(), files.folder / NNCF_MODEL
    if not path.exists():
        quantise_by_nncf(files)
    return compiled(core, core.read_model(str(path)), "int8", threads)


def quantise_by_nncf(files: CaseFiles) -> None:
    """Write the dense graph in 8 bits: NNCF's recipe for transformers, calibrated on frames that are timed.

    Raises:
        Unavailable: NNCF is not installed.
    """
    if importlib.util.find_spec("nncf") is None:
        raise Unavailable("nncf is not installed: pip install nncf")
    # Before nncf, which would import it with its telemetry.
    openvino = packages.openvino()
    import nncf

    images = files.pixels(32)
    data = nncf.Dataset([{"pixels": pixels} if files.case.model == DEFAULT else pixels for pixels in images])
    model = packages.openvino_core().read_model(str(files.plain_graph()))
    quantised = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))
    openvino.save_model(quantised, str(files.folder / NNCF_MODEL), compress_to_fp16=False)


def compiled(core: Any, model: Any, precision: str, threads: int) -> Callable[[Pixels], Any]:  # noqa: ANN401
    """An OpenVINO model of one input and one output as a function."""
    properties = compile_properties(arithmetic(precision, capabilities(core)), threads)
    request = core.compile_model(model, DEVICE, properties).create_infer_request()
    return lambda pixels: request.infer([pixels], share_inputs=True)[0]


def capabilities(core: Any) -> list[str]:  # noqa: ANN401  an ov.Core
    """The precisions that the CPU computes in, as OpenVINO calls them."""
    return list(core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))


def merging_runner(bundle: Bundle, folder: Path, gmacs: float) -> RunsOne:
    """The weights dense, with so many similar tokens merged in every layer that `gmacs` are left."""
    require_torch()
    from why_not.merging import MergingSession, merging_macs

    spec = bundle.manifest.spec
    counts = range(1, spec.patches // 2)
    fitting = (count for count in counts if merging_macs(spec, count) <= 1e9 * gmacs)
    count = next(fitting, None)
    if count is None:
        raise Unavailable(f"merging in every layer cannot come down to {gmacs:.2f} GMAC")
    merged = folder / f"merging-{count}"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    return MergingSession(bundle, count, folder=merged)


def require_torch() -> None:
    """Raises Unavailable without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        raise Unavailable("torch is not installed: pip install 'dovit-deploy[export]'")


def in_pytorch(cell: CpuCell, files: CaseFiles, bundle: Bundle) -> Callable[[Pixels], Any]:
    """PyTorch's eager mode, or `torch.compile`: of the default model its dense network, else the plain ViT."""
    require_torch()
    if cell.way.runs == "compiled" and not any(map(shutil.which, COMPILERS)):
        raise Unavailable("torch.compile needs a C++ compiler")
    import torch

    torch.set_num_threads(cell.threads)
    torch.set_float32_matmul_precision(MATMUL)
    module = (dense_module(bundle) if files.case.model == DEFAULT else plain_module(files)).eval()
    if cell.way.runs == "compiled":
        module = torch.compile(module)

    def run(pixels: Pixels) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(pixels)).numpy()

    return run


def dense_module(bundle: Bundle) -> Any:  # noqa: ANN401  a torch.nn.Module
    """The bundle's dense network."""
    from dovit_deploy.families.registry import family_of, model_from_spec, state_from_bundle

    spec = bundle.manifest.spec
    return family_of(spec).dense(model_from_spec(spec, state_from_bundle(bundle)))


def plain_module(files: CaseFiles) -> Any:  # noqa: ANN401  a torch.nn.Module
    """The bench model as everybody writes it."""
    from graphs import PlainViT

    return PlainViT(bench_spec(files.case))
