"""Architecture: what a configuration and the keys together say, and the steps that every family takes to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from dovit_deploy.bundle.model_spec import AnySpec
from dovit_deploy.errors import ConfigError, UsageError
from dovit_deploy.models.key_facts import KeyFacts
from dovit_deploy.models.official_keys import Rule
from dovit_deploy.models.section import Ledger, Section


@dataclass(frozen=True)
class Architecture:
    """A network understood, and how its official entries become ours."""

    spec: AnySpec
    """At the training size."""
    rules: list[Rule]
    unused: re.Pattern[str]
    """Official entries that may be there and are not needed."""
    thresholds: tuple[float, ...] = ()
    """One per gate."""
    floor: float = 0.0
    stride: tuple[int, int] | None = None
    """Of sliding inference, in pixels, rows then columns."""
    slide_size: tuple[int, int] | None = None
    """Window of sliding inference, in pixels."""
    logits_cover: Literal["image", "padded"] = "image"


def invalid_as_config_error(error: ValidationError, source: str) -> ConfigError:
    """The first complaint of a spec as an error of the configuration."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"the configuration of {source} makes no network: {place}{': ' if place else ''}{message}")


def training_size(
    section: Section, key: str, facts: KeyFacts, ledger: Ledger, *, positions: str, extra: int, patch: int
) -> tuple[int, int]:
    """Height and width the position embeddings were made for, in whole patches.

    A stated size is held against the number of embeddings; without one, a square grid tells the size.

    Args:
        section: where the size may be stated under `key`.
        facts: of the checkpoint.
        ledger: takes the name of the size if nobody tells it.
        positions: pattern of the name of the position embeddings.
        extra: embeddings before the grid's.
        patch: side of a patch in pixels.
    """
    stated, total = section.pair(key), facts.size((positions, 1))
    if stated is None:
        side = facts.square_grid(positions, extra)
        seen = None if side is None else (side * patch, side * patch)
        return ledger.settle(section.name(key), None, seen, stand_in=(patch, patch))
    rows, columns = stated[0] // patch, stated[1] // patch
    if total is not None and rows * columns != total - extra:
        raise ConfigError(
            f"'{section.name(key)}' {stated[0]}x{stated[1]} makes {rows}x{columns} patches of {patch}, "
            f"and {ledger.source} has position embeddings for {total - extra}; give the size it was trained at"
        )
    return rows * patch, columns * patch


def settled_thresholds(
    stated: Sequence[float] | None, flag: Sequence[float] | None, gates: int, ledger: Ledger, *, name: str
) -> tuple[float, ...]:
    """One threshold per gate.

    Args:
        stated: in the configuration, under `name`.
        flag: by the caller, who has the say.
        gates: how many are needed.
        ledger: takes `name` if nobody tells a threshold.
    """
    if flag is not None:
        return thresholds_per_gate(flag, gates, UsageError)
    if gates == 0:
        return ()
    return thresholds_per_gate(ledger.settle(name, stated, None, stand_in=(1.0,)), gates, ConfigError)


def thresholds_per_gate(
    values: Sequence[float], gates: int, kind: type[ConfigError] | type[UsageError]
) -> tuple[float, ...]:
    """`values`, one for all gates or one for each, as one for each.

    Raises:
        UsageError, ConfigError: whichever is `kind`; outside [0, 1], or of the wrong number.
    """
    if gates == 0 or len(values) not in (1, gates):
        raise kind(f"{len(values)} thresholds for {gates} gates; give one for all, or one per gate")
    if not all(0.0 <= value <= 1.0 for value in values):
        raise kind(f"thresholds {', '.join(map(str, values))}: each must lie between 0 and 1")
    return tuple(float(value) for value in values) * (gates if len(values) == 1 else 1)
