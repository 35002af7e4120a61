"""DINOv2 under the names of transformers, with and without registers -> a backbone.

Sources: transformers 4 and 5 (`Dinov2Model`, `Dinov2WithRegistersModel`). Files have the names of version 4; version 5
gives its modules other ones, which `torch.save(model.state_dict())` writes.
"""

from __future__ import annotations

from dovit_deploy.checkpoints.images import IMAGE_SETTINGS
from dovit_deploy.checkpoints.keys import KeyMap, KeyTable, extra_token, packed, some_rows
from dovit_deploy.checkpoints.reader import BackboneArchitecture, BackboneReader
from dovit_deploy.checkpoints.settings import Section, Sources, SpecValue, count, size, training_size
from dovit_deploy.families.vit.backbones import whole_network
from dovit_deploy.families.vit.dinov2 import HEADS_OF_WIDTH, LICENSE, NORM_EPS, positions_of, row_keys

_TOKENS, _POSITIONS = "embeddings.register_tokens", "embeddings.position_embeddings"
TRANSFORMERS_KEYS: KeyTable = {
    "embeddings.cls_token": extra_token(0),
    # Which rows these two are depends on the number of registers: `row_keys`.
    "embeddings.register_tokens": some_rows("extra_tokens", range(1, 5)),
    "embeddings.position_embeddings": some_rows("positions", range(1)),
    "embeddings.patch_embeddings.projection.{entry}": "stem.projection.{entry}",
    "encoder.layer.{layer}.norm1.{entry}": "blocks.{layer}.norm1.{entry}",
    "encoder.layer.{layer}.layer_scale1.lambda1": "blocks.{layer}.scale1.factor",
    "encoder.layer.{layer}.norm2.{entry}": "blocks.{layer}.norm2.{entry}",
    "encoder.layer.{layer}.layer_scale2.lambda1": "blocks.{layer}.scale2.factor",
    "layernorm.{entry}": "norm.{entry}",
}
GELU_KEYS: KeyTable = {
    "encoder.layer.{layer}.mlp.fc1.{entry}": "blocks.{layer}.mlp.expand.{entry}",
    "encoder.layer.{layer}.mlp.fc2.{entry}": "blocks.{layer}.mlp.contract.{entry}",
}
STORED_KEYS: KeyTable = {
    "encoder.layer.{layer}.attention.attention.query.{entry}": "blocks.{layer}.attention.query.{entry}",
    "encoder.layer.{layer}.attention.attention.key.{entry}": "blocks.{layer}.attention.key.{entry}",
    "encoder.layer.{layer}.attention.attention.value.{entry}": "blocks.{layer}.attention.value.{entry}",
    "encoder.layer.{layer}.attention.output.dense.{entry}": "blocks.{layer}.attention.output.{entry}",
}
STORED_SWIGLU_KEYS: KeyTable = {
    "encoder.layer.{layer}.mlp.weights_in.{entry}": packed("blocks.{layer}.mlp.{part}.{entry}", "gate", "expand"),
    "encoder.layer.{layer}.mlp.weights_out.{entry}": "blocks.{layer}.mlp.contract.{entry}",
}
IN_MEMORY_KEYS: KeyTable = {
    "encoder.layer.{layer}.attention.q_proj.{entry}": "blocks.{layer}.attention.query.{entry}",
    "encoder.layer.{layer}.attention.k_proj.{entry}": "blocks.{layer}.attention.key.{entry}",
    "encoder.layer.{layer}.attention.v_proj.{entry}": "blocks.{layer}.attention.value.{entry}",
    "encoder.layer.{layer}.attention.o_proj.{entry}": "blocks.{layer}.attention.output.{entry}",
}
IN_MEMORY_SWIGLU_KEYS: KeyTable = {
    "encoder.layer.{layer}.mlp.gate_proj.{entry}": "blocks.{layer}.mlp.gate.{entry}",
    "encoder.layer.{layer}.mlp.up_proj.{entry}": "blocks.{layer}.mlp.expand.{entry}",
    "encoder.layer.{layer}.mlp.down_proj.{entry}": "blocks.{layer}.mlp.contract.{entry}",
}

