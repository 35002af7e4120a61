"""How right a class map is: confusion over a set, IoU per class, pixel accuracy, boundary IoU. All in percent.

A metric of a set is made of pixel counts that add up over its images, never of a mean over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dovit_deploy import packages
from dovit_deploy.datasets.dataset import IGNORE

BAND = 3
"""Pixels from a contour that still belong to the boundary."""

Counts = NDArray[np.int64]
ClassMap = NDArray[np.uint8]


@dataclass(frozen=True)
class ClassCounts:
    """Pixels per class, what IoU is made of: arrays (..., K), of one image, of many, or of their sum."""

    hit: Counts
    """Of the class, and called so."""
    true: Counts
    """Of the class."""
    called: Counts
    """Called so."""

    @classmethod
    def stacked(cls, images: Sequence[ClassCounts]) -> Self:
        """Of several images, (n, K)."""
        return cls(
            np.stack([counts.hit for counts in images]),
            np.stack([counts.true for counts in images]),
            np.stack([counts.called for counts in images]),
        )

    def total(self) -> ClassCounts:
        """Summed over all images: (K,)."""
        classes = self.hit.shape[-1]
        return ClassCounts(*(part.reshape(-1, classes).sum(0) for part in (self.hit, self.true, self.called)))

    def weighted(self, weights: NDArray[np.integer]) -> ClassCounts:
        """Sums over images, image i counted weights[..., i] times: (..., n) @ (n, K) -> (..., K)."""
        # In float64, which matrix products are fast in; exact up to 2**53 pixels.
        parts = (weights.astype(np.float64) @ part.astype(np.float64) for part in (self.hit, self.true, self.called))
        return ClassCounts(*(part.astype(np.int64) for part in parts))

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class, (..., K), percent; NaN where it neither occurs nor is called."""
        union = self.true + self.called - self.hit
        full = np.full(union.shape, np.nan)
        shares: NDArray[np.float64] = np.divide(100.0 * self.hit, union, out=full, where=union > 0)
        return shares

    @property
    def mious(self) -> NDArray[np.float64]:
        """Mean of `iou` over the classes that have one, (...); NaN where none has."""
        iou = self.iou
        present = ~np.isnan(iou)
        number = present.sum(-1)
        total = np.where(present, iou, 0.0).sum(-1)
        means: NDArray[np.float64] = np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)
        return means

    @property
    def miou(self) -> float:
        """mIoU of the sum over all images, percent."""
        return float(self.total().mious)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels called right, percent; NaN when none is labelled."""
        pixels = int(self.true.sum())
        return 100.0 * int(self.hit.sum()) / pixels if pixels else float("nan")


@dataclass(frozen=True)
class Confusion:
    """`matrix` (K, K) int64: pixels of true class (row) that are called class (column); void counts nowhere."""

    matrix: Counts

    @classmethod
    def empty(cls, classes: int) -> Self:
        """Nothing seen yet."""
        return cls(np.zeros((classes, classes), np.int64))

    @classmethod
    def of(cls, label: ClassMap, predicted: ClassMap, *, classes: int) -> Self:
        """One image: `label` (H, W) with `IGNORE` where nothing is known, `predicted` (H, W) below `classes`."""
        known = label != IGNORE
        pairs = label[known].astype(np.int64) * classes + predicted[known]
        return cls(np.bincount(pairs, minlength=classes**2).reshape(classes, classes))

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.matrix + other.matrix)

    @property
    def counts(self) -> ClassCounts:
        """What IoU is made of, (K,)."""
        return ClassCounts(np.diag(self.matrix).copy(), self.matrix.sum(1), self.matrix.sum(0))

    @property
    def iou(self) -> NDArray[np.float64]:
        """Per class, (K,), percent; NaN for a class that neither occurs nor is called."""
        return self.counts.iou

    @property
    def miou(self) -> float:
        """Mean over the classes that occur or are called, percent."""
        return self.counts.miou

    @property
    def pixel_accuracy(self) -> float:
        """Percent."""
        return self.counts.pixel_accuracy


def boundary_counts(label: ClassMap, predicted: ClassMap, *, classes: int, band: int = BAND) -> ClassCounts:
    """As IoU's counts, of those pixels of each class alone that lie within `band` pixels of its contour.

    Source: Boundary IoU (Cheng et al., CVPR 2021), `mask_to_boundary`: the picture's frame is a contour, too. What is
    void in the label is cut out of both maps first, so that it is a contour of both.

    Returns:
        Counts (K,) of one image.
    """
    void = label == IGNORE
    called = np.where(void, np.uint8(IGNORE), predicted)
    counts = np.zeros((3, classes), np.int64)
    for number in _present(label, called, classes):
        true_band, called_band = _band(label == number, band), _band(called == number, band)
        counts[:, number] = (true_band & called_band).sum(), true_band.sum(), called_band.sum()
    return ClassCounts(*counts)


def _present(label: ClassMap, called: ClassMap, classes: int) -> list[int]:
    both = np.bincount(label.ravel(), minlength=256) + np.bincount(called.ravel(), minlength=256)
    return [int(number) for number in np.flatnonzero(both[:classes])]


def _band(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    cv2 = packages.opencv()
    framed = np.pad(mask.view(np.uint8), 1)
    inner = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    ring: NDArray[np.bool_] = mask & (inner == 0)
    return ring
