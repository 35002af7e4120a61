"""What does the rule decide on other images? Two controls are made of it, which see nothing of the image itself.

Position: at each gate those tokens stop that the rule stopped most often elsewhere, by the mean of its decisions over
other images (the training set's, or the evaluated ones, each image left out of its own mean). Where that is as good as
the rule, the rule knows where things are in a street, and not what this image shows.

Other: the decisions on one other image are replayed: of as many tokens as the rule stops here those first that stopped
there first. That image is chosen far away, from another block of the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.measure.intervals import Blocks
from dovit_deploy.runtime.results import TokenReport
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.sources.source import RGB

PatchOrder = NDArray[np.int64]
"""(N,): patches, who is to run on longest first."""


class SeenImage(Protocol):
    """An image, whatever else is known of it."""

    @property
    def rgb(self) -> RGB: ...


class SeenImages(Protocol):
    """A number of images."""

    name: str

    def __len__(self) -> int: ...
    def sample(self, index: int) -> SeenImage: ...


@dataclass(frozen=True)
class WindowDecisions:
    """What the rule decided in one window of an image."""

    running: NDArray[np.bool_]
    """(gates, N): the patch is still running after the gate."""
    order: PatchOrder
    """Who ran on longest comes first; of those that stopped at one gate the less confident, then raster order."""

    @classmethod
    def of(cls, report: TokenReport) -> WindowDecisions:
        """Those of the run that `report` is of."""
        running = np.stack([grid.ravel() for grid in report.keep])
        confidence = np.stack([grid.ravel() for grid in report.confidence])
        passed = running.sum(axis=0)
        # The gate that stopped a token is the last that judged it.
        last = np.minimum(passed, len(running) - 1)
        judged = confidence[last, np.arange(running.shape[1])]
        # Sorted by the last key first; the sort is stable, so raster order decides among equals.
        return cls(running, np.lexsort((judged, -passed)).astype(np.int64))


ImageDecisions = tuple[WindowDecisions, ...]
"""Of one image, window by window."""


class StopMap:
    """How often each patch was running after each gate, over a number of images; window by window.

    Args:
        name: where the images come from, for reports.
    """

    def __init__(self, name: str) -> None:
        self.name, self.images = name, 0
        self._sums: list[NDArray[np.int64]] = []
        self._counts: list[int] = []

    def add(self, image: ImageDecisions) -> None:
        """Count one more image."""
        self.images += 1
        for number, window in enumerate(image):
            if number == len(self._sums):
                self._sums.append(np.zeros(window.running.shape, dtype=np.int64))
                self._counts.append(0)
            self._sums[number] += window.running
            self._counts[number] += 1

    def orders(self, window: int, *, without: ImageDecisions | None = None) -> list[PatchOrder]:
        """For each gate the patches by how often they were running after it, the most frequent first.

        Of equals the one comes first that was running after more gates in all, then raster order.

        Args:
            window: its number in the image; of larger images than were counted the last one stands for the rest.
            without: an image that was counted and is to count no more.
        """
        number = min(window, len(self._sums) - 1)
        share = self._sums[number].astype(np.float64)
        count = self._counts[number]
        if without is not None and number < len(without):
            share, count = share - without[number].running, count - 1
        share /= max(count, 1)
        total = share.sum(axis=0)
        return [np.lexsort((-total, -row)).astype(np.int64) for row in share]


@dataclass(frozen=True)
class Decisions:
    """What the rule decides on every image of a set, and on which others a control of it rests."""

    images: tuple[ImageDecisions, ...]
    partners: tuple[int | None, ...]
    """For each image another one, far away; None where it is the only one."""
    stop_map: StopMap
    own: bool
    """The map was made of these images: each is left out where the map serves itself."""

    @property
    def available(self) -> tuple[str, ...]:
        """The controls that can be made of them."""
        several = len(self.images) > 1
        return (*(("position",) if several or not self.own else ()), *(("other",) if several else ()))

    def by_position(self, number: int, window: int) -> list[PatchOrder]:
        """For each gate the order in which patches of image `number` stop by position, the last to stop first."""
        return self.stop_map.orders(window, without=self.images[number] if self.own else None)

    def of_other(self, number: int, window: int) -> PatchOrder:
        """The order that the other image's decisions give."""
        partner = self.partners[number]
        assert partner is not None
        windows = self.images[partner]
        return windows[min(window, len(windows) - 1)].order


def decisions_of(
    session: Session,
    data: SeenImages,
    settings: RunSettings,
    blocks: Blocks,
    *,
    source: SeenImages | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Decisions:
    """Run the rule once on every image.

    Args:
        session: of a bundle with gates.
        data: the images that are evaluated.
        settings: of the rule.
        blocks: of `data`.
        source: the images that positions are learned from; None: `data` itself.
        advance: called after every image, those of `source` first.
    """
    predictor = Predictor(session)

    def run(images: SeenImages) -> list[ImageDecisions]:
        found = []
        for number in range(len(images)):
            tokens = predictor.run(images.sample(number).rgb, settings).tokens
            found.append(tuple(WindowDecisions.of(window.report) for window in tokens.windows))
            advance()
        return found

    stop_map = StopMap((data if source is None else source).name)
    learned = None if source is None else run(source)
    evaluated = run(data)
    for image in evaluated if learned is None else learned:
        stop_map.add(image)
    return Decisions(tuple(evaluated), partners_of(blocks.number.tolist()), stop_map, own=source is None)


def partners_of(blocks: Sequence[int]) -> tuple[int | None, ...]:
    """For each image the one half of the set further on, counted around, or the next after it of another block."""
    images = len(blocks)
    found: list[int | None] = []
    for number in range(images):
        further = [(number + images // 2 + step) % images for step in range(images)]
        others = [index for index in further if index != number]
        away = next((index for index in others if blocks[index] != blocks[number]), None)
        # One clip is one block: half of it away is as far as can be.
        found.append(away if away is not None else others[0] if others else None)
    return tuple(found)
