"""RunsOne: what a Predictor needs of a session, so that one that records, steers or times can stand in for it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from dovit_deploy.bundle.directory import Bundle
from dovit_deploy.runtime.gate_inputs import Keep, Thresholds
from dovit_deploy.runtime.results import TokenReport


class RunsOne(Protocol):
    """A `Session`, or what stands in for one behind a `Predictor`."""

    bundle: Bundle

    def run_one(
        self,
        pixels: npt.NDArray[np.float32],
        *,
        thresholds: Thresholds | None = None,
        floor: float | None = None,
        keep: Keep | None = None,
        dense: bool = False,
    ) -> tuple[npt.NDArray[np.float32], TokenReport]:
        """As `Session.run_one`: one window (1, 3, H, W) float32 -> logits (1, K, h, w) and what was done."""
