"""Our own checkpoint folder: round trip, atomic writing, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.checkpoints.own_format import OwnConfig, save_checkpoint
from dovit_deploy.errors import CheckpointMismatch, ConfigError, InputError, OutputFailed, UsageError
from dovit_deploy.families.folding import folded
from dovit_deploy.families.parts import ConvStem, FcnHead, GateSpec, LinearHead, SetrHead
from dovit_deploy.families.vit.network import VisionTransformer
from dovit_deploy.families.vit.spec import VisionTransformerSpec

SPEC = VisionTransformerSpec(
    family="dovit",
    size=(32, 48),
    stem=ConvStem(widths=(4, 6, 8)),
    width=16,
    depth=3,
    heads=2,
    hidden=32,
    classes=3,
    gates=(GateSpec(layer=1, head=FcnHead(channels=4)), GateSpec(layer=2, head=LinearHead())),
    head=SetrHead(channels=4),
)
CONFIG = OwnConfig(
    spec=SPEC,
    preprocessing=Preprocessing(mean=(1, 2, 3), std=(4, 5, 6), assumed=False, stride=(16, 24)),
    classes=tuple(ClassEntry(name=name, color=(1, 2, 3)) for name in "abc"),
    thresholds=(0.9, 0.8),
    floor=0.02,
    slide_size=(32, 48),
    license="CC0-1.0",
)


def trained(*, trainable: bool = True) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = VisionTransformer(SPEC, trainable=trainable)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return dict(model.state_dict())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "run", CONFIG, trained())
    return tmp_path / "run"


def test_round_trip_of_training_form(folder: Path) -> None:
    checkpoint = checkpoint_from_path(folder)
    assert checkpoint.spec == SPEC and checkpoint.classes == CONFIG.classes
    assert checkpoint.preprocessing == CONFIG.preprocessing
    assert (checkpoint.thresholds, checkpoint.floor) == ((0.9, 0.8), 0.02)
    assert checkpoint.slide_size == (32, 48) and checkpoint.license == "CC0-1.0"
    expected = folded(trained())
    assert checkpoint.state.keys() == expected.keys()
    assert all(torch.equal(checkpoint.state[name], expected[name]) for name in expected)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run"]


def test_round_trip_of_deployment_form_and_of_half_precision(tmp_path: Path) -> None:
    state = trained(trainable=False)
    halves = {name: tensor.half() for name, tensor in state.items()}
    save_checkpoint(tmp_path / "run", CONFIG, halves)
    ours = checkpoint_from_path(tmp_path / "run" / "model.safetensors").state
    assert all(torch.equal(ours[name], halves[name].float()) for name in state)


def test_flags_take_precedence(folder: Path) -> None:
    other = tuple(ClassEntry(name=name, color=(9, 9, 9)) for name in "xyz")
    checkpoint = checkpoint_from_path(folder, mean=(7, 7, 7), std=(8, 8, 8), classes=other, thresholds=[0.5])
    assert checkpoint.preprocessing.mean == (7.0, 7.0, 7.0) and checkpoint.preprocessing.stride == (16, 24)
    assert checkpoint.classes == other and checkpoint.thresholds == (0.5, 0.5)
    with pytest.raises(UsageError):
        checkpoint_from_path(folder, thresholds=[0.1, 0.2, 0.3])
    with pytest.raises(UsageError, match="--config"):
        checkpoint_from_path(folder, config=folder / "config.json")


def test_nothing_is_overwritten_unasked(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match="exists"):
        save_checkpoint(folder, CONFIG, trained())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    save_checkpoint(folder, CONFIG.model_copy(update={"floor": 0.0}), trained(), overwrite=True)
    assert checkpoint_from_path(folder).floor == 0.0
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run"]


def test_a_folder_that_is_no_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "one.txt").write_text("keep")
    with pytest.raises(UsageError):
        save_checkpoint(precious, CONFIG, trained(), overwrite=True)
    assert (precious / "one.txt").read_text() == "keep"


def test_a_failed_write_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(folder, CONFIG, trained(), overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run"]


def test_a_failed_rename_puts_the_old_one_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("device lost")
        return rename(self, target)

    # As on a system that cannot exchange two names in one step.
    monkeypatch.setattr("dovit_deploy.files._renamed", lambda first, second, flag: False)
    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OutputFailed, match="device lost"):
        save_checkpoint(folder, CONFIG, trained(), overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run"]


def test_weights_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    state = trained()
    del state["positions"]
    with pytest.raises(CheckpointMismatch, match="missing: positions"):
        save_checkpoint(tmp_path / "run", CONFIG, state)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["missing", "unexpected", "wrong shape", "NaN or Inf", "not floating point"])
def test_damaged_weights_are_refused(folder: Path, fault: str) -> None:
    state = load_file(folder / "model.safetensors")
    if fault == "missing":
        del state["blocks.1.norm1.weight"]
    elif fault == "unexpected":
        state["blocks.7.norm1.weight"] = torch.zeros(16)
    elif fault == "wrong shape":
        state["positions"] = state["positions"][:-1].contiguous()
    elif fault == "NaN or Inf":
        state["head.up.0.norm.running_var"][0] = -1.0
    else:
        state["positions"] = state["positions"].long()
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointMismatch, match=fault):
        checkpoint_from_path(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 9}, "version 9"),
        ({"thresholds": [0.5]}, "1 threshold for 2 gates"),
        ({"thresholds": [0.5, 1.5]}, "less than or equal to 1"),
        ({"classes": []}, "0 classes"),
        ({"floor": 2}, "floor"),
        ({"typo": 1}, "typo"),
        ({"spec": {}}, "spec"),
    ],
)
def test_wrong_configurations_are_refused(folder: Path, change: dict[str, Any], words: str) -> None:
    contents = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(contents))
    with pytest.raises(ConfigError, match=words):
        checkpoint_from_path(folder)


@pytest.mark.parametrize("contents", [b"{", b"[]", b"\xff\xfe", b"null", b"{}"])
def test_unreadable_configurations_are_refused(folder: Path, contents: bytes) -> None:
    (folder / "config.json").write_bytes(contents)
    with pytest.raises(ConfigError, match=r"config\.json|version"):
        checkpoint_from_path(folder)


def test_weights_that_are_not_there(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        checkpoint_from_path(folder)
