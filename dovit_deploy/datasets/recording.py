"""When was each image of a data set recorded? Frames of a drive are alike, and only time says how alike.

A drive and the number of a frame in it stand in its stem; how many of these numbers pass in a second is a fact of the
data set: stated by its classes.json, or known of its layout, or of CamVid by the names of its drives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

CITYSCAPES_RATE = 17.0
"""Frames that the numbers in its stems count in a second."""

CAMVID_RATE = 30.0
"""The same of CamVid, whichever of its frames a copy holds."""

_CAMVID_STEM = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?\d+")
_NUMBERED = re.compile(r"(?P<drive>.*?)_?[^\W\d_]*(?P<frame>\d+)")


class Moment(NamedTuple):
    """When an image was recorded."""

    drive: str
    second: float
    """From wherever the drive's frame numbers begin."""


@dataclass(frozen=True)
class RecordingRate:
    """What a data set says of itself: how many of its frame numbers pass in a second."""

    hertz: float | None
    """None: its images are independent of each other."""


def moments_from_stems(stems: Sequence[str], stated: RecordingRate | None) -> tuple[Moment, ...] | None:
    """When each image was recorded; None for images that are independent, as far as is known.

    Args:
        stems: as "0006R0_f00930": the drive, then a number that ends the stem; letters may stand before it.
        stated: what the data set says; None: nothing.
    """
    rate = stated or (RecordingRate(CAMVID_RATE) if _are_camvid(stems) else None)
    if rate is None or rate.hertz is None:
        return None
    return tuple(_moment(stem, rate.hertz) for stem in stems)


def _are_camvid(stems: Sequence[str]) -> bool:
    return all(_CAMVID_STEM.fullmatch(stem) for stem in stems)


def _moment(stem: str, hertz: float) -> Moment:
    found = _NUMBERED.fullmatch(stem)
    # An image without a number is no frame of a drive: it stands alone.
    return Moment(stem, 0.0) if found is None else Moment(found["drive"], int(found["frame"]) / hertz)
