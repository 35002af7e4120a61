"""A run from its beginning to its checkpoint: the folder made or taken up, the steps, the threshold, the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.errors import ConfigError, InputError, UsageError
from dovit_deploy.interruption import stop_requests
from dovit_deploy.train.config import Scaling, TrainConfig, spec_from_choice
from dovit_deploy.train.data import DEFAULT_SIZE, Material, opened, refuse_other_classes, scenes_for, watched
from dovit_deploy.train.initialise import Start, start_from_checkpoint, with_settled_precision
from dovit_deploy.train.loop import Standing, Trainer, starting_model
from dovit_deploy.train.recipe import Recipe, config_error, run_config
from dovit_deploy.train.result import UNMEASURED_THRESHOLD, CurvePoint, chosen_threshold, save_result, threshold_curve
from dovit_deploy.train.state import (
    RECORD,
    STATE,
    RunFolder,
    RunRecord,
    data_facts,
    init_facts,
    refuse_other_data,
    refuse_other_recipe,
    refuse_taken,
    told_of_failure,
    write_atomically,
)

CHECKPOINT, CURVE = "checkpoint", "curve.json"

Progress = Callable[[Standing], None]
Remark = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the user asks for."""

    dataset: str
    output: Path
    recipe: Recipe
    """Flags included."""
    recipe_given: bool
    """A configuration file was given."""
    init: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    folder: Path
    record: RunRecord
    steps: int
    seconds: float
    threshold: float
    curve: tuple[CurvePoint, ...]
    """Empty when there were no images to choose a threshold on."""

    @property
    def checkpoint(self) -> Path:
        """Where the weights are."""
        return self.folder / CHECKPOINT


def train(request: Request, *, progress: Progress, remark: Remark) -> Result:
    """Begin or go on with the run of `request`, and finish it.

    Args:
        progress: told after every step.
        remark: told what is going on.

    Raises:
        Interrupted: the user asked to stop; the state is saved.
        UsageError: the folder exists, or is resumed with another recipe.
        InputError: the data set, the checkpoint to start from or the folder of the run cannot be used.
        CheckError: the gradient is not finite.
    """
    trainer, record = (_resumed if request.resume else _begun)(request, remark)
    with stop_requests() as stop:
        trainer.run(stopped=stop.is_set, report=progress)
    return _finished(trainer, record, remark)


def _begun(request: Request, remark: Remark) -> tuple[Trainer, RunRecord]:
    """A new run; nothing is written before everything was found in order."""
    recipe = request.recipe
    refuse_taken(request.output)
    data = opened(request.dataset, recipe)
    size = recipe.network.size or _size_of(data)
    material = Material(data, scenes_for(recipe, size, None))
    start = _start(request, recipe, size, len(material.main.classes.names))
    if recipe.distillation.teacher == "init" and start is None:
        raise ConfigError("distillation.teacher = 'init': there is no teacher without --init; use 'average'")
    if recipe.trained == "gates" and start is None:
        raise ConfigError("trained = 'gates': there is no network around them without --init")
    config = _config(recipe, start, size, material)
    if recipe.trained == "gates" and not config.spec.gates:
        raise ConfigError("trained = 'gates': the network has none; name their layers in network.gates")
    looked_at = watched(request.dataset, recipe, size)
    remark(f"checking {material.main.name}")
    for part in (data, looked_at if data is not None else None):
        if part is not None:
            part.check()
    if config.renders and data is not None:
        refuse_other_classes(data)
    _refuse_other_watched(material.main, looked_at)
    frequencies = material.frequencies()
    config = with_settled_precision(config, starting_model(config, start))
    record = RunRecord(
        recipe=recipe,
        config=config,
        data=data_facts(material, frequencies),
        init=init_facts(None if start is None else start.checkpoint),
    )
    folder = RunFolder.create(request.output, record)
    return _trainer(record, data, looked_at, folder, start), record


