"""A run from its beginning to its checkpoint: the folder made or taken up, the steps, the threshold, the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from dovit_deploy.checkpoints.backbone import Backbone
from dovit_deploy.checkpoints.own_format import foreign_in_checkpoint
from dovit_deploy.claims import claimed
from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.errors import ConfigError, InputError, Interrupted, UsageError
from dovit_deploy.files import refuse_existing, reported_writes
from dovit_deploy.interruption import stop_requests
from dovit_deploy.train.config import Scaling, TrainConfig
from dovit_deploy.train.data import (
    DEFAULT_SIZE,
    DataFound,
    TrainingData,
    found_in,
    refuse_other_classes,
    scenes_for,
    training_images,
    validation_data,
)
from dovit_deploy.train.initialise import with_resolved_precision
from dovit_deploy.train.loop import Trainer, TrainingProgress, starting_model
from dovit_deploy.train.network import spec_from_choice
from dovit_deploy.train.plot import SampleAnswer, sample_answers
from dovit_deploy.train.recipe import Recipe, config_error, run_config
from dovit_deploy.train.result import (
    UNMEASURED_THRESHOLD,
    ThresholdPoint,
    chosen_threshold,
    save_result,
    threshold_curve,
)
from dovit_deploy.train.start import Start, given_at, start_again, start_from_path
from dovit_deploy.train.state import (
    KEPT,
    RECORD,
    STATE,
    RunFolder,
    RunRecord,
    data_facts,
    entries_of,
    given_facts,
    refuse_other_data,
    refuse_other_recipe,
    refuse_taken,
    write_run_file,
)
from dovit_deploy.train.target import Labels
from dovit_deploy.train.teacher import Teacher, refuse_other_teacher, refuse_teacher_flag, teacher_from_path

CHECKPOINT, CURVE = "checkpoint", "curve.json"

Progress = Callable[[TrainingProgress], None]
Measuring = Callable[[int, int], None]
Remark = Callable[[str], None]


@dataclass(frozen=True)
class TrainingRequest:
    """A run as the user asks for it."""

    dataset: str
    output: Path
    recipe: Recipe
    """Flags included."""
    recipe_given: bool
    """A configuration file was given."""
    init: Path | None = None
    teacher: Path | None = None
    """A checkpoint whose answers it learns from, too."""
    resume: bool = False
    classes: Path | None = None
    """A list of the data set's own classes."""


@dataclass(frozen=True)
class TrainingResult:
    """A finished run: its folder, length, and the threshold chosen from the curve."""

    folder: Path
    record: RunRecord
    steps: int
    seconds: float
    threshold: float
    curve: tuple[ThresholdPoint, ...]
    """Empty when there were no images to choose a threshold on."""
    data: DataFound
    samples: tuple[SampleAnswer, ...] = ()
    """Of the validation images."""

    @property
    def checkpoint(self) -> Path:
        """Where the weights are."""
        return self.folder / CHECKPOINT


def train(
    request: TrainingRequest, *, progress: Progress, remark: Remark, measuring: Measuring = lambda done, total: None
) -> TrainingResult:
    """Begin or go on with the run of `request`, and finish it.

    Args:
        progress: called after every step.
        measuring: called while thresholds are measured, with the number of runs that are done, and of all.
        remark: called with a line about each part of the work.

    Raises:
        Interrupted: the user asked to stop; the state is saved.
        UsageError: the folder exists, another run writes there, or it is resumed with another recipe.
        InputError: the data set, the checkpoint to start from or the folder of the run cannot be used.
        CheckError: the gradient is not finite.
    """
    # Two runs in one folder would train two networks into one state.
    with claimed(request.output):
        trainer, record = (_resumed_run if request.resume else _new_run)(request, remark)
        found = found_in(trainer.training_data.data, trainer.validation)
        for line in found.lines():
            remark(line)
        with stop_requests() as stop:
            trainer.run(stopped=stop.is_set, report=progress, remark=remark)
            # Before anything is measured, which may take as long as the run: what was trained can be used at once.
            _save(trainer, record, UNMEASURED_THRESHOLD)

            def advance(done: int, total: int) -> None:
                measuring(done, total)
                if stop.is_set():
                    raise Interrupted(
                        f"stopped while thresholds were measured; {request.output / CHECKPOINT} is written, with "
                        f"threshold {UNMEASURED_THRESHOLD:g}; the same command with --resume measures them"
                    )

            return _measured(trainer, record, found, remark, advance)


