"""What FFmpeg may open, and how frames are to be seen: playlists, aspect, HDR, side data, titles, secrets, clocks."""

from __future__ import annotations

import functools
import http.server
import socket
import threading
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from dovit_deploy import packages
from dovit_deploy.errors import SourceError
from dovit_deploy.sources.containers import ffmpeg_options, size_as_seen
from dovit_deploy.sources.images import upright
from dovit_deploy.sources.open import open_source
from tests.sources.clips import make_clip, numbered, turn

PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile {clip}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{clip}\n#EXT-X-ENDLIST\n",
    "dash": "<MPD><Period><AdaptationSet><BaseURL>{clip}</BaseURL></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
}


@pytest.fixture(params=[True, False], ids=["PyAV", "OpenCV"])
def reader(request, monkeypatch):
    """Both readers of videos, one after the other."""
    if not request.param:
        monkeypatch.setattr(packages, "pyav", lambda: None)
    return request.param


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list", "list.ts"])
def test_a_playlist_is_not_followed(tmp_path, reader, kind, name):
    clip = make_clip(tmp_path / "clip.ts", count=3)
    (tmp_path / name).write_text(PLAYLISTS[kind].format(clip=clip))
    with pytest.raises(SourceError, match="not a video that can be read") as refusal:
        open_source(str(tmp_path / name))
    assert ("a playlist of other files" in str(refusal.value)) == reader


def served(content, *, kind="application/octet-stream"):
    """The address of a server that gives `content` (or what it yields) for every path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            if isinstance(content, bytes):
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            for part in [content] if isinstance(content, bytes) else content():
                self.wfile.write(part)
                self.wfile.flush()

        def log_message(self, *parts):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def address_of(server, path):
    return f"http://127.0.0.1:{server.server_port}/{path}"


@pytest.mark.parametrize("path", ["live", "live.m3u8", "live.mp4"])
def test_a_playlist_from_a_server_names_no_file_of_this_machine(tmp_path, reader, path):
    clip = make_clip(tmp_path / "clip.ts", count=3)
    server = served(PLAYLISTS["hls"].format(clip=f"file://{clip}").encode())
    with pytest.raises(SourceError), open_source(address_of(server, path)) as source:
        assert not list(source)
    server.shutdown()


def test_a_playlist_is_followed_where_its_address_asks_for_it():
    assert "hls" in ffmpeg_options("https://host/live.m3u8?key=1", is_file=False)["format_whitelist"].split(",")
    for address in ("https://host/live", "rtsp://host/live.m3u8", "https://host/a.mp4?next=b.m3u8"):
        assert "hls" not in ffmpeg_options(address, is_file=False)["format_whitelist"].split(",")
    for options in (ffmpeg_options("a", is_file=True), ffmpeg_options("http://a", is_file=False)):
        assert not {"concat", "lavfi", "alsa", "video4linux2", "x11grab"} & set(options["format_whitelist"].split(","))
    assert "file" not in ffmpeg_options("http://host/live.m3u8", is_file=False)["protocol_whitelist"].split(",")


def test_every_format_is_one_that_ffmpeg_has():
    known = {name for names in av.formats_available for name in names.split(",")}
    listed = ffmpeg_options("http://host/a.m3u8", is_file=False)["format_whitelist"].split(",")
    # Demuxers that a build may leave out.
    assert set(listed) - known <= {"dash", "obu", "evc", "vvc", "avs2", "avs3"}


def test_a_picture_from_a_server_is_upright(tmp_path):
    lying = np.zeros((32, 64, 3), dtype=np.uint8)
    lying[:, :32] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lying).save(tmp_path / "a.jpg", exif=exif)
    server = served((tmp_path / "a.jpg").read_bytes(), kind="image/jpeg")
    with open_source(address_of(server, "a.jpg")) as source:
        (frame,) = source
    assert frame.rgb.shape == (64, 32, 3) and frame.rgb[8, 16, 0] > 200 and frame.rgb[56, 16, 0] < 50
    server.shutdown()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_side_data_of_unknown_kinds_never_ends_a_video(tmp_path, orientation):
    """FFmpeg hands on the EXIF data of Motion JPEG, a kind that PyAV has no name for, beside the matrix."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(numbered(0)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    jpeg = (tmp_path / "a.jpg").read_bytes()
    with av.open(str(tmp_path / "a.avi"), "w") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(3):
            packet = av.Packet(jpeg)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, True
            packet.time_base = Fraction(1, 25)
            output.mux(packet)
    with open_source(str(tmp_path / "a.avi")) as source:
        frames = list(source)
    assert len(frames) == 3
    expected = np.asarray(Image.open(tmp_path / "a.jpg"))
    # The mean: colour is stored for 2 x 2 pixels, so its borders are soft.
    assert np.abs(frames[0].rgb.astype(int) - upright(expected, orientation)).mean() < 4
    assert frames[0].rgb.shape == upright(expected, orientation).shape


