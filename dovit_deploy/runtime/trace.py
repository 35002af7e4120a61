"""What do the stages of a session put out, and how far apart are two sessions on the same image?

Floats are compared with the reference's decisions replayed: one token that stops elsewhere would change all others.

The rule (docs/bundle-format.md, "Parity"): a decision may differ only where the reference's confidence is closer to
its limit than the confidence error measured at that gate, and closer than 1e-4 in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from dovit_deploy.bundle.interface import (
    CONFIDENCE,
    COUNT,
    LABEL,
    LOGITS,
    ORDER,
    carried_from_outputs,
    tokens_output,
)
from dovit_deploy.bundle.parity import FloatParity, GateParity
from dovit_deploy.engines.base import Array
from dovit_deploy.runtime.results import Pixels
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings

TOLERANCE = 1e-4
"""fp32: of confidences absolutely, of floats times max(1, absmax)."""

Image = tuple[str, Pixels]
"""What it is called in a report, and its normalised pixels (1, 3, H, W)."""


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
    carried: list[dict[str, Array]] = field(default_factory=list)
    """Per gate, what the stage before it gave for later ones beside the tokens, by name."""


def trace_from_session(
    session: Session, setting: Setting, *, replay: list[npt.NDArray[np.int64]] | None = None
) -> Trace:
    """Run `setting` through the stages of `session` and keep everything."""
    download = session.backend.download
    trace = Trace([], [], [], [], [], np.empty(0))
    for outputs, index in session.stages(setting.pixels, RunSettings(setting.thresholds, setting.floor, replay)):
        # Behind the last stage nothing is decided.
        if index is None:
            return replace(trace, logits=download(outputs[LOGITS]))
        order, count = download(outputs[ORDER]), int(download(outputs[COUNT]))
        keep = np.zeros(order.shape, dtype=bool)
        keep[order[:count]] = True
        trace.tokens.append(download(outputs[tokens_output(len(trace.tokens))]))
        trace.confidence.append(download(outputs[CONFIDENCE]))
        trace.label.append(download(outputs[LABEL]))
        trace.keep.append(keep)
        trace.index.append(download(index))
        trace.carried.append({name: download(value) for name, value in carried_from_outputs(outputs).items()})
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
