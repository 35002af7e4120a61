"""Which supported checkpoints is a file most like that is none of them?

Names alone are compared: as they are, without a prefix that most of them have, or with one that a family's have. So the
answer says what would have to be renamed, what is not there, or what has another shape.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from dovit_deploy.checkpoints.keys import KeyFacts, listed, matches, shown
from dovit_deploy.checkpoints.reader import Reader
from dovit_deploy.checkpoints.settings import Sources
from dovit_deploy.errors import CheckpointMismatch, ConfigError

_LEAST = 0.2
"""Share of a file's entries that must fit before a family is worth naming."""

_PARTS = ("backbone.", "encoder.")
"""First parts of names that a part of a network loses where it is stored alone."""


@dataclass(frozen=True)
class Likeness:
    """How well the entries of a file fit the names of one reader."""

    reader: Reader
    facts: KeyFacts
    """Of the file, renamed."""
    fitting: int
    """Entries that have names of the reader's."""
    renaming: str
    """What was done to the names, as in "without 'vit.'"; empty for nothing."""


def no_family(facts: KeyFacts, readers: Iterable[Reader], source: str) -> tuple[str, str]:
    """What to say of a file that no reader recognises, in two lines.

    Args:
        facts: its entries.
        readers: all there are.
        source: its name.
    """
    readers = tuple(readers)
    entries = len(facts.shapes)
    what = f"of its entries: {listed(facts.shapes)}" if entries else "it is empty"
    titles = ", ".join(reader.title for reader in readers)
    nearest = _nearest(facts, readers)
    like = "" if nearest is None else f"; nearest: {_described(nearest, source)}"
    return f"{source} is of no supported family; {what}", f"Supported: {titles}{like}"


def _nearest(facts: KeyFacts, readers: Iterable[Reader]) -> Likeness | None:
    found = [likeness for reader in readers for likeness in _likenesses(facts, reader)]
    # Of equals the first, which renames nothing.
    best = max(found, key=lambda likeness: likeness.fitting, default=None)
    return None if best is None or best.fitting < max(1, _LEAST * len(facts.shapes)) else best


def _likenesses(facts: KeyFacts, reader: Reader) -> list[Likeness]:
    known = re.compile("|".join(_pattern(name) for table in reader.tables for name in table))
    renamings = [("", facts)]
    prefix = _common_prefix(facts)
    if prefix:
        bare = {name.removeprefix(prefix): shape for name, shape in facts.shapes.items()}
        renamings.append((f" without '{shown(prefix)}'", KeyFacts(bare)))
    own = next((part for part in _PARTS if reader.needed[0].startswith(part)), None)
    if own is not None:
        renamings.append((f" with '{own}' before", KeyFacts({own + name: s for name, s in facts.shapes.items()})))
    return [
        Likeness(reader, one, sum(known.fullmatch(name) is not None for name in one.shapes), text)
        for text, one in renamings
    ]


def _pattern(official: str) -> str:
    """A name of a key table as a regular expression."""
    return re.sub(r"\\\{\w+\\\}", "[^.]+", re.escape(official))


def _common_prefix(facts: KeyFacts) -> str:
    """The first part of most names, with its dot; empty where they have none in common."""
    firsts = Counter(name.split(".")[0] + "." for name in facts.shapes if "." in name)
    prefix, count = firsts.most_common(1)[0] if firsts else ("", 0)
    return prefix if 2 * count > len(facts.shapes) else ""


def _described(nearest: Likeness, source: str) -> str:
    fault = _first_fault(nearest, source)
    how = f"{nearest.fitting} of {len(nearest.facts.shapes)} entries fit{nearest.renaming}"
    return f"{nearest.reader.title} ({how}{f'; {fault}' if fault else ''})"


def _first_fault(nearest: Likeness, source: str) -> str:
    """The first entry that is not there or has another shape, as far as names and shapes show it."""
    facts = nearest.facts
    absent = next((pattern for pattern in nearest.reader.needed if not facts.has(pattern)), None)
    if absent is not None:
        return f"there is no {absent}"
    try:
        architecture = nearest.reader.architecture(Sources("", {}, facts, source))
    except (ConfigError, CheckpointMismatch, ValidationError):
        return ""
    for rule in architecture.key_map.rules(architecture.key_map.training_shapes(architecture.spec)):
        shape = facts.shapes.get(rule.official)
        if shape is None and not matches(rule.official, architecture.key_map.zero_if_absent):
            return f"there is no {rule.official}"
        if shape is not None and shape != rule.shape:
            return f"{rule.official} is {list(shape)} instead of {list(rule.shape)}"
    return ""