def _resumed(request: Request, remark: Remark) -> tuple[Trainer, RunRecord]:
    """A run taken up where its last state was saved; another recipe, data set or checkpoint is refused."""
    folder, record = RunFolder.open(request.output)
    refuse_other_recipe(record, request.recipe, whole=request.recipe_given)
    recipe = record.recipe
    data = opened(request.dataset, recipe)
    material = Material(data, scenes_for(recipe, record.config.spec.size, None))
    refuse_other_data(record, data_facts(material, record.data.frequencies))
    _refuse_other_start(request, record, begun=(folder.path / STATE).exists())
    start = _start(request, recipe, record.config.spec.size, record.config.spec.classes)
    looked_at = watched(request.dataset, recipe, record.config.spec.size)
    trainer = _trainer(record, data, looked_at, folder, start)
    if trainer.resume():
        remark(f"going on after step {trainer.step}")
    return trainer, record


def _refuse_other_start(request: Request, record: RunRecord, *, begun: bool) -> None:
    """Raise UsageError if `--init` is not what the run began from; a run with a state need not be told again."""
    if request.init is None and (begun or record.init is None):
        return
    config = record.recipe.init_config
    given = None if request.init is None else checkpoint_from_path(request.init, config=config)
    if init_facts(given) != record.init:
        own = f"--init with the checkpoint {record.init.source}" if record.init else "random weights"
        other = f", not from {request.init}" if request.init else ""
        raise UsageError(f"--resume: the run began from {own}{other}; give what it began with")


def _size_of(data: Dataset | None) -> tuple[int, int]:
    if data is None:
        return DEFAULT_SIZE
    height, width = data.sample(0).label.shape
    return height, width


def _start(request: Request, recipe: Recipe, size: tuple[int, int], classes: int) -> Start | None:
    if request.init is None:
        return None
    return start_from_checkpoint(request.init, recipe.network, config=recipe.init_config, size=size, classes=classes)


def _config(recipe: Recipe, start: Start | None, size: tuple[int, int], material: Material) -> TrainConfig:
    rendered_only = material.data is None
    if start is not None:
        found = start.checkpoint.preprocessing
        scaling = Scaling(mean=found.mean, std=found.std)
        return run_config(recipe, start.spec, scaling=scaling, rendered_only=rendered_only)
    try:
        spec = spec_from_choice(recipe.network, size, len(material.main.classes.names))
    except ValidationError as error:
        raise config_error(error, "network") from error
    return run_config(recipe, spec, scaling=Scaling(), rendered_only=rendered_only)


def _refuse_other_watched(main: Dataset, looked_at: Dataset | None) -> None:
    if looked_at is not None and looked_at.classes.names != main.classes.names:
        raise InputError(f"{looked_at.name}: has other classes than {main.name}")


def _trainer(
    record: RunRecord, data: Dataset | None, looked_at: Dataset | None, folder: RunFolder, start: Start | None
) -> Trainer:
    config = record.config
    scenes = scenes_for(record.recipe, config.spec.size, folder.path) if config.renders else None
    material = Material(data, scenes)
    return Trainer(config, material, looked_at, folder, frequencies=record.data.frequencies, start=start)


def _finished(trainer: Trainer, record: RunRecord, remark: Remark) -> Result:
    """Choose a threshold on the watched images, and write the checkpoint."""
    folder, scaling = trainer.folder.path, record.config.scaling
    threshold, points = UNMEASURED_THRESHOLD, tuple[CurvePoint, ...]()
    if trainer.watched is not None:
        remark(f"measuring thresholds on {trainer.watched.name}")
        points = threshold_curve(trainer.average, trainer.watched, scaling=scaling)
        threshold = chosen_threshold(points, record.config.max_drop)
        content = json.dumps([point.model_dump() for point in points], indent=1) + "\n"
        write_atomically(folder / CURVE, content.encode())
    with told_of_failure(folder / CHECKPOINT):
        save_result(
            folder / CHECKPOINT,
            trainer.average,
            record.data.classes,
            threshold=threshold,
            scaling=scaling,
            license_note=record.config.license,
            documents={RECORD: record.to_json()},
            overwrite=True,
        )
    return Result(folder, record, trainer.step, trainer.seconds, threshold, points)
