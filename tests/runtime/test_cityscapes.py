"""Label ids of Cityscapes, by the names of a bundle's classes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.errors import UsageError
from dovit_deploy.runtime.cityscapes import CITYSCAPES_CLASSES, label_ids, png_of_label_ids


def test_names_in_any_order_and_spelling_get_their_label_ids() -> None:
    assert label_ids(("sky", "Traffic_Light", "road", "bicycle")).tolist() == [23, 19, 7, 33]
    names = [name for _, name, _ in CITYSCAPES_CLASSES]
    assert label_ids(names).tolist() == [number for number, _, _ in CITYSCAPES_CLASSES] and len(names) == 19


def test_the_pixels_hold_them() -> None:
    class_map = np.array([[0, 1], [2, 2]], dtype=np.uint8)
    with Image.open(io.BytesIO(png_of_label_ids(class_map, ("car", "person", "sky")))) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), [[26, 24], [23, 23]])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("road", "tree", "kerb"), r"the class 'tree' \(and 1 more\) is none of Cityscapes': road, sidewalk"),
        (("road", "Road"), "two classes are called 'road'"),
    ],
)
def test_other_classes_are_refused(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        label_ids(names)
