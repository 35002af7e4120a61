"""Does one engine, encoder or library work here? Each is tried for real; `doctor` runs `main` in a process of its own.

It prints what was found and returns 0, or fails as the thing fails: with an exception, a signal, or by hanging.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from dovit_deploy import packages
from dovit_deploy.engines.registry import engine_entry, engine_function
from dovit_deploy.errors import DovitError, EncoderMissing
from dovit_deploy.sources.images import read_image
from dovit_deploy.sources.video_writer import OpencvVideoWriter, VideoWriter, open_video_writer

CLIP_FRAMES, CLIP_SIZE, CLIP_RATE = 8, (64, 96), Fraction(25)


def images() -> str:
    """Encode an image with Pillow, decode it, and resize it with OpenCV."""
    cv2, pillow = packages.opencv(), packages.pillow()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.png"
        pillow.fromarray(np.zeros((8, 12, 3), dtype=np.uint8)).save(path)
        resized = cv2.resize(read_image(path), (6, 4))
    if resized.shape != (4, 6, 3):
        raise ArithmeticError(f"a resize to 6x4 gave {resized.shape}")
    return f"OpenCV {cv2.__version__}, Pillow {packages.load('PIL').__version__}"


def h264() -> str:
    """Write a short clip with PyAV."""
    av = packages.load("av")
    size = _clip_bytes(lambda path: open_video_writer(path, size=CLIP_SIZE, rate=CLIP_RATE), codec="H.264")
    return f"PyAV {av.__version__}, a clip of {size} bytes"


def mp4v() -> str:
    """Write a short clip with OpenCV."""
    cv2 = packages.opencv()
    size = _clip_bytes(
        lambda path: OpencvVideoWriter(path, size=CLIP_SIZE, rate=CLIP_RATE, wants_audio=False), codec="mp4v"
    )
    return f"OpenCV {cv2.__version__}, a clip of {size} bytes"


def _clip_bytes(opened: Callable[[Path], VideoWriter], *, codec: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with opened(path) as writer:
            # `open_video_writer` falls back to OpenCV by itself; here that would hide what is missing.
            if codec == "H.264" and isinstance(writer, OpencvVideoWriter):
                raise EncoderMissing("this PyAV has no H.264 encoder")
            for number in range(CLIP_FRAMES):
                frame = np.full((*CLIP_SIZE, 3), 20 * number, dtype=np.uint8)
                writer.write(frame, number / CLIP_RATE)
        size = path.stat().st_size if path.is_file() else 0
    if not size:
        raise EncoderMissing(f"the {codec} encoder wrote nothing")
    return size


PROBES: dict[str, Callable[[], str]] = {"images": images, "h264": h264, "mp4v": mp4v}
"""Those of no engine, by name; an engine brings its own (`EngineEntry.probe`)."""


def probed(name: str) -> str:
    """Run the probe called `name`, of ours or of an engine; returns what it found."""
    if name in PROBES:
        return PROBES[name]()
    entry = engine_entry(name)
    return str(engine_function(entry, entry.probe)())


def main(name: str) -> int:
    """Run the probe called `name`; what it found goes to stdout, why it failed to the last line of stderr."""
    try:
        sys.stdout.write(probed(name) + "\n")
    # Other exceptions end the process with a traceback, whose last line says as much.
    except DovitError as error:
        sys.stderr.write(str(error).replace("\n", " ") + "\n")
        return error.exit_code
    return 0
