"""Where a run stands, and what goes for it there: learning rate and threshold."""

from __future__ import annotations

import math

import numpy as np

from dovit_deploy.train.config import TrainConfig


def progress_of(config: TrainConfig, *, step: int, seconds: float) -> float:
    """Share of the run that is done, in [0, 1]: by steps, or by the seconds of the run's clock."""
    if config.steps is not None:
        return min(1.0, step / config.steps)
    return min(1.0, seconds / (60.0 * (config.minutes or math.inf)))


def learning_rate_at(config: TrainConfig, progress: float) -> float:
    """Linear warm-up, then half a cosine to the final share, which is zero by default."""
    if progress < config.warm_up:
        # Not quite zero at the first step, which would be wasted.
        return config.learning_rate * max(progress / config.warm_up, 0.01)
    rest = (progress - config.warm_up) / max(1e-9, 1.0 - config.warm_up)
    fallen = 0.5 * (1.0 - math.cos(math.pi * rest))
    return config.learning_rate * (1.0 - (1.0 - config.final_rate) * fallen)


def passing_at(config: TrainConfig, progress: float, rng: np.random.Generator) -> float | None:
    """The threshold of one step, for all gates; None when the step is dense.

    Annealed: 1 - min(1, progress / until) * (1 - final), as the official recipe has it.
    """
    rule = config.passing
    begun = rule.mode == "annealed" or (rule.mode == "random" and progress >= rule.start)
    if not config.spec.gates or not begun or rng.random() >= rule.share:
        return None
    if rule.mode == "random":
        return float(rng.uniform(*rule.thresholds))
    return 1.0 - min(1.0, progress / rule.until) * (1.0 - rule.final)
