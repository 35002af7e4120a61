"""A video as phones make them: stored lying, at a varying rate, with sound, an old title and EXIF in its frames."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from dovit_deploy.sources.source import RGB
from tests.sources.clips import add_beeps, sound_stream, turn

TICK = Fraction(1, 600)
"""Of QuickTime's usual clock."""
SIZE = (192, 128)
"""Height and width as it is seen."""
TITLE, TITLE_IN_FILE = b"Stra__e in K__ln", b"Stra\xdfee in K\xf6eln"


def seen(index: int) -> RGB:
    """Frame `index` upright: red above, blue below, growing brighter to the right."""
    rgb = np.zeros((*SIZE, 3), np.uint8)
    rgb[: SIZE[0] // 2, :, 0] = rgb[SIZE[0] // 2 :, :, 2] = 150 + 8 * index
    rgb[:, :, 1] = np.linspace(0, 90, SIZE[1], dtype=np.uint8)
    return rgb


def make_phone_clip(path: Path, *, times: Sequence[Fraction], sound_s: Fraction) -> Path:
    """Write a MOV of one frame at each of `times` (seconds, whole ticks of 1/600 s) and `sound_s` seconds of sound."""
    with av.open(str(path), "w") as output:
        output.metadata["title"] = TITLE.decode()
        video = output.add_stream("mjpeg", rate=30)
        # Stored lying, as the sensor reads it.
        video.height, video.width, video.pix_fmt = SIZE[1], SIZE[0], "yuvj420p"
        video.time_base = video.codec_context.time_base = TICK
        sound = sound_stream(output, "aac")
        for index, time_s in enumerate(times):
            packet = av.Packet(_jpeg(np.rot90(seen(index))))
            packet.stream, packet.time_base, packet.is_keyframe = video, TICK, True
            packet.pts = packet.dts = int(time_s / TICK)
            output.mux(packet)
        add_beeps(output, sound, seconds=sound_s)
    # A quarter turn clockwise, as a phone that is held upright states it.
    turn(path, (0, 1, -1, 0))
    data = path.read_bytes()
    assert data.count(TITLE) == 1
    path.write_bytes(data.replace(TITLE, TITLE_IN_FILE))
    return path


def _jpeg(rgb: RGB) -> bytes:
    """With EXIF, which FFmpeg hands on as side data of a kind that PyAV has no name for."""
    exif = Image.Exif()
    exif[0x010F] = "A phone"
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(file, "JPEG", exif=exif, quality=95)
    return file.getvalue()
