"""What a gate's rule must beat: tokens stopped at random, by position alone, as elsewhere, or all at the first gate.

Each control is a set of decisions that the deployed graphs replay; none needs a graph of its own. Oracles know the
final dense answer, which no rule does: they show how much a better rule could gain. What the rule decides on other
images, `decisions.py` knows. `oracle_keep` lets as many tokens
run on as the rule did, so that it costs the same and only the choice differs; `unlimited_oracle_keep` stops every token
that has its final class already, however many those are. Why both: docs/decisions/0006-oracle-at-equal-counts.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.bundle.interface import CONFIDENCE, LABEL
from dovit_deploy.engines.base import Buffer
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.measure.decisions import Decisions, PatchOrder
from dovit_deploy.runtime.results import FrameTokens, Logits, Pixels, TokenReport
from dovit_deploy.runtime.segmentation import Predictor, SegmentationResult
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import Keep, RunSettings, index_from_keep
from dovit_deploy.sources.source import RGB

CONTROLS = ("random", "position", "other", "first_gate", "oracle", "oracle_unlimited")
ELSEWHERE = ("position", "other")
"""Those that are made of the rule's decisions on other images."""

CONTROL_SEED = 0
"""Seed of the random control."""

Running = NDArray[np.bool_]
"""(N,): which patches are running."""

Choose = Callable[[int, Running, NDArray[np.int64], NDArray[np.float32]], Running]
"""Which patches run on: from the gate's number, which are running, and their labels (N,) and confidences (N,)."""

RunWindow = Callable[[int, Pixels], tuple[Logits, TokenReport]]
"""Runs one window of an image: its number and its pixels (1, 3, H, W) -> logits (1, K, h, w) and what was done."""


def first_gate_keep(spec: ModelSpec) -> Keep:
    """Everything stops at the first gate: what the layers behind it are worth."""
    return gate_keep(spec, 0)


def gate_keep(spec: ModelSpec, gate: int) -> Keep:
    """Everything stops at this gate, counted from 0, and nothing before it: a network of fewer layers."""
    return [np.full(spec.grid, number < gate) for number in range(len(spec.gates))]


def random_keep(kept: Sequence[int], spec: ModelSpec, *, rng: np.random.Generator) -> Keep:
    """As many tokens running after each gate as in `kept`, drawn; a token that has stopped stays so.

    Args:
        kept: of a report: tokens entering each stage, extra tokens included, falling.
    """
    # One order for all gates: a token that is drawn to stop at one gate is among the stopped ones of the next, too.
    return ordered_keep(kept, spec, [rng.permutation(spec.patches)] * len(spec.gates))


def ordered_keep(kept: Sequence[int], spec: ModelSpec, orders: Sequence[PatchOrder]) -> Keep:
    """As many tokens running after each gate as in `kept`: the first of the gate's order that are running before it.

    Args:
        kept: of a report: tokens entering each stage, extra tokens included, falling.
        orders: for each gate.
    """
    running, grids = np.ones(spec.patches, dtype=bool), []
    for count, order in zip(kept[1:], orders, strict=True):
        # A token that has stopped stays so, wherever this gate's order has it.
        chosen = order[running[order]][: count - spec.extra_tokens]
        running = np.zeros(spec.patches, dtype=bool)
        running[chosen] = True
        grids.append(running.reshape(spec.grid))
    return grids


def gate_efficiency(*, rule: float, random: float, oracle: float) -> float | None:
    """(rule - random) / (oracle - random) of the mIoUs of three choices of equal cost.

    None where the oracle is no better than chance.
    """
    # Not compared with 0: a difference of means carries rounding errors.
    span = oracle - random
    return (rule - random) / span if span > 1e-9 else None


def oracle_keep(session: Session, pixels: Pixels, dense_logits: Logits, *, kept: Sequence[int]) -> Keep:
    """At each gate as many tokens run on as in `kept`; those stop first whose class the final answer shares most.

    The share is that of the positions of the decode head's logits inside the token's patch whose dense class is the
    gate's label. Among equals the more confident stops first, then the one that comes first in raster order.

    Args:
        session: of a bundle with gates.
        pixels: (1, 3, H, W), one window.
        dense_logits: (1, K, h, w) of the same window with nothing stopped.
        kept: of the rule's report of that window: tokens entering each stage, extra tokens included, falling.
    """
    spec = session.bundle.manifest.spec
    final = position_classes(dense_logits[0], spec)

    def choose(gate: int, running: Running, label: NDArray[np.int64], confidence: NDArray[np.float32]) -> Running:
        candidates = np.flatnonzero(running)
        same = (final[candidates] == label[candidates, None]).sum(axis=1)
        # Sorted by the last key first; the sort is stable, so raster order decides among equals.
        order = candidates[np.lexsort((-confidence[candidates], -same))]
        after = running.copy()
        after[order[: len(candidates) - (kept[gate + 1] - spec.extra_tokens)]] = False
        return after

    return _chosen(session, pixels, choose)


