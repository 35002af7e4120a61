"""How right an answer is: IoU, pixel accuracy and Boundary IoU of class maps, top-k accuracy of classes. In percent.

A metric of a set is made of counts that add up over its images, never of a mean over images: a class that is rare in
one image would weigh there as much as a common one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dovit_deploy import packages
from dovit_deploy.datasets.dataset import IGNORE
from dovit_deploy.runtime.results import ClassMap

BAND = 3
"""Pixels from a contour that still belong to the boundary."""

PixelCounts = NDArray[np.int64]
Hits = NDArray[np.bool_]
"""(n,): the answer to each image is right."""


@dataclass(frozen=True)
class ClassCounts:
    """Pixels per class, what IoU is made of: arrays (..., K), of one image, of many, or of their sum."""

    hit: PixelCounts
    """Pixels of the class that are predicted as such."""
    true: PixelCounts
    """Pixels of the class."""
    predicted: PixelCounts
    """Pixels predicted as the class."""

    @classmethod
    def of(cls, label: ClassMap, predicted: ClassMap, *, classes: int) -> Self:
        """One image, (K,): `label` (H, W) with `IGNORE` where nothing is known, `predicted` (H, W) below `classes`."""
        return cls.from_confusion(confusion_matrix(label, predicted, classes=classes))

    @classmethod
    def from_confusion(cls, matrix: PixelCounts) -> Self:
        """The counts (K,) of a confusion matrix (K, K)."""
        return cls(np.diag(matrix).copy(), matrix.sum(1), matrix.sum(0))

    @classmethod
    def stacked(cls, images: Sequence[ClassCounts]) -> Self:
        """Several images, (n, K)."""
        return cls(
            np.stack([counts.hit for counts in images]),
            np.stack([counts.true for counts in images]),
            np.stack([counts.predicted for counts in images]),
        )

    def total(self) -> ClassCounts:
        """The sum over all images, (K,)."""
        classes = self.hit.shape[-1]
        return ClassCounts(*(part.reshape(-1, classes).sum(0) for part in (self.hit, self.true, self.predicted)))

    def weighted(self, weights: NDArray[np.integer]) -> ClassCounts:
        """Sums over images, image i counted weights[..., i] times: (..., n) @ (n, K) -> (..., K)."""
        # In float64, in which matrix products are fast; exact up to 2**53 pixels.
        parts = (weights.astype(np.float64) @ part.astype(np.float64) for part in (self.hit, self.true, self.predicted))
        return ClassCounts(*(part.astype(np.int64) for part in parts))

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class, (..., K); NaN for a class that is neither there nor predicted."""
        union = self.true + self.predicted - self.hit
        full = np.full(union.shape, np.nan)
        shares: NDArray[np.float64] = np.divide(100.0 * self.hit, union, out=full, where=union > 0)
        return shares

    @property
    def mious(self) -> NDArray[np.float64]:
        """Mean of `iou` over the classes that have one, (...); NaN where none has."""
        iou = self.iou
        # A class that does not occur in a drawn set must not count as 0 there.
        present = ~np.isnan(iou)
        number = present.sum(-1)
        total = np.where(present, iou, 0.0).sum(-1)
        means: NDArray[np.float64] = np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)
        return means

    @property
    def miou(self) -> float:
        """mIoU of the sum over all images."""
        return float(self.total().mious)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels whose class is right; NaN when none is labelled."""
        pixels = int(self.true.sum())
        return 100.0 * int(self.hit.sum()) / pixels if pixels else float("nan")


def confusion_matrix(label: ClassMap, predicted: ClassMap, *, classes: int) -> PixelCounts:
    """(K, K): pixels of true class (row) that are predicted as class (column); `IGNORE` in the label counts nowhere."""
    known = label != IGNORE
    # Each (label, prediction) pair as one number: counting those is many times faster than adding to a matrix.
    pairs = label[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def boundary_counts(label: ClassMap, predicted: ClassMap, *, classes: int, band: int = BAND) -> ClassCounts:
    """Counts (K,) of one image as IoU takes them, of only those pixels within `band` pixels of their class's contour.

    Source: Boundary IoU (Cheng et al., CVPR 2021), `mask_to_boundary`: the border of the image is a contour, too.
    """
    # What is void in the label is cut out of both maps first, so that it is a contour of both.
    void = label == IGNORE
    predicted = np.where(void, np.uint8(IGNORE), predicted)
    counts = np.zeros((3, classes), np.int64)
    for number in _present(label, predicted, classes):
        true, given = _band(label == number, band), _band(predicted == number, band)
        counts[:, number] = (true & given).sum(), true.sum(), given.sum()
    return ClassCounts(*counts)


def _present(label: ClassMap, predicted: ClassMap, classes: int) -> list[int]:
    # 256 values, as `IGNORE` may occur in both; erosion is expensive, so absent classes are left out.
    both = np.bincount(label.ravel(), minlength=256) + np.bincount(predicted.ravel(), minlength=256)
    return [int(number) for number in np.flatnonzero(both[:classes])]


def _band(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    cv2 = packages.opencv()
    # Without the frame of zeros, erosion would not count the border of the image as a contour.
    framed = np.pad(mask.view(np.uint8), 1)
    inner = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    ring: NDArray[np.bool_] = mask & (inner == 0)
    return ring


def top_hits(ranked: Sequence[Sequence[int]], labels: Sequence[int], *, top: int) -> Hits:
    """Whether each label is among the first `top` class ids of its answer, which begins with the most probable."""
    return np.array([label in ids[:top] for ids, label in zip(ranked, labels, strict=True)], dtype=bool)


def accuracy(hits: Hits) -> float:
    """Share of the images whose answer is right."""
    return 100.0 * float(hits.mean())
