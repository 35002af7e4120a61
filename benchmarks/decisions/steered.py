"""How does the deployed network run when somebody else decides at its gates?"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from decisions.forms import AtGate, Mask, RecordedGates
from dovit_deploy.bundle.interface import CONFIDENCE, LABEL, LOGITS
from dovit_deploy.engines.base import Buffer, Engine
from dovit_deploy.measure.controls import token_classes
from dovit_deploy.runtime.results import Logits, Pixels
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings


class FirstStageKept(Session):
    """A session whose first stage runs once an image, whatever is decided behind it."""

    kept: _KeptStage | None = None

    def engine(self, graph: str) -> Engine:
        found = super().engine(graph)
        if graph != "stage0":
            return found
        if self.kept is None:
            self.kept = _KeptStage(found)
        return self.kept

    def next_image(self) -> None:
        """What is kept is of another image now."""
        if self.kept is not None:
            self.kept.outputs = None


class _KeptStage:
    """An engine that runs when nothing is kept."""

    def __init__(self, engine: Engine) -> None:
        self.of, self.outputs = engine, None

    outputs: dict[str, Buffer] | None

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        if self.outputs is None:
            self.outputs = self.of.run(inputs)
        return self.outputs

    def close(self) -> None:
        self.of.close()


Chooses = Callable[[AtGate], Mask]


def run_with(session: Session, pixels: Pixels, leaving: Chooses) -> tuple[Logits, tuple[int, ...]]:
    """(1, K, h, w), and the tokens that entered each stage, where who stops is what `leaving` says."""
    spec, download = session.bundle.manifest.spec, session.backend.download
    running, kept = np.ones(spec.patches, dtype=bool), [spec.tokens]
    extra = np.arange(spec.extra_tokens)

    def decide(gate: int, outputs: Mapping[str, Buffer]) -> NDArray[np.int64]:
        nonlocal running
        confidence, label = (np.asarray(download(outputs[name])) for name in (CONFIDENCE, LABEL))
        running = running & ~leaving(AtGate(gate, confidence.astype(np.float64), label, running, spec.grid))
        index = np.concatenate([extra, spec.extra_tokens + np.flatnonzero(running)]).astype(np.int64)
        kept.append(len(index))
        return index

    *_, (outputs, _) = session.stages(pixels, RunSettings.stop_nothing(spec), decide=decide)
    return np.asarray(download(outputs[LOGITS])), tuple(kept)


def recorded(session: FirstStageKept, pixels: Pixels) -> RecordedGates:
    """One image, nothing stopped."""
    rows: list[AtGate] = []

    def none(seen: AtGate) -> Mask:
        rows.append(seen)
        return np.zeros_like(seen.running)

    session.next_image()
    logits, _ = run_with(session, pixels, none)
    confidence, label = np.stack([row.confidence for row in rows]), np.stack([row.label for row in rows])
    return RecordedGates(confidence, label, token_classes(logits[0], session.bundle.manifest.spec))
