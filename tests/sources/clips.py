"""Short videos made in code: what a container, a codec or a phone does to frames, in a few kilobytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from dovit_deploy.sources.source import RGB

NTSC = Fraction(30000, 1001)


def numbered(index: int, *, height: int = 48, width: int = 64) -> RGB:
    """A frame whose brightness is its number, with a red left and a blue top edge, so that turns show."""
    rgb = np.full((height, width, 3), 40 + 3 * index % 160, dtype=np.uint8)
    rgb[:, : width // 4] = (220, 20, 20)
    rgb[: height // 4] = (20, 20, 220)
    return rgb


def make_clip(
    path: Path,
    *,
    times: Sequence[Fraction] | None = None,
    count: int = 20,
    rate: Fraction = Fraction(25),
    time_base: Fraction | None = None,
    codec: str = "libx264",
    size: tuple[int, int] = (48, 64),
    gop: int = 10,
    sound_s: Fraction | None = None,
    sound_codec: str = "aac",
    noise: bool = False,
) -> Path:
    """Write a clip of `numbered` frames with PyAV directly, independent of the writer under test."""
    times = [index / rate for index in range(count)] if times is None else times
    tick = 1 / rate if time_base is None else time_base
    options = {"movflags": "+faststart"} if path.suffix in (".mp4", ".mov") else {}
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options=options) as output:
        stream = output.add_stream(codec, rate=rate, options={"g": str(gop)})
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = tick
        sound = None if sound_s is None else sound_stream(output, sound_codec)
        for index, time_s in enumerate(times):
            rgb = numbered(index, height=size[0], width=size[1])
            if noise:
                rgb = random.integers(0, 256, rgb.shape, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = round(time_s / tick), tick
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            add_beeps(output, sound, seconds=sound_s)
    return path


def sound_stream(output, codec: str):
    """A track of mono sound, 48 kHz, in a container that is being written."""
    sound = output.add_stream(codec, rate=48000)
    sound.codec_context.format = "s16" if codec.startswith("pcm") else "fltp"
    sound.codec_context.layout = "mono"
    return sound


def add_beeps(output, sound, *, seconds: Fraction) -> None:
    """A tenth of a second of 440 Hz at every full second."""
    layout = sound.codec_context.format.name
    samples = int(seconds * 48000)
    tone = (np.sin(np.arange(samples) * 2 * np.pi * 440 / 48000) * 0.3).astype(np.float32)
    tone[np.arange(samples) % 48000 > 4800] = 0
    if layout == "s16":
        tone = (tone * 32767).astype(np.int16)
    for begin in range(0, samples, 1024):
        chunk = av.AudioFrame.from_ndarray(tone[None, begin : begin + 1024], format=layout, layout="mono")
        chunk.sample_rate, chunk.pts, chunk.time_base = 48000, begin, Fraction(1, 48000)
        output.mux(sound.encode(chunk))
    output.mux(sound.encode(None))


def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Set (a, b, c, d) of the display matrix in an MP4's track header, as a phone held sideways does."""
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def cut(path: Path, fraction: float) -> Path:
    """Keep the first part of a file, as an interrupted copy does."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def seconds_of(path: Path, kind: str) -> Fraction:
    """Duration of the first track of a kind ("video", "audio")."""
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        return stream.duration * stream.time_base


def times_of(path: Path) -> list[Fraction]:
    """Time stamps of the decoded frames."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


class SilentOpencv:
    """OpenCV whose video writer drops everything, as the real one does on a full disk, without a word."""

    class VideoWriter:
        fourcc = staticmethod(lambda *letters: 0)

        def __init__(self, path: str, *rest: object) -> None:
            Path(path).write_bytes(b"half")
            self.opened = True

        def isOpened(self) -> bool:
            return self.opened

        def write(self, bgr: object) -> None:
            "Nothing arrives."

        def release(self) -> None:
            self.opened = False

    def __getattr__(self, name: str) -> object:
        import cv2

        return getattr(cv2, name)
