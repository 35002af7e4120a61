"""Wrappings: the network's own entries, whatever stands around the state dict and in front of its names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dovit_deploy.checkpoints.weights_file import weights_from_file
from dovit_deploy.checkpoints.wrapping import own_network, state_dict_in
from dovit_deploy.errors import CheckpointMismatch, InputError

A, B, C = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "_fsdp_wrapped_module.", "student.", "net.", "module._orig_mod."),
        *("_orig_mod.module.", "model.module.student.", "_fsdp_wrapped_module._orig_mod.model."),
        *("teacher.", "ema.", "ema_model.module.", "module.model_ema."),
    ],
)
def test_prefixes_in_any_order(prefix: str) -> None:
    unwrapped = own_network({f"{prefix}blocks.0.weight": A, f"{prefix}head": B}, "m.pth")
    assert unwrapped.state == {"blocks.0.weight": A, "head": B}
    assert prefix.split(".")[0] in unwrapped.remarks[0]


def test_wrappings_inside_of_names() -> None:
    state = {"backbone._orig_mod.layers.0._checkpoint_wrapped_module.ln1.weight": A}
    assert own_network(state, "m.pth").state == {"backbone.layers.0.ln1.weight": A}


@pytest.mark.parametrize(
    "other", ["teacher.a", "module.teacher.a", "generation.a", "ema.a", "ema_model.module.a", "ema_a", "n_averaged"]
)
def test_other_networks_beside_it_are_left_out(other: str) -> None:
    unwrapped = own_network({"module.a": A, other: B}, "m.pth")
    assert unwrapped.state == {"a": A}
    assert "left out" in unwrapped.remarks[-1]


def test_a_name_that_is_there_twice() -> None:
    with pytest.raises(CheckpointMismatch, match="twice"):
        own_network({"a": A, "module.a": B}, "m.pth")


@pytest.mark.parametrize(
    ("contents", "path"),
    [
        ({"a": A}, ()),
        ({"model_state_dict": {"a": A}, "epoch": 1}, ("model_state_dict",)),
        ({"net": {"a": A}}, ("net",)),
        ({"weights": {"a": A}, "module": {"a": A}}, ("module",)),
        ({"model": {"state_dict": {"a": A}}}, ("model", "state_dict")),
        ({"model": {"a": A}, "model_ema": {"a": B}}, ("model",)),
        ({"teacher": {"a": B}, "student": {"a": A}}, ("student",)),
    ],
)
def test_where_the_state_dict_lies(contents: object, path: tuple[str, ...]) -> None:
    assert state_dict_in(contents, "m.pth") == ({"a": A}, path)


def test_nothing_that_is_a_state_dict() -> None:
    with pytest.raises(InputError, match="at its top level is: epoch, lr"):
        state_dict_in({"epoch": 1, "lr": 2}, "m.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 27\n", "Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "HTML page"),
        (b"\xef\xbb\xbf<HTML>", "HTML page"),
        (b"", "is empty"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_what_is_there_instead_of_a_checkpoint(tmp_path: Path, content: bytes, words: str, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        weights_from_file(path, allow_pickle=False)
