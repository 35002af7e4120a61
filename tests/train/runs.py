"""Records of runs for tests."""

from __future__ import annotations

from dovit_deploy.bundle.manifest import ClassEntry
from dovit_deploy.train.config import TrainConfig
from dovit_deploy.train.recipe import Recipe
from dovit_deploy.train.state import DataFacts, RunRecord


def record_of(config: TrainConfig) -> RunRecord:
    """A record of `config` with made-up facts of the data."""
    classes = tuple(ClassEntry(name=f"class {number}", color=(9, 9, number)) for number in range(config.spec.classes))
    shares = (1 / config.spec.classes,) * config.spec.classes
    return RunRecord(
        recipe=Recipe(),
        config=config,
        data=DataFacts(name="made up", images=5, classes=classes, digest="0", frequencies=shares),
    )
