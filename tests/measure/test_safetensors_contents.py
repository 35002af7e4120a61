from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from dovit_deploy.errors import InputError
from dovit_deploy.measure.safetensors_contents import SHOWN, safetensors_contents


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "weights.safetensors"
    tensors = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float16), "c": np.zeros((), np.float32)}
    save_file(tensors, target, metadata={"format": "pt"})
    return target


def test_header_in_numbers(path):
    found = safetensors_contents(path)
    assert found.parameters == 11 and found.dtypes == {"F32": 2, "F16": 1}
    assert found.metadata == {"format": "pt"} and found.bytes == path.stat().st_size
    assert {entry.name: entry.shape for entry in found.tensors} == {"a": (2, 3), "b": (4,), "c": ()}


def test_long_lists_are_cut_in_the_text_only(tmp_path):
    target = tmp_path / "many.safetensors"
    save_file({f"t{number}": np.zeros(1, np.float32) for number in range(SHOWN + 5)}, target)
    found = safetensors_contents(target)
    assert len(found.tensors) == SHOWN + 5
    shown = [text for label, text in found.rows if label == "tensor"]
    assert len(shown) == SHOWN + 1 and "5 more" in shown[-1]


def test_a_file_cut_short(path):
    whole = path.read_bytes()
    for length in (0, 4, 8, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            safetensors_contents(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{not json",
        json.dumps({"a": {"dtype": "F32"}}).encode(),
        json.dumps({"__metadata__": {"a": 1}}).encode(),
        b"[" * 50_000,
    ],
)
def test_headers_that_are_none(tmp_path, header):
    target = tmp_path / "bad.safetensors"
    target.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match="not a safetensors file"):
        safetensors_contents(target)


def test_a_length_that_promises_the_world(tmp_path):
    target = tmp_path / "huge.safetensors"
    target.write_bytes((2**63 - 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="length of a header"):
        safetensors_contents(target)