def _new_run(request: TrainingRequest, remark: Remark) -> tuple[Trainer, RunRecord]:
    """A new run; nothing is written before everything was found in order."""
    recipe = request.recipe
    # Checked again when the folder is made; here, so that nobody waits for the data set to be read first.
    refuse_taken(request.output)
    data = training_images(request.dataset, recipe, request.classes)
    size = recipe.network.size or _size_of(data)
    training_data = TrainingData(data, scenes_for(recipe, size, None))
    start = _start(request, recipe, size, len(training_data.main.classes.names))
    _refuse_without_network(recipe, start, teacher=request.teacher is not None)
    config = _config(recipe, start, size, training_data)
    teacher = _teacher(request, config, training_data)
    config = _licensed(config, start, teacher)
    if recipe.trained == "gates" and not config.spec.gates:
        raise ConfigError("trained = 'gates': the network has none; name their layers in network.gates")
    if start is not None and start.given.assumed:
        remark(start.given.assumed)
    _say_padding(start, remark)
    validation = validation_data(request.dataset, recipe, size, request.classes)
    remark(f"checking {training_data.main.name}")
    # Rendered scenes need no check: they are made as they are needed.
    for part in (data, validation if data is not None else None):
        if part is not None:
            part.check()
    if config.renders and data is not None:
        refuse_other_classes(data)
    _refuse_other_classes(training_data.main, validation)
    frequencies = training_data.frequencies()
    # Measured once: a resumed run must compute in the precision that it began with.
    config = with_resolved_precision(config, starting_model(config, start))
    record = RunRecord(
        recipe=recipe,
        config=config,
        data=data_facts(training_data, frequencies),
        init=given_facts(None if start is None else start.given),
        teacher=given_facts(None if teacher is None else teacher.given),
    )
    folder = RunFolder.create(request.output, record)
    return _trainer(record, data, validation, folder, start, teacher), record


def _resumed_run(request: TrainingRequest, remark: Remark) -> tuple[Trainer, RunRecord]:
    """A run taken up where its last state was saved; another recipe, data set or checkpoint is refused."""
    folder, record = RunFolder.open(request.output)
    # What could not be replaced at the end is refused before the hours of training.
    foreign = partial(foreign_in_checkpoint, documents=(RECORD,))
    refuse_existing(folder.path / CHECKPOINT, overwrite=True, mark=foreign)
    refuse_teacher_flag(request.teacher, record.teacher)
    refuse_other_recipe(record, request.recipe, whole=request.recipe_given)
    recipe = record.recipe
    data = training_images(request.dataset, recipe, request.classes)
    training_data = TrainingData(data, scenes_for(recipe, record.config.spec.size, None))
    refuse_other_data(record, data_facts(training_data, record.data.frequencies))
    _refuse_other_start(request, record, begun=(folder.path / STATE).exists())
    # Not by the recipe: what its record leaves out cannot be told from what a user stated.
    start = start_again(request.init, record.config.spec, config=recipe.init_config) if request.init else None
    teacher = _teacher(request, record.config, training_data)
    refuse_other_teacher(request.teacher, teacher, record.teacher)
    validation = validation_data(request.dataset, recipe, record.config.spec.size, request.classes, resumed=True)
    trainer = _trainer(record, data, validation, folder, start, teacher)
    # There may be no state yet: then the run was killed before its first save and begins again.
    if trainer.resume():
        remark(f"going on after step {trainer.step}")
    return trainer, record


def _refuse_other_start(request: TrainingRequest, record: RunRecord, *, begun: bool) -> None:
    """Raise UsageError if `--init` is not what the run began from; a run that has a saved state needs no `--init`."""
    if request.init is None and (begun or record.init is None):
        return
    given = None if request.init is None else given_at(request.init, record.recipe.init_config)
    if given_facts(given) != record.init:
        own = f"--init with the checkpoint {record.init.source}" if record.init else "random weights"
        other = f", not from {request.init}" if request.init else ""
        raise UsageError(f"--resume: the run began from {own}{other}; give what it began with")


def _size_of(data: Dataset | None) -> tuple[int, int]:
    if data is None:
        return DEFAULT_SIZE
    height, width = data.sample(0).label.shape
    return height, width


def _start(request: TrainingRequest, recipe: Recipe, size: tuple[int, int], classes: int) -> Start | None:
    if request.init is None:
        return None
    return start_from_path(request.init, recipe.network, config=recipe.init_config, size=size, classes=classes)


def _teacher(request: TrainingRequest, config: TrainConfig, training_data: TrainingData) -> Teacher | None:
    if request.teacher is None:
        return None
    return teacher_from_path(request.teacher, config, entries_of(training_data.main))


def _licensed(config: TrainConfig, start: Start | None, teacher: Teacher | None) -> TrainConfig:
    """`config` with what the given weights came with: it holds for what is made of them."""
    given = (start.given.license if start else "", teacher.given.license if teacher else "")
    notes = dict.fromkeys(note for text in (config.license, *given) for note in text.split("; ") if note)
    return config.model_copy(update={"license": "; ".join(notes)})


