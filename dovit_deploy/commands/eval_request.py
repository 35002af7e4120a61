"""What `dovit eval` was asked for, understood and checked against the bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class EvalRequest:
    """The arguments that every task's evaluation takes."""

    dataset: str
    """As the user named it."""
    split: str
    thresholds: npt.NDArray[np.float32]
    """(gates, K): the user's, or the bundle's own."""
    chosen: bool
    """The thresholds are the user's."""
    controls: bool
    json_file: Path | None
    quiet: bool
    verbose: bool

    @property
    def given_thresholds(self) -> npt.NDArray[np.float32] | None:
        """The user's thresholds; None where the bundle's own are meant."""
        return self.thresholds if self.chosen else None
