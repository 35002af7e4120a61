"""A long clip of rendered streets for benchmarks of whole commands: few frames rendered, repeated in turn."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from dovit_deploy.sources.video_writer import open_video_writer
from dovit_scenes import street_frames


def write_clip(path: Path, *, frames: int, size: tuple[int, int], rendered: int, seed: int) -> None:
    """Write `frames` frames of `size` (height, width) at 25 per second; `rendered` of them differ."""
    images = [frame.rgb for frame in street_frames(rendered, seed=seed, size=size)]
    with open_video_writer(path, size=size, rate=Fraction(25)) as writer:
        for number in range(frames):
            writer.write(images[number % rendered], Fraction(number, 25))
