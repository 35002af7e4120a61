"""One picture under decisions that are not the gates' own: drawn, all at the first gate, or an oracle's.

A predictor cuts a picture into windows; each window is run as a control says, by replay on the deployed graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dovit_deploy.measure.controls import first_gate_keep, random_keep
from dovit_deploy.measure.oracle import oracle_keep, unlimited_oracle_keep
from dovit_deploy.runtime.gate_inputs import Keep, Thresholds
from dovit_deploy.runtime.predictor import Predictor
from dovit_deploy.runtime.results import RGB, FrameTokens, TokenReport
from dovit_deploy.runtime.segmentation import SegmentationResult
from dovit_deploy.runtime.session import Logits, Pixels, Session

SEED = 0
"""Of the random control."""

Steer = Callable[[int, Pixels], tuple[Logits, TokenReport]]
"""Runs one window of a picture: its number and its pixels (1, 3, H, W) -> logits (1, K, h, w) and what was done."""


class SteeredSession:
    """A `RunsOne`: the windows of one picture, each run as `steer` says."""

    def __init__(self, session: Session, steer: Steer) -> None:
        self.bundle, self.steer = session.bundle, steer
        self._window = 0

    def run_one(
        self,
        pixels: Pixels,
        *,
        thresholds: Thresholds | None = None,
        floor: float | None = None,
        keep: Keep | None = None,
        dense: bool = False,
    ) -> tuple[Logits, TokenReport]:
        """The next window; what else is asked for is not heard, `steer` has the say."""
        del thresholds, floor, keep, dense
        answer = self.steer(self._window, pixels)
        self._window += 1
        return answer


class Steering:
    """The controls of one session, picture by picture.

    What a control must know of a picture is passed from run to run: `tokens`, the rule's own run of it, and `logits`,
    those of the dense run, one (1, K, h, w) a window.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.spec = session, session.bundle.manifest.spec

    def dense(self, rgb: RGB) -> tuple[SegmentationResult, list[Logits]]:
        """Nothing stopped; the answer, and the logits of each window."""
        logits: list[Logits] = []

        def steer(window: int, pixels: Pixels) -> tuple[Logits, TokenReport]:
            del window
            answer = self.session.run_one(pixels, dense=True)
            logits.append(answer[0])
            return answer

        return self._steered(rgb, steer), logits

    def random(self, rgb: RGB, tokens: FrameTokens, *, number: int) -> SegmentationResult:
        """As many tokens running on as the rule let, drawn; `number` of the picture gives each its own draw."""

        def keep(window: int, pixels: Pixels) -> Keep:
            del pixels
            rng = np.random.default_rng([SEED, number, window])
            return random_keep(tokens.windows[window].report.kept, self.spec, rng=rng)

        return self._replayed(rgb, keep)

    def first_gate(self, rgb: RGB) -> SegmentationResult:
        """Everything stopped at the first gate."""
        return self._replayed(rgb, lambda window, pixels: first_gate_keep(self.spec))

    def oracle(self, rgb: RGB, tokens: FrameTokens, logits: Sequence[Logits]) -> SegmentationResult:
        """As many tokens running on as the rule let, chosen by who knows the dense answer."""

        def keep(window: int, pixels: Pixels) -> Keep:
            return oracle_keep(self.session, pixels, logits[window], kept=tokens.windows[window].report.kept)

        return self._replayed(rgb, keep)

    def unlimited_oracle(self, rgb: RGB, logits: Sequence[Logits]) -> SegmentationResult:
        """Every token stopped that has its final class, however many those are."""
        return self._replayed(rgb, lambda window, pixels: unlimited_oracle_keep(self.session, pixels, logits[window]))

    def _replayed(self, rgb: RGB, keep: Callable[[int, Pixels], Keep]) -> SegmentationResult:
        return self._steered(rgb, lambda window, pixels: self.session.run_one(pixels, keep=keep(window, pixels)))

    def _steered(self, rgb: RGB, steer: Steer) -> SegmentationResult:
        return Predictor(SteeredSession(self.session, steer)).predict(rgb)
