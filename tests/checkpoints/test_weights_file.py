"""Files of weights: what is read, and that a pickle runs no code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.errors import CheckpointMismatch, InputError, PickleRefused
from tests.families.vit import official


class _Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("part", ["meta", "state_dict", "optimizer"])
def test_a_pickle_that_executes_code_is_refused_and_does_not_run(tmp_path: Path, part: str, legacy: bool) -> None:
    target, path = tmp_path / "owned", tmp_path / "evil.pth"
    contents: dict[str, Any] = {"meta": {}, "state_dict": official.dovit_state(), "optimizer": {}}
    contents[part]["x"] = _Attack(target)
    torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(PickleRefused, match="--allow-pickle"):
        checkpoint_from_path(path)
    assert not target.exists()


class _Foreign:
    pass


def test_allow_pickle_reads_weights_of_foreign_classes(tmp_path: Path) -> None:
    meta = {"config": official.config_text(official.DOVIT), "hub": _Foreign()}
    path = official.save_pth(tmp_path / "m.pth", _ForeignDict(official.dovit_state()), **meta)
    with pytest.raises(PickleRefused, match="_ForeignDict"):
        checkpoint_from_path(path)
    assert checkpoint_from_path(path, allow_pickle=True).spec == official.dovit_spec()


class _ForeignDict(dict[str, torch.Tensor]):
    pass


def test_object_arrays_cannot_smuggle_anything(tmp_path: Path) -> None:
    target, path = tmp_path / "owned", tmp_path / "evil.pth"
    official.save_pth(path, official.dovit_state(), PALETTE=np.array([_Attack(target)], dtype=object))
    with pytest.raises(PickleRefused):
        checkpoint_from_path(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("text.pth", b"not a checkpoint at all"),
        ("empty.pth", b""),
        ("text.safetensors", b"not safetensors"),
        ("empty.safetensors", b""),
        ("long.safetensors", b"\xff" * 64),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, contents: bytes) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(InputError, match=name):
        checkpoint_from_path(tmp_path / name)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"whole.{suffix}"
    if suffix == "pth":
        official.save_pth(path, official.dovit_state())
    else:
        save_file(official.dovit_state(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="whole"):
        checkpoint_from_path(path)


def test_an_old_style_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"state_dict": official.setr_state()}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for length in range(1, 4000, 37):
        path.write_bytes(whole[:length])
        with pytest.raises((InputError, PickleRefused), match="old"):
            checkpoint_from_path(path)


@pytest.mark.parametrize("contents", [[1, 2], {"epoch": 3}, {"state_dict": 3}, {}])
def test_pickles_without_a_state_dict(tmp_path: Path, contents: object) -> None:
    torch.save(contents, tmp_path / "m.pth")
    with pytest.raises(InputError):
        checkpoint_from_path(tmp_path / "m.pth")


def test_doubled_and_foreign_entries(tmp_path: Path) -> None:
    doubled = official.dovit_state() | {"module.backbone.cls_token": torch.zeros(1)}
    with pytest.raises(CheckpointMismatch, match="twice"):
        checkpoint_from_path(official.save_pth(tmp_path / "a.pth", doubled))
    torch.save({"state_dict": {**official.dovit_state(), "note": "hello"}}, tmp_path / "b.pth")
    with pytest.raises(CheckpointMismatch, match="'note' is a str"):
        checkpoint_from_path(tmp_path / "b.pth")
