"""Swin-like checkpoints and constructor arguments -> Architecture: STViT-R's classifier and backbone, or a plain Swin.

Sources: changsn/STViT-R, changsn/STViT-R-Object-Detection, microsoft/Swin-Transformer. STViT on DeiT is composed of the
former's parts; no official checkpoint of it exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from dovit_deploy.checkpoints.images import IMAGE_SETTINGS
from dovit_deploy.checkpoints.keys import KeyFacts
from dovit_deploy.checkpoints.reader import Architecture, OfficialState, Reader
from dovit_deploy.checkpoints.settings import Section, Sources, SpecValue, count, has, size, training_size
from dovit_deploy.errors import CheckpointMismatch, ConfigError, NetworkUnknown
from dovit_deploy.families.stvit.keys import (
    SEMANTIC_KEYS,
    STVIT_DEIT_KEYS,
    STVIT_DEIT_MAP,
    SWIN_KEYS,
    SWIN_MAP,
    check_buffers,
)
from dovit_deploy.families.stvit.spec import (
    REDUCED_STAGE,
    SAMPLES,
    StvitBackboneSpec,
    StvitDeitSpec,
    StvitSwinSpec,
    fitting_sides,
)
from dovit_deploy.families.stvit.swin_spec import PATCH, SwinSpec

ARGUMENTS = frozenset(
    {
        *("img_size", "pretrain_img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depths", "num_heads"),
        *("window_size", "mlp_ratio", "qkv_bias", "qk_scale", "ape", "patch_norm", "out_indices", "type", "norm_layer"),
    }
)
"""Constructor arguments that every Swin has."""
REDUCING = frozenset(
    {
        *("multi_scale", "relative_pos", "use_conv_pos", "shortcut", "sample_window_size", "use_layer_scale"),
        *("use_global", "window_sample_size", "k_window_size_1", "k_window_size_2", "restore_k_window_size"),
        "pad_mask",
    }
)
"""Those of STViT-R."""
DETECTOR = frozenset({"backbone", "neck", "rpn_head", "roi_head", "bbox_head", "mask_head", "test_cfg"})
"""Parts of an mmdet model; the backbone's arguments are in the first."""
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "patch_size": (PATCH,),
    "in_chans": (3,),
    "qkv_bias": (True,),
    "qk_scale": (None,),
    "ape": (False,),
    "patch_norm": (True,),
    "multi_scale": ("multi_scale_semantic_token1",),
    "sample_window_size": (SAMPLES,),
    "window_sample_size": (SAMPLES,),
}
_BACKBONE = "backbone."
_BIASES = "attn.relative_position_bias_table"
_REDUCED = f"layers.{REDUCED_STAGE}"
_LOOKING_AROUND = (3, 4, 9, 10, 15, 16)
"""Blocks of the reduced stage, up to its third unit, whose attention may have biases by relative position."""


def _stages(network: Sources) -> range:
    # Stages differ so much in depth that `KeyFacts.count` would take a short one for a stray entry.
    found = {
        stage for stage in network.facts.numbers("layers") if network.facts.has(f"layers.{stage}.blocks.0.{_BIASES}")
    }
    return range(1 + max(found, default=-1))


def _shown_depths(network: Sources) -> tuple[int, ...]:
    return tuple(network.facts.count(f"layers.{stage}.blocks") or 0 for stage in _stages(network))


def _shown_heads(network: Sources) -> tuple[int, ...]:
    return tuple(network.facts.size((f"layers.{stage}.blocks.0.{_BIASES}", 1)) or 0 for stage in _stages(network))


def _shown_window(network: Sources) -> int | None:
    """Side of the windows for which a table of biases has (2 side - 1)^2 rows."""
    rows = network.facts.size((f"layers.0.blocks.*.{_BIASES}", 0))
    return None if rows is None else (math.isqrt(rows) + 1) // 2


def _shown_ratio(network: Sources) -> float | None:
    hidden = network.facts.size(("layers.0.blocks.*.mlp.fc1.*", 0))
    return None if hidden is None else hidden / network[WIDTH]


