"""DINOv3's vision transformers under the names of transformers -> a backbone.

Source: transformers 4 and 5 (`DINOv3ViTModel`). Version 5 puts `model.` before the layers in memory, which
`torch.save(model.state_dict())` writes. The periods of the rotary positions are in no file: they are made of a base.
"""

from __future__ import annotations

from dovit_deploy.checkpoints.images import IMAGE_SETTINGS
from dovit_deploy.checkpoints.keys import KeyMap, KeyTable, extra_token, some_rows
from dovit_deploy.checkpoints.reader import BackboneArchitecture, BackboneReader
from dovit_deploy.checkpoints.settings import Section, Sources, SpecValue, size
from dovit_deploy.families.rotary import PERIODS, periods_from_base
from dovit_deploy.families.vit.backbones import whole_network
from dovit_deploy.families.vit.dinov2 import register_keys
from dovit_deploy.families.vit.dinov3 import HEADS_OF_WIDTH, LICENSE, NORM_EPS, SIZE_OF_SOURCE

STORED, IN_MEMORY = "layer", "model.layer"
"""What stands before the number of a layer in a file of version 4 and 5, and in the memory of version 5."""


def _layer_keys(layers: str) -> KeyTable:
    before, ours = f"{layers}.{{layer}}", "blocks.{layer}"
    return {
        f"{before}.norm1.{{entry}}": f"{ours}.norm1.{{entry}}",
        f"{before}.attention.q_proj.{{entry}}": f"{ours}.attention.query.{{entry}}",
        f"{before}.attention.k_proj.{{entry}}": f"{ours}.attention.key.{{entry}}",
        f"{before}.attention.v_proj.{{entry}}": f"{ours}.attention.value.{{entry}}",
        f"{before}.attention.o_proj.{{entry}}": f"{ours}.attention.output.{{entry}}",
        f"{before}.layer_scale1.lambda1": f"{ours}.scale1.factor",
        f"{before}.norm2.{{entry}}": f"{ours}.norm2.{{entry}}",
        f"{before}.mlp.gate_proj.{{entry}}": f"{ours}.mlp.gate.{{entry}}",
        f"{before}.mlp.up_proj.{{entry}}": f"{ours}.mlp.expand.{{entry}}",
        f"{before}.mlp.down_proj.{{entry}}": f"{ours}.mlp.contract.{{entry}}",
        f"{before}.layer_scale2.lambda1": f"{ours}.scale2.factor",
    }


TRANSFORMERS_KEYS: KeyTable = {
    "embeddings.cls_token": extra_token(0),
    # As many rows as there are: `transformers_backbone`.
    "embeddings.register_tokens": some_rows("extra_tokens", range(1, 5)),
    "embeddings.patch_embeddings.{entry}": "stem.projection.{entry}",
    "norm.{entry}": "norm.{entry}",
}
STORED_KEYS, IN_MEMORY_KEYS = _layer_keys(STORED), _layer_keys(IN_MEMORY)

SETTINGS = IMAGE_SETTINGS | frozenset(
    {
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
        *("layer_norm_eps", "image_size", "patch_size", "num_channels", "rope_theta", "use_gated_mlp"),
        *("num_register_tokens", "query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias"),
    }
)
"""Of `config.json`."""

WIDTH = SpecValue("hidden_size", Section.positive, 1, shown=size(("norm.*", 0), ("embeddings.patch_embeddings.*", 0)))
HEADS = SpecValue(
    "num_attention_heads", Section.positive, 1, default=lambda network: HEADS_OF_WIDTH.get(network[WIDTH])
)
PATCH = SpecValue("patch_size", Section.positive, 16, shown=size(("embeddings.patch_embeddings.weight", 2)))
SIZE = SpecValue("image_size", Section.pair, (16, 16), default=lambda _: (SIZE_OF_SOURCE, SIZE_OF_SOURCE))
REGISTERS = SpecValue(
    "num_register_tokens",
    Section.integer,
    0,
    shown=lambda network: network.facts.size(("embeddings.register_tokens", 1)) or 0,
)
DEPTH = SpecValue("num_hidden_layers", Section.positive, 1, shown=lambda network: network.facts.count(_layers(network)))
HIDDEN = SpecValue("intermediate_size", Section.positive, 1, shown=size(("**.mlp.up_proj.*", 0)))


def _layers(network: Sources) -> str:
    return IN_MEMORY if network.facts.has(f"{IN_MEMORY}.**") else STORED


def transformers_backbone(network: Sources) -> BackboneArchitecture:
    """Understand the names of transformers; `network` is its `config.json`, if there is one.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    layers, registers = _layers(network), network[REGISTERS]
    gated = network.present("use_gated_mlp", f"{layers}.*.mlp.gate_proj.*")
    network.must_all_be({"num_channels": (3,), "hidden_act": ("silu",) if gated else ("gelu",)})
    eps, base = network.number("layer_norm_eps"), network.number("rope_theta")
    width, heads = network[WIDTH], network[HEADS]
    values = {
        "family": "dinov3",
        "size": network[SIZE],
        "patch": network[PATCH],
        "width": width,
        "depth": network[DEPTH],
        "heads": heads,
        "hidden": network[HIDDEN],
        "extra_tokens": 1 + registers,
        "norm_eps": NORM_EPS if eps is None else eps,
        "rotary": True,
        "mlp": "swiglu" if gated else "gelu",
    }
    network.finish()
    key_map = KeyMap(
        {
            **TRANSFORMERS_KEYS,
            **(IN_MEMORY_KEYS if layers == IN_MEMORY else STORED_KEYS),
            **register_keys("embeddings.register_tokens", registers),
        },
        unused=("embeddings.mask_token", "rope_embeddings.*"),
        zero_if_absent=_absent_biases(network, layers),
        layer_scale=True,
        given={PERIODS: periods_from_base(100.0 if base is None else base, width // heads)},
    )
    return BackboneArchitecture(values, key_map, LICENSE)


def _absent_biases(network: Sources, layers: str) -> tuple[str, ...]:
    """Biases that the network was built without: the published ones have none of keys, the largest none of any."""
    setting_of = {"q": "query_bias", "k": "key_bias", "v": "value_bias", "o": "proj_bias"}
    attention = {f"{layers}.*.attention.{part}_proj.bias": setting for part, setting in setting_of.items()}
    patterns = {**attention, f"{layers}.*.mlp.*.bias": "mlp_bias"}
    return tuple(pattern for pattern, setting in patterns.items() if not network.present(setting, pattern))


BACKBONE = BackboneReader(
    title="DINOv3 of transformers",
    # DINOv2's patch embedding has a module of its own, `projection`.
    recognises=lambda facts: (
        facts.has("embeddings.patch_embeddings.weight")
        and facts.has(f"{STORED}.*.attention.q_proj.*", f"{IN_MEMORY}.*.attention.q_proj.*")
    ),
    settings=SETTINGS,
    architecture=transformers_backbone,
    tables=(TRANSFORMERS_KEYS, STORED_KEYS, IN_MEMORY_KEYS),
    needed=("embeddings.patch_embeddings.*", f"{STORED}.*.attention.q_proj.*", f"{STORED}.*.layer_scale1.lambda1"),
    unused=frozenset({"rope_embeddings"}),
)
READER = whole_network(BACKBONE)
