"""Which number has a class in Cityscapes? Its benchmark and tools read label ids, not the class ids of a network."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.errors import UsageError

CITYSCAPES_CLASSES: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
"""Label id, name and colour; the position is the train id. Source: cityscapesScripts, `helpers/labels.py`."""

_LABEL_IDS = {name: label_id for label_id, name, _ in CITYSCAPES_CLASSES}


def label_ids(names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """The label id of each class, by the names of the classes: (K,).

    Raises:
        UsageError: a class is none of Cityscapes', or two are the same.
    """
    plain = list(map(_plain, names))
    unknown = [name for name, given in zip(names, plain, strict=True) if given not in _LABEL_IDS]
    if unknown:
        more = "" if len(unknown) == 1 else f" (and {len(unknown) - 1} more)"
        raise UsageError(
            f"--save cityscapes: the class '{unknown[0]}'{more} is none of Cityscapes': {', '.join(_LABEL_IDS)}; "
            "save masks, or name the classes so with --classes"
        )
    if len(set(plain)) < len(plain):
        twice = next(name for name in names if plain.count(_plain(name)) > 1)
        raise UsageError(f"--save cityscapes: two classes are called '{twice}'")
    return np.array([_LABEL_IDS[name] for name in plain], dtype=np.uint8)


def _plain(name: str) -> str:
    """As Cityscapes writes it: "Traffic_Light" is "traffic light"."""
    return name.lower().replace("_", " ").replace("-", " ").strip()


def png_of_label_ids(class_map: npt.NDArray[np.uint8], names: Sequence[str]) -> bytes:
    """`class_map` (H, W) as the content of a grey PNG: pixel value = label id."""
    content = io.BytesIO()
    packages.pillow().fromarray(_resolved_ids(tuple(names))[class_map]).save(content, format="PNG")
    return content.getvalue()


@cache
def _resolved_ids(names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    """`label_ids`, once for all frames of a run."""
    return label_ids(names)