WIDTH = SpecValue("embed_dim", Section.positive, 2, shown=size(("layers.0.blocks.*.norm*.*", 0)))
DEPTHS = SpecValue[tuple[int, ...]]("depths", Section.integers, (1,), shown=_shown_depths)
HEADS = SpecValue[tuple[int, ...]]("num_heads", Section.integers, (1,), shown=_shown_heads)
WINDOW = SpecValue("window_size", Section.positive, 7, shown=_shown_window)
HIDDEN_RATIO = SpecValue("mlp_ratio", Section.number, 4.0, shown=_shown_ratio)
CLASSES = SpecValue("num_classes", Section.positive, 1, shown=size(("head.*", 0)))
# An option is on if there are entries for it, and that must be what is stated.
GLOBAL_TOKENS = SpecValue("use_global", Section.flag, False, shown=has(f"{_REDUCED}.semantic_token2"))
CONVOLUTION = SpecValue("use_conv_pos", Section.flag, False, shown=has("layers.*.blocks.*.conv_pos.**"))
RELATIVE_POSITIONS = SpecValue(
    "relative_pos",
    Section.flag,
    False,
    shown=lambda network: network.facts.has(*(f"{_REDUCED}.blocks.{block}.{_BIASES}" for block in _LOOKING_AROUND)),
)
LAYER_SCALE = SpecValue(
    "use_layer_scale",
    Section.flag,
    False,
    shown=lambda network: network.facts.has(*(f"layers.{stage}.blocks.*.layer_scale_*" for stage in (0, 1, 3))),
)


def _image_size(usual: Callable[[Sources], int]) -> SpecValue[tuple[int, int]]:
    """The training size: stated, else that of the shift masks in the checkpoint, else the `usual` one, in pixels."""

    def masked_side(network: Sources) -> int | None:
        # Blocks of shifted windows store a mask for each window of the (square) grid.
        windows = network.facts.size(("layers.0.blocks.*.attn_mask", 0))
        return None if windows is None else math.isqrt(windows) * network[WINDOW] * PATCH

    def stated(network: Sources, key: str) -> tuple[int, int] | None:
        pixels, side = network.pair(key), masked_side(network)
        if pixels is not None and side is not None and pixels != (side, side):
            raise ConfigError(
                f"'{network.name(key)}' is {pixels[0]}x{pixels[1]} in the configuration, and the masks in the "
                f"checkpoint are for {side}x{side}; give the size it was trained at"
            )
        return pixels

    return SpecValue(
        "img_size", stated, (224, 224), default=lambda network: (masked_side(network) or usual(network),) * 2
    )


# Published sizes are 224 with windows of 7 and 384 with windows of 12: one window in the last stage.
SWIN_SIZE = _image_size(lambda network: network[WINDOW] * PATCH * 2 ** (len(network[DEPTHS]) - 1))
STVIT_SIZE = _image_size(lambda network: next(iter(fitting_sides(network[WINDOW])), 224))


def swin_architecture(model: Sources) -> Architecture:
    """Understand a Swin-like checkpoint; `model` is its constructor's arguments, or an mmdet model.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
        CheckpointMismatch: a plain Swin where the settings ask for STViT-R, or one without a head.
    """
    network = model
    # A detector's configuration has the arguments in a part of their own; `prepared` took its prefix off the keys.
    if model.section("backbone") is not None:
        network = model.part("backbone", "")
        network.only(ARGUMENTS | REDUCING)
    _refuse_unsupported(network)
    values: dict[str, object] = {
        "stem": "conv" if network.facts.has("patch_embed.proj.0.**") else "patch",
        "width": network[WIDTH],
        "depths": network[DEPTHS],
        "heads": network[HEADS],
        "window": network[WINDOW],
        "hidden_ratio": network[HIDDEN_RATIO],
    }
    spec: type[SwinSpec] | type[StvitBackboneSpec] | type[StvitSwinSpec]
    if not network.facts.has("layers.*.blocks.*.attn.kv.**"):
        _refuse_plain(network)
        spec, values = SwinSpec, {**values, "classes": _classes(network), "size": network[SWIN_SIZE]}
    # A detector reads every stage, each through a norm of its own; a classifier has only the last one's.
    elif network.facts.has("norm0.*", "norm1.*", "norm2.*", "norm3.*"):
        spec, values = StvitBackboneSpec, {**values, **_backbone_values(network)}
    else:
        spec, values = StvitSwinSpec, {**values, **_classifier_values(network)}
    network.finish()
    return Architecture(spec.model_validate(values), SWIN_MAP)


def _refuse_unsupported(network: Sources) -> None:
    network.must_all_be(_SUPPORTED)
    out = network.integers("out_indices")
    if out is not None and out != (0, 1, 2, 3):
        raise network.wrong("out_indices", "only [0, 1, 2, 3] is supported")


def _refuse_plain(network: Sources) -> None:
    asked = sorted(REDUCING & network.values.keys())
    if str(network.values.get("family", "")).startswith("stvit"):
        asked.insert(0, "family")
    if asked:
        raise CheckpointMismatch(
            f"{network.checkpoint} is a plain Swin and no STViT-R, which the configuration ({asked[0]}) describes: "
            f"none of its {len(network.facts.shapes)} entries is of a semantic block; leave --config out to export it "
            "as a dense network"
        )


def _classes(network: Sources) -> int:
    if not network.facts.has("head.*"):
        raise NetworkUnknown(f"{network.checkpoint} is a Swin without a classifier (head.*); only classifiers are read")
    return network[CLASSES]


