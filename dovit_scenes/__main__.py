"""Command line: `python -m dovit_scenes OUT.mp4` renders a clip, `... OUT_FOLDER --images N` a data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from dovit_scenes.clip import write_clip
from dovit_scenes.dataset import write_dataset
from dovit_scenes.errors import SceneArgumentError, SceneError
from dovit_scenes.render import street_frames


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, render, write; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        write = _clip if options.images is None else _dataset
        write(options, _size(options.size))
    except SceneError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was written\n")
        return 130
    sys.stdout.write(f"{options.output}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dovit_scenes", description="Renders street scenes.")
    parser.add_argument("output", type=Path, help="a clip (OUT.mp4), or with --images a new folder")
    parser.add_argument("--seed", type=int, default=7, help="which street (default 7)")
    parser.add_argument("--size", default="640x360", help="WIDTHxHEIGHT (default 640x360)")
    parser.add_argument("--density", type=float, help="0 empty .. 1 crowded (default 0.5; images: drawn for each)")
    parser.add_argument("--frames", type=int, default=120, help="length of the clip (default 120)")
    parser.add_argument("--fps", type=Fraction, default=Fraction(15), help="frames per second, e.g. 15 or 30000/1001")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing clip")
    parser.add_argument("--images", type=int, help="write a data set of this many training images")
    parser.add_argument("--val", type=int, help="validation images beside them (default a tenth, at least 1)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def _size(text: str) -> tuple[int, int]:
    """`640x360` -> (360, 640): height first, as arrays have it."""
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise SceneArgumentError(f"--size {text!r} is not WIDTHxHEIGHT, such as 640x360")
    return int(height), int(width)


def _clip(options: argparse.Namespace, size: tuple[int, int]) -> None:
    if options.frames < 1 or options.fps <= 0:
        raise SceneArgumentError("a clip needs at least one frame (--frames) and a positive rate (--fps)")
    # A clip is one street, so it gets the middle; each image of a data set draws a density of its own.
    density = 0.5 if options.density is None else options.density
    frames = street_frames(options.frames, seed=options.seed, size=size, density=density, fps=float(options.fps))
    write_clip(
        options.output,
        frames,
        size=size,
        fps=options.fps,
        overwrite=options.overwrite,
        progress=None if options.quiet else _Progress(options.frames),
    )


def _dataset(options: argparse.Namespace, size: tuple[int, int]) -> None:
    if options.output.suffix.lower() == ".mp4":
        raise SceneArgumentError(
            f"--images writes a folder; {options.output.name!r} names a clip: leave out one of the two"
        )
    # A tenth, and never none: whoever trains on the folder needs something to validate on.
    validation = max(1, options.images // 10) if options.val is None else options.val
    if options.images < 1 or validation < 0:
        raise SceneArgumentError("a data set needs at least one training image (--images), and --val of 0 or more")
    write_dataset(
        options.output,
        {"train": options.images, "val": validation},
        seed=options.seed,
        size=size,
        density=options.density,
        progress=None if options.quiet else _Progress(options.images + validation),
    )


class _Progress:
    """Counts on one line of standard error, where that is a terminal."""

    def __init__(self, total: int) -> None:
        self._total = total

    def __call__(self, done: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\rrendered {done} of {self._total}" + ("\n" if done == self._total else ""))
            sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
