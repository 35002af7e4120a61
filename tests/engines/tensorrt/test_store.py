"""The cache with made-up engines: nothing of TensorRT is needed to check bytes, locks and leftovers."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.manifest import FileEntry, TokenCount
from dovit_deploy.engines.cuda.driver import GpuDevice
from dovit_deploy.engines.tensorrt.layers import LayerSummary
from dovit_deploy.engines.tensorrt.record import BuildRecord, EngineKey, EngineRecord
from dovit_deploy.engines.tensorrt.store import EngineCache, copy_into_bundle, open_engines
from dovit_deploy.errors import EngineInvalid, OutputFailed, UsageError
from tests.paths import ROOT

PLAN = b"engine " * 100
COUNT = TokenCount(minimum=1, typical=8, maximum=21)


def made_key(**changes) -> EngineKey:
    facts = {
        "engine": "tensorrt-rtx",
        "package_version": "1.7.1",
        "precision": "fp16",
        "weights": "0" * 64,
        "graphs": {"stage0": "1" * 64},
        "profiles": {"stage0": (COUNT,)},
        "plugins": False,
        "plugin_code": "",
        "compute_capabilities": (),
        "forms": "2" * 64,
    }
    return EngineKey(**{**facts, **changes})


def fill(folder: Path, key: EngineKey, plan: bytes = PLAN, *, capabilities: tuple[str, ...] = ("8.6",)) -> None:
    entry = FileEntry(sha256=hashlib.sha256(plan).hexdigest(), bytes=len(plan))
    record = EngineRecord(
        graph="stage0",
        key=key.name,
        engine=key.engine,
        package_version=key.package_version,
        precision=key.precision,
        compute_capabilities=capabilities,
        tensors=(),
        profiles=(COUNT,),
        onnx=entry,
        weights=entry,
        file=entry,
        plugins=None,
        layers=LayerSummary(
            layers=1, attention=0, fused_attention=0, plugin_layers=0, host_syncs=0, activation_bytes=None
        ),
        seconds=1.0,
        peak_memory_bytes=1,
    )
    (folder / "stage0.engine").write_bytes(plan)
    (folder / "stage0.json").write_text(record.model_dump_json())
    (folder / "entry.json").write_text(BuildRecord(key=key, bundle="x", tool="t", built_at="now").model_dump_json())


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path)


@pytest.fixture
def filled(cache: EngineCache) -> Path:
    """The folder of a sound entry."""
    with cache.locked(made_key(), waiting=pytest.fail), cache.filling(made_key()) as folder:
        fill(folder, made_key())
    return cache.root / made_key().name


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": "tensorrt"},
        {"package_version": "1.7.2"},
        {"precision": "fp32"},
        {"weights": "3" * 64},
        {"graphs": {"stage0": "3" * 64}},
        {"profiles": {"stage0": (COUNT.model_copy(update={"typical": 9}),)}},
        {"plugins": True},
        {"plugin_code": "3" * 64},
        {"compute_capabilities": ("8.6",)},
        {"forms": "3" * 64},
    ],
)
def test_everything_that_matters_changes_the_key(changes, cache: EngineCache, filled: Path) -> None:
    assert set(changes) <= set(EngineKey.model_fields)
    assert made_key(**changes).name != made_key().name
    assert cache.find(made_key(**changes)) is None


def test_every_field_of_the_key_is_tried() -> None:
    (mark,) = [m for m in test_everything_that_matters_changes_the_key.pytestmark if m.name == "parametrize"]
    assert {name for changes in mark.args[1] for name in changes} == set(EngineKey.model_fields)


def test_what_was_filled_is_found(cache: EngineCache, filled: Path) -> None:
    engines = cache.find(made_key())
    assert engines is not None
    assert engines.engine_path("stage0").read_bytes() == PLAN
    assert (engines.bytes, engines.origin) == (len(PLAN), "cache")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated engine": (lambda folder: (folder / "stage0.engine").write_bytes(PLAN[:-1]), "699 bytes"),
    "flipped engine": (lambda folder: flip(folder / "stage0.engine"), "SHA-256"),
    "engine missing": (lambda folder: (folder / "stage0.engine").unlink(), "missing"),
    "sidecar missing": (lambda folder: (folder / "stage0.json").unlink(), "stage0.json"),
    "sidecar no JSON": (lambda folder: (folder / "stage0.json").write_text("{"), "stage0.json"),
    "sidecar of another format": (
        lambda folder: (folder / "stage0.json").write_text(
            (folder / "stage0.json").read_text().replace('"version":1', '"version":2')
        ),
        "version",
    ),
    "sidecar of another package": (
        lambda folder: fill_sidecar(folder, made_key(package_version="1.8")),
        "belongs to another engine",
    ),
    "entry of another key": (lambda folder: fill(folder, made_key(plugins=True)), "another key"),
    "entry missing": (lambda folder: (folder / "entry.json").unlink(), "entry.json"),
}


def fill_sidecar(folder: Path, key: EngineKey) -> None:
    entry = (folder / "entry.json").read_bytes()
    fill(folder, key)
    (folder / "entry.json").write_bytes(entry)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_or_foreign_is_refused(damage: str, cache: EngineCache, filled: Path) -> None:
    do, words = DAMAGE[damage]
    do(filled)
    with pytest.raises(EngineInvalid, match=words) as caught:
        cache.find(made_key())
    assert "--rebuild" in str(caught.value)
    assert caught.value.exit_code == 6


def test_a_failed_filling_leaves_what_was_there(cache: EngineCache, filled: Path) -> None:
    with (
        pytest.raises(OSError, match="full"),
        cache.locked(made_key(), waiting=pytest.fail),
        cache.filling(made_key()) as folder,
    ):
        (folder / "stage0.engine").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "disk full")
    assert cache.find(made_key()) is not None
    assert [path.name for path in cache.root.iterdir() if path.is_dir()] == [made_key().name]


def test_a_killed_filling_leaves_what_was_there_and_the_next_one_cleans_up(cache: EngineCache, filled: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from tests.engines.tensorrt.test_store import EngineCache, made_key
cache = EngineCache(Path({str(cache.root.parent)!r}))
with cache.locked(made_key(), waiting=exit), cache.filling(made_key()) as folder:
    (folder / "stage0.engine").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = ROOT
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == -9
    assert cache.find(made_key()) is not None
    assert len([path for path in cache.root.iterdir() if path.is_dir()]) == 2
    with cache.locked(made_key(), waiting=pytest.fail), cache.filling(made_key()) as folder:
        fill(folder, made_key(), b"new")
    assert [path.name for path in cache.root.iterdir() if path.is_dir()] == [made_key().name]
    assert (filled / "stage0.engine").read_bytes() == b"new"


def test_of_two_builds_one_waits_and_is_told(cache: EngineCache) -> None:
    order, inside = [], threading.Event()

    def second() -> None:
        # The first lock is of this process; another instance of the cache stands for another process.
        other = EngineCache(cache.root.parent)
        inside.wait()
        with other.locked(made_key(), waiting=lambda: order.append("waits")):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with cache.locked(made_key(), waiting=pytest.fail):
        inside.set()
        while order != ["waits"]:
            assert thread.is_alive()
        order.append("first")
    thread.join()
    assert order == ["waits", "first", "second"]


def test_prune_removes_the_unwanted_and_leftovers_but_nothing_in_use(cache: EngineCache, filled: Path) -> None:
    other = made_key(precision="fp32")
    with cache.locked(other, waiting=pytest.fail), cache.filling(other) as folder:
        fill(folder, other)
    left = cache.root / f"{made_key(plugins=True).name}.abc.partial"
    left.mkdir()
    with cache.locked(made_key(), waiting=pytest.fail):
        removed, freed = EngineCache(cache.root.parent).prune(lambda path: True)
    assert {path.name for path in removed} == {other.name, left.name}
    assert freed > len(PLAN)
    assert cache.folders() == [filled]
    assert cache.prune(lambda path: False) == ([], 0)
    assert cache.find(made_key()) is not None


def test_prune_of_no_cache(tmp_path: Path) -> None:
    assert EngineCache(tmp_path / "none").prune(lambda path: True) == ([], 0)
    assert EngineCache(tmp_path / "none").folders() == []


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("a file")
    with (
        pytest.raises(OutputFailed, match="cannot write"),
        EngineCache(tmp_path).locked(made_key(), waiting=pytest.fail),
    ):
        pass


def test_engines_travel_in_the_bundle(bundle_copy: Path, cache: EngineCache, filled: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    engines = cache.find(made_key())
    assert engines is not None
    folder = copy_into_bundle(engines, bundle)
    assert sorted(path.name for path in folder.iterdir()) == ["entry.json", "stage0.engine", "stage0.json"]
    assert folder == bundle.path / "engines" / made_key().name
    Bundle.open(bundle_copy)
    assert open_engines(folder, origin="bundle").entry == engines.entry
    copy_into_bundle(engines, bundle)
    flip(folder / "stage0.engine")
    with pytest.raises(EngineInvalid):
        open_engines(folder, origin="bundle")


def test_an_installed_bundle_is_left_alone(tmp_path: Path, bundle_copy: Path, cache: EngineCache, filled: Path) -> None:
    installed = tmp_path / "site-packages" / "model.dovit"
    installed.parent.mkdir()
    bundle_copy.rename(installed)
    engines = cache.find(made_key())
    assert engines is not None
    with pytest.raises(UsageError, match="installed package"):
        copy_into_bundle(engines, Bundle.open(installed))


def test_compiled_kernels_go_with_their_engines(cache: EngineCache, filled: Path) -> None:
    own = cache.kernels_path(made_key(), "stage0", GpuDevice("a GPU", "8.6"))
    other = cache.kernels_path(made_key(precision="fp32"), "stage0", GpuDevice("a GPU", "8.6"))
    for path in (own, other):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"kernels")
    assert cache.prune(lambda folder: False) == ([], len(b"kernels"))
    assert own.is_file() and not other.parent.exists()
    removed, freed = cache.prune(lambda folder: True)
    assert removed == [filled] and freed > len(PLAN)
    assert not own.parent.exists()
