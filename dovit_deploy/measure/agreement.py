"""How often does a run find the class that another one finds? Overall, class by class, and along the contours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.datasets.dataset import IGNORE
from dovit_deploy.measure.metrics import BAND, ClassCounts
from dovit_deploy.runtime.classification import ClassificationResult
from dovit_deploy.runtime.results import ClassMap
from dovit_deploy.runtime.segmentation import SegmentationResult
from dovit_deploy.runtime.tasks import ImageResult


def classes_of(result: ImageResult) -> npt.NDArray[Any]:
    """The classes of an image's pixels (H, W); of a classifier its one class (1, 1)."""
    if isinstance(result, SegmentationResult):
        return result.class_map
    assert isinstance(result, ClassificationResult)
    return np.array([[result.classes[0].id]])


@dataclass
class Agreement:
    """Counts of a run's classes by those of another, the wanted one, over all images so far."""

    classes: int
    everywhere: list[ClassCounts] = field(default_factory=list)
    """(K,) of each image; `true` are the pixels where the wanted run finds a class."""
    along_contours: list[ClassCounts] = field(default_factory=list)
    """The same, of the pixels within `BAND` pixels of a contour of the wanted run's map."""

    def add(self, wanted: ImageResult, given: ImageResult) -> None:
        """Count one image."""
        first, second = classes_of(wanted), classes_of(given)
        self.everywhere.append(ClassCounts.of(first, second, classes=self.classes))
        if isinstance(wanted, SegmentationResult):
            near = np.where(near_contours(wanted.class_map), first, IGNORE)
            self.along_contours.append(ClassCounts.of(near, second, classes=self.classes))


def near_contours(classes: ClassMap, *, band: int = BAND) -> npt.NDArray[np.bool_]:
    """(H, W): pixels that have another class than their own within `band` pixels, in a square around them."""
    cv2 = packages.opencv()
    around = np.ones((2 * band + 1, 2 * band + 1), np.uint8)
    # The largest and the smallest class around differ; beyond the border of the image there is none.
    near: npt.NDArray[np.bool_] = cv2.dilate(classes, around) != cv2.erode(classes, around)
    return near
