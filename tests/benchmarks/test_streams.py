"""`benchmarks/streams.py` on a tiny bundle and small frames: every figure is there."""

from __future__ import annotations

from types import SimpleNamespace

import clip
import numpy as np
import streams

from dovit_deploy.bundle.bundle import Bundle


def noise_frames(count: int, *, seed: int, size: tuple[int, int]) -> list[SimpleNamespace]:
    """In the stead of streets, which take long to render."""
    random = np.random.default_rng(seed)
    return [SimpleNamespace(rgb=random.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


def test_folders_and_videos_are_measured(tiny_bundle_path, monkeypatch) -> None:
    monkeypatch.setattr(streams, "SIZE", (96, 128))
    for module in (streams, clip):
        monkeypatch.setattr(module, "street_frames", noise_frames)
    monkeypatch.setattr(streams, "WAYS", (streams.STANDARD, streams.Candidate("onnxruntime", "int8")))
    monkeypatch.setattr(streams.os, "cpu_count", lambda: 2)
    figures = streams.measure(Bundle.open(tiny_bundle_path), repeat=1, frames=4)
    assert set(figures["comparing_ms"]) == {"equal", "first byte differs", "last byte differs"}
    assert figures["folder, 1 threads"]["work_over_one_thread"] == 1.0
    assert figures["folder, 2 threads"]["frames"] == 4
    assert set(figures["window_ms"]) == set(streams.AT_ONCE) and min(figures["window_ms"].values()) > 0
    video = figures["video, one thread, onnxruntime fp32"]
    assert set(video["thread_ms_a_frame"]) == {"decode", "predict", "paint and encode"}
    assert min(video["thread_ms_a_frame"].values()) > 0 and video["over_slowest_thread"] > 0
    # What this bundle does not hold is said, and costs nothing else.
    assert "no int8 form" in figures["video, one thread, onnxruntime int8"]["not measured"]
