"""Where does each value of a network come from, and what if its sources contradict each other or none knows it?

A reader states every value as one `SpecValue`: its key in the configuration, what the checkpoint's entries show, and a
default. `Sources` resolves it: what is stated must not contradict the entries; what no source knows is named at the
end, all such values at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from pydantic import ValidationError

from dovit_deploy.checkpoints.configuration import refuse_unknown
from dovit_deploy.checkpoints.keys import KeyFacts
from dovit_deploy.documents import fault_of
from dovit_deploy.errors import ConfigError, UsageError, shown
from dovit_deploy.printing import plural

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Section:
    """Named settings of one part of a configuration; every reading method gives None where nothing is stated."""

    path: str
    """Dotted, for messages; empty at the top."""
    values: Mapping[str, object]

    def name(self, key: str) -> str:
        """The full name of `key`."""
        return f"{self.path}.{key}" if self.path else key

    def only(self, known: frozenset[str]) -> Section:
        """This section, after refusing names beyond `known` and the training-only ones."""
        refuse_unknown(self.values, known, self.path, "the configuration")
        return self

    def wrong(self, key: str, wanted: str) -> ConfigError:
        """The error for a value that is not what it must be."""
        # `get`, because a fault that the keys show need not be stated anywhere.
        return ConfigError(
            f"the configuration: '{self.name(key)}' is {shown(self.values.get(key), quoted=True)}; {wanted}"
        )

    def section(self, key: str) -> Section | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object with names is needed")
        return Section(self.name(key), value)

    def integer(self, key: str) -> int | None:
        value = self.values.get(key)
        if value is None:
            return None
        # A bool is an int in Python.
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "a whole number is needed")
        return value

    def positive(self, key: str) -> int | None:
        """A whole number above 0."""
        value = self.integer(key)
        if value is not None and value < 1:
            raise self.wrong(key, "a whole number above 0 is needed")
        return value

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
        # One number is its own first and last.
        return value[0], value[-1]

    def number(self, key: str) -> float | None:
        """A finite number."""
        value = self.values.get(key)
        return None if value is None else self._finite(key, value)

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """A list of finite numbers."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise self.wrong(key, "a list of numbers is needed")
        return tuple(self._finite(key, item) for item in value)

    def _finite(self, key: str, value: object) -> float:
        # JSON as Python reads it has NaN and Infinity.
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, "a number is needed")
        return float(value)

    def flag(self, key: str) -> bool | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false is needed")
        return value

    def text(self, key: str) -> str | None:
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

    def must_all_be(self, supported: Mapping[str, tuple[object, ...]]) -> None:
        """`must_be` for each key of `supported`."""
        for key, values in supported.items():
            self.must_be(key, *values)


@dataclass(frozen=True, eq=False)
class SpecValue(Generic[T_co]):
    """One value of a network and where it comes from, in order of precedence: configuration, entries, default.

    A value that another depends on is looked up by the functions themselves: `sources[WIDTH]`.
    """

    key: str
    """In the configuration."""
    stated: Callable[[Sources, str], T_co | None]
    """Reads it there; most are methods of `Section`."""
    placeholder: T_co
    """Keeps the work going until `Sources.finish` names what is unknown."""
    shown: Callable[[Sources], T_co | None] | None = None
    """What the checkpoint's entries show; must equal what is stated."""
    default: Callable[[Sources], T_co | None] | None = None
    label: str = ""
    """For messages, where the key alone would not say what was compared."""


