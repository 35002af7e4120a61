"""Section: a part of a configuration with typed reading. Ledger: stated values against what the keys show."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from dovit_deploy.bundle.manifest import ClassEntry, check_number, entries_from_lists
from dovit_deploy.checkpoints.configuration import refuse_unknown
from dovit_deploy.checkpoints.keys import Rule
from dovit_deploy.errors import ConfigError, UsageError
from dovit_deploy.families.any_spec import AnySpec

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


# What the names and shapes of a state dict tell about its architecture, however damaged single entries are.


@dataclass(frozen=True)
class KeyFacts:
    """Names and shapes of a state dict."""

    shapes: Mapping[str, tuple[int, ...]]

    def has(self, pattern: str) -> bool:
        """Some name matches the regular expression as a whole."""
        return any(re.fullmatch(pattern, name) for name in self.shapes)

    def size(self, *votes: tuple[str, int]) -> int | None:
        """The commonest length that the votes, (pattern of names, axis), find; None if no entry matches.

        The commonest, so that one misshaped entry is reported as such instead of redefining the architecture.
        """
        lengths = Counter(
            shape[axis]
            for pattern, axis in votes
            for name, shape in self.shapes.items()
            if axis < len(shape) and re.fullmatch(pattern, name)
        )
        return lengths.most_common(1)[0][0] if lengths else None

    def count(self, prefix: str) -> int | None:
        """How many numbered parts `prefix`.N there are; None for none.

        A number with few entries beside its fellows is a stray entry, not a part.
        """
        matches = (re.match(rf"{prefix}\.(\d+)\.", name) for name in self.shapes)
        entries = Counter(int(match.group(1)) for match in matches if match)
        if not entries:
            return None
        usual = Counter(entries.values()).most_common(1)[0][0]
        return 1 + max(number for number, found in entries.items() if 2 * found >= usual)

    def square_grid(self, positions: str, extra: int) -> int | None:
        """Side of the grid of the position embeddings (1, extra + side^2, C), if they make a square."""
        total = self.size((positions, 1))
        if total is None or total <= extra:
            return None
        side = math.isqrt(total - extra)
        return side if side * side == total - extra else None


def facts_from_state(state: Mapping[str, object]) -> KeyFacts:
    """Names and shapes of `state` (names -> tensors)."""
    return KeyFacts({name: tuple(getattr(tensor, "shape", ())) for name, tensor in state.items()})


# Architecture: what a configuration and the keys together say, and the steps that every family takes to it.


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


# Mean, standard deviation, class names and colours: from the caller, the configuration, the meta, else assumed.

Triple = tuple[float, float, float]
IMAGENET: tuple[Triple, Triple] = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""Mean and standard deviation of red, green and blue in 0..255."""
HALF: tuple[Triple, Triple] = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
"""Of Segmenter's models that start from Google's ViT ("vit")."""
IMAGE_SETTINGS = frozenset(
    {
        *("data_preprocessor", "img_norm_cfg", "classes", "palette", "CLASSES", "PALETTE"),
        *("metainfo", "dataset_meta"),
    }
)
_PREPROCESSOR = frozenset(
    {
        *("type", "mean", "std", "bgr_to_rgb", "rgb_to_bgr", "pad_val", "seg_pad_val", "size", "size_divisor"),
        *("test_cfg", "batch_augments", "to_rgb"),
    }
)


def mean_and_std(
    settings: Mapping[str, object], *, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Triple, Triple, bool]:
    """Mean and standard deviation for an RGB image of 0..255, and whether they are merely assumed.

    Args:
        settings: of the configuration.
        mean: the caller's, which has the say.
        std: the caller's; given together with `mean` or not at all.

    Raises:
        UsageError: only one of `mean` and `std` is given, or they are no colours.
        ConfigError: the configuration's are no colours, or not in the order red, green, blue.
    """
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std belong together; give both or neither")
    if mean is not None and std is not None:
        return *_checked(mean, std, UsageError("--mean and --std need three numbers each, --std above 0")), False
    section = Section("", settings)
    for key in ("data_preprocessor", "img_norm_cfg"):
        stated = section.section(key)
        if stated is not None and (stated.values.get("mean") is not None or stated.values.get("std") is not None):
            stated.only(_PREPROCESSOR)
            _refuse_other_order(stated)
            wrong = ConfigError(f"'{key}' needs 'mean' and 'std' of three numbers each, 'std' above 0")
            return *_checked(stated.numbers("mean") or (), stated.numbers("std") or (), wrong), False
    named = _normalization(section)
    return *(named or IMAGENET), named is None


