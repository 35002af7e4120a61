"""Constructor arguments and keys -> EvoLevitSpec, for Evo-ViT on LeViT. Source: YifanXu74/Evo-ViT."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dovit_deploy.bundle.evovit_levit_spec import EvoLevitSpec
from dovit_deploy.bundle.levit_spec import LevitStage, LevitSubsample
from dovit_deploy.bundle.token_selection import Selection
from dovit_deploy.errors import ConfigError
from dovit_deploy.models.architecture import Architecture, training_size
from dovit_deploy.models.evovit_levit_keys import evo_levit_rules, rules_in_views, with_equal_views
from dovit_deploy.models.image_facts import IMAGE_SETTINGS
from dovit_deploy.models.key_facts import KeyFacts
from dovit_deploy.models.levit_layout import LevitLayout, layout_from_keys
from dovit_deploy.models.reader import Reader
from dovit_deploy.models.section import Ledger, Section

LEVIT_SETTINGS = IMAGE_SETTINGS | frozenset(
    {
        *("img_size", "patch_size", "in_chans", "num_classes", "distillation", "down_ops", "prune_ratio"),
        *("embed_dim", "key_dim", "depth", "num_heads", "attn_ratio", "mlp_ratio", "C", "D", "X", "N"),
        *("stage_wise_prune", "learn_tradeoff_mode"),
        *("drop_path", "weights", "fuse", "hybrid_backbone", "attention_activation", "mlp_activation"),
    }
)
"""Arguments of the constructor and of `model_factory`, and two attributes set from outside."""
_KEY_DIMS: dict[tuple[int, ...], int] = {
    (128, 256, 384): 16,
    (192, 288, 384): 32,
    (256, 384, 512): 32,
    (384, 512, 768): 32,
}
"""Width of a head's query by the widths of the published sizes' stages."""
_UNUSED = re.compile(r"head_cls(_dist)?\.(bn|l)\..*|.*\.num_batches_tracked|.*\.learn_tradeoff")
_UNPRUNED = 2
"""Layers that run on every token before the first selection, in every published size."""


@dataclass(frozen=True)
class _Parts:
    """Per stage, as the source writes them."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    key: int
    heads: tuple[int, ...]
    attention: tuple[float, ...]
    mlp: tuple[float, ...]


def evo_levit_architecture(
    settings: Mapping[str, object], facts: KeyFacts, source: str, *, thresholds: Sequence[float] | None
) -> Architecture:
    """Understand a checkpoint of Evo-ViT on LeViT.

    Args:
        settings: constructor arguments; empty if there are none.
        facts: of the checkpoint.
        source: the checkpoint's name, for messages.
        thresholds: not read: it has no gates.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    del thresholds
    ledger, section = Ledger(source), Section("", settings)
    section.must_be("in_chans", 3)
    section.must_be("patch_size", 16)
    layout = layout_from_keys(facts)
    parts = _parts(section, facts, layout, ledger)
    size = training_size(section, "img_size", facts, ledger, positions="poss", extra=1, patch=16)
    classes = facts.size((r"head\.l\.(weight|bias)", 0))
    seen = facts.has(r"head_dist\..*")
    distilled = ledger.settle("distillation", section.flag("distillation"), seen, stand_in=seen)
    layers, stages = _ratios(section, parts.depths)
    pruned = tuple(ratio != 1 for ratio in layers)
    # The stage view shows which layers have a ratio, not which.
    ledger.settle("prune_ratio below 1", layer_numbers(pruned), layer_numbers(layout.pruned), stand_in=())
    stage_wise = section.flag("stage_wise_prune") is not False
    selections = _stage_wise(layers, stages, parts.depths) if stage_wise else _layer_wise(layers)
    classes = ledger.settle("num_classes", section.integer("num_classes"), classes, stand_in=1)
    ledger.finish()
    spec = EvoLevitSpec(
        size=size,
        stages=tuple(
            LevitStage(
                width=width,
                depth=depth,
                heads=heads,
                key=parts.key,
                value=int(attention * parts.key),
                hidden=int(width * mlp),
            )
            for width, depth, heads, attention, mlp in zip(
                parts.widths, parts.depths, parts.heads, parts.attention, parts.mlp, strict=True
            )
        ),
        subsamples=_subsamples(section, parts),
        classes=classes,
        distilled=distilled,
        selections=selections,
        tradeoff=0.5 if section.flag("learn_tradeoff_mode") is False else None,
    )
    return Architecture(spec, rules_in_views(evo_levit_rules(spec), spec, pruned, facts), _UNUSED)


def layer_numbers(pruned: Sequence[bool] | None) -> tuple[int, ...] | None:
    """Which layers are pruned, or None where nobody tells."""
    return None if pruned is None else tuple(layer for layer, one in enumerate(pruned) if one)


def _parts(section: Section, facts: KeyFacts, layout: LevitLayout, ledger: Ledger) -> _Parts:
    widths = _listed(section, "C", "embed_dim")
    seen_widths = tuple(
        facts.size((rf"{prefix}\.proj\.1\.(c\.weight|bn\.weight|bn\.bias)", 0)) or 0 for prefix in layout.attentions
    )
    widths = ledger.settle("C", widths, seen_widths or None, stand_in=(8,))
    depths = ledger.settle("X", _listed(section, "X", "depth"), layout.depths or None, stand_in=(1,) * len(widths))
    key = section.integer("D")
    keys = section.integers("key_dim")
    if key is None and keys is not None:
        if len(set(keys)) > 1:
            raise ConfigError(f"'key_dim' {list(keys)}: only one width for all stages is supported")
        key = keys[0]
    key = ledger.settle("D", key if key is not None else _KEY_DIMS.get(widths), None, stand_in=1)
    attention = section.numbers("attn_ratio") or (2.0,) * len(widths)
    rows = [facts.size((rf"{prefix}\.qkv\.(c\.weight|bn\.weight|bn\.bias)", 0)) or 0 for prefix in layout.attentions]
    heads = tuple(round(n / ((2 + ratio) * key)) for n, ratio in zip(rows, attention, strict=False))
    parts = _Parts(
        widths=widths,
        depths=depths,
        key=key,
        heads=ledger.settle("N", _listed(section, "N", "num_heads"), heads or None, stand_in=(1,) * len(widths)),
        attention=attention,
        mlp=section.numbers("mlp_ratio") or (2.0,) * len(widths),
    )
    lengths = {len(widths), len(depths), len(parts.heads), len(attention), len(parts.mlp)}
    if len(lengths) > 1:
        raise ConfigError(
            f"{len(widths)} widths, {len(depths)} depths and {len(parts.heads)} numbers of heads: one each"
        )
    return parts


def _listed(section: Section, short: str, long: str) -> tuple[int, ...] | None:
    """A list of whole numbers, under either name; the short one is written "128_256_384" by the source."""
    value = section.values.get(short)
    if isinstance(value, str):
        if not re.fullmatch(r"\d+(_\d+)*", value):
            raise section.wrong(short, "whole numbers joined by _ are needed")
        return tuple(int(number) for number in value.split("_"))
    return section.integers(short) or section.integers(long)


def _ratios(section: Section, depths: tuple[int, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`prune_ratio`: per layer and per stage; unstated it is that of the published sizes."""
    value = section.values.get("prune_ratio")
    if value is None:
        return (1.0,) * _UNPRUNED + (0.5,) * (sum(depths) - _UNPRUNED), (0.5,) * len(depths)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise section.wrong("prune_ratio", "two lists are needed, one entry a layer and one a stage")
    lists = Section("prune_ratio", {"layers": value[0], "stages": value[1]}, section.source)
    layers, stages = lists.numbers("layers") or (), lists.numbers("stages") or ()
    if len(layers) != sum(depths) or len(stages) != len(depths):
        raise ConfigError(
            f"'prune_ratio' has {len(layers)} and {len(stages)} entries; "
            f"{sum(depths)} layers in {len(depths)} stages need one each"
        )
    if not all(0 <= ratio <= 1 for ratio in (*layers, *stages)):
        raise ConfigError("'prune_ratio': each entry must lie in 0 to 1")
    if layers[0] != 1:
        raise ConfigError("'prune_ratio' of the first layer must be 1: there are no scores before it to choose by")
    return layers, stages


