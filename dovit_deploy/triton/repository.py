"""How does a bundle come into Triton's model repository? Whole or not at all, and beside what is there already.

REPOSITORY/NAME/config.pbtxt               the interface, shared by all versions
REPOSITORY/NAME/1/                         model.py, settings.json, bundle.dovit/
REPOSITORY/NAME-merged/config.pbtxt        with --merged
REPOSITORY/NAME-merged/1/                  merged.onnx, weights.safetensors

Nothing in it points outside, so that it can be copied to wherever the server runs.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import MERGED
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.documents import bytes_of_document
from dovit_deploy.engines.registry import engine_entry
from dovit_deploy.errors import DovitError, UsageError
from dovit_deploy.files import copy_folder, put_in_place, reported_writes, working_folder, written_aside
from dovit_deploy.record import Record
from dovit_deploy.triton.config import ServingPlan, merged_config, served_interface, staged_config

CONFIG, MODEL, SETTINGS, BUNDLE = "config.pbtxt", "model.py", "settings.json", "bundle.dovit"
SERVED_MODEL = Path(__file__).with_name("served") / MODEL
"""The file that the Python backend runs, the same for every bundle."""
ADD = "add the bundle as a further version or model with --add, or choose another with -o"


class ServingSettings(Record):
    """`settings.json` of a version: how its bundle runs. Whoever runs the server may change it."""

    bundle: str
    """The folder beside it."""
    engine: str
    precision: str
    threads: int
    """Of an operator."""
    side_by_side: int | None
    """Images of a batch that run at once; None: as many as there are cores for."""


@dataclass(frozen=True)
class WrittenVersion:
    """A version of a model that was written."""

    model: str
    version: int
    folder: Path
    """Of the version."""


def write_repository(plan: ServingPlan, repository: Path) -> tuple[WrittenVersion, ...]:
    """Write a new repository with the bundle as version 1.

    Raises:
        UsageError: there is something already.
        OutputFailed: the disk refuses it.
    """
    with written_aside(repository, overwrite=False, mark=lambda folder: f"{folder} is there; {ADD}") as aside:
        names = tuple(_models(plan))
        for name in names:
            (aside / name).mkdir()
            _fill_model(plan, name, aside / name, version=1)
    return tuple(WrittenVersion(name, 1, repository / name / "1") for name in names)


def add_to_repository(plan: ServingPlan, repository: Path) -> tuple[WrittenVersion, ...]:
    """Add the bundle to a repository that is there: as the next version of the model of its name, or as a new model.

    A version appears by one renaming, and what is served is not touched: a server that reads the repository meanwhile
    sees the new version whole, or not yet.

    Raises:
        UsageError: a model of that name is none of ours, or its `config.pbtxt` does not fit.
        OutputFailed: the disk refuses it.
    """
    version = next_version(plan, repository)
    written = []
    for name in _models(plan):
        model = repository / name
        if model.is_dir():
            with _aside(model, f"version-{version}") as aside:
                _fill_version(plan, name, aside)
                put_in_place(aside, model / str(version), replace=False)
        else:
            with _aside(repository, name) as aside:
                _fill_model(plan, name, aside, version=version)
                put_in_place(aside, model, replace=False)
        written.append(WrittenVersion(name, version, model / str(version)))
    return tuple(written)


def next_version(plan: ServingPlan, repository: Path) -> int:
    """The number of the version that the bundle would be in the repository; both of its models count alike.

    Raises:
        UsageError: a model of that name is none of ours, or its `config.pbtxt` does not fit.
    """
    staged, merged = repository / plan.name, repository / plan.merged_name
    if os.path.lexists(staged):
        _refuse_unlike(plan, staged)
        if plan.merged and os.path.lexists(merged):
            _refuse_unlike_merged(plan, merged)
    elif os.path.lexists(merged):
        raise UsageError(
            f"{repository} has a model {plan.merged_name} and none called {plan.name}; choose another --name"
        )
    return max([0, *versions_of(staged), *versions_of(merged)]) + 1


def versions_of(model: Path) -> list[int]:
    """The numbers of the versions in the folder of a model, rising; none where there is no folder."""
    # As Triton reads them: a number that does not begin with 0.
    names = (path.name for path in model.iterdir()) if model.is_dir() else ()
    return sorted(int(name) for name in names if re.fullmatch("[1-9][0-9]*", name))


def _newest_of(model: Path) -> Path:
    """The folder of the newest version; of a model without one, the model's."""
    return model / str(max(versions_of(model), default=""))


