"""A small bundle, its engines for the fake TensorRT, and sessions over a fake device."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.tensorrt.store import EngineCache, EngineSet
from dovit_deploy.runtime.session import Session
from tests.engines.tensorrt.run_fakes import BUCKETS, Bench, assert_nothing_is_left, built


@pytest.fixture(scope="module")
def bundle(tiny_bundle_path: Path) -> Bundle:
    """Stages of 21, up to 21 and up to 21 tokens."""
    return Bundle.open(tiny_bundle_path)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def engines(bundle: Bundle, home: Path) -> EngineSet:
    return built(bundle, EngineCache(home), precision="fp32", buckets=BUCKETS)


@pytest.fixture
def bench(engines: EngineSet, home: Path) -> Bench:
    return Bench(engines, home)


@pytest.fixture
def session(bundle: Bundle, bench: Bench):
    with Session(bundle, backend=bench.backend()) as opened:
        yield opened
    assert_nothing_is_left(bench)


@pytest.fixture(scope="module")
def plain(bundle: Bundle):
    with Session(bundle, threads=1) as opened:
        yield opened
