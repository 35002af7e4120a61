from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.measure.protobuf import bytes_of, chunk, fields, integer, integers_of, text_of

NUMBERS = st.integers(1, 2000)
ENTRIES = st.lists(
    st.tuples(NUMBERS, st.one_of(st.integers(0, 2**63 - 1), st.binary(max_size=200))), min_size=1, max_size=8
)


def encoded(entries):
    return b"".join(
        integer(number, value) if isinstance(value, int) else chunk(number, value) for number, value in entries
    )


@settings(max_examples=60, derandomize=True)
@given(ENTRIES)
def test_what_is_written_is_read(entries):
    read = [
        (number, value if isinstance(value, int) else bytes(value))
        for number, value in fields(memoryview(encoded(entries)))
    ]
    assert read == entries


@settings(max_examples=60, derandomize=True)
@given(ENTRIES, st.data())
def test_a_message_cut_inside_a_field_is_refused(entries, data):
    whole = encoded(entries)
    starts = {len(encoded(entries[:count])) for count in range(len(entries) + 1)}
    length = data.draw(st.integers(1, len(whole) - 1))
    if length in starts:
        assert len(list(fields(memoryview(whole[:length])))) < len(entries)
    else:
        with pytest.raises(ValueError):
            list(fields(memoryview(whole[:length])))


def test_known_bytes_of_the_encoding_guide():
    # The guide's own examples: field 1 = 150, and field 2 = "testing".
    assert integer(1, 150) == bytes.fromhex("089601")
    assert chunk(2, "testing") == bytes.fromhex("120774657374696e67")
    assert text_of(memoryview(bytes.fromhex("120774657374696e67")), 2) == "testing"


def test_integers_one_by_one_or_packed_and_negative():
    packed = memoryview(chunk(4, bytes.fromhex("038e029ea705")))
    assert integers_of(packed, 4) == [3, 270, 86942]
    assert integers_of(memoryview(integer(4, 3) + integer(5, 9) + integer(4, 270)), 4) == [3, 270]
    assert integers_of(memoryview(bytes.fromhex("08ffffffffffffffffff01")), 1) == [-1]


def test_fixed_width_fields_are_passed_over():
    message = memoryview(bytes.fromhex("0d00000000" + "110000000000000000") + chunk(3, b"x"))
    assert [bytes(value) for value in bytes_of(message, 3)] == [b"x"]


@pytest.mark.parametrize("text", ["00", "0b", "ff" * 11, "0aff01"])
def test_no_message(text):
    with pytest.raises(ValueError):
        list(fields(memoryview(bytes.fromhex(text))))
