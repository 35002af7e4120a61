"""Swin-like checkpoints and constructor arguments -> Architecture: STViT-R's classifier and backbone, or a plain Swin.

Sources: changsn/STViT-R, changsn/STViT-R-Object-Detection, microsoft/Swin-Transformer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dovit_deploy.checkpoints.settings import (
    IMAGE_SETTINGS,
    Architecture,
    KeyFacts,
    Ledger,
    OfficialState,
    Reader,
    Section,
    training_size,
)
from dovit_deploy.errors import CheckpointMismatch, ConfigError
from dovit_deploy.families.stvit.keys import (
    MASK,
    POSITIONS,
    backbone_rules,
    check_buffers,
    stvit_deit_rules,
    stvit_swin_rules,
    swin_rules,
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
_BACKBONE = "backbone."
_BLOCK = r"layers\.\d+\.blocks\.\d+"
_TABLE = r"attn\.relative_position_bias_table"
_UNUSED = re.compile(rf".*\.num_batches_tracked|.*{re.escape(POSITIONS)}|.*{re.escape(MASK)}")


def recognises(facts: KeyFacts) -> bool:
    """Swin's blocks, alone or inside a detector."""
    return facts.has(rf"({re.escape(_BACKBONE)})?{_BLOCK}\.{_TABLE}")


def prepared(state: OfficialState, source: str) -> OfficialState:
    """The backbone of a detector without its prefix, neck and heads left out; tables checked."""
    if any(name.startswith(f"{_BACKBONE}layers.") for name in state):
        state = {name.removeprefix(_BACKBONE): value for name, value in state.items() if name.startswith(_BACKBONE)}
    check_buffers(state, source)
    return state


def swin_architecture(
    settings: Mapping[str, object], facts: KeyFacts, source: str, *, thresholds: Sequence[float] | None
) -> Architecture:
    """Understand a Swin-like checkpoint.

    Args:
        settings: constructor arguments; empty if there are none.
        facts: of the checkpoint.
        source: its name, for messages.
        thresholds: not read: there are no gates.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
        CheckpointMismatch: a plain Swin where the settings ask for STViT-R, or one without a head.
    """
    del thresholds
    section, ledger = _arguments(settings), Ledger(source)
    _refuse_unsupported(section)
    shape = _shape(section, facts, ledger)
    if not facts.has(rf"{_BLOCK}\.attn\.kv\..*"):
        _refuse_plain(section, facts, source)
        plain = {**shape, "classes": _classes(section, facts, ledger), "size": _plain_size(section, facts, shape)}
        ledger.finish()
        swin = SwinSpec.model_validate(plain)
        return Architecture(spec=swin, rules=swin_rules(swin), unused=_UNUSED)
    if facts.has(r"norm[0-3]\.(weight|bias)"):
        arguments = {**shape, **_backbone(section), "local_convolution": _convolution(section, facts, ledger)}
        ledger.finish()
        backbone = StvitBackboneSpec.model_validate(arguments)
        return Architecture(spec=backbone, rules=backbone_rules(backbone), unused=_UNUSED)
    arguments = {**shape, **_classifier(section, facts, ledger, shape)}
    ledger.finish()
    classifier = StvitSwinSpec.model_validate(arguments)
    return Architecture(spec=classifier, rules=stvit_swin_rules(classifier), unused=_UNUSED)


def _arguments(settings: Mapping[str, object]) -> Section:
    """The constructor's arguments, which a detector's configuration has in a part of their own."""
    section = Section("", settings)
    backbone = section.section("backbone")
    return section if backbone is None else backbone.only(ARGUMENTS | REDUCING)


def _refuse_unsupported(section: Section) -> None:
    section.must_be("patch_size", PATCH)
    section.must_be("in_chans", 3)
    section.must_be("qkv_bias", True)
    section.must_be("qk_scale", None)
    section.must_be("ape", False)
    section.must_be("patch_norm", True)
    section.must_be("multi_scale", "multi_scale_semantic_token1")
    section.must_be("sample_window_size", SAMPLES)
    section.must_be("window_sample_size", SAMPLES)
    out = section.integers("out_indices")
    if out is not None and out != (0, 1, 2, 3):
        raise section.wrong("out_indices", "only [0, 1, 2, 3] is supported")


