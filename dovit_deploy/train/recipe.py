"""Recipe: the small TOML or YAML file of a user, and the run that it makes of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from dovit_deploy.documents import NotData, data_from_toml, data_from_yaml, fault_of, read_text
from dovit_deploy.errors import ConfigError, InputError, UsageError
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.spec import Size
from dovit_deploy.record import Record
from dovit_deploy.train.config import Distillation, Phase, Scaling, Settings, TrainConfig, crop_step
from dovit_deploy.train.network import NetworkChoice

DEFAULT_MINUTES = 60.0


class PhaseChoice(Record):
    """A phase as a user writes it; without `crop` it sees whole inputs."""

    until: float = Field(gt=0, le=1)
    crop: Size | None = None
    batch: int = Field(default=4, ge=1, le=65_536)
    rendered: float | None = Field(default=None, ge=0, le=1)


class Recipe(Settings):
    """Everything of the configuration file; every key may be left out."""

    network: NetworkChoice = NetworkChoice()
    phases: tuple[PhaseChoice, ...] | None = None
    """Default: crops of 72 % of each side in batches of 8 for 60 % of the run, then whole inputs in batches of 4."""
    rendered: float = Field(default=0.0, ge=0, le=1)
    """Share of rendered scenes in phases that do not say."""
    pretrain: float = Field(default=0.0, ge=0, lt=1)
    """Share of the run, at its start, that sees nothing but rendered scenes."""
    split: str = "train"
    """Images to train on: a split or a part of it, as `datasets/split.py` reads it."""
    watch: str = "val"
    """Validation images: evaluated during the run, and used to choose the threshold, written as `split`."""
    init_config: str | None = None
    """What the keys of the `--init` checkpoint cannot tell: JSON or variant.yml."""

    @model_validator(mode="after")
    def _one_plan(self) -> Self:
        if self.steps is not None and self.minutes is not None:
            raise ValueError("give either steps or minutes")
        if self.phases is not None and self.pretrain:
            raise ValueError("give either phases (with rendered = 1 for the first) or pretrain")
        return self


def recipe_from_file(path: Path) -> Recipe:
    """Read a recipe, TOML or (`.yaml`, `.yml`) YAML.

    Raises:
        InputError: the file cannot be read.
        ConfigError: it is neither, or a key is unknown or has a wrong value; the key is named.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"--config {path}: cannot be read ({why})") from error
    return recipe_from_contents(_parsed(text, path), path.name)


def _parsed(text: str, path: Path) -> object:
    yaml = path.suffix.lower() in (".yaml", ".yml")
    try:
        contents = data_from_yaml(text) if yaml else data_from_toml(text)
    except NotData as error:
        raise ConfigError(f"{path}: not {'YAML' if yaml else 'TOML'} that is read here: {error}") from error
    return {} if contents is None else contents


def recipe_from_contents(contents: object, source: str) -> Recipe:
    """Check the contents of a file; raises ConfigError that names the first wrong key."""
    try:
        return Recipe.model_validate(contents)
    except ValidationError as error:
        raise config_error(error, source) from error


def config_error(error: ValidationError, source: str) -> ConfigError:
    """The first complaint of a validation, with the key's name."""
    return ConfigError(f"{source}: {fault_of(error, with_value=True)}")


def run_config(
    recipe: Recipe,
    spec: AnySpec,
    *,
    scaling: Scaling,
    rendered_only: bool = False,
) -> TrainConfig:
    """The run that `recipe` makes with the network `spec`; raises ConfigError when they do not fit together."""
    shared = {name: getattr(recipe, name) for name in Settings.model_fields}
    if recipe.steps is None and recipe.minutes is None:
        shared["minutes"] = DEFAULT_MINUTES
    if rendered_only:
        recipe = recipe.model_copy(update={"rendered": 1.0})
    try:
        return TrainConfig.model_validate({**shared, "spec": spec, "phases": _phases(recipe, spec), "scaling": scaling})
    except ValidationError as error:
        raise config_error(error, "the configuration") from error


def _phases(recipe: Recipe, spec: AnySpec) -> tuple[Phase, ...]:
    full = (spec.grid[0] * spec.patch, spec.grid[1] * spec.patch)
    if recipe.phases is not None:
        return tuple(
            Phase(
                until=phase.until,
                crop=phase.crop or full,
                batch=phase.batch,
                rendered=recipe.rendered if phase.rendered is None else phase.rendered,
            )
            for phase in recipe.phases
        )
    # Small crops first: they show more of the data in the same time, and whole inputs at the end close the gap.
    step = crop_step(spec)
    rows, columns = (max(step, round(side * 0.72 / step) * step) for side in full)
    begin, small = recipe.pretrain, (rows, columns)
    before = (Phase(until=begin, crop=small, batch=8, rendered=1.0),) if begin else ()
    return (
        *before,
        Phase(until=begin + 0.6 * (1 - begin), crop=small, batch=8, rendered=recipe.rendered),
        Phase(until=1.0, crop=full, batch=4, rendered=recipe.rendered),
    )


def with_flags(recipe: Recipe, *, minutes: float | None, seed: int | None, teacher: bool) -> Recipe:
    """`recipe` with what flags say instead; `minutes` also instead of steps. `teacher`: the flag is given.

    Raises:
        UsageError: a flag is outside the bounds that recipes have, or the recipe names another teacher.
    """
    # Only what was stated, so that a default never counts as the user's word when a run is resumed.
    stated = {name: getattr(recipe, name) for name in recipe.model_fields_set}
    if minutes is not None:
        stated = {name: value for name, value in stated.items() if name != "steps"} | {"minutes": minutes}
    if seed is not None:
        stated["seed"] = seed
    if teacher:
        stated["distillation"] = _distillation_from_checkpoint(recipe.distillation)
    try:
        return Recipe.model_validate(stated)
    except ValidationError as error:
        raise UsageError(f"--{fault_of(error, with_value=True)}") from error


def _distillation_from_checkpoint(stated: Distillation) -> Distillation:
    if stated.teacher not in ("off", "checkpoint"):
        raise UsageError(f"--teacher: the recipe has distillation.teacher = {stated.teacher!r}; take one of them out")
    weights = {name: getattr(stated, name) for name in stated.model_fields_set}
    return Distillation.model_validate({**weights, "teacher": "checkpoint"})
