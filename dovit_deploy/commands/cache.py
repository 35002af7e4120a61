"""`dovit cache ls|prune`: the engines that were built on this machine, and removing those that cannot be used."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import arguments, console, targets
from dovit_deploy.errors import EngineInvalid
from dovit_deploy.printing import plural

if TYPE_CHECKING:
    from dovit_deploy.engines.tensorrt.store import EngineCache, EngineSet

HEADERS = ("key", "bundle", "engine", "precision", "graphs", "built", "MB", "")


class Action(StrEnum):
    """What to do with the cache."""

    ls = "ls"
    prune = "prune"


def cache(
    action: Annotated[Action, typer.Argument(help="ls: list the engines. prune: remove what cannot be used any more.")],
    everything: Annotated[bool, typer.Option("--all", help="prune: remove usable engines as well.")] = False,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """List or prune the cache of built engines.

    `prune` removes what killed builds left, damaged engines, and engines of another version of TensorRT or of this
    package, which are never taken again.
    """
    from dovit_deploy.engines.tensorrt.store import EngineCache

    targets.claim_report(json_file)
    store = EngineCache()
    if action is Action.ls:
        _list(store, json_file)
        console.next_command("dovit cache prune", quiet=quiet)
        return
    # Looked up once: it reads the metadata of every installed package.
    versions = _installed_versions()
    removed, freed = store.prune(lambda folder: everything or _examined(folder, versions)[1] is not None)
    console.write_json(json_file, {"removed": [folder.name for folder in removed], "freed_bytes": freed})
    for folder in removed:
        console.result(f"removed {folder.name}")
    console.result(f"{plural(len(removed), 'entry', 'entries')} removed from {store.root}, {freed / 1e6:.1f} MB freed")
    console.next_command("dovit cache ls", quiet=quiet)


def _list(store: EngineCache, json_file: Path | None) -> None:
    from dovit_deploy.engines.tensorrt.store import folder_bytes

    versions, rows, entries = _installed_versions(), [], []
    for folder in store.folders():
        engines, unusable = _examined(folder, versions)
        # Of damaged engines only the folder's name and size are known.
        facts = ("?",) * 5 if engines is None else _facts(engines)
        size = folder_bytes(folder)
        rows.append((folder.name, *facts, f"{size / 1e6:.1f}", unusable or "usable"))
        entries.append({"key": folder.name, "folder": str(folder), "bytes": size, "unusable": unusable})
    console.write_json(json_file, {"root": str(store.root), "entries": entries})
    console.show_table(f"{plural(len(rows), 'entry', 'entries')} in {store.root}", HEADERS, rows, right=(6,))


def _examined(folder: Path, versions: dict[str, str | None]) -> tuple[EngineSet | None, str | None]:
    """The engines in `folder`, None if they are damaged; and why they will never be used again, None if they may be."""
    from dovit_deploy.engines.tensorrt.search import why_outdated
    from dovit_deploy.engines.tensorrt.store import open_engines

    try:
        engines = open_engines(folder, origin="cache")
    except EngineInvalid as error:
        return None, f"damaged: {error}"
    key = engines.entry.key
    return engines, why_outdated(key, versions.get(key.engine))


def _facts(engines: EngineSet) -> tuple[str, ...]:
    """Bundle, engine, precision, number of graphs and date, as the table shows them."""
    key = engines.entry.key
    name = f"{key.engine} {key.package_version}"
    return engines.entry.bundle, name, key.precision, str(len(key.graphs)), engines.entry.built_at[:10]


def _installed_versions() -> dict[str, str | None]:
    """Version of each TensorRT package, None where it is not installed."""
    from dovit_deploy.engines.tensorrt.package import DISTRIBUTIONS, installed_version

    return {engine: installed_version(engine) for engine in DISTRIBUTIONS}
