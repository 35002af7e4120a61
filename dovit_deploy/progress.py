"""How does long work say how far it has come, without knowing who shows it?"""

from __future__ import annotations

from typing import Protocol


class StepProgress(Protocol):
    """Is told of each step of the work, and of its units one by one."""

    def begin(self, step: str, total: float | None = None, *, unit: str | None = None) -> None:
        """The next step begins, counted from 0 to `total` if that is known, in `unit` (None: as before)."""

    def advance(self) -> None:
        """One more unit is done."""


class Unseen:
    """Work that nobody watches."""

    def begin(self, step: str, total: float | None = None, *, unit: str | None = None) -> None:
        """Nothing is shown."""

    def advance(self) -> None:
        """Nothing is shown."""
