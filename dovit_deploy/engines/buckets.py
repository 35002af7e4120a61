"""Buckets: the few token counts that an engine really runs; every other count is rounded up to the next of them.

A bucket has tuned kernels, an execution context and a CUDA graph of its own. What is rounded up is masked in the graph
(padded_form.py), so that the result is that of the count itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovit_deploy.bundle.manifest import TokenCount
from dovit_deploy.errors import InputError

STEPS = 16
"""Buckets of a profile that spans a range: at most a sixteenth of its largest count runs in vain."""


@dataclass(frozen=True)
class Bucket:
    """A token count, and the optimisation profile that runs it."""

    size: int
    profile: int


ONLY = (Bucket(0, 0),)
"""What a graph of one size has."""


def buckets_from_profiles(profiles: Sequence[TokenCount]) -> tuple[Bucket, ...]:
    """The buckets of an engine, ascending: the size of each exact profile, and `STEPS` even ones of each range."""
    if not profiles:
        return ONLY
    sizes: dict[int, int] = {}
    # Of two profiles that take a size, the narrower is tuned better for it.
    for number in sorted(range(len(profiles)), key=lambda place: profiles[place].minimum - profiles[place].maximum):
        counts = profiles[number]
        steps = {max(counts.minimum, -(-counts.maximum * step // STEPS)) for step in range(1, STEPS + 1)}
        exact = counts.minimum == counts.maximum
        sizes.update(dict.fromkeys({counts.maximum} if exact else steps, number))
    return tuple(Bucket(size, sizes[size]) for size in sorted(sizes))


def bucket_for_count(buckets: Sequence[Bucket], count: int, *, graph: str) -> Bucket:
    """The smallest bucket that holds `count` tokens.

    Raises:
        InputError: none does.
    """
    for bucket in buckets:
        if bucket.size >= count:
            return bucket
    raise InputError(
        f"{graph}: {count} tokens run, its engine was built for at most {buckets[-1].size}; "
        f"build it for more: dovit build BUNDLE --buckets {count}"
    )
