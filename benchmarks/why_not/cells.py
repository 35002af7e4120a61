"""What was measured, in a folder: a file for each contender, seed, runtime and split, written as it ends.

Accuracy is of every image and needs no quiet machine; fp32 is the same function in every engine (`dovit export` holds
graphs to it), so it is judged once, in the first engine that computes it. Latency is of a few images, each contender in
turns with our own dense run. What a static network takes depends on neither image nor weights: it is timed with the
first seed on the first split, what stops tokens with every one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import TypeVar

import numpy as np
from timed_session import processor_ms

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.calibrate.images import spread
from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.documents import read_text
from dovit_deploy.errors import CheckError
from dovit_deploy.files import write_text
from dovit_deploy.measure.evaluate import check_classes
from dovit_deploy.measure.intervals import Blocks, blocks_of
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.record import Record
from dovit_deploy.train.state import names_digest
from why_not.compare import part
from why_not.contenders import Contender
from why_not.ways import LabelledFrame, Runtime, Way

ROUNDS = 2
"""Times that each image is timed, in both orders."""


class BlockCounts(Record):
    """Pixels of each class in each block of recording: (blocks, K)."""

    hit: tuple[tuple[int, ...], ...]
    true: tuple[tuple[int, ...], ...]
    predicted: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, counts: ClassCounts, blocks: Blocks) -> BlockCounts:
        """The sums over each block of counts (n, K)."""
        of_block = np.equal(np.arange(blocks.count)[:, None], blocks.number[None, :]).astype(np.int64)
        sums = counts.weighted(of_block)
        return cls(hit=sums.hit.tolist(), true=sums.true.tolist(), predicted=sums.predicted.tolist())

    @property
    def counts(self) -> ClassCounts:
        """The same as arrays."""
        return ClassCounts(*(np.array(part, dtype=np.int64) for part in (self.hit, self.true, self.predicted)))


class Cell(Record):
    """What was measured of one contender in one runtime on one split."""

    made_of: dict[str, str]
    """What decides the figures: SHA-256 of the weights, settings, images."""


class AccuracyCell(Cell):
    """How right it was."""

    inside: BlockCounts
    boundary: BlockCounts
    """Of the pixels along contours."""
    gmacs: tuple[float, ...]
    """Of each image, 10^9 MACs."""
    seconds_per_block: float | None


class LatencyCell(Cell):
    """CPU milliseconds of the model step, of pairs of runs on the same image."""

    dense_ms: tuple[float, ...]
    own_ms: tuple[float, ...]


C = TypeVar("C", bound=Cell)


@dataclass(frozen=True)
class CellKey:
    """Which cell."""

    contender: Contender
    runtime: Runtime
    split: str

    @property
    def name(self) -> str:
        """Of its file, and of its line of progress."""
        one, (engine, precision) = self.contender, self.runtime
        return f"{_slug(self.split)}-{engine}-{precision}-{_slug(one.name)}-seed{one.seed}"


@dataclass
class CellFolder:
    """The cells of one data set in a folder: read where they are there, else measured."""

    folder: Path
    dataset: Path
    every: dict[str, int]
    """Split -> each so-manieth of its images is judged; 1 where it does not say."""
    timed: int
    """Images that latency is measured on."""
    _dense: dict[tuple[Path, Runtime], Way] = field(default_factory=dict)
    """The one that was timed against last: it takes seconds to load."""

    def data(self, split: str) -> Dataset:
        """The images that are judged."""
        return part(dataset_from_path(self.dataset, split), self.every.get(split, 1))

    def has_accuracy(self, key: CellKey) -> bool:
        """Whether it was measured already."""
        return self._path(key, "accuracy").exists()

    def has_latency(self, key: CellKey) -> bool:
        """Whether it was measured already."""
        return self._path(key, "latency").exists()

    def accuracy(self, key: CellKey) -> AccuracyCell:
        """Measured unless it is there.

        Raises:
            CheckError: it is there, and of other weights, settings or images.
        """
        data, path = self.data(key.split), self._path(key, "accuracy")
        note = {**_made_of(key.contender), "images": names_digest(data.stems)}
        return _known(path, AccuracyCell, note) or self._judged(key, data, note, path)

    def latency(self, key: CellKey, dense: Contender) -> LatencyCell:
        """Measured in turns with `dense` unless it is there; raises CheckError likewise."""
        path = self._path(key, "latency")
        data = dataset_from_path(self.dataset, key.split)
        numbers = spread(range(len(data)), self.timed)
        note = {**_made_of(key.contender), "images": names_digest([data.stems[number] for number in numbers])}
        return _known(path, LatencyCell, note) or self._timed(key, dense, data, numbers, note, path)

    def _judged(self, key: CellKey, data: Dataset, note: dict[str, str], path: Path) -> AccuracyCell:
        begun = process_time()
        check_classes(data, Bundle.open(key.contender.bundle).manifest)
        with TemporaryDirectory(prefix="dovit-") as graphs:
            way = key.contender.way(key.runtime, Path(graphs))
            for number in range(len(data)):
                way.measure(LabelledFrame(data.sample(number), number, None))
        blocks = blocks_of(len(data), data.moments)
        found = AccuracyCell(
            made_of=note,
            inside=BlockCounts.of(way.tally.counts, blocks),
            boundary=BlockCounts.of(way.tally.boundary_counts, blocks),
            gmacs=tuple(way.tally.gmacs),
            seconds_per_block=blocks.seconds,
        )
        return _written(path, found, f"{key.name}: accuracy of {len(data)} images", begun)

    def _timed(
        self, key: CellKey, dense: Contender, data: Dataset, numbers: Sequence[int], note: dict[str, str], path: Path
    ) -> LatencyCell:
        begun = process_time()
        other = self._dense_way(dense, key.runtime)
        with TemporaryDirectory(prefix="dovit-") as graphs:
            way = key.contender.way(key.runtime, Path(graphs), compiled=True)
            pairs = in_pairs(other, way, [LabelledFrame(data.sample(number), number, None) for number in numbers])
        found = LatencyCell(
            made_of=note, dense_ms=tuple(one for one, _ in pairs), own_ms=tuple(one for _, one in pairs)
        )
        return _written(path, found, f"{key.name}: {len(pairs)} pairs timed", begun)

    def _dense_way(self, dense: Contender, runtime: Runtime) -> Way:
        key = (dense.bundle, runtime)
        if key not in self._dense:
            self._dense.clear()
            self._dense[key] = dense.way(runtime, self.folder)
        return self._dense[key]

    def _path(self, key: CellKey, kind: str) -> Path:
        return self.folder / f"{key.name}-{kind}.json"


def in_pairs(one: Way, other: Way, frames: Sequence[LabelledFrame]) -> list[tuple[float, float]]:
    """CPU milliseconds of the model step of both on each frame, `ROUNDS` times, by turns the one first or the other."""
    for way in (one, other):
        # The first run of all allocates.
        way.run(frames[0])
    pairs = []
    for turn in range(ROUNDS):
        for number, frame in enumerate(frames):
            order = (one, other) if (turn + number) % 2 == 0 else (other, one)
            taken = [processor_ms(way.run(frame)) for way in order]
            pairs.append((taken[0], taken[1]) if order[0] is one else (taken[1], taken[0]))
    return pairs


def _made_of(contender: Contender) -> dict[str, str]:
    """What decides its figures, whatever the images."""
    manifest = Bundle.open(contender.bundle).manifest
    own = ", ".join(f"{row[0]:g}" for row in manifest.defaults.thresholds)
    thresholds = own if contender.thresholds is None else contender.thresholds
    return {
        "weights": manifest.provenance.source_sha256,
        "size": "x".join(map(str, manifest.spec.size)),
        "thresholds": thresholds if contender.stops else "",
        "merge": str(contender.merge),
    }


def _known(path: Path, kind: type[C], note: dict[str, str]) -> C | None:
    """The cell of a file; None where there is none.

    Raises:
        CheckError: it is of other weights, settings or images.
    """
    if not path.exists():
        return None
    known = kind.model_validate_json(read_text(path))
    other = sorted(key for key in known.made_of.keys() | note.keys() if known.made_of.get(key) != note.get(key))
    if other:
        raise CheckError(f"{path}: measured with other {', '.join(other)}; remove it, or give another --work")
    return known


def _written(path: Path, cell: C, line: str, begun: float) -> C:
    write_text(path, cell.model_dump_json() + "\n")
    print(f"{line}, {process_time() - begun:.0f} s of the processor", file=sys.stderr)
    return cell


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in text)
