"""Official checkpoints and bundles understood: formats, names, completeness, precedence."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.manifest import ClassEntry, Manifest, digest_of
from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.errors import CheckpointMismatch, ConfigError, DigestMismatch, DovitError, InputError, UsageError
from dovit_deploy.families.parts import FcnHead, GateSpec, LinearHead
from dovit_deploy.families.registry import model_from_spec
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.bundles import tiny_checkpoint
from tests.families.official_state import random_state
from tests.families.vit import official
from tests.tiny import tiny_spec


def write(tmp_path: Path, state: dict[str, Tensor], config: dict[str, Any]) -> tuple[Path, Path]:
    weights, settings = tmp_path / "weights.safetensors", tmp_path / "settings.json"
    save_file(state, weights)
    settings.write_text(json.dumps({"config": config}))
    return weights, settings


def test_dovit_from_safetensors(tmp_path: Path) -> None:
    weights, config = write(tmp_path, official.dovit_state(), official.DOVIT)
    checkpoint = checkpoint_from_path(weights, config=config)
    assert checkpoint.spec == official.dovit_spec()
    assert checkpoint.thresholds == (0.9, 0.9)
    assert checkpoint.floor == 0.0
    assert checkpoint.slide_size is None and checkpoint.preprocessing.stride is None
    assert checkpoint.preprocessing.assumed
    assert [entry.name for entry in checkpoint.classes] == [f"class_{number}" for number in range(5)]
    assert len({entry.color for entry in checkpoint.classes}) == 5
    model_from_spec(checkpoint.spec, checkpoint.state)


def test_packed_attention_is_cut_in_the_order_query_key_value(tmp_path: Path) -> None:
    state = official.dovit_state()
    weights, config = write(tmp_path, state, official.DOVIT)
    ours = checkpoint_from_path(weights, config=config).state
    packed = state["backbone.layers.2.attn.qkv.weight"]
    for number, part in enumerate(("query", "key", "value")):
        rows = packed[number * official.WIDTH : (number + 1) * official.WIDTH]
        assert torch.equal(ours[f"blocks.2.attention.{part}.weight"], rows)


def test_batch_norms_are_folded(tmp_path: Path) -> None:
    state = official.dovit_state()
    weights, config = write(tmp_path, state, official.DOVIT)
    ours = checkpoint_from_path(weights, config=config).state
    name = "backbone.auxiliary_head.1.convs.0"
    x = torch.randn(3, official.WIDTH, 1, 1)
    normed = torch.nn.functional.batch_norm(
        torch.nn.functional.conv2d(x, state[f"{name}.conv.weight"]),
        state[f"{name}.bn.running_mean"],
        state[f"{name}.bn.running_var"],
        state[f"{name}.bn.weight"],
        state[f"{name}.bn.bias"],
    )
    mine = x[..., 0, 0] @ ours["gates.1.head.hidden.weight"].T + ours["gates.1.head.hidden.bias"]
    assert torch.allclose(mine, normed[..., 0, 0], atol=1e-6)


def test_pth_with_its_own_configuration_text(tmp_path: Path) -> None:
    state = {f"module.student.{name}": tensor for name, tensor in official.dovit_state().items()}
    state |= {"teacher.backbone.cls_token": torch.zeros(1), "generation.0.weight": torch.zeros(2)}
    path = official.save_pth(
        tmp_path / "model.pth",
        state,
        config=official.config_text(official.DOVIT),
        CLASSES=tuple("abcde"),
        PALETTE=[[number, 2, 3] for number in range(5)],
        mmseg_version="0.30.0",
        hook_msgs={"best_score": np.float64(0.5)},
    )
    checkpoint = checkpoint_from_path(path)
    assert checkpoint.spec == official.dovit_spec()
    assert checkpoint.classes[3] == ClassEntry(name="d", color=(3, 2, 3))
    assert checkpoint.source == "model.pth" and len(checkpoint.source_sha256) == 64


def test_numpy_palettes_and_mmengine_descriptions(tmp_path: Path) -> None:
    palette = np.arange(15).reshape(5, 3)
    meta = {
        "cfg": official.config_text(official.DOVIT),
        "dataset_meta": {"classes": list("vwxyz"), "palette": palette},
    }
    checkpoint = checkpoint_from_path(official.save_pth(tmp_path / "m.pth", official.dovit_state(), **meta))
    assert checkpoint.classes[1] == ClassEntry(name="w", color=(3, 4, 5))


def test_pth_without_configuration_names_what_is_unknown(tmp_path: Path) -> None:
    path = official.save_pth(tmp_path / "m.pth", official.dovit_state(), epoch=3)
    with pytest.raises(ConfigError) as error:
        checkpoint_from_path(path)
    for name in ("backbone.num_heads", "backbone.out_indices", "backbone.exit_conf", "decode_head.num_heads"):
        assert name in str(error.value)
    assert "embed_dims" not in str(error.value)


def test_config_takes_precedence_over_meta_and_flags_over_both(tmp_path: Path) -> None:
    meta = official.changed(official.DOVIT, "backbone.exit_conf", 0.8)
    path = official.save_pth(tmp_path / "m.pth", official.dovit_state(), config=official.config_text(meta))
    config = tmp_path / "partial.json"
    config.write_text(json.dumps({"model": {"backbone": {"exit_conf": [0.7, 0.6]}}}))
    assert checkpoint_from_path(path).thresholds == (0.8, 0.8)
    assert checkpoint_from_path(path, config=config).thresholds == (0.7, 0.6)
    assert checkpoint_from_path(path, config=config, thresholds=[0.5]).thresholds == (0.5, 0.5)


def test_config_is_the_remedy_for_a_meta_that_cannot_be_read(tmp_path: Path) -> None:
    path = official.save_pth(tmp_path / "m.pth", official.dovit_state(), config="model = build()\n")
    with pytest.raises(ConfigError, match="--config"):
        checkpoint_from_path(path)
    config = tmp_path / "c.json"
    config.write_text(json.dumps(official.DOVIT))
    assert checkpoint_from_path(path, config=config).spec == official.dovit_spec()


def test_setr_pup_is_a_dense_model_that_slides(tmp_path: Path) -> None:
    weights, config = write(tmp_path, official.setr_state(), official.SETR_PUP)
    checkpoint = checkpoint_from_path(weights, config=config)
    assert checkpoint.spec == official.setr_spec()
    assert checkpoint.preprocessing.stride == (20, 20)
    assert checkpoint.slide_size == (32, 32)
    assert checkpoint.preprocessing.logits_cover == "image"
    assert checkpoint.thresholds == ()


def test_heads_of_convolutions_without_any_are_linear(tmp_path: Path) -> None:
    linear = {**official.FCN, "num_convs": 0, "channels": official.WIDTH}
    linear.pop("kernel_size")
    config = official.changed({**official.DOVIT, "decode_head": linear}, "auxiliary_head", [linear, official.FCN])
    spec = official.dovit_spec()
    gates = (GateSpec(layer=1, head=LinearHead()), spec.gates[1])
    spec = VisionTransformerSpec.model_validate({**spec.model_dump(), "gates": gates, "head": LinearHead()})
    state = random_state(official.mmseg_map(spec), spec)
    weights, settings = write(tmp_path, state, config)
    checkpoint = checkpoint_from_path(weights, config=settings)
    assert checkpoint.spec == spec
    weight = state["decode_head.conv_seg.weight"][:, :, 0, 0]
    assert torch.equal(checkpoint.state["head.head.classifier.weight"], weight)
    model_from_spec(checkpoint.spec, checkpoint.state)


def test_a_decode_head_that_reads_early_cuts_the_depth(tmp_path: Path) -> None:
    state = official.setr_state() | {"auxiliary_head.0.conv_seg.weight": torch.zeros(1)}
    config = official.changed(official.SETR_PUP, "decode_head.in_index", 1)
    checkpoint = checkpoint_from_path(*[write(tmp_path, state, config)[0]], config=tmp_path / "settings.json")
    assert checkpoint.spec.depth == 2
    assert not checkpoint.spec.final_norm
    assert "norm.weight" not in checkpoint.state
    model_from_spec(checkpoint.spec, checkpoint.state)


def test_a_decode_head_that_joins_layers_taps_them(tmp_path: Path) -> None:
    joined = {**official.FCN, "input_transform": "resize_concat", "in_index": [0, 1, 3]}
    joined |= {"in_channels": [official.WIDTH] * 3}
    spec = official.setr_spec().model_copy(
        update={"family": "vit", "head": FcnHead(channels=8), "taps": (1, 2), "tap_norm": False}
    )
    state = random_state(official.mmseg_map(spec), spec)
    weights, settings = write(tmp_path, state, {**official.SETR_PUP, "decode_head": joined})
    checkpoint = checkpoint_from_path(weights, config=settings)
    assert checkpoint.spec == spec
    assert checkpoint.state["head.head.hidden.weight"].shape == (8, 3 * official.WIDTH)
    model_from_spec(checkpoint.spec, checkpoint.state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in_index": [3, 0, 1]}, "rising layers"),
        ({"in_index": [0, 1, 9]}, "gives 4 outputs"),
        ({"in_index": None}, "a list of the outputs"),
        ({"in_channels": [official.WIDTH] * 2}, "in_channels"),
        ({"input_transform": "multiple_select"}, "only None or 'resize_concat'"),
    ],
)
def test_what_cannot_be_joined_is_named(tmp_path: Path, change: dict[str, object], words: str) -> None:
    joined = {**official.FCN, "input_transform": "resize_concat", "in_index": [0, 1, 3]}
    joined |= {"in_channels": [official.WIDTH] * 3, **change}
    spec = official.setr_spec().model_copy(update={"head": FcnHead(channels=8), "taps": (1, 2)})
    state = random_state(official.mmseg_map(spec), spec)
    weights, settings = write(tmp_path, state, {**official.SETR_PUP, "decode_head": joined})
    with pytest.raises(DovitError, match=words):
        checkpoint_from_path(weights, config=settings)


def test_gates_after_the_decode_heads_layer_are_left_out(tmp_path: Path) -> None:
    config = official.changed(official.DOVIT, "decode_head.in_index", 0)
    weights, settings = write(tmp_path, official.dovit_state(), config)
    checkpoint = checkpoint_from_path(weights, config=settings)
    assert [gate.layer for gate in checkpoint.spec.gates] == [1]
    assert checkpoint.spec.depth == 2 and checkpoint.thresholds == (0.9,)
    model_from_spec(checkpoint.spec, checkpoint.state)


def test_without_class_token_its_position_is_dropped(tmp_path: Path) -> None:
    state = official.setr_state()
    config = official.changed(official.SETR_PUP, "backbone.with_cls_token", False)
    weights, settings = write(tmp_path, state, config)
    checkpoint = checkpoint_from_path(weights, config=settings)
    assert checkpoint.spec.extra_tokens == 0
    assert torch.equal(checkpoint.state["positions"], state["backbone.pos_embed"][0, 1:])
    model = model_from_spec(checkpoint.spec, checkpoint.state)
    assert model.embed(torch.zeros(1, 3, 32, 32)).shape == (4, official.WIDTH)
    assert model.decode(torch.zeros(4, official.WIDTH)).shape == (1, 5, 16, 16)


def test_a_missing_patch_bias_is_zero_for_stock_models_only(tmp_path: Path) -> None:
    state = official.setr_state()
    state.pop("backbone.patch_embed.projection.bias")
    weights, config = write(tmp_path, state, official.SETR_PUP)
    assert not checkpoint_from_path(weights, config=config).state["stem.projection.bias"].any()
    state = official.dovit_state()
    state.pop("backbone.patch_embed.projection.bias")
    weights, config = write(tmp_path, state, official.DOVIT)
    with pytest.raises(CheckpointMismatch, match=r"missing: backbone\.patch_embed\.projection\.bias"):
        checkpoint_from_path(weights, config=config)


def test_missing_attention_biases_are_zero_when_denied(tmp_path: Path) -> None:
    state = official.setr_state()
    state = {name: tensor for name, tensor in state.items() if not name.endswith("in_proj_bias")}
    weights, config = write(tmp_path, state, official.changed(official.SETR_PUP, "backbone.qkv_bias", False))
    ours = checkpoint_from_path(weights, config=config).state
    assert not ours["blocks.0.attention.key.bias"].any()


@pytest.mark.parametrize("decoder", ["linear", "mask_transformer"])
@pytest.mark.parametrize(("extra", "patch"), [(1, 16), (2, 16), (1, 32), (1, 8)])
def test_segmenter_beside_its_variant(tmp_path: Path, decoder: str, extra: int, patch: int) -> None:
    spec = official.segmenter_spec(decoder=decoder, extra=extra, patch=patch)
    state = official.segmenter_state(spec) | {"encoder.head.weight": torch.zeros(10, official.WIDTH)}
    torch.save({"model": OrderedDict(state), "n_iter": 3, "epoch": 1}, tmp_path / "checkpoint.pth")
    network: dict[str, Any] = {**official.SEGMENTER, "backbone": "vit_tiny", "normalization": "vit", "dropout": 0.0}
    network |= {"distilled": extra == 2, "patch_size": patch}
    network["decoder"] = {"name": decoder, "n_cls": 5, "drop_path_rate": 0.0, "dropout": 0.1}
    variant = {
        "net_kwargs": network,
        "dataset_kwargs": {"normalization": "vit", "crop_size": 32},
        "inference_kwargs": {"im_size": 32, "window_size": 32, "window_stride": 21},
        "amp": False,
    }
    # As Segmenter writes it: with the full dumper, which marks the tuple.
    network["image_size"] = (32, 32)
    text = yaml.dump(variant)
    assert "!!python/tuple" in text
    (tmp_path / "variant.yml").write_text(text)
    for path in (tmp_path / "checkpoint.pth", tmp_path):
        checkpoint = checkpoint_from_path(path)
        assert checkpoint.spec == spec
        assert checkpoint.preprocessing.mean == (127.5, 127.5, 127.5) and not checkpoint.preprocessing.assumed
        assert checkpoint.preprocessing.logits_cover == "padded"
        assert checkpoint.preprocessing.stride == (21, 21) and checkpoint.slide_size == (32, 32)
        model_from_spec(checkpoint.spec, checkpoint.state)


def test_segmenters_raw_projections_are_transposed(tmp_path: Path) -> None:
    state = official.segmenter_state()
    weights, config = tmp_path / "s.safetensors", tmp_path / "c.json"
    save_file(state, weights)
    config.write_text(json.dumps({"kwargs": official.SEGMENTER}))
    ours = checkpoint_from_path(weights, config=config).state
    assert torch.equal(ours["head.patch_projection.weight"], state["decoder.proj_patch"].T)
    assert torch.equal(ours["head.class_projection.weight"], state["decoder.proj_classes"].T)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_narrow_and_wide_weights_become_fp32(tmp_path: Path, kind: torch.dtype) -> None:
    state = official.dovit_state()
    name = "backbone.layers.0.ffn.layers.1.weight"
    state[name] = state[name].to(kind)
    weights, config = write(tmp_path, state, official.DOVIT)
    ours = checkpoint_from_path(weights, config=config).state["blocks.0.mlp.contract.weight"]
    assert ours.dtype == torch.float32 and torch.equal(ours, state[name].float())


def _remove(state: dict[str, Tensor], name: str) -> None:
    del state[name]


def _cut(state: dict[str, Tensor], name: str) -> None:
    state[name] = state[name][..., :-1].contiguous()


def _spoil(state: dict[str, Tensor], name: str, value: float) -> None:
    state[name] = state[name].clone()
    state[name].reshape(-1)[0] = value


@pytest.mark.parametrize(
    "name",
    [
        "backbone.cls_token",
        "backbone.pos_embed",
        "backbone.patch_embed.projection.weight",
        "backbone.layers.3.ln1.weight",
        "backbone.layers.1.attn.qkv.bias",
        "backbone.ln1.bias",
        "backbone.auxiliary_head.1.convs.0.bn.running_var",
        "backbone.auxiliary_head.0.conv_seg.weight",
        "decode_head.cls_emb",
        "decode_head.mask_norm.weight",
        "decode_head.layers.1.attn.attn.in_proj_weight",
    ],
)
def test_incomplete_checkpoints_are_refused(tmp_path: Path, name: str) -> None:
    faults: dict[str, Any] = {
        "missing": lambda state: _remove(state, name),
        "wrong shape": lambda state: _cut(state, name),
        "NaN or Inf": lambda state: _spoil(state, name, float("nan")),
        "integer": lambda state: state.update({name: state[name].to(torch.int64)}),
    }
    if name == "backbone.pos_embed":
        # One position fewer is another image size; cut the width instead, which is the last axis anyway.
        faults.pop("integer")
    for fault, damage in faults.items():
        state = official.dovit_state()
        damage(state)
        weights, config = write(tmp_path, state, official.DOVIT)
        with pytest.raises(CheckpointMismatch, match=name.replace(".", r"\.")) as error:
            checkpoint_from_path(weights, config=config)
        assert ("not floating point" if fault == "integer" else fault) in str(error.value)


def test_infinite_and_negative_variance_entries_are_refused(tmp_path: Path) -> None:
    for value in (float("inf"), -3.0):
        state = official.dovit_state()
        _spoil(state, "backbone.auxiliary_head.0.convs.0.bn.running_var", value)
        weights, config = write(tmp_path, state, official.DOVIT)
        with pytest.raises(CheckpointMismatch, match="NaN or Inf"):
            checkpoint_from_path(weights, config=config)


@pytest.mark.parametrize("name", ["backbone.layers.99.ln1.weight", "neck.weight", "backbone.auxiliary_head.2.foo"])
def test_unexpected_entries_are_refused(tmp_path: Path, name: str) -> None:
    weights, config = write(tmp_path, official.dovit_state() | {name: torch.zeros(2)}, official.DOVIT)
    with pytest.raises(CheckpointMismatch, match="unexpected: " + name.replace(".", r"\.")):
        checkpoint_from_path(weights, config=config)


def test_many_faults_are_listed_in_short(tmp_path: Path) -> None:
    state = {n: t for n, t in official.dovit_state().items() if ".ffn." not in n or "decode" in n}
    weights, config = write(tmp_path, state, official.DOVIT)
    with pytest.raises(CheckpointMismatch, match=r"and 12 more") as error:
        checkpoint_from_path(weights, config=config)
    assert len(str(error.value)) < 400


def test_known_unused_entries_may_be_there(tmp_path: Path) -> None:
    state = official.dovit_state()
    state |= {"decode_head.conv_seg.weight": torch.zeros(9), "auxiliary_head.0.conv_seg.bias": torch.zeros(3)}
    weights, config = write(tmp_path, state, official.DOVIT)
    assert checkpoint_from_path(weights, config=config).spec == official.dovit_spec()


def test_other_networks_are_not_recognised(tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    save_file({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointMismatch, match=r"conv1\.weight"):
        checkpoint_from_path(path)


def test_configuration_text_is_never_executed(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    text = f"import os\nx = os.mkdir({str(target)!r})\nos.mkdir({str(target)!r})\n" + official.config_text(
        official.DOVIT
    )
    path = official.save_pth(tmp_path / "m.pth", official.dovit_state(), config=text)
    assert checkpoint_from_path(path).spec == official.dovit_spec()
    assert not target.exists()


def test_absent_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pth"):
        checkpoint_from_path(tmp_path / "nowhere.pth")
    with pytest.raises(InputError, match="neither"):
        checkpoint_from_path(tmp_path)
    weights, _ = write(tmp_path, official.dovit_state(), official.DOVIT)
    with pytest.raises(InputError, match=r"nowhere\.json"):
        checkpoint_from_path(weights, config=tmp_path / "nowhere.json")


def test_thresholds_given_by_the_caller_are_checked(tmp_path: Path) -> None:
    weights, config = write(tmp_path, official.dovit_state(), official.DOVIT)
    for wrong in ([0.1, 0.2, 0.3], [1.5], [float("nan")], []):
        with pytest.raises(UsageError):
            checkpoint_from_path(weights, config=config, thresholds=wrong)
    config.write_text(json.dumps(official.changed(official.DOVIT, "backbone.exit_conf", ...)))
    with pytest.raises(ConfigError, match=r"backbone\.exit_conf"):
        checkpoint_from_path(weights, config=config)
    assert checkpoint_from_path(weights, config=config, thresholds=[0.3]).thresholds == (0.3, 0.3)
    weights, config = write(tmp_path, official.setr_state(), official.SETR_PUP)
    with pytest.raises(UsageError, match="without gates takes no thresholds"):
        checkpoint_from_path(weights, config=config, thresholds=[0.3])


# A bundle as a checkpoint: the same network again, and a smaller one from it.


def test_a_bundle_gives_back_the_checkpoint_it_was_made_of(tiny_bundle_path: Path) -> None:
    ours, given = checkpoint_from_path(tiny_bundle_path), tiny_checkpoint(tiny_spec())
    assert ours.spec == given.spec
    assert ours.classes == given.classes
    assert ours.preprocessing == given.preprocessing
    assert ours.thresholds == given.thresholds
    assert ours.slide_size is None
    assert ours.state.keys() == given.state.keys()
    assert all(torch.equal(ours.state[name], tensor) for name, tensor in given.state.items())


def test_the_window_of_a_sliding_bundle_is_kept(setr_bundle_path: Path) -> None:
    bundle = Bundle.open(setr_bundle_path)
    assert checkpoint_from_path(setr_bundle_path).slide_size == bundle.manifest.spec.size


def test_an_altered_bundle_is_no_checkpoint(bundle_copy: Path) -> None:
    weights = bundle_copy / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DigestMismatch):
        checkpoint_from_path(bundle_copy)


def test_thresholds_per_class_do_not_fit_a_checkpoint(bundle_copy: Path) -> None:
    manifest = Bundle.open(bundle_copy).manifest
    body = manifest.model_dump(mode="json")
    body["defaults"]["thresholds"][0][1] = 0.125
    body["digest"] = digest_of(body)
    text = json.dumps(body)
    Manifest.from_json(text)
    (bundle_copy / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match="per class"):
        checkpoint_from_path(bundle_copy)
