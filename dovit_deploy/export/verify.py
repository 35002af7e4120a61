"""Do a bundle's graphs compute what PyTorch does? Two sessions are compared, first decisions, then floats.

Floats are compared with the reference's decisions replayed: one token that stops elsewhere would change all others.

The rule (docs/bundle-format.md, "Parity"): a decision may differ only where the reference's confidence is closer to
its limit than the confidence error measured at that gate, and closer than 1e-4 in fp32.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dovit_deploy import __version__
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import (
    CONFIDENCE,
    COUNT,
    DENSE,
    FLOOR,
    KEPT,
    LABEL,
    LOGITS,
    MERGED,
    ORDER,
    PIXELS,
    THRESHOLDS,
    TOKENS,
    is_keep_name,
    stage_name,
    tokens_output,
)
from dovit_deploy.bundle.parity import FloatParity, FormParity, GateParity, ParityReport, RunParity
from dovit_deploy.engines.base import Array
from dovit_deploy.engines.onnxruntime import OnnxRuntimeBackend
from dovit_deploy.runtime.results import Pixels
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings

TOLERANCE = 1e-4
"""fp32: of confidences absolutely, of floats times max(1, absmax)."""

Image = tuple[str, Pixels]
"""What it is called in a report, and its normalised pixels (1, 3, H, W)."""
Outputs = dict[str, Array]


def parity_report(bundle: Bundle, images: list[Image], *, step: Callable[[str], None]) -> ParityReport:
    """Compare both forms of every graph, in ONNX Runtime, with PyTorch on `images`."""
    step("verify reference")
    with Session(bundle, engine="torch") as reference:
        compare = _comparison_with(reference, images)
    forms = []
    for form, fast in (("portable", False), ("fast", True)):
        step(f"verify {form}")
        with Session(bundle, backend=OnnxRuntimeBackend(fast=fast)) as candidate:
            forms.append(FormParity(form=form, engine=candidate.backend.name, runs=compare(candidate)))
    packages = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
    versions = {"dovit-deploy": __version__, **{package: _version(package) for package in packages}}
    return ParityReport(reference="torch", precision="fp32", forms=tuple(forms), versions=versions)


def _comparison_with(reference: Session, images: list[Image]) -> Callable[[Session], tuple[RunParity, ...]]:
    """Run `images` through the reference, once for all forms; gives the comparison of a session with it."""
    if reference.bundle.manifest.spec.gates:
        gated = reference_runs(reference, settings_from_images(reference, images))
        return lambda candidate: tuple(gated_parity(candidate, run) for run in gated)
    whole = whole_runs(reference, images)
    return lambda candidate: tuple(whole_parity(candidate, run) for run in whole)


def _version(package: str) -> str:
    # A module may come from one of several distributions, as onnxruntime from onnxruntime-gpu.
    distributions = importlib.metadata.packages_distributions().get(package, [])
    return importlib.metadata.version(distributions[0]) if distributions else "unknown"


@dataclass(frozen=True)
class Setting:
    """One image at one setting of the gates."""

    image: str
    pixels: Pixels
    thresholds: npt.NDArray[np.float32]
    """(gates, K)."""
    floor: np.float32


@dataclass(frozen=True)
class Trace:
    """All that the stages of one run put out, as host arrays."""

    tokens: list[Array]
    confidence: list[Array]
    label: list[Array]
    keep: list[npt.NDArray[np.bool_]]
    """Per gate, (E + N,): the gate's *own* decision, also when another one was replayed."""
    index: list[npt.NDArray[np.int64]]
    """Per gate, (count,): positions of the tokens that ran on."""
    logits: Array


def trace_from_session(
    session: Session, setting: Setting, *, replay: list[npt.NDArray[np.int64]] | None = None
) -> Trace:
    """Run `setting` through the stages of `session` and keep everything."""
    download = session.backend.download
    trace = Trace([], [], [], [], [], np.empty(0))
    for outputs, index in session.stages(setting.pixels, RunSettings(setting.thresholds, setting.floor, replay)):
        # Behind the last stage nothing is decided.
        if index is None:
            return Trace(
                trace.tokens, trace.confidence, trace.label, trace.keep, trace.index, download(outputs[LOGITS])
            )
        order, count = download(outputs[ORDER]), int(download(outputs[COUNT]))
        keep = np.zeros(order.shape, dtype=bool)
        keep[order[:count]] = True
        trace.tokens.append(download(outputs[tokens_output(len(trace.tokens))]))
        trace.confidence.append(download(outputs[CONFIDENCE]))
        trace.label.append(download(outputs[LABEL]))
        trace.keep.append(keep)
        trace.index.append(download(index))
    raise AssertionError("the last stage gives no index")


