"""Key tables: every parameter of a network is filled once, from entries of the right shape, with nothing left over."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dovit_deploy.checkpoints.keys import (
    COUNTER,
    KeyFacts,
    KeyMap,
    matches,
    packed_by_head,
    shapes_of,
)
from dovit_deploy.checkpoints.official_state import ours_from_official
from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.families.evovit.deit_reader import DEIT_KEYS, EVO_DEIT_KEYS
from dovit_deploy.families.evovit.evo_levit_reader import evo_levit_key_map
from dovit_deploy.families.evovit.levit_reader import levit_key_map
from dovit_deploy.families.evovit.spec import LevitSpec
from dovit_deploy.families.parts import FcnHead, GateSpec, LinearHead, MaskHead, SetrHead
from dovit_deploy.families.stvit.keys import STVIT_DEIT_MAP, SWIN_MAP
from dovit_deploy.families.vit.segmenter import KEY_MAP as SEGMENTER_MAP
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.families.evovit import official as evovit
from tests.families.official_state import official_shapes, random_state
from tests.families.vit import official as vit
from tests.tiny_evovit import tiny_levit_spec
from tests.tiny_stvit import tiny_backbone, tiny_classifier, tiny_deit, tiny_swin


def plain_levit() -> LevitSpec:
    fields = {"size", "stages", "subsamples", "classes", "distilled"}
    return LevitSpec.model_validate(tiny_levit_spec(size=80).model_dump(include=fields))


MAPS: dict[str, tuple[KeyMap, Any]] = {
    "DoViT": (vit.mmseg_map(vit.dovit_spec()), vit.dovit_spec()),
    "SETR": (vit.mmseg_map(vit.setr_spec()), vit.setr_spec()),
    "Segmenter": (SEGMENTER_MAP, vit.segmenter_spec()),
    "Segmenter, linear, distilled": (SEGMENTER_MAP, vit.segmenter_spec(decoder="linear", extra=2)),
    "Evo-ViT on DeiT": (KeyMap(EVO_DEIT_KEYS), evovit.deit_spec()),
    "DeiT": (KeyMap(DEIT_KEYS), evovit.plain_spec()),
    "DeiT, distilled": (KeyMap(DEIT_KEYS), evovit.plain_spec(extra=2)),
    "Evo-ViT on LeViT": (evo_levit_key_map(evovit.levit_spec()), evovit.levit_spec()),
    "LeViT": (levit_key_map(plain_levit()), plain_levit()),
    "STViT-R": (SWIN_MAP, tiny_classifier()),
    "STViT-R, options": (SWIN_MAP, tiny_classifier(options=True)),
    "STViT-R backbone": (SWIN_MAP, tiny_backbone()),
    "Swin": (SWIN_MAP, tiny_swin()),
    "STViT on DeiT": (STVIT_DEIT_MAP, tiny_deit((48, 48))),
    "DINOv2": (vit.dinov2_map(), vit.dinov2_spec()),
    "DINOv2 of transformers": (vit.dinov2_transformers_map(), vit.dinov2_spec()),
    "EoMT of transformers": (vit.eomt_map(), vit.eomt_spec()),
    "DINOv3": (vit.dinov3_map(), vit.dinov3_spec()),
    "DINOv3 of transformers": (vit.dinov3_transformers_map(), vit.dinov3_spec()),
    "timm ViT": (vit.timm_map(), vit.timm_spec()),
}


def check_every_element_is_used_once(key_map: KeyMap, spec: Any) -> None:
    """Official entries of distinct numbers fill every parameter of the network, each number once.

    A bias of four positions in common is there four times, and rows that no entry holds are left out.
    """
    shapes = {name: shape for name, shape in key_map.training_shapes(spec).items() if not name.endswith(COUNTER)}
    parameters = {name: torch.full(shape, -1.0) for name, shape in shapes.items()}
    total, wanted = 0, []
    for rule in key_map.rules(shapes):
        count = math.prod(rule.shape)
        again = 4 if rule.ours.layout == "doubling" and len(rule.shape) == 1 else 1
        wanted += [torch.arange(total, total + count, dtype=torch.float32)] * again
        rule.fill(parameters, torch.arange(total, total + count, dtype=torch.float32).reshape(rule.shape))
        total += count
    for name in parameters.keys() & {rule.targets[0] for rule in key_map.rules(shapes) if rule.ours.rows is not None}:
        parameters[name] = parameters[name][parameters[name][:, 0] >= 0]
    found = torch.cat([tensor.flatten() for tensor in parameters.values()])
    assert torch.equal(found.sort().values, torch.cat(wanted).sort().values)


@pytest.mark.parametrize(("key_map", "spec"), MAPS.values(), ids=MAPS.keys())
def test_every_element_of_a_checkpoint_is_used_once(key_map: KeyMap, spec: Any) -> None:
    check_every_element_is_used_once(key_map, spec)


@pytest.mark.parametrize(("key_map", "spec"), MAPS.values(), ids=MAPS.keys())
def test_what_is_mapped_has_the_shapes_of_the_deployed_network(key_map: KeyMap, spec: Any) -> None:
    state = {name: value for name, value in random_state(key_map, spec).items() if not name.endswith(COUNTER)}
    ours = ours_from_official(state, key_map, spec, source="tiny.pth")
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == shapes_of(spec, trainable=False)


HEADS = st.sampled_from(
    [LinearHead(), FcnHead(channels=6), SetrHead(channels=4, convs=2, kernel=3), MaskHead(width=8, layers=1, heads=2)]
)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(
    depth=st.integers(2, 5),
    patch=st.sampled_from([8, 16]),
    classes=st.integers(1, 4),
    gates=st.lists(st.sampled_from([LinearHead(), FcnHead(channels=3), SetrHead(channels=4)]), max_size=1),
    head=HEADS,
)
def test_any_segmentor_of_mmsegmentation_is_filled(depth: int, patch: int, classes: int, gates: Any, head: Any) -> None:
    spec = VisionTransformerSpec(
        family="dovit",
        size=(32, 16),
        patch=patch,
        width=8,
        depth=depth,
        heads=2,
        hidden=12,
        classes=classes,
        gates=tuple(GateSpec(layer=1, head=gate) for gate in gates),
        head=head,
    )
    check_every_element_is_used_once(vit.mmseg_map(spec), spec)


# Names and shapes of published files, written out apart from the tables.

PUBLISHED = {
    "DoViT": {
        "backbone.cls_token": (1, 1, 16),
        "backbone.pos_embed": (1, 7, 16),
        "backbone.patch_embed.projection.weight": (16, 3, 16, 16),
        "backbone.layers.3.attn.qkv.weight": (48, 16),
        "backbone.layers.3.ffn.layers.0.0.bias": (64,),
        "backbone.auxiliary_head.1.convs.0.conv.weight": (8, 16, 1, 1),
        "backbone.auxiliary_head.1.convs.0.bn.running_var": (8,),
        "backbone.auxiliary_head.0.conv_seg.weight": (5, 8, 1, 1),
        "decode_head.cls_emb": (1, 5, 16),
        "decode_head.layers.1.attn.attn.in_proj_bias": (48,),
    },
    "SETR": {
        "backbone.layers.0.attn.attn.in_proj_weight": (48, 16),
        "backbone.layers.0.attn.attn.out_proj.bias": (16,),
        "decode_head.up_convs.2.0.conv.weight": (8, 8, 3, 3),
        "decode_head.conv_seg.weight": (5, 8, 1, 1),
    },
    "Segmenter, linear, distilled": {
        "encoder.dist_token": (1, 1, 16),
        "encoder.pos_embed": (1, 6, 16),
        "encoder.blocks.1.mlp.fc2.weight": (16, 64),
        "decoder.head.weight": (5, 16),
    },
    "Evo-ViT on DeiT": {"qks.11.qk.weight": (32, 16), "vs.0.v.bias": (16,), "norms.4.weight": (16,)},
    "Evo-ViT on LeViT": {
        "poss": (1, 17, 8),
        "blocks.0.m1.m.qkv.c.weight": (16, 8),
        "blocks.3.kv.bn.running_mean": (40,),
        "blocks.3.poss": (1, 17, 8),
        "blocks.4.m.0.c.weight": (24, 12),
        "blocks.9.m2.m.2.bn.bias": (16,),
        "head_dist.l.weight": (5, 16),
    },
    "LeViT": {
        "patch_embed.6.c.weight": (8, 4, 3, 3),
        "blocks.0.m.attention_biases": (1, 25),
        "blocks.4.attention_biases": (2, 25),
        "blocks.5.m.0.c.weight": (24, 12),
    },
    "STViT-R, options": {
        "patch_embed.proj.2.bn.weight": (4,),
        "layers.0.blocks.0.attn.relative_position_bias_table": (361, 1),
        "layers.2.blocks.0.attn.qkv.weight": (48, 16),
        "layers.2.blocks.1.conv_pos.proj.0.weight": (16, 1, 3, 3),
        "layers.2.blocks.5.attn.kv.bias": (32,),
        "layers.2.semantic_token2": (1, 9, 16),
        "layers.1.downsample.reduction.weight": (16, 32),
        "layers.3.blocks.0.layer_scale_2": (32,),
    },
    "STViT-R backbone": {"norm2.weight": (16,), "layers.2.downsample.norm.bias": (64,)},
    "Swin": {"patch_embed.proj.weight": (4, 3, 4, 4), "norm.bias": (32,), "head.weight": (5, 32)},
    "STViT on DeiT": {"patch_embed.weight": (8, 3, 8, 8), "semantic_token2": (1, 9, 8)},
    "DINOv2": {
        "cls_token": (1, 1, 64),
        "pos_embed": (1, 5, 64),
        "patch_embed.proj.weight": (64, 3, 14, 14),
        "blocks.1.attn.qkv.weight": (192, 64),
        "blocks.0.ls1.gamma": (64,),
    },
    "DINOv2 of transformers": {
        "embeddings.position_embeddings": (1, 5, 64),
        "encoder.layer.1.attention.attention.key.bias": (64,),
        "encoder.layer.0.layer_scale2.lambda1": (64,),
        "layernorm.weight": (64,),
    },
    "EoMT of transformers": {
        "embeddings.position_embeddings.weight": (4, 64),
        "query.weight": (5, 64),
        "upscale_block.block.0.conv1.weight": (64, 64, 2, 2),
        "upscale_block.block.1.conv1.bias": (64,),
        "upscale_block.block.1.conv2.weight": (64, 1, 3, 3),
        "class_predictor.weight": (6, 64),
    },
    "DINOv3": {
        "storage_tokens": (1, 4, 64),
        "rope_embed.periods": (4,),
        "blocks.1.attn.qkv.bias": (192,),
        "blocks.0.mlp.w1.weight": (384, 64),
    },
    "DINOv3 of transformers": {
        "embeddings.patch_embeddings.weight": (64, 3, 16, 16),
        "layer.1.attention.k_proj.weight": (64, 64),
        "layer.0.mlp.down_proj.weight": (64, 384),
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_and_shapes(name: str) -> None:
    shapes = official_shapes(*MAPS[name])
    assert {key: shapes.get(key) for key in PUBLISHED[name]} == PUBLISHED[name]


def test_rows_packed_head_by_head_are_taken_apart() -> None:
    """Two heads of query 1, key 1, value 2 rows: q0 k0 v0 v0 q1 k1 v1 v1."""
    table = {"qkv.{entry}": packed_by_head("{part}.{entry}", "query", "key", "value")}
    key_map = KeyMap(table, numbers=lambda _: {"heads": 2})
    shapes = {"query.bias": (2,), "key.bias": (2,), "value.bias": (4,)}
    (rule,) = key_map.rules(shapes)
    assert (rule.official, rule.shape) == ("qkv.bias", (8,))
    parameters = {name: torch.zeros(shape) for name, shape in shapes.items()}
    rule.fill(parameters, torch.arange(8.0))
    assert {name: tensor.tolist() for name, tensor in parameters.items()} == {
        "query.bias": [0, 4],
        "key.bias": [1, 5],
        "value.bias": [2, 3, 6, 7],
    }


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("blocks.*.norm*.weight", "blocks.3.norm1.weight", ("blocks.3.x.norm1.weight", "blocks.3.norm.weight")),
        ("head.*", "head.bias", ("head.l.bias", "xhead.bias", "headxbias")),
        ("head.**", "head.l.bias", ("head",)),
        ("**.attn_mask", "layers.0.blocks.1.attn_mask", ("layers.0.attn_mask.x",)),
    ],
)
def test_patterns_of_names(pattern: str, fitting: str, others: tuple[str, ...]) -> None:
    assert matches(fitting, [pattern])
    assert not any(matches(name, [pattern]) for name in others)


def test_one_misshaped_or_stray_entry_does_not_redefine_the_network() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        f"blocks.{n}.norm1.{e}": (16,) for n in range(3) for e in ("weight", "bias", "x")
    }
    facts = KeyFacts({**shapes, "blocks.1.norm1.weight": (17,), "blocks.9.stray": (3,)})
    assert facts.size(("blocks.*.norm1.*", 0)) == 16
    assert facts.count("blocks") == 3
    assert facts.count("layers") is None


def test_an_entry_missing_in_one_of_two_views_is_named() -> None:
    spec = evovit.plain_spec()
    key_map = KeyMap(DEIT_KEYS, views=(str, lambda name: f"copy.{name}"))
    state: dict[str, Tensor] = random_state(key_map, spec)
    ours = ours_from_official(state, key_map, spec, source="two.pth")
    assert torch.equal(ours["positions"], state["copy.pos_embed"][0])
    del state["copy.pos_embed"]
    with pytest.raises(CheckpointMismatch, match=r"missing: copy\.pos_embed$"):
        ours_from_official(state, key_map, spec, source="two.pth")
