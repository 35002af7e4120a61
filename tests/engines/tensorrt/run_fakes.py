"""Engines of a bundle for the fake TensorRT, made by the fake builder, and a backend that runs them."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import numpy as np

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.tensorrt import build as tensorrt_build
from dovit_deploy.engines.tensorrt import record as tensorrt_record
from dovit_deploy.engines.tensorrt.build import build_engines
from dovit_deploy.engines.tensorrt.builder import BuilderJob
from dovit_deploy.engines.tensorrt.package import TensorRtPackage
from dovit_deploy.engines.tensorrt.record import BuildRequest
from dovit_deploy.engines.tensorrt.run import TensorRtBackend
from dovit_deploy.engines.tensorrt.store import EngineCache, EngineSet
from tests.engines.cuda.fake_device import FakeMemory
from tests.engines.tensorrt.bindings import RTX, all_bindings
from tests.engines.tensorrt.fake_builder import VARIABLE, carry_out, fake_package
from tests.engines.tensorrt.fake_tensorrt import FakeTensorRt, fake_tensorrt
from tests.tiny import tiny_pixels

BUCKETS = (4, 8, 16)


def in_this_process(job: Path, package: TensorRtPackage) -> tuple[int, str]:
    """`run_child` without a process: starting one for every engine would take longer than all tests of them."""
    carry_out(BuilderJob.model_validate_json(job.read_bytes()))
    return 0, ""


def built(bundle: Bundle, cache: EngineCache, *, version: str = RTX, rebuild: bool = False, **choices) -> EngineSet:
    """Engines that the fake TensorRT runs; without plugins unless `choices` has them."""
    request, package = BuildRequest(**{"plugins": False, **choices}), fake_package(bindings=all_bindings()[version])
    with (
        mock.patch.object(tensorrt_build, "run_child", in_this_process),
        mock.patch.object(tensorrt_record, "gpu_device", lambda: FakeMemory().device),
        mock.patch.dict(os.environ, {VARIABLE: "runnable"}),
    ):
        engines, _ = build_engines(
            bundle, request, package=package, cache=cache, rebuild=rebuild, progress=lambda step: None
        )
    return engines


class Bench:
    """A fake device, a fake TensorRT that knows the profiles of `engines`, and backends over both."""

    def __init__(self, engines: EngineSet, home: Path, *, version: str = RTX) -> None:
        self.memory, self.home, self.engines = FakeMemory(), home, engines
        profiles = {record.file.sha256: record.profiles for record in engines.records.values()}
        self.state = FakeTensorRt(all_bindings()[version], profiles=profiles)

    def backend(self, *, precision: str = "fp32", trust_engine: bool = False) -> TensorRtBackend:
        return TensorRtBackend(
            fake_tensorrt(self.state),
            precision=precision,
            trust_engine=trust_engine,
            cache=EngineCache(self.home),
            open_memory=self.opened_memory,
        )

    def opened_memory(self, name: str = "fake") -> FakeMemory:
        """The one memory, which may be opened again."""
        self.memory.closed = False
        self.memory.activate()
        return self.memory


def assert_nothing_is_left(bench: Bench) -> None:
    assert bench.memory.closed
    assert not bench.memory.live
    assert not bench.memory.launches
    assert not bench.memory.queue


def pixels_of(bundle: Bundle, seed: int = 0) -> np.ndarray:
    return tiny_pixels(bundle.manifest.spec.size, seed).numpy()


def since(bench: Bench, start: int) -> list[str]:
    return bench.memory.log[start:]
