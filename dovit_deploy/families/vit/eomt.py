"""EoMT of transformers -> a whole network. Source: transformers 5 (`EomtForUniversalSegmentation`, semantic).

A plain vision transformer whose last layers run with queries; each answers with a class and a mask. In training the
queries attend to their own masks alone; a finished network attends to everything, and only such ones are read.
"""

from __future__ import annotations

from dovit_deploy.checkpoints.images import IMAGE_SETTINGS
from dovit_deploy.checkpoints.keys import KeyMap, KeyTable, Ours, doubling, extra_token, packed, some_rows
from dovit_deploy.checkpoints.reader import Architecture, OfficialState, Reader
from dovit_deploy.checkpoints.settings import Section, Sources, SpecValue, count, size
from dovit_deploy.errors import CheckpointMismatch, ConfigError
from dovit_deploy.families.parts import QueryHead
from dovit_deploy.families.vit.dinov2 import HEADS_OF_WIDTH, NORM_EPS, register_keys
from dovit_deploy.families.vit.spec import VisionTransformerSpec

EOMT_KEYS: KeyTable = {
    "embeddings.cls_token": extra_token(0),
    "embeddings.patch_embeddings.projection.{entry}": "stem.projection.{entry}",
    "layers.{layer}.norm1.{entry}": "blocks.{layer}.norm1.{entry}",
    "layers.{layer}.attention.q_proj.{entry}": "blocks.{layer}.attention.query.{entry}",
    "layers.{layer}.attention.k_proj.{entry}": "blocks.{layer}.attention.key.{entry}",
    "layers.{layer}.attention.v_proj.{entry}": "blocks.{layer}.attention.value.{entry}",
    "layers.{layer}.attention.out_proj.{entry}": "blocks.{layer}.attention.output.{entry}",
    "layers.{layer}.layer_scale1.lambda1": "blocks.{layer}.scale1.factor",
    "layers.{layer}.norm2.{entry}": "blocks.{layer}.norm2.{entry}",
    "layers.{layer}.layer_scale2.lambda1": "blocks.{layer}.scale2.factor",
    "layernorm.{entry}": "norm.{entry}",
    "query.weight": "head.queries",
    "upscale_block.block.{number}.conv1.{entry}": doubling("head.doublings.{number}.expand.{entry}"),
    "upscale_block.block.{number}.conv2.{entry}": "head.doublings.{number}.conv.{entry}",
    "upscale_block.block.{number}.layernorm2d.{entry}": "head.doublings.{number}.norm.{entry}",
    "mask_head.fc1.{entry}": "head.mask.0.{entry}",
    "mask_head.fc2.{entry}": "head.mask.1.{entry}",
    "mask_head.fc3.{entry}": "head.mask.2.{entry}",
    "class_predictor.{entry}": "head.classifier.{entry}",
}
GELU_KEYS: KeyTable = {
    "layers.{layer}.mlp.fc1.{entry}": "blocks.{layer}.mlp.expand.{entry}",
    "layers.{layer}.mlp.fc2.{entry}": "blocks.{layer}.mlp.contract.{entry}",
}
SWIGLU_KEYS: KeyTable = {
    "layers.{layer}.mlp.gate_proj.{entry}": "blocks.{layer}.mlp.gate.{entry}",
    "layers.{layer}.mlp.up_proj.{entry}": "blocks.{layer}.mlp.expand.{entry}",
    "layers.{layer}.mlp.down_proj.{entry}": "blocks.{layer}.mlp.contract.{entry}",
}
PACKED_SWIGLU_KEYS: KeyTable = {
    "layers.{layer}.mlp.weights_in.{entry}": packed("blocks.{layer}.mlp.{part}.{entry}", "gate", "expand"),
    "layers.{layer}.mlp.weights_out.{entry}": "blocks.{layer}.mlp.contract.{entry}",
}
"""Of version 4."""
_POSITIONS, _REGISTERS = "embeddings.position_embeddings.weight", "embeddings.register_tokens"
ROW_KEYS: KeyTable = {
    _POSITIONS: some_rows("positions", range(1)),
    _REGISTERS: some_rows("extra_tokens", range(1, 5)),
}
"""Which rows these are depends on the number of registers."""
_PROBABILITIES = "attn_mask_probs"

_GATED = {"layers.*.mlp.gate_proj.*": SWIGLU_KEYS, "layers.*.mlp.weights_in.*": PACKED_SWIGLU_KEYS}
"""What shows that the MLPs have gates -> their names."""

SETTINGS = IMAGE_SETTINGS | frozenset(
    {
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "image_size"),
        *("patch_size", "num_channels", "mlp_ratio", "use_swiglu_ffn", "num_blocks", "num_upscale_blocks"),
        *("num_queries", "num_register_tokens", "num_labels"),
    }
)
"""Of `config.json`."""

