"""Which entry of a published checkpoint becomes which of our parameters, and is the checkpoint complete?

Each reader states its project's names as a literal table, official name -> ours, with `{fields}` where names differ:

    "encoder.norm.{entry}": "norm.{entry}",
    "encoder.blocks.{layer}.attn.qkv.{entry}": packed("blocks.{layer}.attention.{part}.{entry}"),

The table is read from our side. Every entry of the network that a spec describes looks for the row that fills it, and
its own shape says which shape the official entry must have. So a table states no widths and no counts, and rows of
parts that a network does not have are never used.

Our names are those of the network in training form, batch norms apart; `folding.deployed` folds them afterwards.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.families.folding import SCALED
from dovit_deploy.families.registry import family_of
from dovit_deploy.families.spec import ModelSpec

COUNTER = ".num_batches_tracked"
"""End of the names of a batch norm's counter, which no network here reads."""
_SHOWN = 4
"""Names listed in a message before only their number is given."""
_LONGEST = 120
"""Characters of a name in a message; official ones with the shapes that follow them have about 90."""


@functools.cache
def name_pattern(text: str) -> re.Pattern[str]:
    """`text` as a pattern of whole names: `*` is a part of a name between two dots, `**` any number of parts."""
    return re.compile(re.escape(text).replace(r"\*\*", ".*").replace(r"\*", "[^.]+"))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """`name` matches one of `patterns` (see `name_pattern`)."""
    return any(name_pattern(pattern).fullmatch(name) for pattern in patterns)


@dataclass(frozen=True, eq=False)
class KeyFacts:
    """Names and shapes of a state dict: what they show of its architecture, however damaged single entries are.

    Patterns are those of `name_pattern`.
    """

    shapes: Mapping[str, tuple[int, ...]]

    def within(self, prefix: str) -> KeyFacts:
        """The entries whose names begin with `prefix`, without it."""
        return KeyFacts({n.removeprefix(prefix): s for n, s in self.shapes.items() if n.startswith(prefix)})

    def has(self, *patterns: str) -> bool:
        """Some name matches one of `patterns`."""
        return any(matches(name, patterns) for name in self.shapes)

    def size(self, *votes: tuple[str, int]) -> int | None:
        """The commonest length that the votes, (pattern of names, axis), find; None if no entry matches.

        The commonest, so that one misshaped entry is reported as such instead of redefining the architecture. Empty
        entries show nothing.
        """
        lengths = Counter(
            shape[axis]
            for pattern, axis in votes
            for name, shape in self.shapes.items()
            if axis < len(shape) and shape[axis] and name_pattern(pattern).fullmatch(name)
        )
        return lengths.most_common(1)[0][0] if lengths else None

    def count(self, prefix: str) -> int | None:
        """How many numbered parts `prefix`.N there are; None for none.

        A number with few entries compared with the others is a stray entry, not a part.
        """
        entries = Counter(self.numbers(prefix))
        if not entries:
            return None
        # Half of the usual number, because a damaged part must still count: its missing entries are what is reported.
        usual = Counter(entries.values()).most_common(1)[0][0]
        return 1 + max(number for number, found in entries.items() if 2 * found >= usual)

    def numbers(self, prefix: str) -> Iterator[int]:
        """N of every entry `prefix`.N.*, once per entry."""
        matches = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in self.shapes)
        return (int(match.group(1)) for match in matches if match)

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


# The right-hand side of a table.

EntryLayout = Literal["same", "batched", "convolution", "transposed", "after_class_token", "doubling"]
"""How the official entry differs from ours in shape; see `_official_shape`."""


@dataclass(frozen=True)
class Ours:
    """Our parameter, and how the official entry that fills it is laid out."""

    name: str
    layout: EntryLayout = "same"
    parts: tuple[str, ...] = ()
    """The official entry holds these, one below the other; each stands for `{part}` in `name`."""
    by_head: bool = False
    """Rows are in order of heads, and within a head in order of parts; the field `heads` is the number of heads."""
    rows: tuple[int, ...] | None = None
    """The official entry (rows, C), or as a batch (1, rows, C), holds these of our rows; not required where ours has
    fewer. Rows that no entry holds stay zero."""


KeyTable = Mapping[str, str | Ours]
"""Official name -> our name alone, where both have one shape, or an `Ours`."""


def packed(name: str, *parts: str) -> Ours:
    """Query, key and value, or other `parts`, in one matrix; `{part}` in `name` stands for each."""
    return Ours(name, parts=parts or ("query", "key", "value"))


def packed_by_head(name: str, *parts: str) -> Ours:
    """Parts in one matrix like `packed`, but first all parts of the first head, then those of the second."""
    return Ours(name, parts=parts, by_head=True)


def batched(name: str) -> Ours:
    """The source stores it as a batch of one."""
    return Ours(name, "batched")