def unlimited_oracle_keep(session: Session, pixels: Pixels, dense_logits: Logits) -> Keep:
    """Exactly those tokens stop whose own label is the final dense class of their patch already.

    Args:
        session, pixels, dense_logits: as `oracle_keep` takes them.
    """
    final = token_classes(dense_logits[0], session.bundle.manifest.spec)
    return _chosen(session, pixels, lambda gate, running, label, confidence: running & (label != final))


def _chosen(session: Session, pixels: Pixels, choose: Choose) -> Keep:
    """The decisions of `choose`, each made from the gate's outputs in a run that followed the decisions before it."""
    spec, download = session.bundle.manifest.spec, session.backend.download
    grids: list[NDArray[np.bool_]] = []

    def decide(gate: int, outputs: Mapping[str, Buffer]) -> NDArray[np.int64]:
        running = grids[-1].ravel() if grids else np.ones(spec.patches, dtype=bool)
        label, confidence = np.asarray(download(outputs[LABEL])), np.asarray(download(outputs[CONFIDENCE]))
        grids.append(choose(gate, running, label, confidence).reshape(spec.grid))
        # Grids of all gates are expected; those that are still to come do not change the index of this one.
        return index_from_keep(grids + [grids[-1]] * (len(spec.gates) - len(grids)), spec)[gate]

    for _ in session.stages(pixels, RunSettings.stop_nothing(spec), decide=decide):
        # The last stage makes no decision: it need not run.
        if len(grids) == len(spec.gates):
            break
    return grids


def position_classes(logits: Logits, spec: ModelSpec) -> NDArray[np.int64]:
    """The classes that the positions of `logits` (K, h, w) inside each patch have: (N, positions of a patch)."""
    classes: NDArray[np.int64] = _cells(logits, spec).argmax(axis=0)
    return classes


def token_classes(logits: Logits, spec: ModelSpec) -> NDArray[np.int64]:
    """The class of each patch, (N,): that of the mean of the logits (K, h, w) inside it."""
    classes: NDArray[np.int64] = _cells(logits, spec).mean(axis=2).argmax(axis=0)
    return classes


