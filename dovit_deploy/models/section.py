"""Section: a part of a configuration with typed reading. Ledger: stated values against what the keys show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dovit_deploy.errors import ConfigError
from dovit_deploy.models.configuration import refuse_unknown

T = TypeVar("T")


@dataclass(frozen=True)
class Section:
    """Named settings at one place of a configuration; every reader gives None where nothing is stated."""

    place: str
    """Dotted path, for messages; empty at the top."""
    values: Mapping[str, object]
    source: str = "the configuration"

    def name(self, key: str) -> str:
        """The full name of `key`."""
        return f"{self.place}.{key}" if self.place else key

    def only(self, known: frozenset[str]) -> Section:
        """This section, after refusing names beyond `known` and the training-only ones."""
        refuse_unknown(self.values, known, self.place, self.source)
        return self

    def wrong(self, key: str, wanted: str) -> ConfigError:
        """The error for a value that is not what it must be."""
        return ConfigError(f"{self.source}: '{self.name(key)}' is {self.values[key]!r}; {wanted}")

    def section(self, key: str) -> Section | None:
        """A part of this part."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object with names is needed")
        return Section(self.name(key), value, self.source)

    def integer(self, key: str) -> int | None:
        """A whole number."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "a whole number is needed")
        return value

    def number(self, key: str) -> float | None:
        """A finite number."""
        value = self.values.get(key)
        return None if value is None else self._number(key, value)

    def _number(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, "a number is needed")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """A list of finite numbers."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise self.wrong(key, "a list of numbers is needed")
        return tuple(self._number(key, item) for item in value)

    def integers(self, key: str) -> tuple[int, ...] | None:
        """A whole number or a list of them, as a tuple."""
        value = self.values.get(key)
        if value is None:
            return None
        items = value if isinstance(value, list | tuple) else [value]
        if not items or any(isinstance(item, bool) or not isinstance(item, int) for item in items):
            raise self.wrong(key, "whole numbers are needed")
        return tuple(items)

    def pair(self, key: str) -> tuple[int, int] | None:
        """Height and width: two whole numbers above 0, or one that is both."""
        value = self.integers(key)
        if value is None:
            return None
        if len(value) > 2 or min(value) < 1:
            raise self.wrong(key, "one or two whole numbers above 0 are needed")
        return value[0], value[-1]

    def flag(self, key: str) -> bool | None:
        """True or False."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false is needed")
        return value

    def text(self, key: str) -> str | None:
        """A word."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "text is needed")
        return value

    def must_be(self, key: str, *supported: object) -> None:
        """Refuse any stated value of `key` but `supported`, which is what the network does."""
        if key not in self.values:
            return
        value = self.values[key]
        # 1 == True in Python, and neither may stand for the other here.
        if not any(value == one and type(value) is type(one) for one in supported):
            allowed = " or ".join(repr(one) for one in supported)
            raise self.wrong(key, f"only {allowed} is supported")


@dataclass
class Ledger:
    """Settles each value: what is stated, else what the keys show; keeps the names of those that nobody tells."""

    source: str
    unknown: list[str] = field(default_factory=list)

    def settle(self, name: str, stated: T | None, seen: T | None, *, stand_in: T) -> T:
        """The value of `name`; `stand_in` only keeps the work going until `finish` names what is unknown.

        Raises:
            ConfigError: the configuration and the keys contradict each other.
        """
        if stated is not None and seen is not None and stated != seen:
            raise ConfigError(
                f"'{name}' is {_shown(stated)} in the configuration and {_shown(seen)} in the keys of {self.source}; "
                "give the configuration this checkpoint was trained with"
            )
        if stated is not None:
            return stated
        if seen is not None:
            return seen
        self.unknown.append(name)
        return stand_in

    def finish(self) -> None:
        """Raise ConfigError if any value stayed unknown, naming all of them."""
        if self.unknown:
            names = ", ".join(dict.fromkeys(self.unknown))
            raise ConfigError(f"{self.source} does not tell: {names}; state them in a file given with --config")


def _shown(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "x".join(str(item) for item in value)
    return str(value)
