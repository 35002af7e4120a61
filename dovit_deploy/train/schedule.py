"""Where a run stands, and the learning rate there."""

from __future__ import annotations

import math

from dovit_deploy.train.config import TrainConfig


def progress_of(config: TrainConfig, *, step: int, seconds: float) -> float:
    """Share of the run that is done, in [0, 1]: by steps, or by processor seconds spent in steps."""
    if config.steps is not None:
        return min(1.0, step / config.steps)
    return min(1.0, seconds / (60.0 * (config.minutes or math.inf)))


def learning_rate_at(config: TrainConfig, progress: float) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if progress < config.warm_up:
        # Not quite zero at the first step, which would be wasted.
        return config.learning_rate * max(progress / config.warm_up, 0.01)
    rest = (progress - config.warm_up) / max(1e-9, 1.0 - config.warm_up)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * rest))
