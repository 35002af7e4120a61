"""Which engines may run: found, refused with the reason that is nearest, or missing with the line that builds them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dovit_deploy.bundle.bundle import ENGINES, Bundle
from dovit_deploy.bundle.manifest import FileEntry
from dovit_deploy.engines.tensorrt import search as engine_search
from dovit_deploy.engines.tensorrt.record import BuildRecord, EngineKey, build_digest
from dovit_deploy.engines.tensorrt.search import EngineSearch, why_outdated
from dovit_deploy.engines.tensorrt.store import EngineCache, EngineSet, checked_plan
from dovit_deploy.errors import EngineInvalid, EngineMissing, ProviderMissing
from tests.engines.tensorrt.fake_builder import fake_package
from tests.engines.tensorrt.test_store import DAMAGE, PLAN, fill, made_key
from tests.fakes import fake_manifest

FILES = {
    "weights.safetensors": FileEntry(sha256="0" * 64, bytes=1),
    "stage0.onnx": FileEntry(sha256="1" * 64, bytes=1),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The bundle that `made_key` is the key for."""
    path = tmp_path / "x.dovit"
    path.mkdir()
    return Bundle(path, fake_manifest().model_copy(update={"files": FILES}))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setattr(engine_search, "build_digest", lambda: made_key().forms)
    monkeypatch.setattr(engine_search, "plugin_digest", lambda: "7" * 64)
    return EngineCache(tmp_path / "cache")


def put(
    root: Path, key: EngineKey, *, built_at: str = "2026-01-01", plan: bytes = PLAN, capabilities: tuple[str, ...] = ()
) -> Path:
    folder = root / key.name
    folder.mkdir(parents=True)
    fill(folder, key, plan, capabilities=capabilities or ("8.6",))
    (folder / "entry.json").write_text(BuildRecord(key=key, bundle="x", tool="t", built_at=built_at).model_dump_json())
    return folder


def search(bundle: Bundle, cache: EngineCache, *, precision: str = "fp16", trust: bool = False) -> EngineSet:
    return EngineSearch(bundle, fake_package(), precision, cache, trust=trust).found()[0]


def test_none_were_built(bundle: Bundle, cache: EngineCache) -> None:
    put(cache.root, made_key(weights="9" * 64))
    put(cache.root, made_key(precision="fp32"))
    put(cache.root, made_key(engine="tensorrt"))
    line = rf"build them with: dovit build {bundle.path} --engine tensorrt-rtx --precision fp16"
    with pytest.raises(EngineMissing, match=line) as caught:
        search(bundle, cache)
    assert caught.value.exit_code == 5


def test_the_newest_of_those_that_fit(bundle: Bundle, cache: EngineCache) -> None:
    put(cache.root, made_key(), built_at="2026-01-02")
    newest = put(cache.root, made_key(compute_capabilities=("8.6",)), built_at="2026-01-03")
    put(cache.root, made_key(plugins=True, plugin_code="7" * 64), built_at="2026-01-01")
    put(cache.root, made_key(package_version="1.6"), built_at="2026-01-04")
    assert search(bundle, cache).folder == newest


def test_what_came_with_the_bundle_runs_on_request_alone(bundle: Bundle, cache: EngineCache) -> None:
    folder = put(bundle.path / ENGINES, made_key(), built_at="2026-01-09")
    words = r"came with the bundle and could run anything; build your own: dovit build .* add --trust-engine"
    with pytest.raises(EngineInvalid, match=words) as caught:
        search(bundle, cache)
    assert caught.value.exit_code == 6
    assert len(str(caught.value).splitlines()) == 1
    assert (search(bundle, cache, trust=True).folder, search(bundle, cache, trust=True).origin) == (folder, "bundle")
    own = put(cache.root, made_key())
    for trust in (False, True):
        assert search(bundle, cache, trust=trust).folder == own, "built here comes first, older or not"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"package_version": "1.6.0"}, r"were built by tensorrt-rtx 1\.6\.0; 1\.7\.1 is installed; build them again"),
        ({"forms": "9" * 64}, "by another version of dovit-deploy"),
        ({"plugins": True, "plugin_code": "9" * 64}, "with other plugins than those in use now"),
    ],
)
@pytest.mark.parametrize("origin", ["cache", "bundle"])
def test_what_does_not_fit(origin: str, changes, words: str, bundle: Bundle, cache: EngineCache) -> None:
    put(cache.root if origin == "cache" else bundle.path / ENGINES, made_key(**changes))
    with pytest.raises(EngineInvalid, match=words) as caught:
        search(bundle, cache, trust=True)
    assert f"dovit build {bundle.path}" in str(caught.value)