WIDTH = SpecValue("hidden_size", Section.positive, 1, shown=size(("layers.*.norm*.*", 0), ("layernorm.*", 0)))
DEPTH = SpecValue("num_hidden_layers", Section.positive, 1, shown=count("layers"))
HEADS = SpecValue(
    "num_attention_heads", Section.positive, 1, default=lambda network: HEADS_OF_WIDTH.get(network[WIDTH])
)
PATCH = SpecValue("patch_size", Section.positive, 16, shown=size(("embeddings.patch_embeddings.projection.weight", 2)))
HIDDEN = SpecValue(
    "mlp",
    lambda *_: None,
    1,
    shown=size(("layers.*.mlp.fc1.*", 0), ("layers.*.mlp.weights_out.weight", 1), ("layers.*.mlp.up_proj.*", 0)),
    label="mlp_ratio",
)
REGISTERS = SpecValue(
    "num_register_tokens", Section.integer, 0, shown=lambda network: network.facts.size((_REGISTERS, 1)) or 0
)
QUERIES = SpecValue("num_queries", Section.positive, 1, shown=size(("query.weight", 0)))
JOINED = SpecValue("num_blocks", Section.positive, 1, shown=size((_PROBABILITIES, 0)), default=lambda _: 4)
DOUBLINGS = SpecValue("num_upscale_blocks", Section.positive, 1, shown=count("upscale_block.block"))
CLASSES = SpecValue(
    "num_labels",
    Section.positive,
    1,
    # One more stands for no object.
    shown=lambda network: (network.facts.size(("class_predictor.*", 0)) or 2) - 1,
)


def _stated_size(network: Sources, key: str) -> tuple[int, int] | None:
    pixels, patches, side = network.pair(key), network.facts.size((_POSITIONS, 0)), network[PATCH]
    if pixels is not None and patches is not None and (pixels[0] // side) * (pixels[1] // side) != patches:
        raise ConfigError(
            f"'{network.name(key)}' {pixels[0]}x{pixels[1]} makes {pixels[0] // side}x{pixels[1] // side} patches of "
            f"{side}, and {network.checkpoint} has position embeddings for {patches}"
        )
    return pixels


def _square_size(network: Sources) -> tuple[int, int] | None:
    patches = network.facts.size((_POSITIONS, 0)) or 0
    side = round(patches**0.5)
    return (side * network[PATCH],) * 2 if side and side * side == patches else None


SIZE = SpecValue("image_size", _stated_size, (16, 16), default=_square_size)


def eomt_architecture(network: Sources) -> Architecture:
    """Understand EoMT under the names of transformers; `network` is its `config.json`, if there is one.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    network.must_all_be({"num_channels": (3,), "hidden_act": ("gelu",)})
    mlp_keys = next((keys for entry, keys in _GATED.items() if network.facts.has(entry)), GELU_KEYS)
    gated = mlp_keys is not GELU_KEYS
    network.must_be("use_swiglu_ffn", gated)
    registers, image, eps = network[REGISTERS], network[SIZE], network.number("layer_norm_eps")
    head = QueryHead(queries=network[QUERIES], joined=network[JOINED], doublings=network[DOUBLINGS])
    values = {
        "family": "eomt",
        "size": image,
        "patch": network[PATCH],
        "width": network[WIDTH],
        "depth": network[DEPTH],
        "heads": network[HEADS],
        "hidden": network[HIDDEN],
        "extra_tokens": 1 + registers,
        "norm_eps": NORM_EPS if eps is None else eps,
        "position_mode": "size",
        "mlp": "swiglu" if gated else "gelu",
        "classes": network[CLASSES],
        "head": head,
    }
    network.finish()
    spec, first = VisionTransformerSpec.model_validate(values), 1 + registers
    rows = {
        _POSITIONS: Ours("positions", rows=tuple(range(first, first + spec.patches))),
        **register_keys(_REGISTERS, registers),
    }
    key_map = KeyMap(
        {**EOMT_KEYS, **mlp_keys, **rows},
        # The masks of training, and how much its loss weighs each class.
        unused=(_PROBABILITIES, "criterion.*"),
        layer_scale=True,
    )
    # Its source cuts an image, resized to the window's shorter side, into windows that overlap as little as they can.
    return Architecture(spec, key_map, stride=image, slide_size=image)


def without_masks_of_training(state: OfficialState, source: str) -> OfficialState:
    """`state`, whose `attn_mask_probs` say with which probability a query attends to its own mask alone.

    Raises:
        CheckpointMismatch: one is above 0: what the network computes would depend on chance, or on masks.
    """
    probabilities = state.get(_PROBABILITIES)
    if probabilities is not None and bool((probabilities != 0).any()):
        raise CheckpointMismatch(
            f"{source} is not a finished EoMT: {_PROBABILITIES} is {probabilities.tolist()}, and only 0 is supported",
            "Give the checkpoint of the end of its training, where the queries attend to everything",
        )
    return state


READER = Reader(
    title="EoMT of transformers",
    recognises=lambda facts: facts.has("query.weight") and facts.has("layers.*.attention.out_proj.*"),
    settings=SETTINGS,
    architecture=eomt_architecture,
    tables=(EOMT_KEYS, ROW_KEYS, GELU_KEYS, SWIGLU_KEYS, PACKED_SWIGLU_KEYS),
    needed=("query.weight", "layers.*.attention.out_proj.*", "mask_head.**", "upscale_block.**", "class_predictor.*"),
    prepared=without_masks_of_training,
)
