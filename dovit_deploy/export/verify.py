"""Do a bundle's graphs compute what PyTorch does? Two sessions are compared, first decisions, then floats.

What counts as the same is in runtime/trace.py.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from dovit_deploy import __version__
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import (
    DENSE,
    FLOOR,
    KEPT,
    LOGITS,
    MERGED,
    PIXELS,
    THRESHOLDS,
    TOKENS,
    is_keep_name,
    stage_name,
)
from dovit_deploy.bundle.parity import FloatParity, FormParity, GateParity, ParityReport, RunParity
from dovit_deploy.engines.base import Array
from dovit_deploy.engines.onnxruntime import OnnxRuntimeBackend
from dovit_deploy.progress import StepProgress
from dovit_deploy.runtime.results import Pixels
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.trace import (
    Image,
    Setting,
    Trace,
    float_parity,
    gate_parity,
    settings_from_images,
    trace_from_session,
)

Outputs = dict[str, Array]


def parity_report(bundle: Bundle, images: list[Image], *, progress: StepProgress) -> ParityReport:
    """Compare both forms of every graph, in ONNX Runtime, with PyTorch on `images`."""
    progress.begin("verify reference")
    with Session(bundle, engine="torch") as reference:
        comparisons = _comparisons_with(reference, images)
    forms = []
    for form, fast in (("portable", False), ("fast", True)):
        progress.begin(f"verify {form}", len(comparisons), unit="runs")
        with Session(bundle, backend=OnnxRuntimeBackend(fast=fast)) as candidate:
            runs = []
            for compare in comparisons:
                runs.append(compare(candidate))
                progress.advance()
            forms.append(FormParity(form=form, engine=candidate.backend.name, runs=tuple(runs)))
    packages = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
    versions = {"dovit-deploy": __version__, **{package: _version(package) for package in packages}}
    return ParityReport(reference="torch", precision="fp32", forms=tuple(forms), versions=versions)


def _comparisons_with(reference: Session, images: list[Image]) -> list[Callable[[Session], RunParity]]:
    """Run `images` through the reference, once for all forms; gives the comparison of a session with it, run by run."""
    if reference.bundle.manifest.spec.gates:
        gated = reference_runs(reference, settings_from_images(reference, images))
        return [partial(gated_parity, expected=run) for run in gated]
    return [partial(whole_parity, expected=run) for run in whole_runs(reference, images)]


def _version(package: str) -> str:
    # A module may come from one of several distributions, as onnxruntime from onnxruntime-gpu.
    distributions = importlib.metadata.packages_distributions().get(package, [])
    return importlib.metadata.version(distributions[0]) if distributions else "unknown"


@dataclass(frozen=True)
class ReferenceRun:
    """What the reference gives for one setting of a model with gates."""

    setting: Setting
    trace: Trace
    dense_logits: Array


def reference_runs(reference: Session, settings: list[Setting]) -> list[ReferenceRun]:
    """Run every setting through the reference, once for all forms."""
    dense = {setting.image: reference.run(setting.pixels, dense=True)[0] for setting in settings}
    return [ReferenceRun(setting, trace_from_session(reference, setting), dense[setting.image]) for setting in settings]


def gated_parity(candidate: Session, expected: ReferenceRun) -> RunParity:
    """Compare every graph of one form of a model with gates with the reference's run."""
    setting, trace = expected.setting, expected.trace
    spec = candidate.bundle.manifest.spec
    replayed = trace_from_session(candidate, setting, replay=trace.index)
    gates = tuple(gate_parity(trace, replayed, gate, setting, spec.extra_tokens) for gate in range(len(spec.gates)))
    floats = [
        float_parity(f"{stage_name(number)} {TOKENS}", want, got)
        for number, (want, got) in enumerate(zip(trace.tokens, replayed.tokens, strict=True))
    ]
    floats += [
        float_parity(f"{stage_name(number)} {name}", value, got[name])
        for number, (want, got) in enumerate(zip(trace.carried, replayed.carried, strict=True))
        for name, value in want.items()
    ]
    floats.append(float_parity(LOGITS, trace.logits, replayed.logits))
    dense = _run_graph(candidate, DENSE, setting.pixels)
    floats.append(float_parity(f"{DENSE} {LOGITS}", expected.dense_logits, dense[LOGITS]))
    # The merged graph decides for itself, so it is held to this form's own staged run, which is the same arithmetic.
    agrees = all(np.array_equal(want, got) for want, got in zip(trace.keep, replayed.keep, strict=True))
    own = replayed if agrees else trace_from_session(candidate, setting)
    limits = {THRESHOLDS: setting.thresholds, FLOOR: np.asarray(setting.floor)}
    merged = _run_graph(candidate, MERGED, setting.pixels, limits)
    kept = np.asarray([spec.tokens, *(len(index) for index in own.index)])
    floats.append(_count_parity(f"{MERGED} {KEPT}", kept, merged[KEPT]))
    floats.append(float_parity(f"{MERGED} {LOGITS}", own.logits, merged[LOGITS]))
    return RunParity(
        image=setting.image,
        thresholds=tuple(float(row[0]) for row in setting.thresholds),
        kept=(spec.tokens, *(len(index) for index in trace.index)),
        gates=gates,
        floats=tuple(floats),
    )


