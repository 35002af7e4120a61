"""How does a segmentation become COCO's JSON? One annotation for each class of each image, run-length encoded.

A run's `coco.json` is written when the run ends, from what was spooled image by image, so that an interrupted run has a
whole one, too, and memory does not grow with the number of images.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy.files import reported_writes
from dovit_deploy.runtime.segmentation import bounding_box
from dovit_deploy.sources.source import Closing, Frame

_CHUNK = 0x1F
"""Bits of a number that one letter holds; the next bit says whether another letter follows."""
_FIRST_LETTER = 48


def run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    """How many pixels are false, then true, then false, ..., down the columns from left to right of (H, W)."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    # The first run is one of false, if of no pixel.
    return [0, *lengths] if flat[0] else list(lengths)


def encoded_lengths(lengths: Sequence[int]) -> str:
    """Run lengths as COCO's compact text: from the fourth on as the difference to the one before the last."""
    letters = []
    for place, length in enumerate(lengths):
        rest, more = length - (lengths[place - 2] if place > 2 else 0), True
        while more:
            bits, rest = rest & _CHUNK, rest >> 5
            # The highest bit of the last letter is the sign.
            more = rest != (-1 if bits & 0x10 else 0)
            letters.append(chr(_FIRST_LETTER + (bits | 0x20 if more else bits)))
    return "".join(letters)


def annotations_from_map(class_map: npt.NDArray[np.uint8]) -> list[dict[str, Any]]:
    """One for each class that occurs in `class_map` (H, W), without the numbers of image and annotation."""
    found = []
    for number in np.unique(class_map).tolist():
        mask = class_map == number
        left, top, right, bottom = bounding_box(mask)
        found.append(
            {
                "category_id": number,
                "segmentation": {"size": list(mask.shape), "counts": encoded_lengths(run_lengths(mask))},
                "area": int(mask.sum()),
                "bbox": [left, top, right - left + 1, bottom - top + 1],
                "iscrowd": 0,
            }
        )
    return found


class CocoFile(Closing):
    """`coco.json` of a run: images and annotations in the order of the frames.

    Args:
        path: of the file, which is written by `close`.
        video: frames are called by their index, and have their time.

    Raises:
        OutputFailed: (also of `add` and `close`) the disk refuses it; no half file is left.
    """

    def __init__(self, path: Path, *, video: bool) -> None:
        self._path, self._video = path, video
        self._names: tuple[str, ...] = ()
        with reported_writes(path):
            # In the same folder, where there is room for results; it has no name there.
            self._spool = tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent)  # noqa: SIM115  closed by us
        self._frames, self._written = 0, False

    def add(self, frame: Frame, size: tuple[int, int], found: Sequence[dict[str, Any]], names: tuple[str, ...]) -> None:
        """Take in one frame.

        Args:
            frame: where it came from.
            size: its height and width.
            found: its `annotations_from_map`.
            names: of the classes, by their numbers.
        """
        self._names = names
        height, width = size
        name = f"{frame.index:06d}.png" if self._video else frame.source
        image = {"file_name": name, "width": width, "height": height}
        if self._video:
            image |= {"frame_index": frame.index, "time_s": float(frame.time_s)}
        with reported_writes(self._path):
            self._spool.write(json.dumps({"image": image, "annotations": found}) + "\n")
        self._frames += 1

    def close(self) -> None:
        """Write the file; may be called twice."""
        if not self._written:
            self._written = True
            self.write_first(self._frames)

    def write_first(self, frames: int) -> None:
        """Write the file with the first `frames` that were added."""
        try:
            with reported_writes(self._path), self._path.open("w", encoding="utf-8") as file:
                file.writelines(self._text(frames))
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise

    def _text(self, frames: int) -> Iterator[str]:
        categories = [{"id": number, "name": name, "supercategory": ""} for number, name in enumerate(self._names)]
        yield f'{{"info": {{"description": "dovit run"}},\n"categories": {json.dumps(categories)},\n"images": [\n'
        yield from _joined({"id": number, **row["image"]} for number, row in self._rows(frames))
        yield '\n],\n"annotations": [\n'
        yield from _joined(
            {"id": number, **annotation} for number, annotation in enumerate(self._annotations(frames), start=1)
        )
        yield "\n]}\n"

    def _rows(self, frames: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The number of each frame, from 1 on, and what was spooled of it."""
        self._spool.seek(0)
        for number, line in enumerate(self._spool, start=1):
            # What was begun of a further frame may be half a line.
            if number > frames:
                return
            yield number, json.loads(line)

    def _annotations(self, frames: int) -> Iterator[dict[str, Any]]:
        for number, row in self._rows(frames):
            yield from ({"image_id": number, **annotation} for annotation in row["annotations"])


def _joined(entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    for number, entry in enumerate(entries):
        yield (",\n" if number else "") + json.dumps(entry)