@dataclass(frozen=True)
class Sources(Section):
    """One part of a network: its section of the configuration, and the entries of the checkpoint that belong to it."""

    facts: KeyFacts
    """Names of the part's entries without the part's own prefix."""
    checkpoint: str
    """File name, for messages."""
    thresholds: Sequence[float] | None = None
    """The caller's, which take precedence over the configuration."""
    unknown: list[str] = field(default_factory=list)
    """Full names of values that no source knows; shared by all parts of a network."""
    _resolved: dict[object, object] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getitem__(self, wanted: SpecValue[T]) -> T:
        """The value itself, resolved.

        Raises:
            ConfigError: the configuration and the entries contradict each other.
        """
        # Once: others depend on it, and an unknown value must be named a single time.
        if wanted not in self._resolved:
            self._resolved[wanted] = self._resolve(wanted)
        return cast("T", self._resolved[wanted])

    def _resolve(self, wanted: SpecValue[T]) -> T:
        label = wanted.label or wanted.key
        value = self.agreed(label, wanted.stated(self, wanted.key), wanted.shown(self) if wanted.shown else None)
        # A default fills a gap; it is nothing that the configuration could contradict.
        if value is None and wanted.default is not None:
            value = wanted.default(self)
        if value is not None:
            return value
        self.unknown.append(self.name(label))
        return wanted.placeholder

    def agreed(self, key: str, stated: T | None, shown: T | None) -> T | None:
        """Whichever of the two there is.

        Raises:
            ConfigError: there are both, and they differ.
        """
        if stated is not None and shown is not None and stated != shown:
            raise ConfigError(
                f"'{self.name(key)}' is {_as_text(stated)} in the configuration and {_as_text(shown)} in the keys of "
                f"{self.checkpoint}; give the configuration this checkpoint was trained with"
            )
        return shown if stated is None else stated

    def present(self, key: str, pattern: str, *, default: bool = False) -> bool:
        """Whether an optional part exists: as stated, else as its entries (`pattern`) show, else `default`.

        Stated and not there is a missing entry, which is reported later; there and denied is a contradiction.
        """
        stated, shown = self.flag(key), self.facts.has(pattern)
        if stated is False and shown:
            raise ConfigError(f"'{self.name(key)}' is false in the configuration, and the checkpoint has its entries")
        return stated if stated is not None else shown or default

    def part(self, key: str, entries: str) -> Sources:
        """The part that is stated under `key`, empty where nothing is, and whose entries begin with `entries`.

        Raises:
            ConfigError: several parts are stated in a list.
        """
        value = self.values.get(key)
        if isinstance(value, list | tuple):
            raise ConfigError(f"'{key}' is a list of {len(value)}; only one is supported")
        stated = self.section(key) or Section(self.name(key), {})
        # One list for all parts, so that `finish` names everything at once.
        return Sources(
            stated.path, stated.values, self.facts.within(entries), self.checkpoint, self.thresholds, self.unknown
        )

    def finish(self) -> None:
        """Raise ConfigError if any value stayed unknown, naming all of them."""
        if self.unknown:
            names = ", ".join(dict.fromkeys(self.unknown))
            raise ConfigError(
                f"these values cannot be determined from {self.checkpoint}: {names}; "
                "state them in a file given with --config"
            )


def _as_text(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "x".join(str(item) for item in value)
    return str(value)


def invalid_as_config_error(error: ValidationError, source: str) -> ConfigError:
    """The first complaint of a spec as an error of the configuration."""
    return ConfigError(f"the configuration of {source} makes no network: {fault_of(error, with_value=True)}")


# What the entries show, for `SpecValue.shown`.


def size(*votes: tuple[str, int]) -> Callable[[Sources], int | None]:
    """The commonest length that the votes, (pattern of names, axis), find."""
    return lambda sources: sources.facts.size(*votes)


def count(prefix: str) -> Callable[[Sources], int | None]:
    """How many numbered parts `prefix`.N there are."""
    return lambda sources: sources.facts.count(prefix)


def has(pattern: str) -> Callable[[Sources], bool | None]:
    """Whether any entry matches."""
    return lambda sources: sources.facts.has(pattern)


# Values that several readers have.


def training_size(
    key: str, *, positions: str, extra: Callable[[Sources], int], patch: Callable[[Sources], int]
) -> SpecValue[tuple[int, int]]:
    """Height and width that the position embeddings were made for, in whole patches.

    A stated size is checked against the number of embeddings; without one, a square grid shows the size.

    Args:
        key: where the size may be stated.
        positions: pattern of the name of the position embeddings (1, extra + N, C).
        extra: embeddings before the grid's.
        patch: side of a patch in pixels.
    """

    def stated(sources: Sources, key: str) -> tuple[int, int] | None:
        pixels, total, side = sources.pair(key), sources.facts.size((positions, 1)), patch(sources)
        if pixels is None:
            return None
        # Rounded down, as the sources do: they have positions for whole patches only.
        rows, columns = pixels[0] // side, pixels[1] // side
        if total is not None and rows * columns != total - extra(sources):
            raise ConfigError(
                f"'{sources.name(key)}' {pixels[0]}x{pixels[1]} makes {rows}x{columns} patches of {side}, and "
                f"{sources.checkpoint} has position embeddings for {total - extra(sources)}; "
                "give the size it was trained at"
            )
        return rows * side, columns * side

    def square(sources: Sources) -> tuple[int, int] | None:
        side = sources.facts.square_grid(positions, extra(sources))
        return None if side is None else (side * patch(sources),) * 2

    # The square is a default, not what the entries show: four embeddings may be 1x4 as well as 2x2.
    return SpecValue(key, stated, placeholder=(16, 16), default=square)


def thresholds_per_gate(
    values: Sequence[float], gates: int, kind: type[ConfigError] | type[UsageError]
) -> tuple[float, ...]:
    """`values`, one for all gates or one for each, as one for each.

    Raises:
        UsageError, ConfigError: whichever is `kind`; outside [0, 1], or of the wrong number.
    """
    if gates == 0:
        raise kind("a network without gates takes no thresholds; leave --threshold out")
    if len(values) not in (1, gates):
        raise kind(f"{plural(len(values), 'threshold')} for {plural(gates, 'gate')}; give one for all, or one per gate")
    if not all(0.0 <= value <= 1.0 for value in values):
        raise kind(f"thresholds {', '.join(map(str, values))}: each must lie between 0 and 1")
    return tuple(float(value) for value in values) * (gates if len(values) == 1 else 1)