def _cells(logits: Logits, spec: ModelSpec) -> Logits:
    """(K, h, w) -> (K, N, positions of a patch)."""
    # The decode head's grid is a whole multiple of the token grid, so that every patch owns a block of positions.
    rows, columns = spec.grid
    fine = logits.reshape(len(logits), rows, logits.shape[1] // rows, columns, logits.shape[2] // columns)
    return fine.transpose(0, 1, 3, 2, 4).reshape(len(logits), spec.patches, -1)


class SteeredSession:
    """A `RunsOne` whose windows are run by `run_window`, whatever settings the caller gives."""

    def __init__(self, session: Session, run_window: RunWindow) -> None:
        self.bundle, self.run_window = session.bundle, run_window
        self._window = 0

    def run_one(self, pixels: Pixels, settings: RunSettings) -> tuple[Logits, TokenReport]:
        del settings
        # A predictor runs the windows of an image in the order in which its report lists them.
        answer = self.run_window(self._window, pixels)
        self._window += 1
        return answer


class Steering:
    """The controls of one session, image by image.

    What a control must know of an image is passed from run to run: `tokens`, of the rule's own run, and `logits`, of
    the dense run, one (1, K, h, w) per window.

    Args:
        session: of a bundle with gates.
        decisions: of the rule on all images, for the controls that are made of them.
    """

    def __init__(self, session: Session, decisions: Decisions | None = None) -> None:
        self.session, self.spec, self.decisions = session, session.bundle.manifest.spec, decisions

    def results(
        self, names: Sequence[str], rgb: RGB, tokens: FrameTokens, *, number: int
    ) -> dict[str, SegmentationResult]:
        """The answer of the dense run, by "dense", and of each control of `names`, some of `CONTROLS`.

        `number`, of the image, gives each image its own random draw.
        """
        dense, logits = self.dense(rgb)
        runs: dict[str, Callable[[], SegmentationResult]] = {
            "random": lambda: self.random(rgb, tokens, number=number),
            "position": lambda: self.position(rgb, tokens, number=number),
            "other": lambda: self.other(rgb, tokens, number=number),
            "first_gate": lambda: self.first_gate(rgb),
            "oracle": lambda: self.oracle(rgb, tokens, logits),
            "oracle_unlimited": lambda: self.unlimited_oracle(rgb, logits),
        }
        return {"dense": dense, **{name: runs[name]() for name in names}}

    def dense(self, rgb: RGB) -> tuple[SegmentationResult, list[Logits]]:
        """Nothing stopped; the answer, and the logits of each window."""
        logits: list[Logits] = []

        def run_window(window: int, pixels: Pixels) -> tuple[Logits, TokenReport]:
            del window
            answer = self.session.run_one(pixels, RunSettings.resolve(self.session.bundle.manifest, dense=True))
            logits.append(answer[0])
            return answer

        return self._steered(rgb, run_window), logits

    def random(self, rgb: RGB, tokens: FrameTokens, *, number: int) -> SegmentationResult:
        """As many tokens run on as by the rule, drawn anew for each image by its `number`."""

        def keep(window: int, pixels: Pixels) -> Keep:
            del pixels
            rng = np.random.default_rng([CONTROL_SEED, number, window])
            return random_keep(tokens.windows[window].report.kept, self.spec, rng=rng)

        return self._replayed(rgb, keep)

    def position(self, rgb: RGB, tokens: FrameTokens, *, number: int) -> SegmentationResult:
        """As many tokens run on as by the rule, chosen by where they are alone."""
        assert self.decisions is not None
        decisions = self.decisions
        return self._ordered(rgb, tokens, lambda window: decisions.by_position(number, window))

    def other(self, rgb: RGB, tokens: FrameTokens, *, number: int) -> SegmentationResult:
        """As many tokens run on as by the rule, those that ran longest in another image."""
        assert self.decisions is not None
        decisions, gates = self.decisions, len(self.spec.gates)
        return self._ordered(rgb, tokens, lambda window: [decisions.of_other(number, window)] * gates)

    def first_gate(self, rgb: RGB) -> SegmentationResult:
        """Everything stops at the first gate."""
        return self.at_gate(rgb, 0)

    def at_gate(self, rgb: RGB, gate: int) -> SegmentationResult:
        """Everything stops at this gate, counted from 0."""
        return self._replayed(rgb, lambda window, pixels: gate_keep(self.spec, gate))

    def oracle(self, rgb: RGB, tokens: FrameTokens, logits: Sequence[Logits]) -> SegmentationResult:
        """As many tokens run on as by the rule, chosen with knowledge of the dense answer."""

        def keep(window: int, pixels: Pixels) -> Keep:
            return oracle_keep(self.session, pixels, logits[window], kept=tokens.windows[window].report.kept)

        return self._replayed(rgb, keep)

    def unlimited_oracle(self, rgb: RGB, logits: Sequence[Logits]) -> SegmentationResult:
        """Every token that has its final class stops, however many those are."""
        return self._replayed(rgb, lambda window, pixels: unlimited_oracle_keep(self.session, pixels, logits[window]))

    def _ordered(
        self, rgb: RGB, tokens: FrameTokens, orders: Callable[[int], Sequence[PatchOrder]]
    ) -> SegmentationResult:
        """At the rule's counts, by the orders of each window."""

        def keep(window: int, pixels: Pixels) -> Keep:
            del pixels
            return ordered_keep(tokens.windows[window].report.kept, self.spec, orders(window))

        return self._replayed(rgb, keep)

    def _replayed(self, rgb: RGB, keep: Callable[[int, Pixels], Keep]) -> SegmentationResult:
        def run_window(window: int, pixels: Pixels) -> tuple[Logits, TokenReport]:
            settings = RunSettings.resolve(self.session.bundle.manifest, keep=keep(window, pixels))
            return self.session.run_one(pixels, settings)

        return self._steered(rgb, run_window)

    def _steered(self, rgb: RGB, run_window: RunWindow) -> SegmentationResult:
        return Predictor(SteeredSession(self.session, run_window)).predict(rgb)