SETTINGS = IMAGE_SETTINGS | frozenset(
    {
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "hidden_act", "layer_norm_eps"),
        *("image_size", "patch_size", "num_channels", "qkv_bias", "use_swiglu_ffn", "num_register_tokens"),
    }
)
"""Of `config.json`."""

WIDTH = SpecValue("hidden_size", Section.positive, 1, shown=size(("encoder.layer.*.norm*.*", 0), ("layernorm.*", 0)))
DEPTH = SpecValue("num_hidden_layers", Section.positive, 1, shown=count("encoder.layer"))
HEADS = SpecValue(
    "num_attention_heads", Section.positive, 1, default=lambda network: HEADS_OF_WIDTH.get(network[WIDTH])
)
PATCH = SpecValue("patch_size", Section.positive, 14, shown=size(("embeddings.patch_embeddings.projection.weight", 2)))
SIZE = training_size("image_size", positions=_POSITIONS, extra=lambda _: 1, patch=lambda network: network[PATCH])
REGISTERS = SpecValue(
    "num_register_tokens", Section.integer, 0, shown=lambda network: network.facts.size((_TOKENS, 1)) or 0
)
HIDDEN = SpecValue(
    "mlp",
    lambda *_: None,
    1,
    shown=size(
        ("encoder.layer.*.mlp.fc1.*", 0),
        ("encoder.layer.*.mlp.weights_out.weight", 1),
        ("encoder.layer.*.mlp.down_proj.weight", 1),
    ),
    label="mlp_ratio",
)


def transformers_backbone(network: Sources) -> BackboneArchitecture:
    """Understand the names of transformers; `network` is its `config.json`, if there is one.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    network.must_all_be({"num_channels": (3,), "hidden_act": ("gelu",)})
    in_memory = network.facts.has("encoder.layer.*.attention.q_proj.*")
    gate = "encoder.layer.*.mlp.gate_proj.*" if in_memory else "encoder.layer.*.mlp.weights_in.*"
    gated, registers = network.present("use_swiglu_ffn", gate), network[REGISTERS]
    eps = network.number("layer_norm_eps")
    values = {
        "family": "dinov2",
        "size": network[SIZE],
        "patch": network[PATCH],
        "width": network[WIDTH],
        "depth": network[DEPTH],
        "heads": network[HEADS],
        "hidden": network[HIDDEN],
        "extra_tokens": 1 + registers,
        "norm_eps": NORM_EPS if eps is None else eps,
        "position_mode": "antialias" if registers else "size",
        "mlp": "swiglu" if gated else "gelu",
    }
    network.finish()
    swiglu = IN_MEMORY_SWIGLU_KEYS if in_memory else STORED_SWIGLU_KEYS
    key_map = KeyMap(
        {
            **TRANSFORMERS_KEYS,
            **(IN_MEMORY_KEYS if in_memory else STORED_KEYS),
            **(swiglu if gated else GELU_KEYS),
            **row_keys(_TOKENS, _POSITIONS, registers=registers, patches=positions_of(network, _POSITIONS)),
        },
        unused=("embeddings.mask_token",),
        zero_if_absent=() if network.present("qkv_bias", _BIASES[in_memory][0]) else _BIASES[in_memory],
        layer_scale=True,
    )
    return BackboneArchitecture(values, key_map, LICENSE)


_BIASES = {
    True: tuple(f"encoder.layer.*.attention.{part}_proj.bias" for part in "qkv"),
    False: ("encoder.layer.*.attention.attention.*.bias",),
}
"""Biases that a model may be built without, by whether its names are those in memory."""

BACKBONE = BackboneReader(
    title="DINOv2 of transformers",
    recognises=lambda facts: facts.has("encoder.layer.*.layer_scale1.lambda1"),
    settings=SETTINGS,
    architecture=transformers_backbone,
    tables=(
        *(TRANSFORMERS_KEYS, GELU_KEYS, STORED_KEYS, STORED_SWIGLU_KEYS),
        *(IN_MEMORY_KEYS, IN_MEMORY_SWIGLU_KEYS),
    ),
    needed=(
        "encoder.layer.*.layer_scale1.lambda1",
        "embeddings.patch_embeddings.projection.*",
        "embeddings.position_embeddings",
    ),
)
READER = whole_network(BACKBONE)
