"""Wrappings: the network's own entries, whatever stands around the state dict and in front of its names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize("other", ["criterion.weight", "loss_fn.w", "train_metric.confmat", "val_acc.total"])
def test_losses_and_metrics_beside_the_network_are_left_out(other: str) -> None:
    unwrapped = own_network({"model.a": A, other: B}, "m.pth")
    assert unwrapped.state == {"a": A}
    assert unwrapped.remarks[-1] == "left out: the entries of losses and metrics"


OWN = st.sampled_from(["module", "_orig_mod", "model", "_fsdp_wrapped_module", "student", "net", "network"])
INSIDE = st.sampled_from(["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
KEYS = st.sampled_from(["state_dict", "model", "model_state_dict", "net", "module", "weights", "ema", "model_ema"])
NAMES = ("backbone.layers.0.ln1.weight", "decode_head.cls_emb", "norm.bias")


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(OWN, max_size=5), st.lists(INSIDE, max_size=2), st.lists(KEYS, max_size=3), st.data())
def test_wrappings_in_random_order_change_nothing(
    own: list[str], inside: list[str], keys: list[str], data: st.DataObject
) -> None:
    state = {}
    for number, name in enumerate(NAMES):
        parts = name.split(".")
        at = data.draw(st.integers(0, len(parts) - 1))
        wrapped = ".".join([*own, *parts[:at], *inside, *parts[at:]])
        state[wrapped] = torch.full((1,), float(number))
    contents: object = state
    for key in keys:
        contents = {key: contents, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 1.0}]}}
    found, path = state_dict_in(contents, "m.pth")
    assert path == tuple(reversed(keys))
    assert own_network(found, "m.pth").state == {
        name: torch.full((1,), float(number)) for number, name in enumerate(NAMES)
    }


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
        ({"epoch": 1, "best_state": {"a": A}, "optimizer": {"state": {}}}, ("best_state",)),
        ({"checkpoint": {"model": {"a": A}}, "meta": {"epoch": 1}}, ("checkpoint", "model")),
    ],
)
def test_where_the_state_dict_lies(contents: object, path: tuple[str, ...]) -> None:
    assert state_dict_in(contents, "m.pth") == ({"a": A}, path)


def test_nothing_that_is_a_state_dict() -> None:
    with pytest.raises(InputError, match="at its top level is: epoch, lr"):
        state_dict_in({"epoch": 1, "lr": 2}, "m.pth")


def test_of_two_networks_none_is_guessed() -> None:
    with pytest.raises(InputError, match="generator, discriminator"):
        state_dict_in({"generator": {"a": A}, "discriminator": {"a": B}}, "m.pth")


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