def _checked(mean: Sequence[float], std: Sequence[float], wrong: Exception) -> tuple[Triple, Triple]:
    finite = all(abs(value) < 1e6 for value in (*mean, *std))
    if len(mean) != 3 or len(std) != 3 or not finite or min(std) <= 0:
        raise wrong
    return (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))


def _refuse_other_order(stated: Section) -> None:
    # A network fed with blue first would need its own kind of preprocessing; none of the sources has one.
    stated.must_be("bgr_to_rgb", True)
    stated.must_be("to_rgb", True)
    stated.must_be("rgb_to_bgr", False)


def _normalization(section: Section) -> tuple[Triple, Triple] | None:
    """Segmenter's name for a mean and standard deviation."""
    for place in (section.section("dataset_kwargs"), section):
        name = place.text("normalization") if place is not None else None
        if name is not None and place is not None:
            place.must_be("normalization", "vit", "deit")
            return HALF if name == "vit" else IMAGENET
    return None


def class_entries(
    settings: Mapping[str, object],
    meta: Mapping[str, object],
    count: int,
    *,
    given: Sequence[ClassEntry] | None,
) -> tuple[ClassEntry, ...]:
    """`count` classes with names and colours; generated where nobody names or paints them.

    Raises:
        InputError: the caller's are not `count`.
        ConfigError: the configuration's or the meta's are not `count`, or no names and colours.
    """
    if given is not None:
        return check_number(given, count)
    if count == 0:
        # A backbone: what its detector tells apart is none of its affair.
        return ()
    names = _first_list(settings, meta, ("classes", "CLASSES"))
    colors = _first_list(settings, meta, ("palette", "PALETTE"))
    return entries_from_lists(names, colors, count, ConfigError)


def _first_list(
    settings: Mapping[str, object], meta: Mapping[str, object], keys: tuple[str, ...]
) -> Sequence[object] | None:
    """The first list called one of `keys`: in the configuration, its dataset's description, then the meta."""
    places = [settings, settings.get("metainfo"), settings.get("dataset_meta"), meta, meta.get("dataset_meta")]
    for place in [place for place in places if isinstance(place, Mapping)]:
        for key in keys:
            value = place.get(key)
            value = value.tolist() if isinstance(value, np.ndarray) else value
            if isinstance(value, list | tuple) and value:
                return value
    return None


# Reader: how the checkpoints of one project are recognised and understood.

OfficialState = Mapping[str, Tensor]


class Understand(Protocol):
    """From settings and keys to the network."""

    def __call__(
        self,
        settings: Mapping[str, object],
        facts: KeyFacts,
        source: str,
        *,
        thresholds: Sequence[float] | None,
    ) -> Architecture:
        """The architecture; `source` is the file's name for messages, `thresholds` the caller's, who has the say.

        Raises:
            ConfigError: values unknown, unsupported, or contradicting the keys.
            CheckpointMismatch: the keys are those of another network.
        """


def _as_it_is(state: OfficialState, source: str) -> OfficialState:
    del source
    return state


@dataclass(frozen=True)
class Reader:
    """Each module that `readers` names defines one, called `READER`."""

    recognises: Callable[[KeyFacts], bool]
    """Whether the names of a state dict are this project's."""
    settings: frozenset[str]
    """What its configurations may say."""
    architecture: Understand
    prepared: Callable[[OfficialState, str], OfficialState] = _as_it_is
    """The state dict with what the project stores twice or derives taken out; `(state, source)`.

    Raises CheckpointMismatch where the copies differ.
    """
