"""One graph a frame: every check of one_graph_on_host.py on the stand-in driver, and the selecting kernel compiled."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from gpu.one_graph import gpu_builder
from gpu.switch_graph import opened_driver, select_cubin

from dovit_deploy.errors import ProviderMissing
from tests.csrc.stand_in import select_library, stand_in_driver
from tests.paths import ROOT

BINDINGS = importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.bindings") is not None
CHECKS = (
    "nodes_and_edges",
    "every_count_runs_the_smallest_bucket_that_holds_it",
    "without_a_selection_the_largest_bucket_runs",
    "a_number_that_no_body_has_runs_none",
    "frames_equal_staged_frames",
    "what_was_captured_outlives_the_graph",
    "what_a_body_may_not_hold_is_refused_by_name",
    "too_many_buckets_and_wrong_ones_are_refused",
    "an_old_driver_is_refused",
    "the_cost_is_reported",
    "the_section_measures_every_profile",
    "a_dense_way_that_is_missing_is_named",
    "a_graph_that_runs_no_stage_is_found_out",
    "buckets_lie_around_what_is_expected",
)


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What failed, by name, in one process whose NVIDIA driver is the stand-in."""
    if not BINDINGS:
        pytest.skip("cuda-bindings is not installed")
    if shutil.which("g++") is None:
        pytest.skip("needs g++ for the selecting kernel on the CPU")
    folder = stand_in_driver(tmp_path_factory.mktemp("driver"))
    select_library(folder)
    command = [sys.executable, "-m", "tests.benchmarks.one_graph_on_host", str(folder)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout)
    assert set(result["checks"]) == set(CHECKS)
    return result["failures"]


@pytest.mark.parametrize("check", CHECKS)
def test_on_the_stand_in_driver(check: str, failures: dict[str, str]) -> None:
    assert check not in failures, failures[check]


@pytest.mark.skipif(not BINDINGS, reason="cuda-bindings is not installed")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120"])
def test_the_selecting_kernel_compiles(architecture: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    cubin = select_cubin(architecture)
    assert cubin.startswith(b"\x7fELF") and b"dovit_select_bucket" in cubin


def test_a_pytorch_that_keeps_its_graphs_to_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    with pytest.raises(ProviderMissing, match=r"has no CUDAGraph.raw_cuda_graph"):
        gpu_builder(torch.device("cuda"))


def test_bindings_with_other_calls_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-bindings 12 has the calls of 13 under other names."""
    monkeypatch.setattr("gpu.switch_graph.packages.load", lambda name: SimpleNamespace(cuGraphAddNode_v2=print))
    with pytest.raises(ProviderMissing, match="needs cuda-bindings 13"):
        opened_driver()
