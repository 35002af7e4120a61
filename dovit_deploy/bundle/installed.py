"""Which bundle does a path or a name mean, and which one is taken when none is given?

Models are distributions of their own: each has an entry point of the group `dovit.models` for its name, and one of
them also has one that is called `default`. A path that exists takes precedence over a name.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dovit_deploy.errors import EnvironmentProblem, InputError, UsageError

GROUP = "dovit.models"
"""Entry points: each names a module with `bundle_path() -> Path` and `LICENSE_LINE: str`."""
DEFAULT = "default"
INSTALL = "pip install ./models/road-small"
"""Installs a model from a clone of this project."""


@dataclass(frozen=True)
class ChosenBundle:
    """Where a bundle lies; of an installed model also the line about its licence."""

    path: Path
    licence: str | None


def chosen_bundle(given: str | Path | None) -> ChosenBundle:
    """The bundle that `given` means: a path that exists, else the name of an installed model; None: the default one.

    Raises:
        UsageError: neither text nor a path.
        InputError: there is no such path and no such model, or no default one.
        EnvironmentProblem: the distribution of that model is damaged.
    """
    if given is None:
        return default_bundle()
    if not isinstance(given, str | os.PathLike):
        raise UsageError(f"a bundle is a path or the name of an installed model, {type(given).__name__} given")
    # `os.path`, since this also takes names that no file system allows.
    if os.path.exists(given):  # noqa: PTH110
        return ChosenBundle(Path(given), None)
    models = _entries()
    if str(given) == DEFAULT:
        return default_bundle()
    if str(given) in models:
        return _loaded(models[str(given)])
    raise InputError(f"no bundle at {given}{_near(str(given), tuple(models))}")


def default_bundle() -> ChosenBundle:
    """The installed model that is taken when none is named.

    Several models installed: the entry point named `default` counts; one alone counts under any name.

    Raises:
        InputError: none is installed, or several and none or more than one is called `default`.
        EnvironmentProblem: its distribution is damaged.
    """
    models = _entries()
    # Of distributions of different ages, when another model has become the default.
    several = sorted({entry.value for entry in _found() if entry.name == DEFAULT})
    if len(several) > 1:
        raise InputError(
            f"several installed models call themselves the default: {', '.join(several)}; upgrade or uninstall one of "
            f"them (pip install ./models/NAME), or give --bundle NAME ({', '.join(installed_names())})"
        )
    chosen = [models[DEFAULT]] if DEFAULT in models else list(models.values())
    if len(chosen) != 1:
        raise InputError(
            f"no --bundle given and no default model installed (found: {', '.join(models) or 'none'}); "
            f"give --bundle NAME.dovit, or install one: {INSTALL}"
        )
    return _loaded(chosen[0])


def installed_names() -> tuple[str, ...]:
    """The names of all installed models, sorted; without `default`, which is another name of one of them."""
    return tuple(name for name in _entries() if name != DEFAULT)


def _entries() -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points by name, sorted; nothing is imported."""
    return {entry.name: entry for entry in sorted(_found(), key=_name)}


def _found() -> Iterable[importlib.metadata.EntryPoint]:
    return importlib.metadata.entry_points(group=GROUP)


def _name(entry: importlib.metadata.EntryPoint) -> str:
    return entry.name


def _loaded(entry: importlib.metadata.EntryPoint) -> ChosenBundle:
    try:
        module = entry.load()
        return ChosenBundle(Path(module.bundle_path()), str(module.LICENSE_LINE))
    except (ImportError, AttributeError, TypeError) as error:
        raise EnvironmentProblem(
            f"the installed model '{entry.name}' is damaged ({error}); install it again"
        ) from error


def _near(given: str, models: tuple[str, ...]) -> str:
    """What to say of a name that is not installed, after "no bundle at ..."."""
    if not models:
        return f", and no model is installed that has this name; install one: {INSTALL}"
    near = difflib.get_close_matches(Path(given).stem.lower(), models, n=1)
    guess = f"; did you mean {near[0]}?" if near else ""
    return f", and no installed model has this name (installed: {', '.join(models)}){guess}"
