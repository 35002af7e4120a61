"""Fixtures that cost something and are made once a run: tiny bundles, exported and verified for real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest

from tests.fork_server import ForkServer

# Before torch or ONNX Runtime are imported: tests of tiny models only lose by more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where locks and caches lie meanwhile, rather than in the developer's own folders."""
    folder = tmp_path_factory.mktemp("state")
    os.environ["XDG_STATE_HOME"] = str(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    return folder


Run = Callable[..., subprocess.CompletedProcess[str]]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The bundle `name`, made by `make` in the first of the processes (`pytest -n`) that needs it."""
    own = factory.getbasetemp()
    # Each process has a folder of its own, in one that they share.
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "bundles"
    folder.mkdir(exist_ok=True)
    with filelock.FileLock(folder / f"{name}.lock"):
        if not (folder / f"{name}.done").exists():
            make(folder / name)
            (folder / f"{name}.done").touch()
    return folder / name


@pytest.fixture(scope="session")
def tiny_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DoViT of 56x72 pixels with two FCN gates and a mask head; read it, do not change it."""
    from tests.bundles import export_tiny
    from tests.tiny import tiny_spec

    return made_once(tmp_path_factory, "tiny.dovit", lambda path: export_tiny(tiny_spec(), path))


@pytest.fixture(scope="session")
def dense_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Segmenter without gates, linear head."""
    from tests.bundles import export_tiny
    from tests.tiny import tiny_spec

    spec = tiny_spec(gates=(), head="linear", depth=2)
    return made_once(tmp_path_factory, "dense.dovit", lambda path: export_tiny(spec, path))


@pytest.fixture(scope="session")
def setr_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DoViT with an up-sampling gate and a SETR head, sliding by 40x48."""
    from tests.bundles import export_tiny
    from tests.tiny import tiny_spec

    spec = tiny_spec(head="setr", gate="setr", gates=(2,), depth=3)
    return made_once(tmp_path_factory, "setr.dovit", lambda path: export_tiny(spec, path, stride=(40, 48)))


@pytest.fixture(scope="session")
def classifier_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Evo-ViT on DeiT of 64x64 pixels that classifies images: 5 classes, two selections."""
    from tests.bundles import export, naming_checkpoint
    from tests.tiny_evovit import tiny_deit_spec, tiny_evo_state

    spec = tiny_deit_spec(size=(64, 64))
    checkpoint = naming_checkpoint(spec, tiny_evo_state(spec))
    return made_once(tmp_path_factory, "namer.dovit", lambda path: export(checkpoint, path))


@pytest.fixture(scope="session")
def pooling_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An STViT on DeiT of 48x64 pixels that classifies images: its tokens are pooled, so there is no dense form."""
    from tests.bundles import export, naming_checkpoint
    from tests.tiny_stvit import deployed_state, tiny_deit

    spec = tiny_deit()
    checkpoint = naming_checkpoint(spec, deployed_state(spec))
    return made_once(tmp_path_factory, "pooler.dovit", lambda path: export(checkpoint, path))


@pytest.fixture(scope="session")
def int8_bundle_path(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with forms in 8 bits."""
    from tests.bundles import int8_copy

    return made_once(tmp_path_factory, "whole.dovit", lambda path: int8_copy(tiny_bundle_path, path))


@pytest.fixture(scope="session")
def lens_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DoViT of 56x72 pixels with two linear gates and a light head on three layers, which sees lenses of what stopped
    before them, made by `dovit export`."""
    from tests.bundles import exported_by_command
    from tests.tiny import tiny_spec

    spec = tiny_spec(head="light", gate="linear", gates=(1, 2), depth=3, answer="lens", taps=(1, 2), tap_answer="lens")
    return made_once(tmp_path_factory, "lens.dovit", lambda path: exported_by_command(spec, path))


@pytest.fixture(scope="session")
def compact_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DoViT of 56x72 pixels with one gate, its large weights stored in float16."""
    from tests.bundles import compact_tiny

    return made_once(tmp_path_factory, "compact.dovit", compact_tiny)


@pytest.fixture
def bundle_copy(tiny_bundle_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle to do harm to."""
    target = tmp_path / "copy.dovit"
    shutil.copytree(tiny_bundle_path, target)
    return target


@pytest.fixture(scope="session")
def fork_server(state_folder: Path) -> Iterator[ForkServer]:
    """Runs the command line in processes that need not import anything."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def dovit(tmp_path: Path, fork_server: ForkServer) -> Run:
    """The real command line, in a process of its own, in an empty folder."""

    def run(*arguments: object, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        if not environment and fork_server.suits():
            return fork_server.run(words, folder=tmp_path, timeout=timeout)
        return subprocess.run(
            [sys.executable, "-m", "dovit_deploy", *words],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
