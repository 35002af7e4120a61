"""Readers against odd bytes: a little always, and minutes of coverage-guided fuzzing on request (docs/fuzzing.md).

What fuzzing found stays here as a test of its own.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import time
import tracemalloc
from importlib.util import find_spec
from pathlib import Path

import pytest

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.checkpoints.pickles import load
from dovit_deploy.errors import InputError
from tests.fuzz.__main__ import findings, run_for
from tests.fuzz.odd_json import odd
from tests.fuzz.readers import READERS, complaint

MINUTES = float(os.environ.get("DOVIT_FUZZ_MINUTES", "10"))
CHANGES = 60
"""Changed inputs of each seed in the default run."""
SECONDS = 2.0
"""For one input, on a busy machine."""


def read(name: str, given: bytes, folder: Path) -> None:
    """Read an input; an assertion fails where it is neither accepted nor refused as it should be."""
    began = time.process_time()
    try:
        READERS[name].read(folder, given)
    except Exception as error:
        reason = complaint(error)
        if reason is not None:
            raise AssertionError(f"{reason}: {given[:500]!r}") from error
    finally:
        for path in folder.iterdir():
            path.unlink()
    assert time.process_time() - began < SECONDS, given[:500]


@pytest.mark.parametrize("name", READERS)
def test_changed_inputs_are_read_or_refused(tmp_path: Path, name: str) -> None:
    draw = random.Random(0)
    for form, data in READERS[name].seeds():
        read(name, READERS[name].input_from(form, data), tmp_path)
        # Large ones take long to read, and what they hold is in the small ones too.
        for seed in range(CHANGES if len(data) < 10_000 else 3):
            changed = odd(data, seed) or _damaged(data, draw)
            read(name, READERS[name].input_from(form, changed), tmp_path)


def _damaged(data: bytes, draw: random.Random) -> bytes:
    """Cut short, or with some bytes changed."""
    if draw.random() < 0.2:
        return data[: draw.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(data))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    return bytes(changed)


def test_a_storage_larger_than_its_file_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    data = next(data for form, data in READERS["checkpoint"].seeds() if form == "pth" and not data.startswith(b"PK"))
    # torch.FloatStorage of 4 values on the CPU, as the older format states it.
    stated = b"X\x03\x00\x00\x00cpuq"
    begin = data.index(stated) + len(stated) + 1
    assert data[begin : begin + 2] == b"K\x04"
    huge = data[:begin] + b"\x8a\x05\x00\x00\x00\x00\x09" + data[begin + 2 :]
    (tmp_path / "huge.pth").write_bytes(huge)
    with pytest.raises(InputError, match="more values than it has bytes"):
        checkpoint_from_path(tmp_path / "huge.pth")


def test_a_byte_array_larger_than_its_file_takes_no_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    with pytest.raises((EOFError, pickle.UnpicklingError)):
        load(io.BytesIO(b"\x80\x05\x96" + struct.pack("<Q", 1 << 30) + b"x."))
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


@pytest.mark.fuzz
@pytest.mark.skipif(find_spec("atheris") is None, reason="needs atheris: pip install atheris")
@pytest.mark.parametrize("name", READERS)
def test_coverage_guided_fuzzing_finds_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "findings").mkdir()
    tried = run_for(name, tmp_path, 60 * MINUTES)
    found = [f"{path.name}: {path.read_text(errors='replace')[:300]}" for path in findings(tmp_path)]
    assert not found, "\n".join(found)
    assert tried > 0, (tmp_path / "log.txt").read_text(errors="replace")[-2000:]
