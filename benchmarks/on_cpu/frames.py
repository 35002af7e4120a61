"""Which frames does the default model run on? Rendered, of a source, or of a labelled data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.datasets.scenes import RenderedScenes
from dovit_deploy.record import Record
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.source import RGB, FailedFrame

NamedFrame = tuple[str, RGB, NDArray[np.uint8] | None]
"""Name, image and label map; None: nothing is labelled."""
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
            return [(f"{Path(frame.source).stem}-{frame.index}", frame.rgb, None) for frame in read]
        # Rendered from bare to full: how many tokens stop depends on how much there is to see.
        data: Dataset = RenderedScenes("cpu", count=self.count, fullness=(0.0, 1.0))
        if self.dataset is not None:
            data = dataset_from_path(self.dataset, self.split)
        labelled = data.classes.names == tuple(classes)
        samples = (data.sample(number) for number in spread(len(data), self.count))
        return [(sample.stem, sample.rgb, sample.label if labelled else None) for sample in samples]


def spread(total: int, count: int) -> list[int]:
    """At most `count` numbers below `total`, evenly spread."""
    taken = min(total, count)
    return [number * total // taken for number in range(taken)]


def save_frames(samples: Sequence[NamedFrame], folder: Path) -> None:
    """Write `samples` as arrays."""
    for number, (_, rgb, label) in enumerate(samples):
        np.save(folder / f"{number}-rgb.npy", rgb)
        if label is not None:
            np.save(folder / f"{number}-label.npy", label)
    (folder / NAMES).write_text(json.dumps([name for name, _, _ in samples]), encoding="utf-8")


def saved_frames(folder: Path) -> list[NamedFrame]:
    """What `save_frames` wrote."""
    names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    found: list[NamedFrame] = []
    for number, name in enumerate(names):
        label = folder / f"{number}-label.npy"
        rgb = np.load(folder / f"{number}-rgb.npy")
        found.append((name, rgb, np.load(label) if label.exists() else None))
    return found
