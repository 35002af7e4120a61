"""`dovit cache ls|prune`: engines, choices and latency models of this machine, and removing what is of no use."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import arguments, console, targets
from dovit_deploy.errors import EngineInvalid
from dovit_deploy.printing import plural

if TYPE_CHECKING:
    from dovit_deploy.engines.tensorrt.store import EngineCache, EngineSet
    from dovit_deploy.runtime.choices import ChoiceCache, EngineChoice
    from dovit_deploy.runtime.latencies import LatencyCache
    from dovit_deploy.runtime.latency import LatencyModel
    from dovit_deploy.runtime.remembered import Circumstances, Found, Here, RememberedFile, Situation

HEADERS = ("key", "bundle", "engine", "precision", "graphs", "built", "MB", "")
LATENCY_HEADERS = ("bundle", "engine", "precision", "threads", "error", "measured", "")
CHOICE_HEADERS = ("bundle", "chosen", "speed", "over", "threads", "measured", "")


class Action(StrEnum):
    """What to do with the cache."""

    ls = "ls"
    prune = "prune"


def cache(
    action: Annotated[Action, typer.Argument(help="ls: list what is kept. prune: remove what is of no use any more.")],
    everything: Annotated[bool, typer.Option("--all", help="prune: remove what is usable as well.")] = False,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """List or prune the cache of built engines, of the choices that `run --engine auto` made, and of latency models.

    `prune` removes what killed builds left, damaged engines, engines of another version of TensorRT or of this
    package, which are never taken again, and choices and latency models of another machine or of other versions.
    """
    from dovit_deploy.engines.tensorrt.store import EngineCache
    from dovit_deploy.runtime.choices import ChoiceCache
    from dovit_deploy.runtime.latencies import LatencyCache

    targets.claim_report(json_file)
    store, choices, latencies = EngineCache(), ChoiceCache(), LatencyCache()
    if action is Action.ls:
        _list(store, choices, latencies, json_file)
        console.next_command("dovit cache prune", quiet=quiet)
        return
    # Looked up once: it reads the metadata of every installed package.
    versions = _installed_versions()
    removed, freed = store.prune(lambda folder: everything or _examined(folder, versions)[1] is not None)
    forgotten = _forget(choices, everything=everything)
    models = _forget(latencies, everything=everything)
    report = {
        "removed": [folder.name for folder in removed],
        "freed_bytes": freed,
        "choices_removed": forgotten,
        "latency_models_removed": models,
    }
    console.write_json(json_file, report)
    for folder in removed:
        console.result(f"removed {folder.name}")
    console.result(f"{plural(len(removed), 'entry', 'entries')} removed from {store.root}, {freed / 1e6:.1f} MB freed")
    console.result(f"{plural(forgotten, 'choice')} of engines removed from {choices.path}")
    console.result(f"{plural(models, 'latency model')} removed from {latencies.path}")
    console.next_command("dovit cache ls", quiet=quiet)


def _forget(findings: RememberedFile[Situation, Found], *, everything: bool) -> int:
    """Drop those that will not be recalled, or all; how many there were."""
    from dovit_deploy.runtime.remembered import Here

    now = Here.now()
    gone = tuple(entry for entry in findings.entries() if everything or entry.situation.here.why_outdated(now))
    findings.forget(gone)
    return len(gone)


def _list(store: EngineCache, choices: ChoiceCache, latencies: LatencyCache, json_file: Path | None) -> None:
    from dovit_deploy.engines.tensorrt.store import folder_bytes
    from dovit_deploy.runtime.remembered import Here

    versions, rows, entries = _installed_versions(), [], []
    for folder in store.folders():
        engines, unusable = _examined(folder, versions)
        # Of damaged engines only the folder's name and size are known.
        facts = ("?",) * 5 if engines is None else _facts(engines)
        size = folder_bytes(folder)
        rows.append((folder.name, *facts, f"{size / 1e6:.1f}", unusable or "usable"))
        entries.append({"key": folder.name, "folder": str(folder), "bytes": size, "unusable": unusable})
    now = Here.now()
    chosen, chosen_rows = _listed(choices, now, _of_choice)
    models, model_rows = _listed(latencies, now, _of_latency)
    report = {
        "root": str(store.root),
        "entries": entries,
        "choices_file": str(choices.path),
        "choices": chosen,
        "latency_file": str(latencies.path),
        "latency_models": models,
    }
    console.write_json(json_file, report)
    console.show_table(f"{plural(len(rows), 'entry', 'entries')} in {store.root}", HEADERS, rows, right=(6,))
    title = f"{plural(len(chosen_rows), 'choice')} of engines in {choices.path}"
    console.show_table(title, CHOICE_HEADERS, chosen_rows, right=(2, 4))
    title = f"{plural(len(model_rows), 'latency model')} in {latencies.path}"
    console.show_table(title, LATENCY_HEADERS, model_rows, right=(3, 4))


def _listed(
    findings: RememberedFile[Situation, Found], now: Here, facts: Callable[[Situation, Found], tuple[str, ...]]
) -> tuple[list[dict[str, object]], list[tuple[str, ...]]]:
    """All that is remembered, as JSON and as rows of the table: `facts`, and whether it will be recalled `now`."""
    entries: list[dict[str, object]] = []
    rows: list[tuple[str, ...]] = []
    for situation, found in ((entry.situation, entry.found) for entry in findings.entries()):
        outdated = situation.here.why_outdated(now)
        rows.append((*facts(situation, found), outdated or "usable"))
        entries.append({**found.model_dump(mode="json"), "threads": situation.threads, "outdated": outdated})
    return entries, rows


def _of_choice(situation: Circumstances, choice: EngineChoice) -> tuple[str, ...]:
    """What `--engine auto` chose."""
    ratio = f"{choice.ratio:.2f}x"
    return choice.bundle, choice.name, ratio, choice.over, _threads(situation), choice.date[:10]


def _of_latency(situation: Circumstances, model: LatencyModel) -> tuple[str, ...]:
    """What `bench` and `run --deadline-ms` measured."""
    error = f"{model.error:.1%}"
    return model.bundle, model.engine, model.precision, _threads(situation), error, model.date[:10]


def _threads(situation: Circumstances) -> str:
    return "all" if situation.threads is None else str(situation.threads)


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