def _shape(section: Section, facts: KeyFacts, ledger: Ledger) -> dict[str, Any]:
    """Widths, depths, heads and window: all but the input size."""
    # Stages differ so much in depth that `facts.count` would take a short one for a stray entry.
    named = [re.match(rf"layers\.(\d+)\.blocks\.0\.{_TABLE}", name) for name in facts.shapes]
    stages = 1 + max(int(match.group(1)) for match in named if match)
    width = ledger.settle(
        "embed_dim",
        section.integer("embed_dim"),
        facts.size((r"layers\.0\.blocks\.\d+\.norm[12]\.(weight|bias)", 0)),
        stand_in=2,
    )
    depths = tuple(facts.count(rf"layers\.{stage}\.blocks") or 0 for stage in range(stages))
    heads = tuple(facts.size((rf"layers\.{stage}\.blocks\.0\.{_TABLE}", 1)) or 0 for stage in range(stages))
    hidden = facts.size((r"layers\.0\.blocks\.\d+\.mlp\.fc1\.(weight|bias)", 0))
    window = _side(facts.size((rf"layers\.0\.blocks\.\d+\.{_TABLE}", 0)))
    return {
        "stem": "conv" if facts.has(r"patch_embed\.proj\.0\..*") else "patch",
        "width": width,
        "depths": ledger.settle("depths", section.integers("depths"), depths, stand_in=depths),
        "heads": ledger.settle("num_heads", section.integers("num_heads"), heads, stand_in=heads),
        "window": ledger.settle("window_size", section.integer("window_size"), window, stand_in=7),
        "hidden_ratio": ledger.settle(
            "mlp_ratio", section.number("mlp_ratio"), None if hidden is None else hidden / width, stand_in=4.0
        ),
    }


def _side(rows: int | None) -> int | None:
    """Side of the windows for which a table of biases has `rows`, (2 side - 1)^2."""
    return None if rows is None else (math.isqrt(rows) + 1) // 2


def _classes(section: Section, facts: KeyFacts, ledger: Ledger) -> int:
    if not facts.has(r"head\.(weight|bias)"):
        raise CheckpointMismatch(f"{ledger.source} is a Swin without a classifier (head.*); only classifiers are read")
    return ledger.settle(
        "num_classes", section.integer("num_classes"), facts.size((r"head\.(weight|bias)", 0)), stand_in=1
    )


def _refuse_plain(section: Section, facts: KeyFacts, source: str) -> None:
    asked = sorted(REDUCING & section.values.keys())
    if str(section.values.get("family", "")).startswith("stvit"):
        asked.insert(0, "family")
    if asked:
        raise CheckpointMismatch(
            f"{source} is a plain Swin and no STViT-R, which the configuration ({asked[0]}) describes: none of its "
            f"{len(facts.shapes)} entries is of a semantic block; leave --config out to export it as a dense network"
        )


def _masked_side(facts: KeyFacts, window: int) -> int | None:
    """Side of the square picture that the masks of the first stage were made for, in pixels."""
    windows = facts.size((r"layers\.0\.blocks\.\d+\.attn_mask", 0))
    return None if windows is None else math.isqrt(windows) * window * PATCH


def _size(section: Section, facts: KeyFacts, window: int, usual: int) -> tuple[int, int]:
    """The training size: stated, else that of the masks, else the `usual` one."""
    stated, seen = section.pair("img_size"), _masked_side(facts, window)
    if stated is None:
        return (seen or usual,) * 2
    if seen is not None and stated != (seen, seen):
        raise ConfigError(
            f"'{section.name('img_size')}' is {stated[0]}x{stated[1]} in the configuration, and the masks in the "
            f"checkpoint are for {seen}x{seen}; give the size it was trained at"
        )
    return stated


def _plain_size(section: Section, facts: KeyFacts, shape: dict[str, Any]) -> tuple[int, int]:
    """Published sizes are 224 with windows of 7 and 384 with windows of 12: one window in the last stage."""
    window = int(shape["window"])
    return _size(section, facts, window, usual=window * PATCH * 2 ** (len(shape["depths"]) - 1))


def _backbone(section: Section) -> dict[str, Any]:
    """What only the backbone has; no key tells any of it."""
    section.must_be("relative_pos", False)
    masked = section.flag("pad_mask")
    spans = [section.integer(f"k_window_size_{number}") for number in (1, 2)]
    fields = StvitBackboneSpec.model_fields
    usual = fields["neighbourhoods"].default
    return {
        "size": section.pair("pretrain_img_size") or (224, 224),
        "neighbourhoods": tuple(given or default for given, default in zip(spans, usual, strict=True)),
        "recovery_neighbourhood": section.integer("restore_k_window_size") or fields["recovery_neighbourhood"].default,
        "padding_mask": "none" if masked is False else "released",
    }


