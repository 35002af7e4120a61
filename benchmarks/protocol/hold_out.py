"""Which images is a recipe chosen on? Pieces of recording inside the training drives, held out from training.

    python benchmarks/protocol/hold_out.py CAMVID --split train:-0006R0 \\
        -o benchmarks/protocol/held.txt --fit benchmarks/protocol/fit.txt

writes two lists of stems, one a line, for `dovit train` (`split = "train:@fit.txt"`, `watch = "train:@held.txt"`) and
`dovit eval --split train:@held.txt`. Each drive is cut into pieces of ten seconds, and
every third piece of it is held out: whole pieces, since neighbouring frames are nearly copies of each other. The same
images always give the same lists.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

# A script finds the modules of its own folder; those that benchmarks share are in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from report import at_least, errors_in_a_line, output_file

from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.datasets.recording import Moment
from dovit_deploy.errors import DatasetError
from dovit_deploy.files import write_text
from dovit_deploy.measure.intervals import BLOCK_SECONDS, blocks_of


def held_out(moments: Sequence[Moment], *, seconds: float, every: int) -> list[bool]:
    """Whether each image is held out: those of the last of every `every` pieces of a drive."""
    numbers = blocks_of(len(moments), moments, seconds=seconds).number.tolist()
    pieces: dict[str, list[int]] = defaultdict(list)
    for (drive, _), number in zip(moments, numbers, strict=True):
        if number not in pieces[drive]:
            pieces[drive].append(number)
    held = {number for found in pieces.values() for number in found[every - 1 :: every]}
    return [number in held for number in numbers]


def divided(data: Dataset, *, seconds: float, every: int) -> tuple[list[str], list[str]]:
    """The stems to fit on and those held out.

    Raises:
        DatasetError: nothing says when the images were recorded, or one of the parts is empty.
    """
    if data.moments is None:
        raise DatasetError(f"{data.name}: nothing says when its images were recorded; state frame_rate in classes.json")
    held = held_out(data.moments, seconds=seconds, every=every)
    if all(held) or not any(held):
        raise DatasetError(f"{data.name}: pieces of {seconds:g} s, every {every}th held out, leave one part empty")
    pairs = list(zip(data.stems, held, strict=True))
    return [stem for stem, out in pairs if not out], [stem for stem, out in pairs if out]


@errors_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="train", help="as `dovit eval` takes it (default train)")
    parser.add_argument("--seconds", type=float, default=BLOCK_SECONDS, help="in a piece (default 10)")
    parser.add_argument("--every", type=at_least(2), default=3, help="each so-manieth piece is held out (default 3)")
    parser.add_argument("-o", "--output", type=output_file, required=True, help="the list of what is held out")
    parser.add_argument("--fit", type=output_file, required=True, help="the list of what is left to train on")
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        parser.error(f"--seconds {options.seconds:g}: more than 0 is needed")
    if options.output.resolve() == options.fit.resolve():
        parser.error(f"-o and --fit are both {options.fit}: two files are needed")
    data = dataset_from_path(options.dataset, options.split)
    fit, held = divided(data, seconds=options.seconds, every=options.every)
    for path, stems in ((options.output, held), (options.fit, fit)):
        write_text(path, "\n".join(stems) + "\n")
        print(f"{path}: {len(stems)} images")


if __name__ == "__main__":
    main()
