"""Search and check part: every image in one of them, neighbours together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.split import halves


@settings(max_examples=30, derandomize=True)
@given(st.integers(5, 200), st.integers(0, 3))
def test_every_image_is_in_one_part_and_blocks_stay_whole(count: int, seed: int) -> None:
    parts = halves([f"drive_{number:04}" for number in range(count)], seed=seed)
    assert sorted((*parts.search, *parts.check)) == list(range(count))
    of = [{int(parts.blocks.number[index]) for index in part} for part in (parts.search, parts.check)]
    assert not of[0] & of[1]
    assert min(len(part) for part in of) >= 2
    assert abs(len(of[0]) - len(of[1])) <= 1


def test_the_seed_decides() -> None:
    stems = [f"a_{number}" for number in range(100)]
    assert halves(stems, seed=1).search == halves(stems, seed=1).search
    assert halves(stems, seed=1).search != halves(stems, seed=2).search


def test_blocks_of_a_part_are_numbered_from_zero() -> None:
    parts = halves([f"a_{number}" for number in range(100)], seed=0)
    blocks = parts.blocks_of(parts.check)
    assert blocks.count == len(set(blocks.number.tolist())) == 5
    assert len(blocks.number) == len(parts.check)


def test_too_few_images() -> None:
    with pytest.raises(DatasetError, match="3 images"):
        halves(["a", "b", "c"], seed=0)
