"""Which images is a network adapted with? A folder, a glob, a video, a data set -> images that can be asked for again.

Labels play no part. Of many images `MOST` are taken, spread evenly; frames of a video are kept in the working folder.
What cannot be decoded is left out and reported.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dovit_deploy.calibrate.images import CalibrationImage, neighbours
from dovit_deploy.calibrate.units import Recorded
from dovit_deploy.datasets.dataset import Dataset, DatasetPart, LabelledFiles, read_rgb
from dovit_deploy.datasets.open import dataset_from_path, has_split, is_rendered, named_split
from dovit_deploy.datasets.recording import RecordingRate
from dovit_deploy.datasets.summary import DataSummary, summary_of_images
from dovit_deploy.errors import DatasetError, InputError, UsageError
from dovit_deploy.files import reported_writes
from dovit_deploy.measure.intervals import Blocks, blocks_of
from dovit_deploy.printing import plural
from dovit_deploy.sources.images import ImageSource, read_image
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.source import RGB, FailedFrame, Source

FEWEST, ENOUGH = 5, 20
"""Images: fewer than these are refused; fewer than those are fitted to and searched with at once."""
MOST = 256
"""Images that are taken where no limit is given."""
BLOCKS = 40
"""Into which images are divided where nothing says when they were recorded: a quarter of them, held out, is just
enough for intervals."""
DEFAULT_SPLIT = "train"

Read = Callable[[], RGB]


@dataclass(frozen=True)
class UnlabelledImages:
    """Images without labels, in an order in which neighbours are alike; what `calibrate` chooses thresholds with."""

    name: str
    """As the user gave them."""
    stems: tuple[str, ...]
    blocks: Blocks
    reads: tuple[Read, ...]
    """Decodes each."""
    recorded: Recorded
    """What is known of when they were recorded."""
    labelled: bool = False

    def __len__(self) -> int:
        return len(self.stems)

    @property
    def split(self) -> None:
        """They are no split of a data set, whatever they were taken from."""
        return

    def image(self, index: int) -> CalibrationImage:
        """Decode number `index`; raises InputError naming the file when it cannot be used."""
        return CalibrationImage(self.reads[index](), None)

    def summary(self) -> DataSummary:
        """How many there are."""
        return summary_of_images(self.name, len(self), ())

    def check(self) -> None:
        """Decode everything once; raises InputError for the first fault."""
        for read in self.reads:
            read()

    def part(self, indices: Sequence[int]) -> UnlabelledImages:
        """Those of these numbers."""
        return replace(
            self,
            stems=tuple(self.stems[index] for index in indices),
            blocks=self.blocks.of(indices),
            reads=tuple(self.reads[index] for index in indices),
            recorded=replace(self.recorded, stems=tuple(self.recorded.stems[index] for index in indices)),
        )


class Opened(NamedTuple):
    """What was found."""

    images: UnlabelledImages
    total: int
    """How many images there were to choose from; frames of a video."""
    failed: tuple[str, ...]
    """A line for each image that cannot be decoded."""

    def remarks(self) -> list[str]:
        """What the user should know before the work."""
        images, lines = self.images, list[str]()
        if len(images) + len(self.failed) < self.total:
            lines.append(f"{images.name}: {len(images)} of {self.total} images are taken, spread evenly (--limit)")
        if len(images) < ENOUGH:
            lines.append(
                f"{plural(len(images), 'image')}: gates are fitted to and thresholds searched on the same half; "
                f"{ENOUGH} or more are better"
            )
        return lines


def check_limit(limit: int | None) -> None:
    """Raise UsageError for a limit below the fewest images."""
    if limit is not None and limit < FEWEST:
        raise UsageError(f"--limit {limit}: at least {FEWEST} images are needed, better {ENOUGH} or more")


def given_images(given: str, *, limit: int | None, folder: Path, advance: Callable[[], None]) -> Opened:
    """The images that IMAGES names, each decoded once to see whether it can be.

    Args:
        given: a folder, an image pattern, a video, or DATASET or DATASET:SPLIT.
        limit: how many are taken at most, as `check_limit` has it; None: `MOST`.
        folder: frames of a video are kept there, and must stay while they are used.
        advance: called after each image.

    Raises:
        SourceError, DatasetError: nothing to read there, or fewer than `FEWEST` images that can be decoded.
        UsageError: a camera or a stream.
        OutputFailed: the disk refuses the frames.
    """
    most = MOST if limit is None else limit
    dataset, split = named_split(given)
    if is_rendered(dataset) or split or has_split(dataset, DEFAULT_SPLIT):
        data = dataset_from_path(dataset, split or DEFAULT_SPLIT)
        opened = _of_dataset(data, given, most, advance)
    else:
        with open_source(given) as source:
            opened = _of_source(source, most, folder, advance)
    count = len(opened.images)
    if count < FEWEST:
        unreadable = f", {len(opened.failed)} more cannot be read ({opened.failed[0]})" if opened.failed else ""
        raise DatasetError(
            f"{given}: {plural(count, 'image')}{unreadable}; at least {FEWEST} are needed to fit gates to and to hold "
            f"some out, better {ENOUGH} or more, of the kind that the model will see"
        )
    return opened


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly over all of them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []


def alike(count: int) -> Blocks:
    """Images that follow each other and may be frames of a video, in blocks of at most ten."""
    return neighbours(count, fewest=BLOCKS)


def _of_dataset(data: Dataset, given: str, most: int, advance: Callable[[], None]) -> Opened:
    chosen = spread(len(data), most)
    stems, moments = data.stems, data.moments
    blocks = blocks_of(len(chosen), None if moments is None else [moments[index] for index in chosen])
    names = tuple(stems[index] for index in chosen)
    reads = tuple(_image_of(data, index) for index in chosen)
    images = UnlabelledImages(given, names, blocks, reads, Recorded(names, data.recording_rate))
    return _readable(images, len(data), advance)


def _image_of(data: Dataset, index: int) -> Read:
    """Decodes an image of a data set, of files without its label, which may have faults of its own."""
    if isinstance(data, DatasetPart):
        return _image_of(data.whole, data.indices[index])
    if isinstance(data, LabelledFiles):
        path = data.files[index].image
        return lambda: read_rgb(path)
    return lambda: data.sample(index).rgb


def _of_source(source: Source, most: int, folder: Path, advance: Callable[[], None]) -> Opened:
    if source.kind == "live":
        raise UsageError(f"{source.name}: a camera or stream has no end; record a video and give that")
    if isinstance(source, ImageSource):
        return _of_files(source, most, advance)
    return _of_video(source, most, folder, advance)


def _of_files(source: ImageSource, most: int, advance: Callable[[], None]) -> Opened:
    chosen = [source.paths[index] for index in spread(len(source.paths), most)]

    def read_of(path: Path) -> Read:
        return lambda: read_image(path)

    # They may be frames of a video: what is alike stays on one side where they are divided.
    blocks = alike(len(chosen))
    names = tuple(map(str, chosen))
    images = UnlabelledImages(source.name, names, blocks, tuple(map(read_of, chosen)), Recorded.of_files(names))
    return _readable(images, len(source.paths), advance)


def _readable(images: UnlabelledImages, total: int, advance: Callable[[], None]) -> Opened:
    """Those that can be decoded."""
    good, failed = list[int](), list[str]()
    for index, read in enumerate(images.reads):
        try:
            read()
        except InputError as error:
            failed.append(error.lines[0])
        else:
            good.append(index)
        advance()
    return Opened(images.part(good), total, tuple(failed))


def _of_video(source: Source, most: int, folder: Path, advance: Callable[[], None]) -> Opened:
    """Frames spread evenly, although how many there are is known only at the end: every n-th is kept, twice as many as
    are taken, and whenever they become more, every second one of those is given up."""
    kept, failed, step, total = list[int](), list[str](), 1, 0
    for frame in source:
        total += 1
        if isinstance(frame, FailedFrame):
            failed.append(frame.message)
            continue
        if frame.index % step:
            continue
        if len(kept) == 2 * most:
            step *= 2
            kept = _thinned(kept, [index for index in kept if not index % step], folder)
            if frame.index % step:
                continue
        # Written by Python: NumPy would not say why the disk refuses it.
        npy = io.BytesIO()
        np.save(npy, frame.rgb)
        with reported_writes(folder):
            _frame_file(folder, frame.index).write_bytes(npy.getbuffer())
        kept.append(frame.index)
        advance()
    if source.ended_early is not None:
        failed.append(source.ended_early)

    kept = _thinned(kept, [kept[number] for number in spread(len(kept), most)], folder)

    def read_of(index: int) -> Read:
        return lambda: np.asarray(np.load(_frame_file(folder, index)), dtype=np.uint8)

    stems = tuple(f"frame {index}" for index in kept)
    # A video says itself how many of its frames pass in a second.
    rate = None if source.video is None else RecordingRate(float(source.video.rate))
    reads = tuple(map(read_of, kept))
    images = UnlabelledImages(source.name, stems, alike(len(kept)), reads, Recorded(stems, rate))
    return Opened(images, total, tuple(failed))


def _thinned(kept: Sequence[int], left: list[int], folder: Path) -> list[int]:
    """`left` of the frames that were `kept`; the files of the others go."""
    for gone in sorted(set(kept) - set(left)):
        _frame_file(folder, gone).unlink()
    return left


def _frame_file(folder: Path, index: int) -> Path:
    return folder / f"frame{index:08d}.npy"
