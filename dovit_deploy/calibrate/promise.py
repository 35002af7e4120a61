"""What may be promised of images like these? Settings tested in a fixed sequence, on units that nothing else has seen.

    search part   chooses the sequence, from cautious to bold, and the bet of each test
    check part    tests it: the last setting before the first that is not shown to keep the limit is taken

So the settings need no order of their own: the share of differing pixels may rise and fall along the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovit_deploy.betting import shown_in_sequence
from dovit_deploy.bundle.calibration import SequenceStep, SequenceTest
from dovit_deploy.calibrate.budgets import DisagreeBudget
from dovit_deploy.calibrate.images import Parts
from dovit_deploy.calibrate.units import Units, divided, neighbours_alike
from dovit_deploy.errors import CheckError, UsageError

SEARCHED = 1 / 3
"""Share of the units that the sequence is chosen on, where the rest are more than the least number of a test. A rough
choice costs little, for every unit counts in the test."""

FEWEST_SEARCHED = 2
"""Units."""


@dataclass(frozen=True)
class Promise:
    """A budget and the units that it counts."""

    budget: DisagreeBudget
    units: Units

    @property
    def least(self) -> int:
        """Units that a test takes, even if no pixel differs."""
        return self.budget.least_units

    def parts(self, *, seed: int) -> Parts:
        """The images of the search and of the test.

        Raises:
            CheckError: there are too few units.
        """
        count = self.units.count
        if count < self.least + FEWEST_SEARCHED:
            raise CheckError(
                f"{self.budget.entry.text}: to test that takes {self.units.named(self.least, 'held-out ')}, even if "
                f"no pixel differs, and {FEWEST_SEARCHED} more for the search; {self.units.named(count)} given. "
                f"Give more, or allow more{self._hint()}"
            )
        searched = max(FEWEST_SEARCHED, min(round(SEARCHED * count), count - self.least))
        return Parts(*divided(self.units.of_image, (searched, count - searched), seed=seed))

    def _hint(self) -> str:
        if self.units.kind == "image" or self.units.said_by == "user":
            return ""
        return "; --unit image counts every image, where they are independent of each other"

    def refuse_frames(self, differing: Sequence[float]) -> None:
        """Raise UsageError where nobody says that the images are independent, and what differs says they are not.

        Args:
            differing: share of each image's pixels, in the order of the images.
        """
        alike = neighbours_alike(differing) if self.units.said_by == "nobody" else None
        if alike is not None:
            raise UsageError(
                f"images that follow each other differ alike (rank correlation {alike:.2f}), as frames of a video do, "
                "and count for less than as many independent ones: give --frame-rate HZ (frame numbers a second) for "
                "blocks of 10 s, or --unit drive; --unit image counts each of them all the same"
            )

    def test(self, points: Sequence[SequenceStep], *, searched: int) -> SequenceTest | None:
        """The test of a sequence; None: not even its first setting is shown to keep the limit and to save anything.

        Args:
            points: the settings, from cautious to bold, each tested alone.
            searched: units that they were chosen on.
        """
        shown = shown_in_sequence((point.p_value for point in points), confidence=self.budget.confidence)
        if not shown or points[shown - 1].flops_saved <= 0:
            return None
        return SequenceTest(
            max_disagree=self.budget.share,
            confidence=self.budget.confidence,
            unit=self.units.kind,
            unit_said_by=self.units.said_by,
            units_searched=searched,
            units=self.units.count - searched,
            least_units=self.least,
            sequence=tuple(points[: shown + 1]),
            stopped_at=shown if shown < len(points) else None,
            boldest=shown - 1,
        )
