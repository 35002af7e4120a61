"""What the names and shapes of a state dict tell about its architecture, however damaged single entries are."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


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
