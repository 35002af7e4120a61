"""What each image is for: fitting, choosing and testing share nothing where something is promised."""

from __future__ import annotations

import numpy as np
import pytest

from dovit_deploy.adapt.division import divided_for_promise, images_for
from dovit_deploy.adapt.images import UnlabelledImages, alike
from dovit_deploy.calibrate.budgets import DisagreeBudget
from dovit_deploy.calibrate.promise import Promise
from dovit_deploy.calibrate.units import Recorded, units_of
from dovit_deploy.datasets.recording import RecordingRate
from dovit_deploy.errors import CheckError

BUDGET = DisagreeBudget(0.25, 0.75)
"""Takes five units."""


def images_of(count: int, *, rate: float | None = None) -> UnlabelledImages:
    names = tuple(f"drive_{index:05d}" for index in range(count))
    recorded = Recorded(names, None if rate is None else RecordingRate(rate))
    return UnlabelledImages(
        "x", names, alike(count), tuple(lambda: np.zeros((4, 4, 3), np.uint8) for _ in names), recorded
    )


@pytest.mark.parametrize(("count", "rate"), [(9, None), (10, None), (40, None), (90, 1.0), (400, 1.0)])
def test_three_sets_share_nothing_and_no_unit_is_cut(count: int, rate: float | None) -> None:
    images = images_of(count, rate=rate)
    units = units_of(images.recorded, asked=None, rate=None)
    division = divided_for_promise(images, BUDGET, units, more=False)
    assert division.units is not None
    judged = [images.stems.index(stem) for stem in division.judged.stems]
    assert sorted((*division.fitted, *judged)) == list(range(count))
    tested = set(division.held_out)
    parts = Promise(BUDGET, division.units).parts(seed=0)
    assert set(parts.check) == tested and not tested & set(parts.search)
    number = units.of_image.number
    sets = (division.fitted, [judged[i] for i in parts.search], [judged[i] for i in parts.check])
    found = [{int(number[index]) for index in one} for one in sets]
    assert sum(map(len, found)) == len(set.union(*found)) == units.count
    # The test takes what it takes; a third is fitted to where there are more.
    assert len(found[2]) >= BUDGET.least_units == 5
    assert len(found[0]) == max(2, min(round(units.count / 3), units.count - 7))


def test_too_few_units_are_refused_with_the_number() -> None:
    images = images_of(8)
    units = units_of(images.recorded, asked=None, rate=None)
    with pytest.raises(
        CheckError, match=r"takes 5 held-out images, even if no pixel differs, 2 more .* 8 images given"
    ):
        divided_for_promise(images, BUDGET, units, more=False)
    with pytest.raises(CheckError, match="--limit N takes more"):
        divided_for_promise(images, BUDGET, units, more=True)
    strict = DisagreeBudget(0.02, 0.95)
    with pytest.raises(CheckError, match="takes 149 held-out images"):
        divided_for_promise(images, strict, units, more=False)
    # So that a promise can be kept, as many images are taken as it takes.
    assert (images_for(None, 256), images_for(BUDGET, 256), images_for(strict, 256)) == (256, 256, 447)
