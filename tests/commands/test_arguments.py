"""Text of options to values, with one-line errors."""

from __future__ import annotations

import pytest

from dovit_deploy.commands import arguments as parse
from dovit_deploy.errors import UsageError, shown
from tests.conftest import Run


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


@pytest.mark.parametrize("text", ["512", "x", "512x", "ax5", "1x2x3", "-1x5", "5.5x5", "²x64", "64x٣", f"1x{10**30}"])
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


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--every", "1" + "0" * 30), ("--max-frames", "1" + "0" * 30), ("--start", "1e300"), ("--end", "inf")),
        *(("--threads", "2e9"), ("--threads", "2000000000"), ("--max-pixels", "1" + "0" * 30)),
    ],
)
def test_numbers_beyond_reason_are_refused(dovit: Run, flag: str, value: str) -> None:
    done = dovit("run", "nothing.png", flag, value)
    assert done.returncode == 2 and flag in done.stderr and "Traceback" not in done.stderr
    assert value in done.stderr


@pytest.mark.parametrize("value", ["x", "²", "0", "9" * 4000, "9" * 5000])
def test_a_whole_number_that_is_refused_is_repeated_and_shortened(dovit: Run, value: str) -> None:
    done = dovit("run", "nothing.png", "--every", value)
    assert done.returncode == 2
    message = done.stderr.splitlines()[0]
    assert f"'{shown(value)}' was given" in message and len(message) < 400


@pytest.mark.parametrize("given", [(), ("remove",)], ids=["none", "unknown"])
def test_choices_are_listed_in_the_line_of_the_error(dovit: Run, given: tuple[str, ...]) -> None:
    message = dovit("cache", *given).stderr.splitlines()[0]
    assert message.startswith("error: ") and "ls" in message and "prune" in message
    assert "\\n" not in message and message.count("remove") == len(given)
