"""`dovit cache ls|prune`: the engines that were built on this machine, and removing those that nobody can use."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import console, options
from dovit_deploy.commands.table import show_table
from dovit_deploy.errors import EngineInvalid

if TYPE_CHECKING:
    from dovit_deploy.engines.engine_cache import EngineCache
    from dovit_deploy.engines.engine_folder import EngineSet


class Action(StrEnum):
    """What to do with the cache."""

    ls = "ls"
    prune = "prune"


def cache(
    action: Annotated[Action, typer.Argument(help="ls: list the engines. prune: remove what cannot be used any more.")],
    everything: Annotated[bool, typer.Option("--all", help="prune: remove usable engines as well.")] = False,
    json_file: options.JsonFile = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """List or prune the cache of built engines.

    `prune` removes what killed builds left, damaged engines, and engines of another version of TensorRT or of this
    package, which are never taken again.
    """
    del verbose
    from dovit_deploy.engines.engine_cache import EngineCache

    console.check_writable(json_file)
    store = EngineCache()
    if action is Action.ls:
        _list(store, json_file)
        console.next_command("dovit cache prune", quiet=quiet)
        return
    wanted = _usable_here()
    removed, freed = store.prune(lambda folder: everything or why_unusable(folder, wanted) is not None)
    for folder in removed:
        console.result(f"removed {folder.name}")
    console.result(f"{len(removed)} entries removed from {store.root}, {freed / 1e6:.1f} MB freed")
    console.write_json(json_file, {"removed": [folder.name for folder in removed], "freed_bytes": freed})
    console.next_command("dovit cache ls", quiet=quiet)


def _list(store: EngineCache, json_file: Path | None) -> None:
    from dovit_deploy.engines.engine_cache import folder_bytes
    from dovit_deploy.engines.engine_folder import open_engines

    wanted, rows, report = _usable_here(), [], []
    for folder in store.folders():
        unusable, size = why_unusable(folder, wanted), folder_bytes(folder)
        try:
            facts = _facts(open_engines(folder, origin="cache"))
        except EngineInvalid:
            facts = ("?",) * 5
        rows.append((folder.name, *facts, f"{size / 1e6:.1f}", unusable or "usable"))
        report.append({"key": folder.name, "folder": str(folder), "bytes": size, "unusable": unusable})
    headers = ("key", "bundle", "engine", "precision", "graphs", "built", "MB", "")
    show_table(f"{len(rows)} entries in {store.root}", headers, rows, right=(6,))
    console.write_json(json_file, {"root": str(store.root), "entries": report})


def _facts(engines: EngineSet) -> tuple[str, ...]:
    key = engines.entry.key
    name = f"{key.engine} {key.package_version}"
    return engines.entry.bundle, name, key.precision, str(len(key.graphs)), engines.entry.built_at[:10]


def _usable_here() -> dict[str, str | None]:
    """Version of each TensorRT package here, None where it is absent, and of the code of graphs and plugins."""
    from dovit_deploy.engines.engine_graphs import forms_digest
    from dovit_deploy.engines.plugin_library import plugin_digest
    from dovit_deploy.engines.tensorrt_package import ENGINES, installed_version

    return {"": forms_digest(), "plugins": plugin_digest(), **{engine: installed_version(engine) for engine in ENGINES}}


def why_unusable(folder: Path, here: dict[str, str | None]) -> str | None:
    """Why the engines in `folder` will never be taken again; None where they may be.

    A package that is not installed is no reason: it may be in another environment of the same user.
    """
    from dovit_deploy.engines.engine_folder import open_engines

    try:
        key = open_engines(folder, origin="cache").entry.key
    except EngineInvalid as error:
        return f"damaged: {error}"
    version = here.get(key.engine)
    if version is not None and version != key.package_version:
        return f"for {key.engine} {key.package_version}; {version} is installed"
    if key.forms != here[""]:
        return "by another version of dovit-deploy"
    if key.plugins and key.plugin_code != here["plugins"]:
        return "with other plugins than there are now"
    return None