def convolution(name: str) -> Ours:
    """A 1x1 convolution of the source; ours may be the linear layer it amounts to."""
    return Ours(name, "convolution")


def transposed(name: str) -> Ours:
    """A raw parameter that the source uses as x @ W."""
    return Ours(name, "transposed")


def after_class_token(name: str) -> Ours:
    """Position embeddings whose first, the class token's, is dropped."""
    return Ours(name, "after_class_token")


def doubling(name: str) -> Ours:
    """A transposed convolution of kernel and stride 2; ours is the linear layer to 2x2 positions that it amounts to."""
    return Ours(name, "doubling")


def extra_token(index: int) -> Ours:
    """A class or distillation token, one of the rows of `extra_tokens`."""
    return some_rows("extra_tokens", range(index, index + 1))


def some_rows(name: str, *ranges: range) -> Ours:
    """Some of our rows, as a batch of one."""
    return Ours(name, "batched", rows=tuple(itertools.chain(*ranges)))


# From a table to what each official entry must be.


@dataclass(frozen=True)
class Rule:
    """One entry of a published checkpoint: its name and shape, and the parameters of ours that it fills."""

    official: str
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    ours: Ours
    heads: int = 1

    def fill(self, parameters: dict[str, Tensor], entry: Tensor) -> None:
        """Copy `entry`, of `shape`, into `parameters` (our names -> tensors of our shapes)."""
        if self.ours.rows is not None:
            parameters[self.targets[0]][list(self.ours.rows)] = entry[0] if self.ours.layout == "batched" else entry
            return
        if self.ours.layout == "transposed":
            entry = entry.T
        elif self.ours.layout == "after_class_token":
            entry = entry[:, 1:]
        elif self.ours.layout == "doubling":
            # Rows of ours are in order of positions, then of channels; the four positions have one bias.
            entry = entry.permute(2, 3, 1, 0).flatten(0, 2) if entry.dim() > 1 else entry.repeat(4)
        # A weight and its bias are cut alike: only the first axis counts.
        rows = [len(parameters[name]) // self.heads for name in self.targets]
        pieces = [entry]
        if self.ours.parts:
            # Without `by_head`, `heads` is 1, so both orders are split alike.
            by_head = entry.reshape(self.heads, -1, *entry.shape[1:])
            pieces = list(torch.split(by_head, rows, dim=1))
        for name, piece in zip(self.targets, pieces, strict=True):
            parameters[name].copy_(piece.reshape(parameters[name].shape))


@dataclass(frozen=True)
class KeyMap:
    """How the names of one project become ours."""

    table: KeyTable
    """The first row that fits one of our names takes precedence."""
    unused: tuple[str, ...] = ()
    """Patterns of official entries that may be there and are not needed."""
    zero_if_absent: tuple[str, ...] = ()
    """Patterns of official entries that need not be there; ours are zero then."""
    numbers: Callable[[Mapping[str, str]], Mapping[str, int]] | None = None
    """From the fields of our name (name -> text) to those that only the official name, or `by_head`, has."""
    # `str` leaves a name as it is.
    views: tuple[Callable[[str], str], ...] = (str,)
    """A source that registers a module twice has each entry under as many names; each view must be whole."""
    layer_scale: bool = False
    """The source scales what each block's attention and MLP put out: `scale1.factor` and `scale2.factor` of a block."""
    norms_before: tuple[str, ...] = ()
    """Our linear layers before which the source has a batch norm: `prior` beside `projection`."""
    without: tuple[str, ...] = ()
    """Beginnings of our names that the source does not have."""
    given: Mapping[str, Tensor] = field(default_factory=dict)
    """Our entries that the source computes from its configuration and does not store."""

    def training_shapes(self, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
        """Name and shape of what the entries of the source fill: the network of `spec` in training form, with the
        scales and norms that the source keeps apart. `folding.deployed` makes the network of it."""
        shapes = shapes_of(spec, trainable=True)
        elsewhere = family_of(spec).derived | self.given.keys()
        shapes = {
            name: shape for name, shape in shapes.items() if name not in elsewhere and not name.startswith(self.without)
        }
        for layer in self.norms_before:
            weight, bias = shapes.pop(f"{layer}.weight"), shapes.pop(f"{layer}.bias")
            shapes |= {f"{layer}.projection.weight": weight, f"{layer}.projection.bias": bias}
            entries = ("weight", "bias", "running_mean", "running_var")
            shapes |= {f"{layer}.prior.{entry}": weight[1:] for entry in entries}
        if self.layer_scale:
            for scale, layer in SCALED.items():
                ends = [name for name in shapes if name.startswith("blocks.") and name.endswith(f"{layer}.bias")]
                shapes |= {name.removesuffix(f"{layer}.bias") + scale: shapes[name] for name in ends}
        return shapes

    def behind(self, prefix: str) -> KeyMap:
        """The same for a source whose names all begin with `prefix`."""
        return replace(
            self,
            table={f"{prefix}{name}": ours for name, ours in self.table.items()},
            unused=tuple(f"{prefix}{pattern}" for pattern in self.unused),
            zero_if_absent=tuple(f"{prefix}{pattern}" for pattern in self.zero_if_absent),
        )

    def joined(self, other: KeyMap) -> KeyMap:
        """For a source that has the entries of both, as a backbone's and a head's."""
        return replace(
            self,
            table={**self.table, **other.table},
            unused=self.unused + other.unused,
            zero_if_absent=self.zero_if_absent + other.zero_if_absent,
            norms_before=self.norms_before + other.norms_before,
        )

    def rules(self, shapes: Mapping[str, tuple[int, ...]]) -> list[Rule]:
        """What every official entry must be, for a network whose state dict has `shapes`."""
        rows = [(key, ours if isinstance(ours, Ours) else Ours(ours)) for key, ours in self.table.items()]
        found: dict[str, Rule] = {}
        for name in shapes:
            if not name.endswith(COUNTER):
                fitting = self._fitting(name, rows, shapes)
                assert fitting, f"no row of the key table fills {name}"
                # By official name: query, key and value all find the one row that holds them.
                found.update({rule.official: rule for rule in fitting})
        return [replace(rule, official=view(rule.official)) for view in self.views for rule in found.values()]

    def _fitting(
        self, name: str, rows: Sequence[tuple[str, Ours]], shapes: Mapping[str, tuple[int, ...]]
    ) -> list[Rule]:
        """The rule that fills `name`; several where each fills one of its rows."""
        rules: list[Rule] = []
        for key, ours in rows:
            match = _our_pattern(ours).fullmatch(name)
            # A network without a distillation token has `extra_tokens`, too, and no second row in them.
            if match is None or (ours.rows is not None and max(ours.rows, default=0) >= shapes[name][0]):
                continue
            rules.append(self._rule(key, ours, match.groupdict(), shapes))
            if ours.rows is None:
                break
        return rules

    def _rule(self, key: str, ours: Ours, fields: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Rule:
        numbers = self.numbers(fields) if self.numbers else {}
        targets = tuple(ours.name.format(**fields, part=part) for part in ours.parts or ("",))
        shape = _official_shape(ours, [shapes[target] for target in targets])
        heads = numbers["heads"] if ours.by_head else 1
        return Rule(key.format(**{**fields, **numbers}), shape, targets, ours, heads)


@functools.cache
def _our_pattern(ours: Ours) -> re.Pattern[str]:
    """`ours.name` with a named group for each field, which never spans a dot."""
    # `re.escape` escapes the braces, too, so they are matched with their backslashes.
    text = re.escape(ours.name).replace(r"\{part\}", f"(?:{'|'.join(ours.parts)})")
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^.]+)", text))


def _official_shape(ours: Ours, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of an official entry that fills parameters of `shapes`, which differ in their first axis only."""
    shape = (sum(one[0] for one in shapes), *shapes[0][1:])
    if ours.rows is not None:
        shape = len(ours.rows), *shape[1:]
    match ours.layout:
        case "batched":
            return 1, *shape
        case "after_class_token":
            return 1, 1 + shape[0], *shape[1:]
        case "convolution":
            return *shape, *(1,) * (4 - len(shape))
        case "transposed":
            return shape[::-1]
        case "doubling":
            return (shape[1], shape[0] // 4, 2, 2) if len(shape) > 1 else (shape[0] // 4,)
        case "same":
            return shape


# Names, shapes and faults as messages list them.


def shapes_of(spec: ModelSpec, *, trainable: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of every entry of the network's state dict, without allocating it."""
    # On "meta" a network of any size costs neither memory nor time.
    with torch.device("meta"):
        model = family_of(spec).build(spec, trainable=trainable)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def shown(name: str) -> str:
    """A name from a file, for messages: not endless."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."


def listed(names: Iterable[str]) -> str:
    """The first few of `names`, and how many more there are."""
    ordered = list(names)
    rest = len(ordered) - _SHOWN
    return ", ".join(map(shown, ordered[:_SHOWN])) + (f" and {rest} more" if rest > 0 else "")


def refuse_faults(faults: Mapping[str, list[str]], source: str, *, remedy: str = "") -> None:
    """Raise CheckpointMismatch if any list of `faults` (kind -> entries) is not empty; `remedy` is its second line."""
    found = "; ".join(f"{kind}: {listed(names)}" for kind, names in faults.items() if names)
    if found:
        lines = (f"{source} is not a complete checkpoint of its configuration; {found}", remedy)
        raise CheckpointMismatch(*filter(None, lines))


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the entries that hold a NaN or an infinity."""
    return [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
