"""How many tokens run through a layer under fixed selections."""

from __future__ import annotations

from collections.abc import Sequence

from dovit_deploy.bundle.token_selection import Selection, selection_of_layer


def running_tokens(selections: tuple[Selection, ...], kept: Sequence[int] | None, layer: int, everything: int) -> int:
    """Tokens that run through `layer`; everything where nothing is selected or `kept` is None."""
    number = selection_of_layer(selections, layer)
    return everything if kept is None or number is None else kept[number + 1]


def checked_counts(kept: Sequence[int], counts: tuple[int, ...]) -> Sequence[int]:
    """`kept`; raises ValueError unless it has one entry for each of `counts`."""
    if len(kept) != len(counts):
        raise ValueError(f"{len(kept)} token counts for {len(counts)} stages")
    return kept
