"""Text of options to values, with one-line errors."""

from __future__ import annotations

import pytest

from dovit_deploy.commands import arguments as parse
from dovit_deploy.errors import UsageError


def test_values() -> None:
    assert parse.thresholds(None) is None
    assert parse.thresholds("0.9") == (0.9,)
    assert parse.thresholds("0,1,0.5") == (0.0, 1.0, 0.5)
    assert parse.size("512x1024", option="--size") == (512, 1024)
    assert parse.size("64X32", option="--size") == (64, 32)
    assert parse.triple("1,2.5,3", option="--mean") == (1.0, 2.5, 3.0)
    assert parse.names("masks, overlay", option="--save", allowed=("overlay", "masks")) == ("masks", "overlay")


@pytest.mark.parametrize("text", ["", "a", "1.01", "-0.01", "nan", "inf", "0.5,", "0.5;0.6"])
def test_bad_thresholds(text: str) -> None:
    with pytest.raises(UsageError, match="--threshold"):
        parse.thresholds(text)


@pytest.mark.parametrize("text", ["512", "x", "512x", "ax5", "1x2x3", "-1x5", "5.5x5"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="--size"):
        parse.size(text, option="--size")


@pytest.mark.parametrize("text", ["1,2", "1,2,3,4", "r,g,b"])
def test_bad_triples(text: str) -> None:
    with pytest.raises(UsageError, match="--mean"):
        parse.triple(text, option="--mean")


@pytest.mark.parametrize("text", ["", "images", "overlay,x"])
def test_bad_names(text: str) -> None:
    with pytest.raises(UsageError, match="overlay, masks"):
        parse.names(text, option="--save", allowed=("overlay", "masks"))
