"""What is independent of what? The units that a promise about other images counts, and their division into sets.

A promise is tested on units that are independent of each other: images where they are, else blocks of ten seconds of
recording, or whole drives. Images that follow each other in a recording are almost copies: counted one by one they
would pretend to be more evidence than they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.bundle.calibration import UnitKind, UnitSource
from dovit_deploy.datasets.recording import Moment, RecordingRate, moments_from_stems
from dovit_deploy.errors import UsageError
from dovit_deploy.measure.intervals import BLOCK_SECONDS, Blocks, blocks_of
from dovit_deploy.printing import plural

CERTAIN = 4.0
"""Standard errors from which neighbours are alike: of independent images that happens once in 30,000 sets."""

FEWEST_TO_COMPARE = 30
"""Images, from which on neighbours are compared."""

NOUNS: dict[UnitKind, str] = {"image": "image", "block": f"block of {BLOCK_SECONDS:g} s", "drive": "drive"}


@dataclass(frozen=True)
class Units:
    """The unit of each image, and who says so."""

    kind: UnitKind
    said_by: UnitSource
    of_image: Blocks
    """Numbered from 0 without gaps."""

    @property
    def count(self) -> int:
        """How many units there are."""
        return self.of_image.count

    def named(self, count: int, what: str = "") -> str:
        """So many of them, `what` they are before the noun."""
        return named_units(self.kind, count, what)


def named_units(kind: UnitKind, count: int, what: str = "") -> str:
    """ "149 images", "12 held-out blocks of 10 s"."""
    # It is the first word that has a plural.
    first, space, rest = NOUNS[kind].partition(" ")
    return f"{plural(count, what + first)}{space}{rest}"


@dataclass(frozen=True)
class Recorded:
    """What a data set or folder says of when its images were recorded."""

    stems: tuple[str, ...]
    stated: RecordingRate | None
    """None: nothing."""

    @classmethod
    def of_files(cls, names: Sequence[str]) -> Recorded:
        """Of images of which nothing is known but the numbers in their names, which stand before the suffix."""
        return cls(tuple(name[: -len(Path(name).suffix) or None] for name in names), None)

    def moments(self, rate: float | None = None) -> tuple[Moment, ...] | None:
        """When each image was recorded, at `rate` frame numbers a second where that is given; None where unknown."""
        return moments_from_stems(self.stems, self.stated if rate is None else RecordingRate(rate))


def units_of(recorded: Recorded, *, asked: UnitKind | None, rate: float | None) -> Units:
    """The units of images.

    Args:
        recorded: what is known of them.
        asked: the kind that the user names; None: blocks where it is known when the images were recorded, else images.
        rate: frame numbers a second, as the user says.

    Raises:
        UsageError: a rate that is no number above 0, or of images that are named as units; blocks without a known rate.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise UsageError(f"--frame-rate {rate:g}: how many frame numbers pass in a second is needed, above 0")
    if rate is not None and asked == "image":
        raise UsageError("--unit image says that the images are independent, so --frame-rate has no meaning; give one")
    said_by: UnitSource = "data set" if asked is None and rate is None else "user"
    moments = recorded.moments(rate)
    if asked == "image" or (asked is None and moments is None):
        if said_by == "data set" and recorded.stated is None:
            said_by = "nobody"
        return Units("image", said_by, blocks_of(len(recorded.stems), None))
    if asked == "drive":
        # Which drive it is does not depend on the rate.
        return Units("drive", said_by, blocks_of(len(recorded.stems), recorded.moments(1.0), seconds=math.inf))
    if moments is None:
        raise UsageError(
            "--unit block: nothing says how many of the frame numbers in the names pass in a second; "
            "give --frame-rate HZ, or --unit drive"
        )
    return Units("block", said_by, blocks_of(len(recorded.stems), moments))


def divided(units: Blocks, sizes: Sequence[int], *, seed: int) -> tuple[tuple[int, ...], ...]:
    """The images of disjoint sets of units, drawn by `seed`; whole units alone.

    Args:
        units: of each image.
        sizes: how many units each set gets; together at most all of them.

    Returns:
        Of each set the indices of its images, rising.
    """
    drawn = np.random.default_rng(seed).permutation(units.count)
    ends = np.cumsum([0, *sizes])
    sets = (drawn[begin:end] for begin, end in itertools.pairwise(ends))
    return tuple(tuple(np.flatnonzero(np.isin(units.number, one)).tolist()) for one in sets)


def mean_of_units(values: Sequence[float], units: Blocks) -> NDArray[np.float64]:
    """The mean of each unit's values, (units,): every unit weighs the same, however many images it holds."""
    counts = np.bincount(units.number, minlength=units.count)
    means: NDArray[np.float64] = np.bincount(units.number, weights=values, minlength=units.count) / counts
    return means


def neighbours_alike(values: Sequence[float]) -> float | None:
    """The rank correlation of neighbours where it is certain that they are alike, as frames of a video are; else None.

    Args:
        values: one an image, in the order of the images.
    """
    given = np.asarray(values, dtype=np.float64)
    if len(given) < FEWEST_TO_COMPARE:
        return None
    ranks = given.argsort(kind="stable").argsort().astype(np.float64)
    # Equal values get their mean rank: numbered by position, a run of zeros would look like a trend.
    _, same = np.unique(given, return_inverse=True)
    ranks = (np.bincount(same, weights=ranks) / np.bincount(same))[same]
    if np.ptp(ranks[1:]) == 0 or np.ptp(ranks[:-1]) == 0:
        return None
    found = float(np.corrcoef(ranks[:-1], ranks[1:])[0, 1])
    return found if found > CERTAIN / math.sqrt(len(given)) else None
