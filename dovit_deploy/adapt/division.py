"""What is each image for? Some are fitted to, on some thresholds are searched, the rest are held out.

Where something is promised of other images, the three share nothing, and whole units go to each: what is independent of
what (`calibrate/units.py`) counts, and a test takes so many of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from dovit_deploy.adapt.images import ENOUGH, UnlabelledImages
from dovit_deploy.calibrate.budgets import DisagreeBudget
from dovit_deploy.calibrate.calibrate import SEED
from dovit_deploy.calibrate.images import halves
from dovit_deploy.calibrate.promise import FEWEST_SEARCHED, Promise
from dovit_deploy.calibrate.units import Units
from dovit_deploy.calibrate.units import divided as divided_units
from dovit_deploy.errors import CheckError

FITTED = 1 / 3
"""Share of the units that is fitted to, where the test leaves so many."""
FEWEST_FITTED = 2
"""Units."""


@dataclass(frozen=True)
class Division:
    """What the images are for; indices among all, rising."""

    fitted: tuple[int, ...]
    """Gates and lenses are fitted to these, and the network is fine-tuned on them."""
    judged: UnlabelledImages
    """Thresholds are searched on one part of these and checked on the other."""
    held_out: tuple[int, ...]
    """The other part, by its indices in `judged`: nothing was fitted to it or searched on it."""
    units: Units | None = None
    """Of `judged`, where something is promised."""


def divided(images: UnlabelledImages) -> Division:
    """Half of the images to fit to, a quarter to search on, a quarter held out; of few the first two are the same."""
    fitted = halves(images.blocks, seed=SEED)
    if len(images) < ENOUGH:
        # `calibrate` divides the same images by the same seed, so what it checks on is what is not fitted to.
        return Division(fitted.search, images, fitted.check)
    judged = images.part(fitted.check)
    return Division(fitted.search, judged, halves(judged.blocks, seed=SEED).check)


def divided_for_promise(images: UnlabelledImages, budget: DisagreeBudget, units: Units, *, more: bool) -> Division:
    """As many units as the test of `budget` takes held out, some to search on, the rest, at most a third, to fit to.

    Args:
        images: all of them.
        budget: what is promised.
        units: of these images.
        more: not all images that there are were taken.

    Raises:
        CheckError: there are too few units.
    """
    least, count = budget.least_units, units.count
    if count < least + FEWEST_SEARCHED + FEWEST_FITTED:
        hint = "; --limit N takes more of the images" if more else ""
        raise CheckError(
            f"{budget.entry.text}: to test that takes {units.named(least, 'held-out ')}, even if no pixel differs, "
            f"{FEWEST_SEARCHED} more to choose thresholds on and {FEWEST_FITTED} to fit gates to; "
            f"{units.named(count)} given. Give more, or allow more{hint}"
        )
    fitted = max(FEWEST_FITTED, min(round(FITTED * count), count - least - FEWEST_SEARCHED))
    to_fit, rest = divided_units(units.of_image, (fitted, count - fitted), seed=SEED)
    judged, own = images.part(rest), Units(units.kind, units.said_by, units.of_image.of(rest))
    # `calibrate` divides the same units by the same seed.
    return Division(to_fit, judged, Promise(budget, own).parts(seed=SEED).check, own)


def images_for(budget: DisagreeBudget | None, most: int) -> int:
    """How many images are taken where no limit is given: `most`, or as many as a promise takes of independent ones."""
    return most if budget is None else max(most, 3 * budget.least_units)