def _layer_wise(layers: tuple[float, ...]) -> tuple[Selection, ...]:
    return tuple(
        Selection(first=layer, last=layer + 1, ratio=ratio) for layer, ratio in enumerate(layers) if ratio != 1
    )


def _stage_wise(layers: tuple[float, ...], stages: tuple[float, ...], depths: tuple[int, ...]) -> tuple[Selection, ...]:
    """One selection a stage, from its first layer with a ratio to its end, by the stage's ratio."""
    found, first = [], 0
    for depth, ratio in zip(depths, stages, strict=True):
        last = first + depth
        begin = next((layer for layer in range(first, last) if layers[layer] != 1), last)
        if any(layers[layer] == 1 for layer in range(begin, last)):
            raise ConfigError(
                f"'prune_ratio' of layers {first} to {last - 1}: in the stage-wise form the layers with ratio 1 of a "
                "stage come first"
            )
        if begin < last:
            found.append(Selection(first=begin, last=last, ratio=ratio))
        first = last
    return () if all(selection.ratio == 1 for selection in found) else tuple(found)


def _subsamples(section: Section, parts: _Parts) -> tuple[LevitSubsample, ...]:
    """`down_ops`: ('Subsample', key_dim, num_heads, attn_ratio, mlp_ratio, stride); unstated as in `model_factory`."""
    default = [["Subsample", parts.key, width // parts.key, 4, 2, 2] for width in parts.widths[:-1]]
    stated = section.values.get("down_ops", default)
    entries = [entry for entry in stated if entry != [""]] if isinstance(stated, list | tuple) else []
    if len(entries) != len(parts.widths) - 1:
        raise section.wrong("down_ops", f"{len(parts.widths) - 1} entries are needed")
    found = []
    for entry, width in zip(entries, parts.widths[1:], strict=True):
        if not isinstance(entry, list | tuple) or len(entry) != 6 or entry[0] != "Subsample":
            raise section.wrong(
                "down_ops", "entries ['Subsample', key_dim, heads, attn_ratio, mlp_ratio, stride] are needed"
            )
        key, heads, attention, mlp, stride = (_number(value, section) for value in entry[1:])
        found.append(
            LevitSubsample(
                heads=int(heads), key=int(key), value=int(attention * key), hidden=int(width * mlp), stride=int(stride)
            )
        )
    return tuple(found)


def _number(value: object, section: Section) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise section.wrong("down_ops", "numbers above 0 are needed")
    return value


READER = Reader(
    recognises=lambda facts: facts.has(r".*\.learn_tradeoff|poss"),
    settings=LEVIT_SETTINGS,
    architecture=evo_levit_architecture,
    prepared=with_equal_views,
)
