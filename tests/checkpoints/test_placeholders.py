"""Pointers and pages in place of weights are called what they are, by every reader of checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.checkpoints.own_format import save_checkpoint
from dovit_deploy.checkpoints.weights_file import weights_from_file
from dovit_deploy.errors import InputError
from dovit_deploy.measure.inspect import contents_of
from tests.placeholders import PLACEHOLDERS


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.safetensors", "a.bin"])
@pytest.mark.parametrize("kind", PLACEHOLDERS)
def test_a_placeholder_in_place_of_weights(tmp_path: Path, name: str, kind: str) -> None:
    content, words = PLACEHOLDERS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as refusal:
        weights_from_file(tmp_path / name, allow_pickle=kind == "lfs")
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.onnx"])
def test_inspect_calls_it_so_too(tmp_path: Path, name: str) -> None:
    content, words = PLACEHOLDERS["lfs"]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        contents_of(tmp_path / name)


def test_our_own_folder_cloned_without_its_weights(tmp_path: Path) -> None:
    from dovit_deploy.checkpoints.own_format import WEIGHTS, OwnConfig
    from tests.bundles import tiny_checkpoint
    from tests.tiny import tiny_spec

    checkpoint = tiny_checkpoint(tiny_spec())
    config = OwnConfig(
        spec=checkpoint.spec,
        preprocessing=checkpoint.preprocessing,
        classes=checkpoint.classes,
        thresholds=checkpoint.thresholds,
    )
    save_checkpoint(tmp_path / "ours", config, checkpoint.state)
    (tmp_path / "ours" / WEIGHTS).write_bytes(PLACEHOLDERS["lfs"][0])
    with pytest.raises(InputError, match="git lfs pull"):
        checkpoint_from_path(tmp_path / "ours")
