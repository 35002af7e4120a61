"""How does a run keep to a deadline? At each gate no more tokens run on than there is time for, the hardest first.

    left = deadline - what the stages so far take by the latency model
    cap  = the most tokens with which the next stage, and the later ones with a share of them, fit into what is left

What is cut stops as if its gate had been sure of it. Nothing looks at a clock: equal images get equal answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from dovit_deploy.bundle.interface import CONFIDENCE, COUNT, ORDER
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.engines.base import Array, Buffer
from dovit_deploy.errors import UsageError
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.runtime.latency import LatencyModel, Milliseconds

CARRIED_ON = 0.75
"""Share of the tokens that a later gate is taken to let on: at 1 the last stages get time that few tokens are left for,
at 0 there is none left for them (docs/decisions/0014)."""

MOST_MARGIN = 1.25
"""A machine so busy that runs differ more from each other keeps no deadline, and need not waste time either."""


@dataclass(frozen=True)
class Deadline:
    """Milliseconds for a frame's model step, and what its tokens take."""

    milliseconds: float
    """As given by the user."""
    model: LatencyModel
    spec: ModelSpec
    rounds: int = 1
    """Windows of the frame that run one after another: each gets its share."""

    @classmethod
    def checked(
        cls, milliseconds: float, model: LatencyModel, spec: ModelSpec, *, rounds: int = 1, remedy: str | None = None
    ) -> Self:
        """A deadline that can be kept; `remedy`: what measures the model anew.

        Raises:
            UsageError: it takes longer even if every token stops at the first gate.
        """
        deadline = cls(milliseconds, model, spec, rounds)
        if not deadline.possible:
            # Rounded up, so that the number in the message is enough.
            enough = np.ceil(10 * deadline.least) / 10
            windows = "" if rounds == 1 else f" for {rounds} windows one after another"
            # A model is kept for long, and the machine may have been busy when it was made.
            anew = [] if remedy is None else [f"by a latency model of {model.date[:10]}; measured anew by {remedy}"]
            raise UsageError(
                f"--deadline-ms {milliseconds:g}: {model.engine} {model.precision} takes {enough:.1f} ms here{windows} "
                f"even if every token stops at the first gate; give at least {enough:.1f}",
                *anew,
            )
        return deadline

    @property
    def least(self) -> float:
        """The shortest deadline that can be kept, in milliseconds."""
        stopped = (self.spec.tokens, *[self.spec.extra_tokens] * len(self.spec.gates))
        return self.rounds * self._margin * self.model.milliseconds(stopped)

    @property
    def possible(self) -> bool:
        """Whether it can be kept: an image may have more windows than the one that it was checked for."""
        return self.milliseconds >= self.least

    def over(self, rounds: int) -> Self:
        """This for a frame of so many rounds of windows."""
        return self if rounds == self.rounds else replace(self, rounds=rounds)

    def cap(self, kept: Sequence[int]) -> int:
        """How many tokens may enter the next stage, extra tokens included, where `kept` entered those before it."""
        begun = zip(self.model.stages, kept, strict=False)
        taken = self.model.outside_ms + sum(float(stage.at(count)) for stage, count in begun)
        left = self.milliseconds / self.rounds - self._margin * taken
        affordable = int(np.searchsorted(self._to_come[len(kept) - 1], left, side="right")) - 1
        return max(self.spec.extra_tokens, affordable)

    @cached_property
    def _to_come(self) -> list[Milliseconds]:
        """Per gate, what the stages behind it take with 0, 1, ... tokens entering the next one; never falling."""
        extra = self.spec.extra_tokens
        patches = np.arange(self.spec.tokens + 1 - extra)
        found = []
        for gate in range(len(self.spec.gates)):
            later = enumerate(self.model.stages[gate + 1 :])
            times = (stage.at(extra + np.ceil(patches * CARRIED_ON**number)) for number, stage in later)
            # Fewer than the extra tokens cannot be: that costs what these do.
            found.append(np.pad(self._margin * np.sum(list(times), axis=0), (extra, 0), mode="edge"))
        return found

    @property
    def _margin(self) -> float:
        """Every prediction counts for what slow runs took when the model was measured, up to `MOST_MARGIN`."""
        return min(max(1.0, self.model.slow), MOST_MARGIN)


def refuse_fixed_counts(manifest: Manifest) -> None:
    """Raise UsageError for a model that runs as many tokens of every image."""
    if not manifest.spec.gates:
        raise UsageError(
            f"{manifest.name} is a model without gates: it runs as many tokens of every image, so a deadline has none "
            "to stop; leave --deadline-ms out"
        )


class Capping:
    """Decides in one run which tokens run on: those of the gate, as far as the deadline allows.

    Args:
        deadline: of the run.
        download: brings a buffer to the host.
    """

    def __init__(self, deadline: Deadline, download: Callable[[Buffer], Array]) -> None:
        self._deadline, self._download = deadline, download
        self._kept = [deadline.spec.tokens]
        self.capped = 0
        """Tokens that were cut so far."""

    def __call__(self, gate: int, outputs: Mapping[str, Buffer]) -> npt.NDArray[np.int64]:
        """The index (kept,) of the tokens that enter the next stage, from the outputs of the stage before `gate`."""
        order, count = self._download(outputs[ORDER]), int(self._download(outputs[COUNT]))
        index, cap = order[:count], self._deadline.cap(self._kept)
        if count > cap:
            confidence = self._download(outputs[CONFIDENCE])
            index = least_confident(index, confidence, cap, extra=self._deadline.spec.extra_tokens)
        self.capped += count - len(index)
        self._kept.append(len(index))
        return index


def least_confident(
    index: npt.NDArray[np.int64], confidence: npt.NDArray[np.float32], cap: int, *, extra: int
) -> npt.NDArray[np.int64]:
    """The `cap` hardest of the tokens `index`: (cap,), in their order.

    Args:
        index: (n,) positions, the `extra` tokens first, then patches in raster order.
        confidence: (N,) of every patch; NaN is taken for the hardest.
        cap: at least `extra`, which are always among them.

    Of equals the first in raster order are taken.
    """
    if cap >= len(index):
        return index
    patches, room = index[extra:], cap - extra
    values = confidence[patches - extra]
    values = np.where(np.isnan(values), -np.inf, values)
    # The numbers of the hardest, in no order and with any of the equals: only the largest value among them counts.
    hardest = np.argpartition(values, room)[:room]
    limit = values[hardest].max(initial=-np.inf)
    taken = values < limit
    equals = np.flatnonzero(values == limit)
    taken[equals[: room - int(np.count_nonzero(taken))]] = True
    return np.concatenate([index[:extra], patches[taken]])
