from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from dovit_deploy import packages
from dovit_deploy.errors import SourceError
from dovit_deploy.sources.open import open_source
from tests.sources.clips import NTSC, cut, make_clip, turn


@pytest.fixture
def without_pyav(monkeypatch):
    """Makes the package believe that PyAV is not installed."""
    return lambda: monkeypatch.setattr(packages, "pyav", lambda: None)


def frames_of(path, **selection):
    with open_source(str(path), **selection) as source:
        return source, list(source)


@pytest.mark.parametrize("rate", [Fraction(25), NTSC, Fraction(24000, 1001)])
def test_it_reads_what_pyav_reads(tmp_path, without_pyav, rate):
    clip = make_clip(tmp_path / "clip.mp4", rate=rate, count=40, sound_s=Fraction(1))
    expected_source, expected = frames_of(clip, start=0.5, every=4)
    without_pyav()
    source, frames = frames_of(clip, start=0.5, every=4)
    assert type(source) is not type(expected_source)
    assert (source.kind, source.count) == ("video", expected_source.count)
    assert (source.video.size, source.video.rate) == ((48, 64), rate)
    assert not source.video.has_audio
    assert [(f.index, f.time_s) for f in frames] == [(f.index, f.time_s) for f in expected]
    for ours, theirs in zip(frames, expected, strict=True):
        assert np.abs(ours.rgb.astype(int) - theirs.rgb).mean() < 3
        assert ours.decode_ms > 0
    (warning,) = source.warnings
    assert "sound" in warning and "dovit-deploy[video]" in warning


def test_the_first_frames_and_no_more(tmp_path, without_pyav):
    clip = make_clip(tmp_path / "clip.mp4", count=40)
    without_pyav()
    source, frames = frames_of(clip, max_frames=3)
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert source.count == 3 and source.ended_early is None
    assert [frame.index for frame in frames_of(clip, end=0.1)[1]] == [0, 1, 2]
    assert len(frames_of(clip)[1]) == 40


def test_a_variable_rate_keeps_its_times(tmp_path, without_pyav):
    times = [Fraction(n, 1000) for n in (0, 40, 100, 400, 410, 900)]
    clip = make_clip(tmp_path / "clip.mp4", times=times, time_base=Fraction(1, 1000))
    without_pyav()
    _, frames = frames_of(clip)
    assert all(abs(f.time_s - t) <= Fraction(1, 90000) for f, t in zip(frames, times, strict=True))


def test_turned_video_is_upright(tmp_path, without_pyav):
    clip = turn(make_clip(tmp_path / "clip.mp4", count=3), (0, 1, -1, 0))
    expected = frames_of(clip)[1]
    without_pyav()
    source, frames = frames_of(clip)
    assert source.video.size == (64, 48)
    assert np.abs(frames[0].rgb.astype(int) - expected[0].rgb).mean() < 3


def test_truncated_and_out_of_span(tmp_path, without_pyav):
    clip = make_clip(tmp_path / "clip.mp4", count=60, noise=True)
    without_pyav()
    assert frames_of(clip)[0].ended_early is None
    with open_source(str(clip), start=9) as source, pytest.raises(SourceError, match="--start"):
        list(source)
    source, frames = frames_of(cut(clip, 0.6))
    assert 10 < len(frames) < 50 and "of 60 frames" in source.ended_early
    with pytest.raises(SourceError, match="--max-pixels"):
        open_source(str(clip), max_pixels=100)
