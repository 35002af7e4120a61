"""Which frames does the default model run on? Rendered, of a source, or of a labelled data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.datasets.recording import Moment
from dovit_deploy.datasets.scenes import RenderedScenes
from dovit_deploy.record import Record
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.source import RGB, FailedFrame


class NamedFrame(NamedTuple):
    """A frame that the default model runs on."""

    name: str
    rgb: RGB
    label: NDArray[np.uint8] | None = None
    """None: nothing is labelled."""
    moment: Moment | None = None
    """When it was recorded; None: it is independent of the others."""


NAMES = "frames.json"


class FrameChoice(Record):
    """Where the default model's frames come from: rendered, a source of images, or a labelled data set."""

    frames: str | None
    dataset: Path | None
    split: str
    count: int
    """At most so many."""

    def described(self) -> str:
        """For the report."""
        if self.dataset is not None:
            return f"{self.dataset.name}, {self.split}"
        return "rendered streets" if self.frames is None else Path(self.frames).name

    def check(self) -> None:
        """Raises a DovitError where there are no such frames."""
        if self.frames is not None:
            open_source(self.frames, max_frames=1).close()
        if self.dataset is not None:
            dataset_from_path(self.dataset, self.split)

    def samples(self, classes: Sequence[str]) -> list[NamedFrame]:
        """`count` frames, evenly spread; labels only where they are of the model's `classes`."""
        if self.frames is not None:
            with open_source(self.frames, max_frames=self.count) as source:
                read = [frame for frame in source if not isinstance(frame, FailedFrame)]
            return [NamedFrame(f"{Path(frame.source).stem}-{frame.index}", frame.rgb) for frame in read]
        # Rendered from bare to full: how many tokens stop depends on how much there is to see.
        data: Dataset = RenderedScenes("cpu", count=self.count, fullness=(0.0, 1.0))
        if self.dataset is not None:
            data = dataset_from_path(self.dataset, self.split)
        labelled = data.classes.names == tuple(classes)
        moments, found = data.moments, []
        for number in spread(len(data), self.count):
            sample, moment = data.sample(number), None if moments is None else moments[number]
            found.append(NamedFrame(sample.stem, sample.rgb, sample.label if labelled else None, moment))
        return found


def spread(total: int, count: int) -> list[int]:
    """At most `count` numbers below `total`, evenly spread."""
    taken = min(total, count)
    return [number * total // taken for number in range(taken)]


def save_frames(samples: Sequence[NamedFrame], folder: Path) -> None:
    """Write `samples` as arrays."""
    for number, (_, rgb, label, _) in enumerate(samples):
        np.save(folder / f"{number}-rgb.npy", rgb)
        if label is not None:
            np.save(folder / f"{number}-label.npy", label)
    (folder / NAMES).write_text(json.dumps([(sample.name, sample.moment) for sample in samples]), encoding="utf-8")


def saved_frames(folder: Path) -> list[NamedFrame]:
    """What `save_frames` wrote."""
    names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    found: list[NamedFrame] = []
    for number, (name, moment) in enumerate(names):
        label = folder / f"{number}-label.npy"
        rgb = np.load(folder / f"{number}-rgb.npy")
        when = None if moment is None else Moment(*moment)
        found.append(NamedFrame(name, rgb, np.load(label) if label.exists() else None, when))
    return found
