from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy import packages
from dovit_deploy.errors import EncoderMissing, OutputFailed
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.video_writer import OpencvVideoWriter, open_video_writer
from tests.paths import SHARED
from tests.sources.clips import NTSC, SilentOpencv, make_clip, numbered, seconds_of, times_of, turn

DRIVING_CLIP = SHARED / "data" / "video" / "solidWhiteRight.mp4"


def write(path, times, *, size=(48, 64), **options):
    with open_video_writer(path, size=size, **options) as writer:
        for index, time_s in enumerate(times):
            writer.write(numbered(index, height=size[0], width=size[1]), time_s)
    return writer


def copy(source_path, path, **selection):
    """What a run does: every selected frame of a source into a writer."""
    with open_source(str(source_path), **selection) as source:
        every = selection.get("every", 1)
        with open_video_writer(
            path,
            size=source.video.size,
            rate=source.video.rate / every,
            time_base=source.video.time_base,
            audio_from=source.video.path,
        ) as writer:
            for frame in source:
                writer.write(frame.rgb, frame.time_s)
    return writer


def test_it_is_h264_that_plays_everywhere(tmp_path):
    path = tmp_path / "out.mp4"
    writer = write(path, [Fraction(n, 25) for n in range(10)], rate=Fraction(25))
    assert writer.warnings == []
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 64, 48)
        # The matrix must be named; otherwise players guess another one from the size.
        assert (context.colorspace, context.color_range) == (6, 1)
    data = path.read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")


def test_colours_come_back(tmp_path):
    path = tmp_path / "out.mp4"
    write(path, [Fraction(n, 25) for n in range(5)], rate=Fraction(25), size=(96, 128))
    with open_source(str(path)) as source:
        for index, frame in enumerate(source):
            error = np.abs(frame.rgb.astype(int) - numbered(index, height=96, width=128))
            assert np.median(error) <= 3 and error.mean() < 6
            assert frame.rgb[80, 10, 0] > 190 > 60 > frame.rgb[80, 10, 2]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (47, 63), (48, 63), (33, 64)])