def settings_from_images(reference: Session, images: list[Image]) -> list[Setting]:
    """Each image at the bundle's own thresholds, and at thresholds that stop about half of the tokens at each gate."""
    manifest = reference.bundle.manifest
    own = RunSettings.resolve(manifest)
    settings = [Setting(name, pixels, own.thresholds, own.floor) for name, pixels in images]
    if manifest.spec.gates:
        settings += [halving_setting(reference, setting) for setting in settings]
    return settings


def halving_setting(reference: Session, setting: Setting) -> Setting:
    """`setting` with thresholds chosen, gate after gate, in the widest gap near the median of the confidences."""
    thresholds = np.ones_like(setting.thresholds)
    for gate in range(len(thresholds)):
        # Gate after gate, since a gate sees only what those before it let through.
        trial = Setting(setting.image, setting.pixels, thresholds.copy(), np.float32(0))
        trace = trace_from_session(reference, trial)
        extra = reference.bundle.manifest.spec.extra_tokens
        running = np.arange(trace.keep[0].shape[0])[extra:] if gate == 0 else trace.index[gate - 1][extra:]
        thresholds[gate] = _middle_gap(trace.confidence[gate][running - extra])
    return Setting(setting.image, setting.pixels, thresholds, setting.floor)


def _middle_gap(confidence: Array) -> float:
    """The centre of the widest gap between neighbouring values of the middle half; 1 when there is none."""
    values = np.sort(confidence[np.isfinite(confidence)].astype(np.float64))
    middle = values[len(values) // 4 : max(len(values) * 3 // 4, len(values) // 4 + 2)]
    if len(middle) < 2:
        return 1.0
    # As far as can be from any confidence, so that rounding decides no token.
    widest = int(np.argmax(np.diff(middle)))
    return float((middle[widest] + middle[widest + 1]) / 2)


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


def gate_parity(
    expected: Trace, replayed: Trace, gate: int, setting: Setting, extra: int, *, limit: float = TOLERANCE
) -> GateParity:
    """The rule for the decisions of one gate; no confidence error above `limit` explains anything."""
    want, got = expected.confidence[gate], replayed.confidence[gate]
    # NaN where a token had stopped before this gate; where only one side is NaN, `missing` counts it.
    both = np.isfinite(want) & np.isfinite(got)
    difference = np.abs(want - got)[both]
    error = float(difference.max(initial=0.0))
    # Extra tokens always run on, and have no confidence.
    differs = (expected.keep[gate] != replayed.keep[gate])[extra:]
    # -1 where a token was not evaluated; its confidence is NaN there, which is close to no limit.
    label = np.maximum(expected.label[gate], 0)
    to_threshold = np.abs(want - setting.thresholds[gate][label])
    to_floor = np.abs(want - setting.floor) if setting.floor > 0 else np.full_like(want, np.inf)
    # The error can be as large as the distance to the limit and no larger than what the precision may give.
    close = np.minimum(to_threshold, to_floor) <= min(error, limit)
    missing = int((np.isfinite(want) != np.isfinite(got)).sum())
    return GateParity(
        confidence_error=error,
        explained=int((differs & close).sum()),
        unexplained=int((differs & ~close).sum()) + missing,
    )


def float_parity(name: str, want: Array, got: Array, *, tolerance: float = TOLERANCE) -> FloatParity:
    """How far `got` is from `want`, and how far it may be; a wrong shape is infinitely far."""
    if want.shape != got.shape:
        return FloatParity(name=f"{name} (shape {got.shape} for {want.shape})", error=float("inf"), allowed=0.0)
    error = float(np.abs(want - got).max(initial=0.0))
    return FloatParity(name=name, error=error, allowed=tolerance * max(1.0, float(np.abs(want).max(initial=0.0))))


def _count_parity(name: str, want: Array, got: Array) -> FloatParity:
    """Counts of tokens are equal or wrong."""
    return FloatParity(name=name, error=float(np.abs(want - got).max(initial=0)), allowed=0.0)
