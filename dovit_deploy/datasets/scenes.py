"""Rendered street scenes in this package's terms: images, and a data set without end whose labels are exact.

`dovit_scenes` knows nothing of this package; its errors become this package's here, and only here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.datasets.dataset import ClassList, Dataset, DatasetPart, Sample
from dovit_deploy.datasets.recording import RecordingRate
from dovit_deploy.errors import EnvironmentProblem, UsageError
from dovit_scenes import CLASS_NAMES, PALETTE, SceneFrame, street_frames
from dovit_scenes.dataset import scene_sample
from dovit_scenes.errors import SceneArgumentError, SceneEnvironmentError

SIZE = (360, 480)
"""Height and width of CamVid's images."""

UNLIMITED, FINITE = 1_000_000, 100
"""Images of the split "train", and of every other one."""

COUNTED = 48
"""Images that class frequencies are estimated on."""


@contextmanager
def scene_errors() -> Iterator[None]:
    """Errors of `dovit_scenes` leave the block as UsageError (2) or EnvironmentProblem (5), with their message."""
    try:
        yield
    except SceneArgumentError as error:
        raise UsageError(str(error)) from error
    except SceneEnvironmentError as error:
        raise EnvironmentProblem(str(error)) from error


def street_images(count: int, *, seed: int, density: float = 0.5) -> list[NDArray[np.uint8]]:
    """The first `count` frames of a drive along street `seed`: (360, 640, 3) uint8 RGB each.

    Raises:
        EnvironmentProblem: OpenCV is not installed.
    """
    with scene_errors():
        return [frame.rgb for frame in street_frames(count, seed=seed, density=density)]


class RenderedScenes(Dataset):
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
        # Not `hash`, which differs from process to process.
        self.seed = zlib.crc32(split.encode())

    @property
    def stems(self) -> tuple[str, ...]:
        """Made when asked for: a million names are not kept."""
        return tuple(f"{self.split}_{number:06d}" for number in range(self.count))

    @property
    def recording_rate(self) -> RecordingRate | None:
        """Each street is drawn anew."""
        return RecordingRate(None)

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> Sample:
        """Render number `index`: half a second or so."""
        frame = self._frame(index)
        return Sample(f"{self.split}_{index:06d}", frame.rgb, frame.labels)

    def label(self, index: int) -> NDArray[np.uint8]:
        """The label map of number `index`, (H, W) uint8; no pixel is void."""
        return self._frame(index).labels

    def class_frequencies(self) -> NDArray[np.float64]:
        """Share of the pixels of each class, (K,), estimated on the first images."""
        return DatasetPart(self, range(min(COUNTED, self.count))).class_frequencies()

    def check(self) -> None:
        """Does nothing: there are no files, and rendering a million scenes would take days."""

    def _frame(self, index: int) -> SceneFrame:
        with scene_errors():
            return scene_sample(self.seed, index, size=self.size, share=self._share(index))

    def _share(self, index: int) -> float:
        """The fraction of its things that street `index` shows."""
        # A square, since the number of things in sight rises steeply at first. 10 makes this draw another than the
        # scene's own, which come from the same seed and number.
        return float(np.random.default_rng([self.seed, index, 10]).uniform(*self.fullness) ** 2)