def test_odd_sizes_are_padded_by_the_edge(tmp_path, size):
    path = tmp_path / "out.mp4"
    write(path, [Fraction(n, 25) for n in range(3)], rate=Fraction(25), size=size)
    with open_source(str(path)) as source:
        frames = list(source)
    height, width = size
    assert source.video.size == (height + height % 2, width + width % 2)
    assert len(frames) == 3
    padded = np.pad(numbered(2, height=height, width=width), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    error = np.abs(frames[2].rgb.astype(int) - padded)
    assert np.median(error) <= 25
    assert np.median(error[-1]) <= 40 and np.median(error[:, -1]) <= 40


@pytest.mark.parametrize("rate", [NTSC, Fraction(24000, 1001), Fraction(25), Fraction(25, 7), Fraction(120)])
def test_the_rate_is_exact(tmp_path, rate):
    path = tmp_path / "out.mp4"
    write(path, [index / rate for index in range(40)], rate=rate)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == rate
    assert times_of(path) == [index / rate for index in range(40)]
    assert seconds_of(path, "video") == 40 / rate


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mp4"])
def test_a_rate_survives_any_container_and_every(tmp_path, suffix):
    clip = make_clip(tmp_path / f"clip{suffix}", rate=NTSC, count=45)
    copy(clip, tmp_path / "out.mp4")
    assert times_of(tmp_path / "out.mp4") == [index / NTSC for index in range(45)]
    copy(clip, tmp_path / "third.mp4", every=3, start=Fraction(1, 2))
    with av.open(str(tmp_path / "third.mp4")) as container:
        assert container.streams.video[0].average_rate == NTSC / 3


@settings(derandomize=True, max_examples=15)
@given(steps=st.lists(st.integers(1, 2000), min_size=1, max_size=20), ticks=st.sampled_from([600, 1000, 12800, 90000]))
def test_variable_rates_keep_their_time_stamps(tmp_path_factory, steps, ticks):
    path = tmp_path_factory.mktemp("variable") / "out.mp4"
    times = [Fraction(sum(steps[:n]), ticks) for n in range(len(steps))]
    write(path, times, rate=Fraction(25), time_base=Fraction(1, ticks), size=(16, 16))
    assert times_of(path) == times


def test_a_time_that_does_not_grow_loses_no_frame(tmp_path):
    write(tmp_path / "out.mp4", [Fraction(n, 25) for n in (0, 1, 1, 1, 5)], rate=Fraction(25))
    times = times_of(tmp_path / "out.mp4")
    assert len(times) == 5 and times[-1] == Fraction(5, 25)


def test_unimaginably_fine_ticks_are_coarsened(tmp_path):
    times = [Fraction(n, 25) for n in range(5)]
    write(tmp_path / "out.mp4", times, rate=Fraction(25), time_base=Fraction(1, 10**9))
    assert times_of(tmp_path / "out.mp4") == times


def test_sound_is_copied_whole(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", count=50, sound_s=Fraction(2))
    writer = copy(clip, tmp_path / "out.mp4")
    assert writer.warnings == []
    assert packets(tmp_path / "out.mp4") == packets(clip)


def packets(path):
    """The sound's packets as they are stored, before any time is cut off them."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def test_sound_is_cut_to_the_written_span(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", count=100, sound_s=Fraction(4))
    copy(clip, tmp_path / "out.mp4", start=1, end=2.5)
    video, audio = (seconds_of(tmp_path / "out.mp4", kind) for kind in ("video", "audio"))
    assert video == Fraction(38, 25)
    assert abs(audio - video) < Fraction(2 * 1024, 48000)
    inside = packets(tmp_path / "out.mp4")
    everything = packets(clip)
    first = everything.index(inside[0])
    assert inside == everything[first : first + len(inside)]
    # One packet of 1024 samples earlier than the span, for the decoder's sake.
    assert abs(Fraction(first * 1024, 48000) - 1) < Fraction(3 * 1024, 48000)


def beeps_of(path):
    """When the sound turns loud, in seconds, as a player hears it."""
    with av.open(str(path)) as container:
        pieces = [(frame.pts * frame.time_base, frame.to_ndarray()[0]) for frame in container.decode(audio=0)]
    loud = [(time_s + np.flatnonzero(np.abs(x) > 0.15)[0] / 48000) for time_s, x in pieces if np.abs(x).max() > 0.15]
    return [float(t) for n, t in enumerate(loud) if n == 0 or t - loud[n - 1] > 0.2]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("start", [Fraction(0), Fraction(33, 25)])
def test_sound_and_frames_stay_together(tmp_path, suffix, start):
    """A beep at every full second of the source is heard at that second less `start`."""
    clip = make_clip(tmp_path / f"clip{suffix}", count=100, sound_s=Fraction(4))
    copy(clip, tmp_path / "out.mp4", start=start)
    expected = [float(second - start) for second in range(4) if second >= start]
    heard = beeps_of(tmp_path / "out.mp4")
    assert np.allclose(heard, expected, atol=0.03), (heard, beeps_of(clip))


def test_sound_stays_with_thinned_frames_and_ends_with_them(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", count=100, sound_s=Fraction(4))
    copy(clip, tmp_path / "out.mp4", every=5)
    assert abs(seconds_of(tmp_path / "out.mp4", "audio") - 4) < Fraction(2 * 1024, 48000)
    copy(clip, tmp_path / "short.mp4", max_frames=25)
    assert abs(seconds_of(tmp_path / "short.mp4", "audio") - 1) < Fraction(2 * 1024, 48000)


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".avi"])
def test_sound_comes_from_other_containers(tmp_path, suffix):
    codec, sound = ("mpeg4", "mp3") if suffix == ".avi" else ("libx264", "aac")
    clip = make_clip(tmp_path / f"clip{suffix}", count=50, codec=codec, sound_s=Fraction(2), sound_codec=sound)
    writer = copy(clip, tmp_path / "out.mp4")
    assert writer.warnings == []
    assert abs(seconds_of(tmp_path / "out.mp4", "audio") - 2) < Fraction(1, 10)


def test_sound_that_mp4_cannot_carry_is_named(tmp_path):
    clip = make_clip(tmp_path / "clip.mkv", count=10, sound_s=Fraction(1), sound_codec="pcm_s16le")
    writer = copy(clip, tmp_path / "out.mp4")
    assert writer.warnings == ["the sound is left out: MP4 cannot carry pcm_s16le"]
    assert len(times_of(tmp_path / "out.mp4")) == 10


def test_unknown_sound_is_named(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", count=10, sound_s=Fraction(1))
    clip.write_bytes(clip.read_bytes().replace(b"mp4a", b"qqqq").replace(b"esds", b"qqqs"))
    (warning,) = copy(clip, tmp_path / "out.mp4").warnings
    assert "sound is left out" in warning
    assert len(times_of(tmp_path / "out.mp4")) == 10


def test_a_turned_video_is_written_upright(tmp_path):
    clip = turn(make_clip(tmp_path / "clip.mp4", count=5), (0, 1, -1, 0))
    copy(clip, tmp_path / "out.mp4")
    with open_source(str(tmp_path / "out.mp4")) as source:
        assert source.video.size == (64, 48)
        assert next(iter(source)).rgb.shape == (64, 48, 3)


def test_after_an_interrupt_the_file_plays(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", count=50, sound_s=Fraction(2))
    path = tmp_path / "out.mp4"
    with (
        pytest.raises(KeyboardInterrupt),
        open_video_writer(path, size=(48, 64), rate=Fraction(25), audio_from=clip) as writer,
    ):
        for index in range(20):
            writer.write(numbered(index), Fraction(index, 25))
        raise KeyboardInterrupt
    with open_source(str(path)) as source:
        assert len(list(source)) == 20 and source.ended_early is None
    assert abs(seconds_of(path, "audio") - Fraction(20, 25)) < Fraction(2 * 1024, 48000)


@pytest.mark.parametrize("with_pyav", [True, False])
def test_without_a_frame_there_is_no_file(tmp_path, monkeypatch, with_pyav):
    if not with_pyav:
        monkeypatch.setattr(packages, "pyav", lambda: None)
    writer = open_video_writer(tmp_path / "out.mp4", size=(48, 64), rate=Fraction(25))
    writer.close()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_frame_of_another_size_is_our_mistake(tmp_path):
    with (
        open_video_writer(tmp_path / "out.mp4", size=(48, 64), rate=Fraction(25)) as writer,
        pytest.raises(ValueError, match="48x64"),
    ):
        writer.write(numbered(0, height=64, width=48), Fraction(0))


def test_a_size_that_no_encoder_takes(tmp_path):
    with pytest.raises(EncoderMissing, match="70000x16"):
        open_video_writer(tmp_path / "out.mp4", size=(16, 70000), rate=Fraction(25))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_an_error_with_its_reason(tmp_path):
    (tmp_path / "out.mp4").symlink_to("/dev/full")
    random = np.random.default_rng(0)
    with (
        pytest.raises(OutputFailed, match=r"cannot write out\.mp4: No space left"),
        open_video_writer(tmp_path / "out.mp4", size=(128, 128), rate=Fraction(25)) as writer,
    ):
        for index in range(100):
            writer.write(random.integers(0, 256, (128, 128, 3), dtype=np.uint8), Fraction(index, 25))


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_without_pyav_opencv_writes_and_says_what_is_lost(tmp_path, monkeypatch, size):
    monkeypatch.setattr(packages, "pyav", lambda: None)
    path = tmp_path / "out.mp4"
    writer = write(path, [n / NTSC for n in range(20)], rate=NTSC, size=size, audio_from=tmp_path / "clip.mp4")
    (warning,) = writer.warnings
    assert "without sound" in warning and "dovit-deploy[video]" in warning
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "mpeg4"
        assert (stream.codec_context.height, stream.codec_context.width) == (48, 64)
        assert abs(stream.average_rate - NTSC) < Fraction(1, 1000)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 20
    assert frames[5][40, 5, 0] > 180 > 70 > frames[5][40, 5, 2]


def test_without_pyav_and_sound_nothing_is_said_about_sound(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "pyav", lambda: None)
    writer = write(tmp_path / "out.mp4", [Fraction(0)], rate=Fraction(25))
    assert "without sound" not in writer.warnings[0]


def test_where_nothing_can_encode(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "pyav", lambda: None)
    with pytest.raises(EncoderMissing, match=r"dovit-deploy\[video\]"):
        open_video_writer(tmp_path / "absent" / "out.mp4", size=(48, 64), rate=Fraction(25))


def test_pyav_without_its_encoder_falls_back(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"h264"})
    writer = write(tmp_path / "out.mp4", [Fraction(0)], rate=Fraction(25))
    assert "OpenCV" in writer.warnings[0]


def test_memory_does_not_grow_and_no_file_stays_open(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", count=400, size=(32, 32), sound_s=Fraction(16))
    process = psutil.Process(os.getpid())
    files = process.num_fds()
    frame = numbered(0, height=32, width=32)
    tracemalloc.start()
    try:
        with open_video_writer(tmp_path / "out.mp4", size=(32, 32), rate=Fraction(25), audio_from=clip) as writer:
            held = []
            for index in range(400):
                writer.write(frame, Fraction(index, 25))
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # One kept frame alone would be 3 kB.
    assert held[-1] - held[100] < 60_000
    assert process.num_fds() == files


@pytest.mark.skipif(not DRIVING_CLIP.exists(), reason="the driving clip of ../shared is absent")
def test_the_driving_clip_with_its_sound(tmp_path):
    writer = copy(DRIVING_CLIP, tmp_path / "out.mp4", start=2, end=4)
    assert writer.warnings == []
    assert times_of(tmp_path / "out.mp4") == [Fraction(n, 25) for n in range(50)]
    assert abs(seconds_of(tmp_path / "out.mp4", "audio") - 2) < Fraction(2 * 1024, 48000)


def test_what_opencv_did_not_write_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("dovit_deploy.packages.opencv", SilentOpencv)
    writer = OpencvVideoWriter(tmp_path / "out.mp4", size=(16, 16), rate=Fraction(25), wants_audio=False)
    for index in range(3):
        writer.write(np.zeros((16, 16, 3), np.uint8), Fraction(index, 25))
    with pytest.raises(OutputFailed, match="wrote 0 of 3 frames"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


FILE_LIMIT = """
import resource, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from dovit_deploy.errors import OutputFailed
from dovit_deploy.sources.video_writer import OpencvVideoWriter, open_video_writer
noise = np.random.default_rng(0).integers(0, 256, (20, 96, 96, 3), dtype=np.uint8)
path = Path("out.mp4")
open_h264 = lambda: open_video_writer(path, size=(96, 96), rate=Fraction(25))
open_mpeg4 = lambda: OpencvVideoWriter(path, size=(96, 96), rate=Fraction(25), wants_audio=False)
def refused(opened):
    try:
        with opened() as writer:
            for index, frame in enumerate(noise):
                writer.write(frame, Fraction(index, 25))
    except OutputFailed:
        return not path.exists()
    return False
with open_h264() as writer:
    for index, frame in enumerate(noise):
        writer.write(frame, Fraction(index, 25))
whole = path.stat().st_size
for limit in (whole - 1, whole // 2, 5000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    assert refused(open_h264), limit
assert refused(open_mpeg4)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files there")
def test_no_half_video_where_the_system_takes_no_more(tmp_path):
    """A real limit, in a process of its own: the encoders see what a full disk or a quota gives."""
    done = subprocess.run([sys.executable, "-c", FILE_LIMIT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