def _run_graph(session: Session, graph: str, pixels: Pixels, limits: Outputs | None = None) -> Outputs:
    """Run a graph that takes `pixels`, and maybe `limits`, in one piece."""
    backend = session.backend
    inputs = {name: backend.upload(array) for name, array in {PIXELS: pixels, **(limits or {})}.items()}
    return {name: backend.download(buffer) for name, buffer in session.engine(graph).run(inputs).items()}


@dataclass(frozen=True)
class WholeRun:
    """What the reference gives for one image of a model without gates.

    Its choices of tokens are fixed in number and made inside the graph: they cannot be replayed, so they must be equal.
    """

    image: str
    pixels: Pixels
    outputs: Outputs
    """Of `stage0`."""
    dense: Outputs
    """Empty where there is no dense network."""


def whole_runs(reference: Session, images: list[Image]) -> list[WholeRun]:
    """Run every image through the reference, once for all forms."""
    has_dense = reference.bundle.manifest.spec.has_dense
    return [
        WholeRun(
            name,
            pixels,
            _run_graph(reference, stage_name(0), pixels),
            _run_graph(reference, DENSE, pixels) if has_dense else {},
        )
        for name, pixels in images
    ]


def whole_parity(candidate: Session, expected: WholeRun) -> RunParity:
    """Compare every graph of one form of a model without gates with the reference's run."""
    whole = {graph: _run_graph(candidate, graph, expected.pixels) for graph in (stage_name(0), MERGED)}
    floats, gates = [], []
    for graph, got in whole.items():
        for name, want in expected.outputs.items():
            if is_keep_name(name):
                # Nothing can explain a difference without a confidence to compare.
                differing = int((want != got[name]).sum())
                gates.append(GateParity(confidence_error=0.0, explained=0, unexplained=differing))
            elif name == KEPT:
                floats.append(_count_parity(f"{graph} {name}", want, got[name]))
            else:
                floats.append(float_parity(f"{graph} {name}", want, got[name]))
    if expected.dense:
        got = _run_graph(candidate, DENSE, expected.pixels)
        floats += [float_parity(f"{DENSE} {name}", want, got[name]) for name, want in expected.dense.items()]
    return RunParity(
        image=expected.image,
        thresholds=(),
        kept=tuple(int(count) for count in expected.outputs[KEPT]),
        gates=tuple(gates),
        floats=tuple(floats),
    )


def _count_parity(name: str, want: Array, got: Array) -> FloatParity:
    """Counts of tokens are equal or wrong."""
    return FloatParity(name=name, error=float(np.abs(want - got).max(initial=0)), allowed=0.0)