def _classifier(section: Section, facts: KeyFacts, ledger: Ledger, shape: dict[str, Any]) -> dict[str, Any]:
    """What only the classifier has; of `shortcut` alone the keys tell nothing, it is off unless it is stated."""
    stage, window = rf"layers\.{REDUCED_STAGE}", int(shape["window"])
    sides = fitting_sides(window)
    return {
        "size": _size(section, facts, window, usual=sides[0] if sides else 224),
        "classes": _classes(section, facts, ledger),
        "pooled_residual": section.flag("shortcut") or False,
        "global_tokens": _option("use_global", section, facts, ledger, rf"{stage}\.semantic_token2"),
        "local_convolution": _convolution(section, facts, ledger),
        "relative_positions": _option(
            "relative_pos", section, facts, ledger, rf"{stage}\.blocks\.(3|4|9|10|15|16)\.{_TABLE}"
        ),
        "layer_scale": _option(
            "use_layer_scale", section, facts, ledger, r"layers\.[013]\.blocks\.\d+\.layer_scale_[12]"
        ),
    }


def _convolution(section: Section, facts: KeyFacts, ledger: Ledger) -> bool:
    return _option("use_conv_pos", section, facts, ledger, rf"{_BLOCK}\.conv_pos\..*")


def _option(name: str, section: Section, facts: KeyFacts, ledger: Ledger, pattern: str) -> bool:
    """On if there are entries for it, which must be what is stated."""
    return ledger.settle(name, section.flag(name), facts.has(pattern), stand_in=False)


READER = Reader(
    recognises=recognises,
    settings=ARGUMENTS | REDUCING | DETECTOR | IMAGE_SETTINGS | {"family"},
    architecture=swin_architecture,
    prepared=prepared,
)


# STViT on DeiT: keys and settings of the composed network -> Architecture. No official checkpoint of it exists.

SETTINGS = frozenset({"dim", "heads", "depth", "stgm_start", "img_size", "k", "num_classes", "ln_eps"})
_DEIT_BLOCK = r"blocks\.\d+"


def stvit_deit_architecture(
    settings: Mapping[str, object], facts: KeyFacts, source: str, *, thresholds: Sequence[float] | None
) -> Architecture:
    """Understand a checkpoint of the composed network.

    Args:
        settings: `dim`, `heads`, `depth`, `stgm_start`, ...; heads and start are in no key.
        facts: of the checkpoint.
        source: its name, for messages.
        thresholds: not read: there are no gates.

    Raises:
        ConfigError: values unknown or contradicting the keys.
    """
    del thresholds
    ledger, section = Ledger(source), Section("", settings)
    width = ledger.settle("dim", section.integer("dim"), facts.size((rf"{_DEIT_BLOCK}\.norm[12]\..*", 0)), stand_in=1)
    patch = facts.size((r"patch_embed\.weight", 2)) or 16
    size = training_size(section, "img_size", facts, ledger, positions=r"pos_embed", extra=0, patch=patch)
    tokens = facts.size((r"semantic_token2", 1))
    contents = {
        "size": size,
        "patch": patch,
        "width": width,
        "depth": ledger.settle("depth", section.integer("depth"), facts.count(r"blocks"), stand_in=1),
        "heads": ledger.settle("heads", section.integer("heads"), None, stand_in=1),
        "hidden": facts.size((rf"{_DEIT_BLOCK}\.mlp\.fc1\..*", 0)) or 4 * width,
        "norm_eps": section.number("ln_eps") or 1e-5,
        "reduced_from": ledger.settle("stgm_start", section.integer("stgm_start"), None, stand_in=0),
        "samples": ledger.settle("k", section.integer("k"), math.isqrt(tokens) if tokens else None, stand_in=4),
        "classes": ledger.settle(
            "num_classes", section.integer("num_classes"), facts.size((r"head\.(weight|bias)", 0)), stand_in=1
        ),
    }
    ledger.finish()
    spec = StvitDeitSpec.model_validate(contents)
    return Architecture(spec=spec, rules=stvit_deit_rules(spec), unused=re.compile(r".*\.num_batches_tracked"))


STVIT_DEIT = Reader(
    recognises=lambda facts: facts.has(r"semantic_token2") and facts.has(rf"{_DEIT_BLOCK}\.attn\.kv\..*"),
    settings=SETTINGS | IMAGE_SETTINGS,
    architecture=stvit_deit_architecture,
)
