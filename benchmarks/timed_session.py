"""A session whose reports give the time that the processor computed, instead of the time that passed.

In one thread that is the same on a quiet machine; on a shared one waiting also measures the neighbours.
"""

from __future__ import annotations

import dataclasses
from time import process_time

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.runtime.results import RunTiming, TokenReport
from dovit_deploy.runtime.segmentation import SegmentationResult
from dovit_deploy.runtime.settings import RunSettings, RunsOne


class TimedSession:
    """`session`, the milliseconds of whose reports are the process's CPU time."""

    def __init__(self, session: RunsOne) -> None:
        self.session, self.bundle = session, session.bundle

    def run_one(self, pixels: NDArray[np.float32], settings: RunSettings) -> tuple[NDArray[np.float32], TokenReport]:
        """As `Session.run_one`."""
        # CPU time of all threads of the process. The engines here have one; NumPy has others that spin, unless
        # OPENBLAS_NUM_THREADS is 1, as the command line sets it.
        start = process_time()
        logits, report = self.session.run_one(pixels, settings)
        return logits, dataclasses.replace(report, timing=RunTiming(1e3 * (process_time() - start), ()))


def processor_ms(result: SegmentationResult) -> float:
    """CPU time of the model step of an image that went through a `TimedSession`, all windows together."""
    return sum(window.report.timing.model for window in result.tokens.windows)