def _backbone_values(network: Sources) -> dict[str, object]:
    """What only the backbone has; no key shows any of it but the convolution."""
    network.must_be("relative_pos", False)
    spans = [network.integer(f"k_window_size_{number}") for number in (1, 2)]
    fields = StvitBackboneSpec.model_fields
    usual = fields["neighbourhoods"].default
    return {
        "size": network.pair("pretrain_img_size") or (224, 224),
        "neighbourhoods": tuple(given or default for given, default in zip(spans, usual, strict=True)),
        "recovery_neighbourhood": network.integer("restore_k_window_size") or fields["recovery_neighbourhood"].default,
        "padding_mask": "none" if network.flag("pad_mask") is False else "released",
        "local_convolution": network[CONVOLUTION],
    }


def _classifier_values(network: Sources) -> dict[str, object]:
    """What only the classifier has; of `shortcut` alone the keys show nothing, it is off unless it is stated."""
    return {
        "size": network[STVIT_SIZE],
        "classes": _classes(network),
        "pooled_residual": network.flag("shortcut") or False,
        "global_tokens": network[GLOBAL_TOKENS],
        "local_convolution": network[CONVOLUTION],
        "relative_positions": network[RELATIVE_POSITIONS],
        "layer_scale": network[LAYER_SCALE],
    }


def recognises(facts: KeyFacts) -> bool:
    """Swin's blocks, alone or inside a detector."""
    return facts.has(f"layers.*.blocks.*.{_BIASES}", f"{_BACKBONE}layers.*.blocks.*.{_BIASES}")


def prepared(state: OfficialState, source: str) -> OfficialState:
    """The backbone of a detector without its prefix, neck and heads left out; buffers checked."""
    if any(name.startswith(f"{_BACKBONE}layers.") for name in state):
        state = {name.removeprefix(_BACKBONE): value for name, value in state.items() if name.startswith(_BACKBONE)}
    check_buffers(state, source)
    return state


READER = Reader(
    title="Swin/STViT-R",
    recognises=recognises,
    settings=ARGUMENTS | REDUCING | DETECTOR | IMAGE_SETTINGS | {"family"},
    architecture=swin_architecture,
    tables=(SWIN_KEYS, SEMANTIC_KEYS),
    needed=(f"layers.*.blocks.*.{_BIASES}", "patch_embed.**"),
    prepared=prepared,
)


# STViT on DeiT.

DEIT_SETTINGS = frozenset({"dim", "heads", "depth", "stgm_start", "img_size", "k", "num_classes", "ln_eps"})


def _deit_patch(network: Sources) -> int:
    return network.facts.size(("patch_embed.weight", 2)) or 16


def _shown_samples(network: Sources) -> int | None:
    tokens = network.facts.size(("semantic_token2", 1))
    return math.isqrt(tokens) if tokens else None


DEIT_WIDTH = SpecValue("dim", Section.positive, 1, shown=size(("blocks.*.norm*.*", 0)))
DEIT_SIZE = training_size("img_size", positions="pos_embed", extra=lambda _: 0, patch=_deit_patch)
DEIT_DEPTH = SpecValue("depth", Section.positive, 1, shown=count("blocks"))
DEIT_HEADS = SpecValue("heads", Section.positive, 1)
DEIT_START = SpecValue("stgm_start", Section.integer, 0)
DEIT_SAMPLES = SpecValue("k", Section.positive, 4, shown=_shown_samples)


def stvit_deit_architecture(network: Sources) -> Architecture:
    """Understand a checkpoint of the composed network: `dim`, `heads`, `depth`, `stgm_start`, ...

    Raises:
        ConfigError: values unknown or contradicting the keys; heads and start are in no key.
    """
    values = {
        "size": network[DEIT_SIZE],
        "patch": _deit_patch(network),
        "width": network[DEIT_WIDTH],
        "depth": network[DEIT_DEPTH],
        "heads": network[DEIT_HEADS],
        # No setting of the composed network.
        "hidden": network.facts.size(("blocks.*.mlp.fc1.*", 0)) or 4 * network[DEIT_WIDTH],
        "norm_eps": network.number("ln_eps") or 1e-5,
        "reduced_from": network[DEIT_START],
        "samples": network[DEIT_SAMPLES],
        "classes": network[CLASSES],
    }
    network.finish()
    return Architecture(StvitDeitSpec.model_validate(values), STVIT_DEIT_MAP)


STVIT_DEIT = Reader(
    title="STViT on DeiT",
    recognises=lambda facts: facts.has("semantic_token2") and facts.has("blocks.*.attn.kv.**"),
    settings=DEIT_SETTINGS | IMAGE_SETTINGS,
    architecture=stvit_deit_architecture,
    tables=(STVIT_DEIT_KEYS,),
    needed=("semantic_token2", "blocks.*.attn.kv.*", "pos_embed", "head.*"),
)