def _refuse_unlike(plan: ServingPlan, model: Path) -> None:
    """All versions of a model share one `config.pbtxt`, which stays as it is: it may have been changed by hand."""
    newest = _newest_of(model)
    try:
        settings = ServingSettings.model_validate_json(bytes_of_document(newest / SETTINGS))
        before = Bundle.open(newest / BUNDLE).manifest
    except (DovitError, OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{model} is no model that dovit wrote ({reason}); choose another --name") from error
    now = plan.bundle.manifest
    other = {
        "takes or gives other sizes": served_interface(before.spec) != served_interface(now.spec),
        "takes pixels of another mean or std": _normalisation(before) != _normalisation(now),
        f"runs on other hardware ({plan.engine} and {settings.engine})": _on_gpu(settings.engine)
        != _on_gpu(plan.engine),
    }
    for what, is_so in other.items():
        if is_so:
            raise UsageError(
                f"{plan.bundle.path.name} {what} than version {newest.name} of {plan.name}, "
                "and all versions of a model share its config.pbtxt; add it under another --name"
            )
    if plan.max_batch is not None:
        raise UsageError(
            f"--max-batch {plan.max_batch}: {plan.name} has a config.pbtxt, which --add leaves as it is; "
            f"leave it out, or change max_batch_size in {model / CONFIG}"
        )


def _refuse_unlike_merged(plan: ServingPlan, model: Path) -> None:
    newest, graph = _newest_of(model), _merged_graph(plan).name
    if not (newest / graph).is_file():
        raise UsageError(f"{newest} holds no {graph}, which all versions of {model.name} share; choose another --name")


def _normalisation(manifest: Manifest) -> tuple[object, object]:
    return manifest.preprocessing.mean, manifest.preprocessing.std


def _on_gpu(engine: str) -> bool:
    return engine_entry(engine).on_gpu


def _models(plan: ServingPlan) -> Iterator[str]:
    yield plan.name
    if plan.merged:
        yield plan.merged_name


@contextmanager
def _aside(folder: Path, stem: str) -> Iterator[Path]:
    """An empty folder in `folder`, under a name that is no version's."""
    # Within, since a repository is often a volume of its own, beside which nothing can be renamed into it.
    with reported_writes(folder, kept="nothing is changed"), working_folder(folder / stem) as aside:
        yield aside


def _fill_model(plan: ServingPlan, name: str, folder: Path, *, version: int) -> None:
    text = staged_config(plan) if name == plan.name else merged_config(plan, file=_merged_graph(plan).name)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    (folder / str(version)).mkdir()
    _fill_version(plan, name, folder / str(version))


def _fill_version(plan: ServingPlan, name: str, folder: Path) -> None:
    if name == plan.merged_name:
        plan.bundle.copied_graph(MERGED, folder, precision=plan.precision)
        return
    shutil.copyfile(SERVED_MODEL, folder / MODEL)
    settings = ServingSettings(
        bundle=BUNDLE,
        engine=plan.engine,
        precision=plan.precision,
        threads=plan.threads,
        side_by_side=None if engine_entry(plan.engine).concurrent else 1,
    )
    (folder / SETTINGS).write_text(settings.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / BUNDLE).mkdir()
    copy_folder(plan.bundle.path, folder / BUNDLE)
    # Checked in full before a server can see it: the bundle may have changed since it was opened.
    Bundle.open(folder / BUNDLE)


def _merged_graph(plan: ServingPlan) -> Path:
    return plan.bundle.graph(MERGED, precision=plan.precision)
