"""The naive reference itself: it reproduces what the official code gave on the fixtures, from the official keys.

The mapping of keys is written out here once more, so that a mistake in the package's own mapping cannot hide.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from dovit_deploy.families.parts import FcnHead, GateSpec, LinearHead, MaskHead, SetrHead
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.naive import naive_positions, naive_run
from tests.paths import SHARED
from tests.plain_maths import Array

FIXTURES = SHARED / "fixtures"
QUICK = ["seg_w48_samecount_64x256", "seg_w64_128x192_posresize_nofinal_tuple", "setr_w64_128"]
SLOW = [
    *("seg_w48_diff002_150c", "seg_w48_lt10pct", "seg_w48_stopall", "seg_w48_stopnone_mid", "seg_w64_128"),
    *("setr_L24_w32_128x192",),
]
NAMES = {
    "attn.proj.": "attention.output.",
    "attn.attn.out_proj.": "attention.output.",
    "ffn.layers.0.0.": "mlp.expand.",
    "ffn.layers.1.": "mlp.contract.",
    "ln1.": "norm1.",
    "ln2.": "norm2.",
    "decoder_norm.": "norm.",
    "dec_proj.": "embed.",
    "patch_proj.": "patch_projection.",
    "classes_proj.": "class_projection.",
    "cls_emb": "class_tokens",
    "conv_seg.": "classifier.",
}


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in SLOW)])
def test_dovit_fixture(name: str) -> None:
    config, official, recorded = _fixture("dovit", name)
    image = recorded["input"][0]
    spec = _spec(config["config"], (image.shape[1], image.shape[2]))
    trained = VisionTransformerSpec.model_validate(
        {**spec.model_dump(), "size": config["config"]["backbone"]["img_size"]}
    )
    weights = _weights(spec, official)
    weights["positions"] = naive_positions(weights["positions"], trained, spec.size)
    backbone = config["config"]["backbone"]
    thresholds = np.reshape(backbone["exit_conf"], (-1, 1))

    run = naive_run(spec, weights, image, thresholds=thresholds, floor=max(backbone["diff_conf"], 0.0))

    assert [gate.aggregated for gate in run.gates] == config["result"]["cls_aggregated"]
    for number, gate in enumerate(run.gates):
        kept = np.flatnonzero(recorded[f"stage{number}.keep_mask"].reshape(-1))
        assert gate.running == kept.tolist()
        confidence = recorded[f"stage{number}.aux_conf"].reshape(-1)
        _assert_close(np.array(list(gate.confidence.values())), confidence[list(gate.confidence)])
        _assert_close(gate.class_token, recorded[f"stage{number}.layer_in"][0, 0])
    _assert_close(run.logits, recorded["logits"][0])


def test_segmenter_linear_distilled() -> None:
    config, official, recorded = _fixture("segmenter", "segmenter_w64_linear_distilled")
    spec = VisionTransformerSpec(
        family="segmenter",
        size=config["kwargs"]["image_size"],
        width=64,
        depth=3,
        heads=1,
        hidden=256,
        extra_tokens=2,
        norm_eps=1e-5,
        classes=21,
        position_mode="bilinear",
        head=LinearHead(),
    )
    weights: dict[str, Array] = {
        "extra_tokens": np.concatenate([official["encoder.cls_token"][0], official["encoder.dist_token"][0]]),
        "positions": official["encoder.pos_embed"][0],
        "norm.weight": official["encoder.norm.weight"],
        "norm.bias": official["encoder.norm.bias"],
    }
    for entry in ("weight", "bias"):
        weights[f"stem.projection.{entry}"] = official[f"encoder.patch_embed.proj.{entry}"]
        weights[f"head.head.classifier.{entry}"] = official[f"decoder.head.{entry}"]
    for name, value in official.items():
        if name.startswith("encoder.blocks."):
            name = name.removeprefix("encoder.").replace("mlp.fc1", "mlp.expand").replace("mlp.fc2", "mlp.contract")
            weights |= _split(name.replace("attn.proj", "attention.output"), value)

    for number in range(2):
        image = recorded[f"input{number}"][0]
        other = VisionTransformerSpec.model_validate({**spec.model_dump(), "size": image.shape[1:]})
        positions = naive_positions(weights["positions"], spec, other.size)
        run = naive_run(other, {**weights, "positions": positions}, image)
        _assert_close(run.logits, recorded[f"dec_masks{number}"][0])


def _fixture(folder: str, name: str) -> tuple[dict[str, Any], dict[str, Array], dict[str, Array]]:
    """Configuration, official state dict, recorded tensors."""
    if not FIXTURES.is_dir():
        pytest.skip("the golden fixtures are not beside this checkout")
    read = {
        kind: {
            key: value.double().numpy()
            for key, value in load_file(FIXTURES / folder / f"{name}.{kind}.safetensors").items()
        }
        for kind in ("weights", "io")
    }
    return json.loads((FIXTURES / folder / f"{name}.json").read_text()), read["weights"], read["io"]


def _assert_close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max(initial=1.0))


def _spec(config: dict[str, Any], size: tuple[int, int]) -> VisionTransformerSpec:
    backbone, decode = config["backbone"], config["decode_head"]
    return VisionTransformerSpec(
        family="dovit",
        size=size,
        width=backbone["embed_dims"],
        depth=backbone["num_layers"],
        heads=backbone["num_heads"],
        hidden=backbone["mlp_ratio"] * backbone["embed_dims"],
        norm_eps=backbone["norm_cfg"]["eps"],
        final_norm=backbone["final_norm"],
        classes=decode["num_classes"],
        aggregate_rate=backbone["agg_rate"],
        position_mode=backbone["interpolate_mode"],
        gates=tuple(
            GateSpec(
                layer=layer, head=_setr(head) if head["type"] == "SETRUPHead" else FcnHead(channels=head["channels"])
            )
            for layer, head in zip(backbone["out_indices"], config["auxiliary_head"], strict=False)
        ),
        head=_setr(decode)
        if decode["type"] == "SETRUPHead"
        else MaskHead(width=decode["embed_dims"], layers=decode["num_layers"], heads=decode["num_heads"]),
    )


def _setr(head: dict[str, Any]) -> SetrHead:
    return SetrHead(
        channels=head["channels"], convs=head["num_convs"], up_scale=head["up_scale"], kernel=head["kernel_size"]
    )


def _weights(spec: VisionTransformerSpec, official: dict[str, Array]) -> dict[str, Array]:
    """Our names for the official entries of a DoViT; batch norms are folded."""
    weights: dict[str, Array] = {}
    for name, value in official.items():
        if "running_mean" in name or "running_var" in name or "num_batches" in name or ".bn.bias" in name:
            continue
        if ".bn.weight" in name:
            weights |= _folded(name.removesuffix("bn.weight"), official)
        elif not name.endswith("conv.weight"):
            weights |= _split(_renamed(name), value)
    weights["extra_tokens"] = weights["extra_tokens"].reshape(1, -1)
    weights["positions"] = weights["positions"].reshape(-1, spec.width)
    if "head.class_tokens" in weights:
        weights["head.class_tokens"] = weights["head.class_tokens"][0]
    for number, gate in enumerate(spec.gates):
        if isinstance(gate.head, FcnHead):
            at = f"gates.{number}.head.classifier.weight"
            weights[at] = weights[at][:, :, 0, 0]
    return weights


def _renamed(name: str) -> str:
    for before, after in {
        "backbone.cls_token": "extra_tokens",
        "backbone.pos_embed": "positions",
        "backbone.patch_embed.": "stem.",
        "backbone.ln1.": "norm.",
        "backbone.layers.": "blocks.",
        "decode_head.layers.": "head.blocks.",
        "decode_head.": "head.",
    }.items():
        if name.startswith(before):
            name = after + name.removeprefix(before)
            break
    parts = name.split(".")
    if parts[:2] == ["backbone", "auxiliary_head"]:
        name = ".".join(["gates", parts[2], "head", *parts[3:]])
    for before, after in NAMES.items():
        name = name.replace(before, after)
    return name


def _split(name: str, value: Array) -> dict[str, Array]:
    """One matrix for query, key and value becomes three."""
    for packed in ("attn.qkv.", "attn.attn.in_proj_"):
        if packed in name:
            thirds = zip(("query", "key", "value"), np.split(value, 3), strict=True)
            return {name.replace(packed, f"attention.{part}."): third for part, third in thirds}
    return {name: value}


def _folded(prefix: str, official: dict[str, Array]) -> dict[str, Array]:
    """A convolution without bias and the batch norm behind it, as one."""
    norm = {entry: official[f"{prefix}bn.{entry}"] for entry in ("weight", "bias", "running_mean", "running_var")}
    scale = norm["weight"] / np.sqrt(norm["running_var"] + 1e-5)
    weight = official[prefix + "conv.weight"] * scale[:, None, None, None]
    to = _renamed(prefix)
    if ".convs.0." in to:
        to, weight = to.replace("convs.0.", "hidden."), weight[:, :, 0, 0]
    to = to.replace("up_convs.", "up.").removesuffix("0.") if "up_convs." in to else to
    return {f"{to}weight": weight, f"{to}bias": norm["bias"] - norm["running_mean"] * scale}
