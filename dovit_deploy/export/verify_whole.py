"""Verification of models without gates: one graph under two names, and a dense one where there is one.

Their choices of tokens are fixed in number and made inside the graph. They cannot be replayed, so they must be equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dovit_deploy.bundle.interface import KEPT
from dovit_deploy.bundle.parity import FloatParity, GateParity, RunParity
from dovit_deploy.engines.base import Array
from dovit_deploy.export.verify import float_parity
from dovit_deploy.runtime.session import Pixels, Session

Outputs = dict[str, Array]
Against = Callable[[Session], tuple[RunParity, ...]]


@dataclass(frozen=True)
class WholeRun:
    """What the reference says of one image: every output of `stage0`, and of `dense` if there is one."""

    image: str
    pixels: Pixels
    outputs: Outputs
    dense: Outputs


def whole_parity(reference: Session, images: list[tuple[str, Pixels]]) -> Against:
    """Run `images` through the reference, once for all forms; gives the comparison of a session with it."""
    has_dense = reference.bundle.manifest.spec.has_dense
    expected = [
        WholeRun(name, pixels, _run(reference, "stage0", pixels), _run(reference, "dense", pixels) if has_dense else {})
        for name, pixels in images
    ]
    return lambda candidate: tuple(_run_parity(candidate, run) for run in expected)


def _run_parity(candidate: Session, expected: WholeRun) -> RunParity:
    whole = {graph: _run(candidate, graph, expected.pixels) for graph in ("stage0", "merged")}
    floats = [
        _exact(f"{graph} {name}", want, got[name]) if name == KEPT else float_parity(f"{graph} {name}", want, got[name])
        for graph, got in whole.items()
        for name, want in expected.outputs.items()
        if not _is_choice(name)
    ]
    if expected.dense:
        got = _run(candidate, "dense", expected.pixels)
        floats += [float_parity(f"dense {name}", want, got[name]) for name, want in expected.dense.items()]
    choices = (
        (want, got[name]) for got in whole.values() for name, want in expected.outputs.items() if _is_choice(name)
    )
    return RunParity(
        image=expected.image,
        thresholds=(),
        kept=tuple(int(count) for count in expected.outputs[KEPT]),
        gates=tuple(
            GateParity(confidence_error=0.0, explained=0, unexplained=int((want != got).sum())) for want, got in choices
        ),
        floats=tuple(floats),
    )


def _is_choice(name: str) -> bool:
    return name.startswith("keep")


def _exact(name: str, want: Array, got: Array) -> FloatParity:
    return FloatParity(name=name, error=float(np.abs(want - got).max(initial=0)), allowed=0.0)


def _run(session: Session, graph: str, pixels: Pixels) -> Outputs:
    backend = session.backend
    outputs = session.engine(graph).run({"pixels": backend.upload(pixels)})
    return {name: backend.download(buffer) for name, buffer in outputs.items()}