def _say_padding(start: Start | None, remark: Remark) -> None:
    """A line where a pretrained backbone is shown padding, since the input is no whole number of its patches."""
    if start is None or not isinstance(start.given, Backbone):
        return
    patch, size = start.spec.patch, start.spec.size
    whole = (start.spec.grid[0] * patch, start.spec.grid[1] * patch)
    if whole != size:
        remark(
            f"inputs of {size[0]}x{size[1]} are padded to {whole[0]}x{whole[1]}, whole patches of {patch}; "
            "network.size in the configuration resizes images instead"
        )


def _refuse_without_network(recipe: Recipe, start: Start | None, *, teacher: bool) -> None:
    """Raise ConfigError for a recipe that needs a trained network, where there is none or only its backbone."""
    if start is None and recipe.frozen_layers:
        raise ConfigError(f"frozen_layers = {recipe.frozen_layers}: without --init they would stay as they are drawn")
    if recipe.distillation.teacher == "checkpoint" and not teacher:
        raise ConfigError("distillation.teacher = 'checkpoint': --teacher gives the network to learn from")
    lacking = "without --init" if start is None else "in a backbone without a head"
    if start is not None and not isinstance(start.given, Backbone):
        return
    if recipe.distillation.teacher == "init":
        raise ConfigError(f"distillation.teacher = 'init': there is no teacher {lacking}; use 'average'")
    if recipe.trained == "gates":
        raise ConfigError(f"trained = 'gates': there is no network around them {lacking}")


def _config(recipe: Recipe, start: Start | None, size: tuple[int, int], training_data: TrainingData) -> TrainConfig:
    rendered_only = training_data.data is None
    if start is not None:
        found = start.given.preprocessing
        scaling = Scaling(mean=found.mean, std=found.std)
        return run_config(recipe, start.spec, scaling=scaling, rendered_only=rendered_only)
    try:
        spec = spec_from_choice(recipe.network, size, len(training_data.main.classes.names))
    except ValidationError as error:
        raise config_error(error, "network") from error
    return run_config(recipe, spec, scaling=Scaling(), rendered_only=rendered_only)


def _refuse_other_classes(main: Dataset, validation: Dataset | None) -> None:
    if validation is not None and validation.classes.names != main.classes.names:
        raise InputError(f"{validation.name}: has other classes than {main.name}")


def _trainer(
    record: RunRecord,
    data: Dataset | None,
    validation: Dataset | None,
    folder: RunFolder,
    start: Start | None,
    teacher: Teacher | None,
) -> Trainer:
    config = record.config
    scenes = scenes_for(record.recipe, config.spec.size, folder.path) if config.renders else None
    training_data = TrainingData(data, scenes)
    return Trainer(
        config,
        training_data,
        validation,
        folder,
        target=Labels.of(record.data.frequencies, config),
        start=start,
        teacher=None if teacher is None else teacher.network,
    )


def _measured(
    trainer: Trainer, record: RunRecord, found: DataFound, remark: Remark, advance: Measuring
) -> TrainingResult:
    """Choose a threshold on the validation images, and write it with the checkpoint."""
    folder, config, data = trainer.folder.path, record.config, trainer.validation
    if data is None:
        return TrainingResult(folder, record, trainer.step, trainer.seconds, UNMEASURED_THRESHOLD, (), found)
    remark(f"measuring thresholds on {data.name}")
    curve = threshold_curve(
        trainer.average,
        data,
        scaling=config.scaling,
        seconds=config.curve_seconds,
        clock=trainer.clock,
        advance=advance,
    )
    if curve.images < len(data):
        remark(f"thresholds were measured on {curve.images} of {len(data)} images, evenly spread, to end in time")
    threshold = chosen_threshold(curve.points, config.max_drop)
    content = json.dumps([point.model_dump() for point in curve.points], indent=1) + "\n"
    write_run_file(folder / CURVE, content.encode())
    _save(trainer, record, threshold)
    samples = sample_answers(trainer.average, data, threshold=threshold, scaling=config.scaling)
    return TrainingResult(folder, record, trainer.step, trainer.seconds, threshold, curve.points, found, samples)


def _save(trainer: Trainer, record: RunRecord, threshold: float) -> None:
    """Write the checkpoint, in place of one of the same run."""
    path = trainer.folder.path / CHECKPOINT
    with reported_writes(path, kept=KEPT):
        save_result(
            path,
            trainer.average,
            record.data.classes,
            threshold=threshold,
            scaling=record.config.scaling,
            license_note=record.config.license,
            documents={RECORD: record.to_json()},
            overwrite=True,
        )
