"""RunRecord: what a run was asked for and what came of it, kept in its folder and saved with the weights."""

from __future__ import annotations

import hashlib

from dovit_deploy import __version__
from dovit_deploy.bundle.manifest import ClassEntry
from dovit_deploy.bundle.spec import Noun
from dovit_deploy.errors import DatasetError, UsageError
from dovit_deploy.models.checkpoint import Checkpoint
from dovit_deploy.train.config import TrainConfig
from dovit_deploy.train.material import Material
from dovit_deploy.train.recipe import Recipe


class DataFacts(Noun):
    """Which images a run learns from."""

    name: str
    images: int
    """0: rendered scenes only."""
    classes: tuple[ClassEntry, ...]
    digest: str
    """SHA-256 of the images' names, in order."""
    frequencies: tuple[float, ...]
    """Share of each class among the labelled pixels."""


class InitFacts(Noun):
    """The checkpoint that a run started from."""

    source: str
    sha256: str


class RunRecord(Noun):
    """The recipe as the user wrote it, flags included, and the run that it made of the data set."""

    tool: str = f"dovit-deploy {__version__}"
    recipe: Recipe
    config: TrainConfig
    data: DataFacts
    init: InitFacts | None = None

    def to_json(self) -> str:
        """The text of `train.json`."""
        return self.model_dump_json(indent=1) + "\n"


def data_facts(material: Material, frequencies: tuple[float, ...]) -> DataFacts:
    """What is remembered of the data set; of rendered scenes only what they are."""
    data = material.main
    stems = () if material.data is None else data.stems
    return DataFacts(
        name=data.name,
        images=material.images,
        frequencies=frequencies,
        classes=tuple(
            ClassEntry(name=name, color=color)
            for name, color in zip(data.classes.names, data.classes.palette, strict=True)
        ),
        digest=hashlib.sha256("\n".join(stems).encode()).hexdigest(),
    )


def init_facts(checkpoint: Checkpoint | None) -> InitFacts | None:
    """What is remembered of `--init`."""
    return None if checkpoint is None else InitFacts(source=checkpoint.source, sha256=checkpoint.source_sha256)


def refuse_other_recipe(record: RunRecord, recipe: Recipe, *, whole: bool) -> None:
    """Raise UsageError if `recipe` is not the run's own.

    Args:
        record: of the run that is to go on.
        recipe: what is given now, flags included.
        whole: a file is given, so every key counts; else only those that flags set.
    """
    for name in Recipe.model_fields if whole else ("seed", "minutes", "steps"):
        given, own = getattr(recipe, name), getattr(record.recipe, name)
        if given != own and (whole or name in recipe.model_fields_set):
            key, own, given = _first_difference(name, own, given)
            raise UsageError(
                f"--resume: {key} is {_short(own)} in the run and {_short(given)} is given; "
                "a run goes on as it began: take it out, or start another run with another -o"
            )


def _first_difference(name: str, own: object, given: object) -> tuple[str, object, object]:
    """The first key at which two values differ, with both: `network.depth` rather than all of the network."""
    if isinstance(own, Noun) and type(own) is type(given):
        for key in type(own).model_fields:
            if getattr(own, key) != getattr(given, key):
                return _first_difference(f"{name}.{key}", getattr(own, key), getattr(given, key))
    return name, own, given


def _short(value: object) -> str:
    text = value.model_dump_json() if isinstance(value, Noun) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def refuse_other_data(record: RunRecord, data: DataFacts) -> None:
    """Raise DatasetError if the data set is not the one that the run began with."""
    own = record.data
    if (own.images, own.digest) != (data.images, data.digest):
        raise DatasetError(
            f"--resume: {data.name} has {data.images} images to train on, the run began with {own.images} "
            f"of {own.name}{', others' if own.images == data.images else ''}; give the same data set"
        )
    if own.classes != data.classes:
        raise DatasetError(f"--resume: {data.name} has other classes than the run began with; give the same data set")
