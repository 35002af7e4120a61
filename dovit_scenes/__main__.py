"""Command line: `python -m dovit_scenes OUT.mp4` renders a clip, `... OUT_FOLDER --images N` a data set."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

from dovit_scenes.clip import write_clip
from dovit_scenes.dataset import write_dataset
from dovit_scenes.errors import SceneArgumentError, SceneEnvironmentError, SceneError
from dovit_scenes.render import street_frames

MOST_PIXELS = 64_000_000
"""Of one image: what is rendered takes some hundred bytes a pixel meanwhile."""
FASTEST = 1000
"""Frames per second."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, render, write; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        write = _clip if options.images is None else _dataset
        write(options, _size(options.size))
    except SceneError as error:
        sys.stderr.write(f"error: {_printable(str(error))}\n")
        return error.exit_code
    except OSError as error:
        # A full disk, a folder that cannot be written, a name too long for the file system.
        reason = f"cannot write {options.output}: {error.strerror or error}"
        sys.stderr.write(f"error: {_printable(reason)}\n")
        return SceneEnvironmentError.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was written\n")
        return 130
    sys.stdout.write(f"{_printable(str(options.output))}\n")
    return 0


def _printable(text: str) -> str:
    """`text` in one line of at most 600 characters, without what a terminal would obey or cannot show."""
    shortened = text if len(text) <= 600 else f"{text[:300]}...{text[-297:]}"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode("ascii")
        for letter in shortened
    )


class _Parser(argparse.ArgumentParser):
    """Repeats what was given as it may be printed."""

    def error(self, message: str) -> NoReturn:
        super().error(_printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m dovit_scenes", description="Renders street scenes.")
    parser.add_argument("output", type=_path, help="a clip (OUT.mp4), or with --images a new folder")
    parser.add_argument("--seed", type=int, default=7, help="which street (default 7)")
    parser.add_argument("--size", default="640x360", help="WIDTHxHEIGHT (default 640x360)")
    parser.add_argument("--density", type=float, help="0 empty .. 1 crowded (default 0.5; images: drawn for each)")
    parser.add_argument("--frames", type=int, default=120, help="length of the clip (default 120)")
    parser.add_argument("--fps", type=_rate, default=Fraction(15), help="frames per second, e.g. 15 or 30000/1001")
    parser.add_argument("--speed", type=float, default=1.0, help="of a clip's camera, of the usual; 0: parked")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing clip")
    parser.add_argument("--images", type=int, help="write a data set of this many training images")
    parser.add_argument("--val", type=int, help="validation images beside them (default a tenth, at least 1)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def _path(text: str) -> Path:
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} holds a character that no file's name can have")
    return Path(text)


def _rate(text: str) -> Fraction:
    """`30000/1001` or `12.5`. No exponents: a million digits would be computed."""
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6}|/0*[1-9][0-9]{0,5})?", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} given; frames per second are needed, as 15 or 30000/1001")
    return Fraction(text)


def _size(text: str) -> tuple[int, int]:
    """`640x360` -> (360, 640): height first, as arrays have it."""
    found = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text)
    if found is None:
        raise SceneArgumentError(f"--size {text!r} is not WIDTHxHEIGHT, such as 640x360")
    width, height = int(found[1]), int(found[2])
    if width * height > MOST_PIXELS:
        raise SceneArgumentError(f"--size {text} has more than {MOST_PIXELS:,} pixels; take a smaller one")
    return height, width


def _clip(options: argparse.Namespace, size: tuple[int, int]) -> None:
    if options.frames < 1 or not 0 < options.fps <= FASTEST:
        raise SceneArgumentError(
            f"a clip needs at least one frame (--frames) and a rate (--fps) above 0, up to {FASTEST}"
        )
    # A clip is one street, so it gets the middle; each image of a data set draws a density of its own.
    density = 0.5 if options.density is None else options.density
    fps, speed = float(options.fps), options.speed
    frames = street_frames(options.frames, seed=options.seed, size=size, density=density, fps=fps, speed=speed)
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
