"""A bundle is used as it was opened: what changes afterwards is noticed before it runs, and crashes nothing."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dovit_deploy import Bundle, DigestMismatch, FileMissing, Predictor, Session, UsageError
from dovit_deploy.bundle.bundle import WEIGHTS
from dovit_deploy.engines.onnxruntime import OnnxRuntimeBackend
from dovit_deploy.export.pipeline import reference_bundle_at_size

ENGINES = (
    "onnxruntime",
    "torch",
    pytest.param("openvino", marks=pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")),
)


def pixels(bundle: Bundle) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(1, 3, *bundle.manifest.spec.size)).astype(np.float32)


def truncated(path: Path) -> None:
    os.truncate(path, 100)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("change", [truncated, flipped, Path.unlink])
def test_weights_changed_after_opening_are_noticed_before_they_run(bundle_copy: Path, engine: str, change) -> None:
    bundle = Bundle.open(bundle_copy)
    change(bundle_copy / WEIGHTS)
    with pytest.raises((DigestMismatch, FileMissing), match=WEIGHTS) as caught:
        Session(bundle, engine=engine)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("change", [truncated, flipped, Path.unlink, lambda path: (path.unlink(), os.mkfifo(path))])
def test_a_graph_changed_after_opening_is_noticed_before_it_runs(bundle_copy: Path, change) -> None:
    bundle = Bundle.open(bundle_copy)
    with Session(bundle) as session:
        # The dense graph is loaded when it is asked for, long after the others.
        change(bundle.graph("dense", fast=True))
        with pytest.raises((DigestMismatch, FileMissing), match="dense"):
            session.run(pixels(bundle), dense=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_cut_short_underneath_change_nothing_for_who_has_them(bundle_copy: Path, engine: str) -> None:
    bundle = Bundle.open(bundle_copy)
    with Session(bundle, engine=engine) as session:
        before, _ = session.run(pixels(bundle))
        # Of a mapped file this would end the process with SIGBUS.
        os.truncate(bundle.weights, 0)
        after, _ = session.run(pixels(bundle))
    np.testing.assert_array_equal(after, before)


def test_a_runtime_that_takes_weights_from_files_alone_gets_a_copy_of_them(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(bundle_copy)
    expected, _ = Session(bundle).run(pixels(bundle))
    monkeypatch.setattr("dovit_deploy.engines.onnxruntime.IN_MEMORY", "absent_in_this_version")
    with Session(bundle, backend=OnnxRuntimeBackend()) as session:
        os.truncate(bundle.weights, 0)
        np.testing.assert_array_equal(session.run(pixels(bundle))[0], expected)
    with pytest.raises(DigestMismatch):
        Session(bundle, backend=OnnxRuntimeBackend())


def test_the_weights_are_read_once_for_all_stages_and_not_kept(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, read = Bundle.open(bundle_copy), []
    content = Bundle.content
    monkeypatch.setattr(Bundle, "content", lambda self, name: read.append(name) or content(self, name))
    backend = OnnxRuntimeBackend()
    with Session(bundle, backend=backend):
        assert read.count(WEIGHTS) == 1
        assert backend._weights._held is None


def test_a_network_at_another_size_is_checked_as_well(tiny_bundle_path: Path, tmp_path: Path) -> None:
    small = reference_bundle_at_size(Bundle.open(tiny_bundle_path), (40, 48), tmp_path)
    assert Session(small, engine="torch").run(pixels(small))[0].shape[0] == 1
    flipped(small.weights)
    with pytest.raises(DigestMismatch):
        Session(small, engine="torch")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_closed_session_says_so(tiny_bundle_path: Path, engine: str) -> None:
    bundle = Bundle.open(tiny_bundle_path)
    with Session(bundle, engine=engine) as session:
        predictor = Predictor(session)
    session.close()
    for run in (
        lambda: session.run(pixels(bundle)),
        lambda: session.run(pixels(bundle), dense=True),
        lambda: predictor.predict(np.zeros((30, 40, 3), np.uint8)),
        lambda: session.engine("stage0"),
    ):
        with pytest.raises(UsageError, match="closed; make a new one"):
            run()


def test_a_bundle_replaced_by_its_equal_runs_on(tiny_bundle_path: Path, bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    shutil.rmtree(bundle_copy)
    shutil.copytree(tiny_bundle_path, bundle_copy)
    Session(bundle).close()
