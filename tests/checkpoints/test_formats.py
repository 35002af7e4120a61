"""Formats: the content of a file decides how it is read, and what is no checkpoint is called by its name."""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dovit_deploy.checkpoints.formats import format_of
from dovit_deploy.checkpoints.weights_file import weights_from_file
from dovit_deploy.errors import DovitError, InputError, PickleRefused

STATE = {"a.weight": torch.arange(4.0)}


def saved(path: Path, contents: object) -> Path:
    torch.save(contents, path)
    return path


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin", "weights"])
def test_names_do_not_decide(tmp_path: Path, suffix: str) -> None:
    save_file(STATE, tmp_path / f"tensors.{suffix}")
    saved(tmp_path / f"torch.{suffix}", {"state_dict": STATE})
    for name, kind in (("tensors", "safetensors"), ("torch", "torch")):
        path = tmp_path / f"{name}.{suffix}"
        assert format_of(path) == kind
        assert torch.equal(weights_from_file(path, allow_pickle=False).state["a.weight"], STATE["a.weight"])


def _zipped(name: str, content: bytes) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as archive:
        archive.writestr(name, content)
    return result.getvalue()


def _tarred() -> bytes:
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return result.getvalue()


def _arrays() -> bytes:
    result = io.BytesIO()
    np.savez(result, a=np.zeros(2), b=np.zeros(2))
    return result.getvalue()


OTHERS = {
    "an ONNX graph": b"\x08\x0a\x12\x07pytorch\x1a\x012",
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "a GGUF file": b"GGUF" + bytes(40),
    "compressed with gzip": gzip.compress(b"weights"),
    "a tar archive": _tarred(),
    "a RAR archive": b"Rar!\x1a\x07\x01\x00" + bytes(20),
    "archive of NumPy arrays": _arrays(),
    "unpack it": _zipped("folder/model.pth", b"x"),
    "no checkpoint is in it": _zipped("readme.txt", b"x"),
    "a plain pickle": pickle.dumps({"state_dict": {"a": 1}}, 2),
    "is empty": b"",
    "neither safetensors nor a file of torch.save": b"{'a': 1}",
}


@pytest.mark.parametrize("words", OTHERS)
def test_what_other_tools_write_is_called_by_its_name(tmp_path: Path, words: str) -> None:
    path = tmp_path / "m.pth"
    path.write_bytes(OTHERS[words])
    with pytest.raises(InputError, match=words):
        weights_from_file(path, allow_pickle=False)


def test_an_archive_whose_table_of_contents_begins_nowhere(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pth", STATE)
    data = bytearray(path.read_bytes())
    # Where the table begins, in the end record of an archive for large files: torch seeks to a negative place.
    begins = data.rindex(b"PK\x06\x06") + 48
    data[begins : begins + 8] = (2**64 - 256).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        format_of(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_program_is_called_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "m.zip")
    shutil.move(tmp_path / "m.zip", path)
    with pytest.raises(PickleRefused, match="TorchScript"):
        weights_from_file(path, allow_pickle=True)


def _quantised() -> Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_quantised, "a quantised tensor"),
        (lambda: torch.empty(2, device="meta"), "no values"),
        (lambda: torch.eye(2).to_sparse(), "a sparse tensor"),
    ],
)
def test_special_tensors_are_refused_however_they_were_read(
    tmp_path: Path, make: Callable[[], Tensor], words: str, allow: bool
) -> None:
    path = saved(tmp_path / "m.pth", {"state_dict": {"a": make()}})
    with pytest.raises(PickleRefused, match=words) as refused:
        weights_from_file(path, allow_pickle=allow)
    assert "--allow-pickle" not in str(refused.value)


def test_a_module_that_is_allowed_gives_its_weights(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pth", {"model": nn.Linear(2, 1), "epoch": 3})
    assert weights_from_file(path, allow_pickle=True).state.keys() == {"weight", "bias"}


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.uint16, torch.complex64])
def test_every_type_is_read_as_it_is_stored(tmp_path: Path, kind: torch.dtype) -> None:
    weights = weights_from_file(saved(tmp_path / "m.pth", {"a": torch.ones(2).to(kind)}), allow_pickle=False)
    assert weights.state["a"].dtype == kind
    assert weights.remarks == (f"stored as {str(kind).removeprefix('torch.')} (1)",)


def test_types_that_the_old_format_cannot_carry(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"a": torch.ones(2).to(torch.float8_e4m3fn)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="save it again"):
        weights_from_file(path, allow_pickle=False)


class _Foreign:
    pass


class _ForeignDict(dict[str, Tensor]):
    pass


VARIABLES = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


@pytest.mark.parametrize("variables", [VARIABLES[:1], VARIABLES[1:], VARIABLES])
def test_the_environment_neither_breaks_nor_weakens_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: tuple[str, ...]
) -> None:
    for name in variables:
        monkeypatch.setenv(name, "1")
    sound = saved(tmp_path / "m.pth", {"state_dict": STATE, "args": _Foreign()})
    assert weights_from_file(sound, allow_pickle=False).state.keys() == STATE.keys()
    with pytest.raises(PickleRefused):
        weights_from_file(saved(tmp_path / "f.pth", _ForeignDict(STATE)), allow_pickle=False)


def test_torch_may_be_forbidden_to_run_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLES[0], "1")
    path = saved(tmp_path / "m.pth", {"state_dict": _ForeignDict(STATE)})
    with pytest.raises(DovitError):
        weights_from_file(path, allow_pickle=True)
    monkeypatch.delenv(VARIABLES[0])
    assert weights_from_file(path, allow_pickle=True).state.keys() == STATE.keys()