def stretched(path, aspect):
    """A clip whose header says that its pixels are `aspect` times as wide as high."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for number in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".h264"])
@pytest.mark.parametrize(("aspect", "size"), [(Fraction(2), (48, 128)), (Fraction(1, 2), (96, 64))])
def test_pixels_that_are_not_square_are_stretched(tmp_path, reader, suffix, aspect, size):
    with open_source(str(stretched(tmp_path / f"a{suffix}", aspect))) as source:
        frame = next(iter(source))
        assert source.video.size == size == frame.rgb.shape[:2]
    assert frame.rgb[size[0] // 2, size[1] // 8, 0] > 150 > 100 > frame.rgb[size[0] // 2, size[1] // 2, 0]


def test_a_turned_video_is_stretched_before_the_turn(tmp_path, reader):
    clip = turn(stretched(tmp_path / "a.mp4", Fraction(2)), (0, 1, -1, 0))
    with open_source(str(clip)) as source:
        assert source.video.size == next(iter(source)).rgb.shape[:2] == (128, 48)


def test_the_limit_of_pixels_holds_for_what_is_seen(tmp_path, reader):
    clip = stretched(tmp_path / "a.mp4", Fraction(4))
    with pytest.raises(SourceError, match="256x48 is 12288 pixels"):
        open_source(str(clip), max_pixels=4000)


def test_an_absurd_aspect_is_a_damaged_header():
    assert size_as_seen(48, 64, Fraction(1000)) == size_as_seen(48, 64, None) == (48, 64)
    assert size_as_seen(576, 720, Fraction(16, 11)) == (576, 1047)


def test_a_title_that_is_not_utf8(tmp_path):
    clip = make_clip(tmp_path / "plain.mp4", count=3, sound_s=Fraction(1, 10))
    titled = tmp_path / "a.mp4"
    with av.open(str(clip)) as source, av.open(str(titled), "w") as output:
        output.metadata["title"] = "caf____"
        streams = {stream.index: output.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    titled.write_bytes(titled.read_bytes().replace(b"caf____", b"caf\xe9\xff\xfe!"))
    with open_source(str(titled), start=Fraction(1, 25)) as source:
        assert source.video.has_audio and len(list(source)) == 2


def test_secrets_of_an_address_are_in_no_row_or_message(tmp_path, reader):
    make_clip(tmp_path / "clip.ts", count=12)
    files = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with open_source(f"http://me:hidden@127.0.0.1:{server.server_port}/clip.ts?token=hidden") as source:
        frames = list(source)
        assert frames and "hidden" not in source.name + "".join(source.warnings)
    assert all("hidden" not in frame.source and "***@127.0.0.1" in frame.source for frame in frames)
    server.shutdown()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://me:hidden@127.0.0.1:{unused.getsockname()[1]}/live"
    for address in (dead, "ftp://me:hidden@host/a.mp4"):
        with pytest.raises(SourceError) as refusal:
            open_source(address)
        assert "hidden" not in str(refusal.value)


def test_motion_jpeg_over_http_is_timed_by_the_clock(tmp_path):
    Image.fromarray(numbered(0)).save(tmp_path / "a.jpg")
    jpeg = (tmp_path / "a.jpg").read_bytes()

    def parts():
        for _ in range(5):
            yield b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg) + jpeg + b"\r\n"
            time.sleep(0.2)

    server = served(parts, kind="multipart/x-mixed-replace; boundary=frame")
    with open_source(address_of(server, "video")) as source:
        times = [frame.time_s for frame in source]
        assert source.kind == "live"
        assert all((moment / source.video.time_base).denominator == 1 for moment in times)
    assert len(times) >= 4 and times[-1] - times[0] > Fraction(1, 4)
    assert times == sorted(set(times))
    server.shutdown()