def test_engines_of_a_package_that_is_not_installed_are_not_outdated() -> None:
    """Another environment of the same user may have it, and both share the cache."""
    key = made_key(package_version="1.6.0", forms=build_digest())
    assert why_outdated(key, None) is None
    assert why_outdated(key, "1.7.1") == "were built by tensorrt-rtx 1.6.0; 1.7.1 is installed"


@pytest.mark.parametrize("changes", [{"weights": "9" * 64}, {"graphs": {"stage0": "9" * 64}}])
def test_engines_of_another_bundle_in_this_one(changes, bundle: Bundle, cache: EngineCache) -> None:
    put(bundle.path / ENGINES, made_key(**changes))
    with pytest.raises(EngineInvalid, match="were built from another bundle's graphs or weights"):
        search(bundle, cache, trust=True)


@pytest.mark.parametrize("damage", list(DAMAGE))
@pytest.mark.parametrize("origin", ["cache", "bundle"])
def test_what_is_damaged(origin: str, damage: str, bundle: Bundle, cache: EngineCache) -> None:
    folder = put(cache.root if origin == "cache" else bundle.path / ENGINES, made_key())
    DAMAGE[damage][0](folder)
    with pytest.raises((EngineInvalid, EngineMissing)) as caught:
        engines = search(bundle, cache, trust=True)
        for graph in engines.records:
            checked_plan(engines, graph)
    # A damaged entry of the cache no longer shows which bundle it was for.
    assert isinstance(caught.value, EngineMissing) == (origin == "cache" and "entry" in damage)
    assert "dovit build" in str(caught.value)


def test_a_folder_renamed_to_another_key(bundle: Bundle, cache: EngineCache) -> None:
    """As an attacker would who wants an engine to be accepted."""
    put(bundle.path / ENGINES, made_key()).rename(bundle.path / ENGINES / ("f" * 24))
    with pytest.raises(EngineInvalid, match="holds engines of another key"):
        search(bundle, cache, trust=True)


def test_an_engine_and_its_sidecar_from_another_bundle(bundle: Bundle, cache: EngineCache) -> None:
    """They fit each other, version and precision, and were built of other weights."""
    folder = put(cache.root, made_key())
    other = put(cache.root, made_key(weights="9" * 64), plan=PLAN[::-1])
    for name in ("stage0.engine", "stage0.json"):
        shutil.copyfile(other / name, folder / name)
    with pytest.raises(EngineInvalid, match="its sidecar belongs to another engine"):
        search(bundle, cache)


def test_the_bytes_that_are_checked_are_those_that_are_given(bundle: Bundle, cache: EngineCache) -> None:
    put(cache.root, made_key())
    engines = search(bundle, cache)
    assert checked_plan(engines, "stage0") == PLAN
    engines.engine_path("stage0").write_bytes(PLAN[::-1])
    with pytest.raises(EngineInvalid, match="SHA-256"):
        checked_plan(engines, "stage0")
    engines.engine_path("stage0").unlink()
    with pytest.raises(EngineInvalid, match="No such file"):
        checked_plan(engines, "stage0")


@pytest.mark.parametrize(
    ("device", "runs"), [("8.6", True), ("12.0", True), ("12.1", True), ("9.0", False), ("7.5", False)]
)
def test_gpus_that_rtx_engines_run_on(device: str, runs: bool) -> None:
    assert fake_package().runs_on(("8.0", "8.6", "8.9", "12.0"), device) == runs


def test_engines_of_tensorrt_run_on_the_gpu_that_they_were_built_on(bundle: Bundle, cache: EngineCache) -> None:
    package = fake_package("tensorrt")
    assert package.runs_on(("8.6",), "8.6")
    assert not package.runs_on(("8.6",), "8.9")


def test_of_several_the_best_that_the_gpu_runs(bundle: Bundle, cache: EngineCache) -> None:
    """The newest may be for another GPU, as they are where `--compute-capability` was given."""
    wanted = EngineSearch(bundle, fake_package(), "fp16", cache, trust=True)
    older = put(cache.root, made_key(), built_at="2026-01-01", capabilities=("8.0",))
    newer = put(cache.root, made_key(compute_capabilities=("8.6",)), built_at="2026-01-02", capabilities=("8.6", "8.9"))
    carried = put(bundle.path / ENGINES, made_key(), built_at="2026-01-03", capabilities=("7.5",))
    assert [engines.folder for engines in wanted.found()] == [newer, older, carried]
    for capability, folder in (("8.6", newer), ("8.0", older), ("7.5", carried)):
        assert wanted.for_gpu(wanted.found(), capability).folder == folder
    with pytest.raises(EngineInvalid, match=r"capability 8\.6, 8\.9, this GPU has 7\.5; .*--compute-capability 7\.5$"):
        wanted.for_gpu(wanted.found()[:2], "7.5")
    with pytest.raises(ProviderMissing, match=r"does not support this GPU \(compute capability 5\.0"):
        wanted.for_gpu(wanted.found(), "5.0")
