"""`dovit batch` on a real Ray, with a worker that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.batch.conftest import assert_like_run, dovit, write_clip

pytest.importorskip("ray", reason="Ray is not installed: pip install 'dovit-deploy[ray]'")

MOST_S = 400


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """The actors that Ray began for a batch."""
    found = []
    for child in process.children(recursive=True):
        try:
            if "ray::MapWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_a_worker_that_is_killed(tiny_bundle_path: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 300)
    out, parts = tmp_path / "out", tmp_path / "out.batch" / "parts"
    fixed = ["--bundle", str(tiny_bundle_path), "--engine", "onnxruntime", "--threads", "1", "--save", "masks,overlay"]
    words = ["-m", "dovit_deploy", "batch", str(clip), "-o", str(out), *fixed, "--no-legend"]
    batch = subprocess.Popen(
        [sys.executable, *words, "--workers", "2", "--segment-seconds", "0.5"], stderr=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + MOST_S
        # Killed with some segments done, and most of them not.
        while not list(parts.glob("*.json")) and batch.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        killed = workers_of(psutil.Process(batch.pid))[:1]
        for worker in killed:
            os.kill(worker.pid, signal.SIGKILL)
        _, said = batch.communicate(timeout=MOST_S)
    finally:
        batch.kill()
    assert batch.returncode == 0, said
    assert len(killed) == 1
    assert dovit("run", tiny_bundle_path, clip, "-o", tmp_path / "run", "--save", "masks,overlay", "--no-legend") == 0
    assert_like_run(out, tmp_path / "run")
    assert (out / "overlay.mp4").read_bytes() == (tmp_path / "run" / "overlay.mp4").read_bytes()
    assert not (tmp_path / "out.batch").exists()
