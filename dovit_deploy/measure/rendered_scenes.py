"""The package's rendered street scenes as a data set without end: every image a street of its own, labels exact."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.measure.labelled_files import ClassList, Sample, frequencies
from dovit_deploy.scenes.classes import CLASS_NAMES, PALETTE
from dovit_deploy.scenes.dataset import scene_sample

SIZE = (360, 480)
"""Height and width of CamVid's images."""

UNLIMITED, FINITE = 1_000_000, 100
"""Images of the split "train", and of every other one."""

COUNTED = 48
"""Images that class frequencies are estimated on."""


class RenderedScenes:
    """Street scenes of `size` (height, width), the same for the same split, however many are asked for.

    Args:
        split: each name is a world of its own; "train" has a million images, others a hundred.
        size: height and width in pixels.
        count: another number of images.
        fullness: lowest and highest, within [0, 1]: each street is drawn between bare (0) and full (1).
    """

    def __init__(
        self,
        split: str,
        *,
        size: tuple[int, int] = SIZE,
        count: int | None = None,
        fullness: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.split, self.size, self.fullness = split, size, fullness
        self.name = f"rendered scenes ({split})"
        colours = tuple((int(red), int(green), int(blue)) for red, green, blue in PALETTE)
        self.classes = ClassList(CLASS_NAMES, colours, None)
        self.count = count or (UNLIMITED if split == "train" else FINITE)
        self.seed = zlib.crc32(split.encode())

    @property
    def stems(self) -> tuple[str, ...]:
        """Made when asked for: a million names are not kept."""
        return tuple(f"{self.split}_{number:06d}" for number in range(self.count))

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> Sample:
        """Render number `index`: half a second or so."""
        frame = scene_sample(self.seed, index, size=self.size, share=self._share(index))
        return Sample(f"{self.split}_{index:06d}", frame.rgb, frame.labels)

    def _share(self, index: int) -> float:
        """Of the things of street `index`; a square, since the number of things in sight rises steeply at first."""
        return float(np.random.default_rng([self.seed, index, 10]).uniform(*self.fullness) ** 2)

    def label(self, index: int) -> NDArray[np.uint8]:
        """The label map of number `index`, (H, W) uint8; no pixel is void."""
        return self.sample(index).label

    def class_frequencies(self) -> NDArray[np.float64]:
        """Share of the pixels of each class, (K,), over the first images."""
        few = min(COUNTED, self.count)
        return frequencies(RenderedScenes(self.split, size=self.size, count=few, fullness=self.fullness))

    def check(self) -> None:
        """Nothing to check: there are no files."""
