"""Video through PyAV: exact times, seeking, orientation, damage."""

from __future__ import annotations

import functools
import http.server
import io
import itertools
import os
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dovit_deploy.errors import SourceError
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.source import FrameClock
from dovit_deploy.sources.video import VideoDecoder
from tests.paths import SHARED
from tests.sources.clips import NTSC, cut, make_clip, numbered, turn

DRIVING_CLIP = SHARED / "data" / "video" / "solidWhiteRight.mp4"


def frames_of(path, **selection):
    with open_source(str(path), **selection) as source:
        return source, list(source)


def test_what_a_video_tells(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", count=20, sound_s=Fraction(4, 5))
    source, frames = frames_of(clip)
    assert (source.kind, source.count, source.name) == ("video", 20, str(clip))
    assert (source.video.size, source.video.rate) == ((48, 64), 25)
    assert source.video.has_audio and source.video.path == clip
    assert [frame.index for frame in frames] == list(range(20))
    assert [frame.time_s for frame in frames] == [Fraction(n, 25) for n in range(20)]
    assert all(frame.rgb.shape == (48, 64, 3) and frame.rgb.dtype == np.uint8 for frame in frames)
    assert all(frame.rgb.flags.c_contiguous and frame.rgb.flags.writeable for frame in frames)
    assert all(frame.decode_ms > 0 and frame.source == str(clip) for frame in frames)
    assert source.ended_early is None and source.warnings == []


def test_colours_are_red_first(tmp_path):
    _, frames = frames_of(make_clip(tmp_path / "clip.mp4", count=3))
    difference = np.abs(frames[2].rgb.astype(int) - numbered(2))
    assert np.median(difference) <= 4
    red, blue = frames[2].rgb[40, 5], frames[2].rgb[4, 40]
    assert red[0] > 180 > 60 > red[2] and blue[2] > 180 > 60 > blue[0]


def test_no_sound(tmp_path):
    assert not frames_of(make_clip(tmp_path / "clip.mp4", count=2))[0].video.has_audio


@pytest.mark.parametrize("rate", [NTSC, Fraction(24000, 1001), Fraction(25), Fraction(50)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
def test_rates_are_exact_in_every_container(tmp_path, rate, suffix):
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    source, frames = frames_of(make_clip(tmp_path / f"clip{suffix}", rate=rate, count=30, codec=codec))
    assert source.video.rate == rate
    assert [frame.time_s for frame in frames] == [index / rate for index in range(30)]
    assert all((frame.time_s / source.video.time_base).denominator == 1 for frame in frames)
    assert source.ended_early is None


def test_b_frames_in_avi_have_no_stamps_and_lie_on_the_rate(tmp_path):
    source, frames = frames_of(make_clip(tmp_path / "clip.avi", rate=NTSC, count=30))
    assert [frame.time_s for frame in frames] == [index / NTSC for index in range(30)]
    grey = [int(frame.rgb[40, 60, 0]) for frame in frames]
    assert grey == sorted(grey) and source.ended_early is None


def test_a_variable_rate_keeps_its_time_stamps(tmp_path):
    times = [Fraction(n, 1000) for n in (0, 40, 100, 400, 410, 900)]
    for suffix in (".mp4", ".mkv"):
        clip = make_clip(tmp_path / f"clip{suffix}", times=times, time_base=Fraction(1, 1000))
        source, frames = frames_of(clip)
        assert [frame.time_s for frame in frames] == times
        assert source.ended_early is None


# What the four corners of the frame show, by the matrix of the track header.
TURNS = {
    "a quarter clockwise": ((0, 1, -1, 0), lambda rgb: np.rot90(rgb, -1)),
    "a quarter counter-clockwise": ((0, -1, 1, 0), lambda rgb: np.rot90(rgb, 1)),
    "half a turn": ((-1, 0, 0, -1), lambda rgb: rgb[::-1, ::-1]),
    "mirrored": ((-1, 0, 0, 1), lambda rgb: rgb[:, ::-1]),
}


@pytest.mark.parametrize("name", TURNS)
def test_a_turned_video_is_upright(tmp_path, name):
    matrix, turned = TURNS[name]
    plain = frames_of(make_clip(tmp_path / "plain.mp4", count=3))[1]
    source, frames = frames_of(turn(make_clip(tmp_path / "clip.mp4", count=3), matrix))
    assert source.video.size == frames[0].rgb.shape[:2]
    for before, after in zip(plain, frames, strict=True):
        assert np.array_equal(after.rgb, turned(before.rgb))
        assert after.rgb.flags.c_contiguous


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
@pytest.mark.parametrize("rate", [Fraction(25), NTSC])
def test_a_start_gives_exactly_the_frames_of_the_whole(tmp_path, suffix, rate):
    clip = make_clip(tmp_path / f"clip{suffix}", rate=rate, count=60, gop=12)
    whole = frames_of(clip)[1]
    for start in (Fraction(1, 100), Fraction(1), 30 / rate, Fraction(19, 10)):
        source, frames = frames_of(clip, start=start, end=start + Fraction(1, 2), every=3)
        expected = [f for f in whole if start <= f.time_s < start + Fraction(1, 2)][::3]
        assert [(f.index, f.time_s) for f in frames] == [(f.index, f.time_s) for f in expected]
        assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(frames, expected, strict=True))
        assert source.count == len(expected)


def test_a_start_seeks_instead_of_decoding_everything(tmp_path, monkeypatch):
    clip = make_clip(tmp_path / "clip.mp4", count=60, gop=5)
    decoded = []
    frames = VideoDecoder.frames
    monkeypatch.setattr(VideoDecoder, "frames", lambda self: (decoded.append(p.pts) or p for p in frames(self)))
    assert [frame.index for frame in frames_of(clip, start=2)[1]] == list(range(50, 60))
    # The first one is decoded when the file is opened, and a few before the key frame.
    assert len(decoded) <= 1 + 10 + 6


def test_max_frames_reads_no_further(tmp_path, monkeypatch):
    clip = make_clip(tmp_path / "clip.mp4", count=200, gop=5)
    read = []
    packets = VideoDecoder.packets
    monkeypatch.setattr(VideoDecoder, "packets", lambda self: (read.append(p) or p for p in packets(self)))
    source, frames = frames_of(clip, max_frames=3)
    assert len(frames) == 3 and source.count == 3
    assert len(read) < 60
    assert source.ended_early is None


def test_a_span_without_a_frame(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", count=10)
    with open_source(str(clip), start=5) as source, pytest.raises(SourceError, match="--start"):
        list(source)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("with_sound", [False, True])
def test_a_truncated_video_gives_its_frames_and_says_so(tmp_path, suffix, with_sound):
    sound_s = Fraction(12, 5) if with_sound and suffix == ".mp4" else None
    clip = make_clip(tmp_path / f"clip{suffix}", count=120, rate=Fraction(25), noise=True, sound_s=sound_s)
    source, whole = frames_of(clip)
    assert source.ended_early is None
    source, frames = frames_of(cut(clip, 0.6))
    assert 40 <= len(frames) < 110
    # The frame that the cut went through is left out, not shown half grey.
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(frames, whole, strict=False))
    assert source.ended_early
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert frames_of(clip, max_frames=5)[0].ended_early is None


def test_even_the_last_bytes_are_missed(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", count=30, noise=True)
    source, frames = frames_of(cut(clip, 0.9995))
    assert len(frames) >= 26 and source.ended_early == "its last packet is cut off"


@pytest.mark.parametrize("start", [None, Fraction(1, 25), Fraction(1)])
def test_what_an_edit_list_hides_is_no_frame(tmp_path, start):
    """Cutting without encoding again leaves frames before the first shown one in the file."""
    clip = make_clip(tmp_path / "clip.mp4", count=50, gop=20)
    whole = frames_of(clip)[1]
    with av.open(str(clip)) as source, av.open(str(tmp_path / "edited.mp4"), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        step = round(Fraction(1, 25) / source.streams.video[0].time_base)
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = packet.pts - 7 * step, packet.dts - 7 * step
                packet.stream = stream
                output.mux(packet)
    source, frames = frames_of(tmp_path / "edited.mp4", start=start)
    first = 0 if start is None else int(start * 25)
    assert [(f.index, f.time_s) for f in frames] == [(n, Fraction(n, 25)) for n in range(first, 43)]
    assert np.array_equal(frames[0].rgb, whole[first + 7].rgb)
    assert source.ended_early is None


def test_a_video_cut_before_its_first_frame(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", count=10, noise=True)
    with pytest.raises(SourceError, match="not one frame"):
        open_source(str(cut(clip, 0.1)))
    with pytest.raises(SourceError, match=r"clip\.mp4"):
        open_source(str(cut(clip, 0.1)))


def test_damage_in_the_middle_is_counted_not_fatal(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", count=60, codec="mjpeg", noise=True)
    data = bytearray(clip.read_bytes())
    # A share of the file: encoders make less of the same frames where there is one processor.
    middle, damaged = len(data) // 2, len(data) // 7
    data[middle : middle + damaged] = bytes(damaged)
    clip.write_bytes(data)
    source, frames = frames_of(clip)
    assert 50 <= len(frames) <= 60
    assert source.ended_early is None
    assert frames[-1].time_s == Fraction(59, 25)


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "tone.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(SourceError, match="no video"):
        open_source(str(tmp_path / "tone.mp4"))


def test_an_unknown_codec(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", count=3)
    clip.write_bytes(clip.read_bytes().replace(b"avc1", b"qqqq").replace(b"avcC", b"qqqC"))
    with pytest.raises(SourceError, match="codec"):
        open_source(str(clip))


def test_too_many_pixels(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", count=2)
    with pytest.raises(SourceError, match=r"64x48 is 3072 pixels.*--max-pixels 3072"):
        open_source(str(clip), max_pixels=3071)


def test_a_name_like_a_protocol_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "clip.mp4", count=2).rename(tmp_path / "concat:a.mp4")
    assert len(frames_of("concat:a.mp4")[1]) == 2


def test_a_stream_over_http(tmp_path):
    """The address goes where a file's goes; that it is bounded is tested with the sources."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    make_clip(tmp_path / "clip.ts", count=12)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        source, frames = frames_of(f"http://127.0.0.1:{server.server_port}/clip.ts", start=0.2)
        assert [frame.index for frame in frames] == list(range(5, 12))
        assert source.video.path is None
    finally:
        server.shutdown()
        server.server_close()


def test_no_file_stays_open(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", count=30)
    text = tmp_path / "text.mp4"
    text.write_text("text")
    process = psutil.Process(os.getpid())
    before = process.num_fds()
    for _ in range(3):
        frames_of(clip, start=0.8)
        with open_source(str(clip)):
            pass
        with pytest.raises(SourceError):
            open_source(str(text))
        with pytest.raises(SourceError):
            open_source(str(clip), max_pixels=1)
    assert process.num_fds() == before


@pytest.mark.skipif(not DRIVING_CLIP.exists(), reason="the driving clip of ../shared is absent")
def test_the_driving_clip():
    source, frames = frames_of(DRIVING_CLIP, every=20)
    assert (source.video.size, source.video.rate, source.count) == ((540, 960), 25, 12)
    assert source.video.has_audio
    assert [frame.index for frame in frames] == list(range(0, 221, 20))
    assert source.ended_early is None
    late = frames_of(DRIVING_CLIP, start=Fraction(160, 25), max_frames=1)[1][0]
    assert late.index == 160 and np.array_equal(late.rgb, frames[8].rgb)


NTSC = Fraction(30000, 1001)


@pytest.mark.parametrize("rate", [NTSC, Fraction(24000, 1001), Fraction(25), Fraction(60), Fraction(30)])
@pytest.mark.parametrize("cut", [round, int])
def test_milliseconds_of_a_constant_rate_are_put_back_on_it(rate, cut):
    clock = FrameClock(tick=Fraction(1, 1000), first=0, rate=rate, constant_rate=True)
    for index in range(400):
        time_s = clock.time(cut(index / rate * 1000), index=index)
        assert time_s == index / rate
        assert (time_s / clock.time_base).denominator == 1


def test_a_variable_rate_keeps_its_stamps():
    clock = FrameClock(tick=Fraction(1, 1000), first=10, rate=NTSC, constant_rate=False)
    stamps = [10, 43, 143, 144, 190]
    assert [clock.time(s, index=0) for s in stamps] == [Fraction(s - 10, 1000) for s in stamps]
    assert clock.time_base == Fraction(1, 1000)


def test_frames_without_stamps_lie_on_the_rate():
    clock = FrameClock(tick=Fraction(1, 1200000), first=None, rate=NTSC, constant_rate=False)
    assert [clock.time(None, index=i) for i in range(3)] == [0, 1 / NTSC, 2 / NTSC]


@settings(derandomize=True, max_examples=100)
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30))
def test_times_always_grow(stamps):
    clock = FrameClock(tick=Fraction(1, 90), first=stamps[0], rate=Fraction(30), constant_rate=False)
    times = [clock.time(stamp, index=index) for index, stamp in enumerate(stamps)]
    assert times[0] == 0
    assert all(a < b for a, b in itertools.pairwise(times))


def test_after_a_reset_the_steps_are_kept():
    clock = FrameClock(tick=Fraction(1, 100), first=500, rate=Fraction(25), constant_rate=False)
    times = [clock.time(stamp, index=0) for stamp in (500, 504, 508, 0, 4, 8)]
    assert times == [Fraction(4 * n, 100) for n in range(6)]


def _jpeg(width: int, height: int) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


def _clip_of_jpegs(path: Path, sizes: list[tuple[int, int]], *, stated: tuple[int, int]) -> Path:
    """A video whose header states one size, and whose frames have any; (width, height) each."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height = stated
        stream.pix_fmt = "yuvj420p"
        for number, size in enumerate(sizes):
            packet = av.Packet(_jpeg(*size))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 10)
            packet.is_keyframe = True
            container.mux(packet)
    return path


@pytest.mark.parametrize("name", ["a.mkv", "a.avi"])
def test_later_frames_that_are_too_large_end_the_video(tmp_path: Path, name: str) -> None:
    small, large = (64, 48), (640, 480)
    path = _clip_of_jpegs(tmp_path / name, [small, small, large, small], stated=small)
    with open_source(str(path), max_pixels=10_000) as source:
        assert [frame.rgb.shape for frame in source] == [(48, 64, 3)] * 2
        assert "after 2 frames a frame has more than the 10000 pixels allowed" in str(source.ended_early)
    with open_source(str(path), max_pixels=640 * 480) as source:
        assert len(list(source)) == 4
        assert source.ended_early is None


def test_a_first_frame_larger_than_the_header_states_is_refused(tmp_path: Path) -> None:
    path = _clip_of_jpegs(tmp_path / "a.avi", [(640, 480)], stated=(64, 48))
    with pytest.raises(SourceError, match="more than the 10000 allowed"):
        open_source(str(path), max_pixels=10_000)
