"""`choices.json`: recalled in the same situation alone, and never trusted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.runtime import remembered
from dovit_deploy.runtime.choices import ChoiceCache, EngineChoice, Situation, bundle_digest
from dovit_deploy.runtime.remembered import Here

HERE = Here(cpu="a CPU", features=("avx2",), cores=2, gpu="", versions={"dovit-deploy": "1", "openvino": "2026.4"})
SITUATION = Situation(here=HERE, bundle="abc", threads=None, precision=None, dense=False, thresholds=None)
CHOICE = EngineChoice(
    engine="openvino",
    precision="bf16",
    dense=False,
    ratio=1.7,
    agreement=0.998,
    pays_from=30,
    over="onnxruntime fp32",
    runner_up="",
    bundle="x.dovit",
    date="2026-11-30T04:00:00+00:00",
)

OTHERS = {
    "processor": {"here": HERE.model_copy(update={"cpu": "another"})},
    "features": {"here": HERE.model_copy(update={"features": ()})},
    "cores": {"here": HERE.model_copy(update={"cores": 4})},
    "version": {"here": HERE.model_copy(update={"versions": {"dovit-deploy": "2", "openvino": "2026.4"}})},
    "bundle": {"bundle": "abd"},
    "threads": {"threads": 1},
    "precision": {"precision": "bf16"},
    "dense": {"dense": True},
    "thresholds": {"thresholds": (0.9,)},
}


@pytest.fixture
def cache(tmp_path: Path) -> ChoiceCache:
    return ChoiceCache(tmp_path / "new")


def test_a_choice_is_recalled(cache: ChoiceCache) -> None:
    assert cache.recall(SITUATION) is None
    cache.remember(SITUATION, CHOICE)
    assert cache.recall(SITUATION) == CHOICE


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS.keys())
def test_another_situation_knows_nothing_of_it(cache: ChoiceCache, change: dict[str, object]) -> None:
    cache.remember(SITUATION, CHOICE)
    assert cache.recall(SITUATION.model_copy(update=change)) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"\xff\xfe", b'{"version": 2, "entries": []}', b'{"version": 1, "entries": [{"engine": 1}]}'],
)
def test_a_damaged_file_counts_as_not_there_and_is_replaced(cache: ChoiceCache, content: bytes) -> None:
    cache.path.parent.mkdir()
    cache.path.write_bytes(content)
    assert cache.recall(SITUATION) is None
    cache.remember(SITUATION, CHOICE)
    assert cache.recall(SITUATION) == CHOICE


def test_of_one_situation_the_last_choice_stays_and_the_oldest_of_many_goes(cache: ChoiceCache, monkeypatch) -> None:
    monkeypatch.setattr(remembered, "MOST_ENTRIES", 3)
    for threads in (1, 2, 3, 4, 4):
        cache.remember(SITUATION.model_copy(update={"threads": threads}), CHOICE)
    assert [entry.situation.threads for entry in cache.entries()] == [2, 3, 4]


def test_a_folder_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    ChoiceCache(tmp_path / "file").remember(SITUATION, CHOICE)
    assert (tmp_path / "file").read_text() == "no folder"


def test_forgetting(cache: ChoiceCache) -> None:
    cache.remember(SITUATION, CHOICE)
    cache.remember(SITUATION.model_copy(update={"threads": 1}), CHOICE)
    cache.forget(cache.entries()[:1])
    assert [entry.situation.threads for entry in cache.entries()] == [1]
    cache.forget(cache.entries())
    assert not cache.path.exists()


def test_what_is_outdated() -> None:
    assert HERE.why_outdated(HERE) is None
    assert "another machine" in (HERE.why_outdated(HERE.model_copy(update={"cpu": "b"})) or "")
    newer = HERE.model_copy(update={"versions": {"dovit-deploy": "1"}})
    assert HERE.why_outdated(newer) == "openvino was 2026.4 and is missing"


def test_the_digest_of_a_bundle_follows_its_thresholds_and_not_its_names(tiny_bundle_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle_path)
    manifest = bundle.manifest
    stricter = manifest.defaults.model_copy(update={"floor": 0.25})
    named = dataclasses.replace(bundle, manifest=manifest.model_copy(update={"name": "another"}))
    changed = dataclasses.replace(bundle, manifest=manifest.model_copy(update={"defaults": stricter}))
    assert bundle_digest(named) == bundle_digest(bundle) != bundle_digest(changed)
