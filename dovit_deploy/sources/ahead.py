"""How are the first frames of a source looked at before it is run, without opening it twice?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from dovit_deploy.sources.source import FailedFrame, Frame, Source


class FramesAhead:
    """All frames of a source, once, also those that `first` looked at before.

    Args:
        source: not iterated yet; it stays the caller's to close.
    """

    def __init__(self, source: Source) -> None:
        self._rest = iter(source)
        self._taken: list[Frame | FailedFrame] = []

    def first(self, count: int) -> list[Frame]:
        """Those of the next `count` that can be read; the others are reported when their turn comes.

        Raises:
            SourceError: what the source itself raises.
        """
        self._taken += itertools.islice(self._rest, count)
        return [item for item in self._taken if isinstance(item, Frame)]

    def __iter__(self) -> Iterator[Frame | FailedFrame]:
        while self._taken:
            # Let go at once: a frame may be tens of megabytes.
            yield self._taken.pop(0)
        yield from self._rest
