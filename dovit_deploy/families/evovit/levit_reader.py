"""LeViT, the dense baseline of Evo-ViT on LeViT: constructor arguments and keys -> LevitSpec.

Source: facebookresearch/LeViT.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dovit_deploy.checkpoints.keys import Rule, affine, refuse_faults, rule
from dovit_deploy.checkpoints.settings import (
    IMAGE_SETTINGS,
    Architecture,
    KeyFacts,
    Ledger,
    Reader,
    Section,
    training_size,
)
from dovit_deploy.errors import CheckpointMismatch, ConfigError
from dovit_deploy.families.evovit.levit import distance_index
from dovit_deploy.families.evovit.spec import LevitPyramid, LevitSpec, LevitStage, LevitSubsample

# What the names of a LeViT checkpoint tell of its stages: LeViT's own, and both views that Evo-ViT registers.


@dataclass(frozen=True)
class LevitLayout:
    """Stages as far as keys show them; all empty where no key of a layer is there."""

    depths: tuple[int, ...]
    attentions: tuple[str, ...]
    """Per stage, a pattern of the names of its attention layers' modules."""
    pruned: tuple[bool, ...] | None
    """Per layer, whether it lies in a StageModule; None: only the layer-wise view is there, which does not show it."""


def layout_from_keys(facts: KeyFacts) -> LevitLayout:
    """Read `stage_blocks.*` if it is there, else `blocks.*`."""
    stage_view, pruned = _stages(_stage_view(facts))
    layer_view, _ = _stages(_layer_view(facts))
    groups = layer_view or stage_view
    return LevitLayout(
        depths=tuple(len(group) for group in groups),
        attentions=tuple("|".join(map(re.escape, group)).join(("(", ")")) for group in groups),
        pruned=tuple(pruned) if stage_view else None,
    )


Part = tuple[str, bool]
"""The module of an attention layer and whether a StageModule holds it; an empty name: a subsampling."""


def _stages(parts: Iterator[Part]) -> tuple[list[list[str]], list[bool]]:
    stages: list[list[str]] = []
    pruned = []
    for name, inside in parts:
        if not name:
            stages.append([])
            continue
        if not stages:
            stages.append([])
        stages[-1].append(name)
        pruned.append(inside)
    return stages, pruned


def _layer_view(facts: KeyFacts) -> Iterator[Part]:
    for number in range(_count(facts, "blocks")):
        if facts.has(rf"blocks\.{number}\.m1\..*"):
            yield f"blocks.{number}.m1.m", False
        elif facts.has(rf"blocks\.{number}\.m\.qkv\..*"):
            yield f"blocks.{number}.m", False
        elif facts.has(rf"blocks\.{number}\.kv\..*"):
            yield "", False


def _stage_view(facts: KeyFacts) -> Iterator[Part]:
    for number in range(_count(facts, "stage_blocks")):
        place = f"stage_blocks.{number}"
        inner = rf"stage_blocks\.{number}"
        if facts.has(rf"{inner}\.m\.qkv\..*"):
            yield f"{place}.m", False
        elif facts.has(rf"{inner}\.kv\..*"):
            yield "", False
        for layer in range(_count(facts, f"{place}.m")):
            if facts.has(rf"{inner}\.m\.{layer}\.m\.qkv\..*"):
                yield f"{place}.m.{layer}.m", True


def _count(facts: KeyFacts, prefix: str) -> int:
    """One more than the highest number behind `prefix`."""
    numbers = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in facts.shapes)
    return max((int(match.group(1)) + 1 for match in numbers if match), default=0)


# What the constructors of LeViT and of Evo-ViT on LeViT have in common: settings and keys -> stages and head.

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


@dataclass(frozen=True)
class LevitParts:
    """Per stage, as the source writes them."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    key: int
    heads: tuple[int, ...]
    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    classes: int
    distilled: bool

    def stages(self) -> tuple[LevitStage, ...]:
        """The stages of a spec."""
        each = zip(self.widths, self.depths, self.heads, self.attention, self.mlp, strict=True)
        return tuple(
            LevitStage(
                width=width,
                depth=depth,
                heads=heads,
                key=self.key,
                value=int(attention * self.key),
                hidden=int(width * mlp),
            )
            for width, depth, heads, attention, mlp in each
        )


def levit_parts(section: Section, facts: KeyFacts, layout: LevitLayout, ledger: Ledger) -> LevitParts:
    """What settings and keys tell of the stages and the head.

    Args:
        section: constructor arguments.
        facts: of the checkpoint.
        layout: its stages as far as keys show them.
        ledger: takes the names of what nobody tells.

    Raises:
        ConfigError: settings contradict the keys or one another.
    """
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
    classes, seen = facts.size((r"head\.l\.(weight|bias)", 0)), facts.has(r"head_dist\..*")
    parts = LevitParts(
        widths=widths,
        depths=depths,
        key=key,
        heads=ledger.settle("N", _listed(section, "N", "num_heads"), heads or None, stand_in=(1,) * len(widths)),
        attention=attention,
        mlp=section.numbers("mlp_ratio") or (2.0,) * len(widths),
        classes=ledger.settle("num_classes", section.integer("num_classes"), classes, stand_in=1),
        distilled=ledger.settle("distillation", section.flag("distillation"), seen, stand_in=seen),
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


def levit_subsamples(section: Section, parts: LevitParts) -> tuple[LevitSubsample, ...]:
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


# Key names of the parts that LeViT and Evo-ViT on LeViT name alike. Source: facebookresearch/LeViT.

_NORMS = ("weight", "bias", "running_mean", "running_var")


def stem_rules(spec: LevitPyramid) -> list[Rule]:
    """The four convolutions."""
    widths = (3, spec.width // 8, spec.width // 4, spec.width // 2, spec.width)
    rules = []
    for number in range(4):
        shape = (widths[number + 1], widths[number], 3, 3)
        rules += normed_rules(f"patch_embed.{2 * number}", f"stem.down.{number}", *shape)
    return rules


def head_rules(spec: LevitPyramid) -> list[Rule]:
    """One head or two: BN_Linear, a batch norm in front of its linear layer."""
    width, rules = spec.stages[-1].width, []
    for source, target in (("head", "head.classifier"), ("head_dist", "head.distilled"))[: 1 + spec.distilled]:
        rules += [rule(f"{source}.bn.{entry}", f"{target}.prior.{entry}", width) for entry in _NORMS]
        rules += affine(f"{source}.l", f"{target}.projection", spec.classes, width)
    return rules


def mlp_rules(source: str, target: str, width: int, hidden: int) -> list[Rule]:
    """Linear_BN, activation, Linear_BN."""
    return [
        *normed_rules(f"{source}.0", f"{target}.expand", hidden, width),
        *normed_rules(f"{source}.2", f"{target}.contract", width, hidden),
    ]


def normed_rules(source: str, target: str, *shape: int) -> list[Rule]:
    """LeViT's Linear_BN and Conv2d_BN."""
    return [
        rule(f"{source}.c.weight", f"{target}.projection.weight", *shape),
        *(rule(f"{source}.bn.{entry}", f"{target}.norm.{entry}", shape[0]) for entry in _NORMS),
    ]


def packed_rules(source: str, targets: tuple[str, ...], heads: int, rows: int, inputs: int) -> list[Rule]:
    """A Linear_BN whose rows are laid out head by head, cut into its parts; its norm is one number a row."""
    return [
        Rule((f"{source}.c.weight",), (rows, inputs), tuple(f"{t}.projection.weight" for t in targets), heads=heads),
        *(
            Rule((f"{source}.bn.{entry}",), (rows,), tuple(f"{t}.norm.{entry}" for t in targets), heads=heads)
            for entry in _NORMS
        ),
    ]


_INDEX = "attention_bias_idxs"
"""A buffer of the source that says for each query and key which bias is theirs."""
_UNUSED = re.compile(rf".*\.{_INDEX}|.*\.num_batches_tracked")


def levit_architecture(
    settings: Mapping[str, object], facts: KeyFacts, source: str, *, thresholds: Sequence[float] | None
) -> Architecture:
    """Understand a checkpoint of LeViT, as a dense model.

    Raises:
        CheckpointMismatch: the configuration wants tokens passed on, which these weights were not trained for.
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    del thresholds
    if settings.get("prune_ratio") is not None:
        raise CheckpointMismatch(
            f"{source} is a vanilla LeViT (attention_biases), not an Evo-ViT on LeViT (poss), and its configuration "
            "selects tokens; leave 'prune_ratio' out to export it as the dense baseline"
        )
    ledger, section = Ledger(source), Section("", settings)
    section.must_be("in_chans", 3)
    section.must_be("patch_size", 16)
    parts = levit_parts(section, facts, layout_from_keys(facts), ledger)
    biases = r"blocks\.0\.m\.attention_biases"
    size = training_size(section, "img_size", facts, ledger, positions=biases, extra=0, patch=16)
    ledger.finish()
    spec = LevitSpec(
        size=size,
        stages=parts.stages(),
        subsamples=levit_subsamples(section, parts),
        classes=parts.classes,
        distilled=parts.distilled,
    )
    return Architecture(spec, levit_rules(spec), _UNUSED)


def levit_rules(spec: LevitSpec) -> list[Rule]:
    """Every entry of LeViT but its index buffers; attention and MLP of a layer are two numbered parts."""
    rules = stem_rules(spec)
    for number, (first, last) in enumerate(spec.stage_layers):
        stage, (rows, columns) = spec.stages[number], spec.stage_grids[number]
        for layer in range(first, last):
            place, target = 2 * (layer + number), f"layers.{layer}"
            parts = tuple(f"{target}.attention.{part}" for part in ("query", "key", "value"))
            wide = stage.heads * stage.value
            rules += [
                *packed_rules(
                    f"blocks.{place}.m.qkv", parts, stage.heads, 2 * stage.heads * stage.key + wide, stage.width
                ),
                *normed_rules(f"blocks.{place}.m.proj.1", f"{target}.attention.output", stage.width, wide),
                rule(f"blocks.{place}.m.attention_biases", f"{target}.attention.biases", stage.heads, rows * columns),
                *mlp_rules(f"blocks.{place + 1}.m", f"{target}.mlp", stage.width, stage.hidden),
            ]
        if number < len(spec.subsamples):
            rules += _down_rules(2 * (last + number), number, spec)
    return rules + head_rules(spec)


def _down_rules(place: int, number: int, spec: LevitSpec) -> list[Rule]:
    part, before, after = spec.subsamples[number], spec.stages[number].width, spec.stages[number + 1].width
    rows, columns = spec.stage_grids[number]
    source, target = f"blocks.{place}", f"downs.{number}"
    parts = tuple(f"{target}.attention.{name}" for name in ("key", "value"))
    wide = part.heads * part.value
    return [
        *packed_rules(f"{source}.kv", parts, part.heads, part.heads * part.key + wide, before),
        *normed_rules(f"{source}.q.1", f"{target}.attention.query", part.heads * part.key, before),
        *normed_rules(f"{source}.proj.1", f"{target}.attention.output", after, wide),
        rule(f"{source}.attention_biases", f"{target}.attention.biases", part.heads, rows * columns),
        *mlp_rules(f"blocks.{place + 1}.m", f"{target}.mlp", after, part.hidden),
    ]


def with_usual_indices(state: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """`state` as it is, after comparing the buffers that assign biases with the rule that is used here.

    Raises:
        CheckpointMismatch: a buffer says something else.
    """
    indices = {name: tensor for name, tensor in state.items() if name.endswith(_INDEX)}
    other = [name for name, tensor in indices.items() if not _usual(tensor)]
    refuse_faults({"biases assigned in another way than LeViT's": other}, source)
    return state


def _usual(index: Tensor) -> bool:
    if index.dim() != 2:
        return False
    fewer, side = (round(count**0.5) for count in index.shape)
    expected = distance_index((side, side), -(-side // max(fewer, 1)))
    return expected.shape == index.shape and torch.equal(expected, index.long())


READER = Reader(
    recognises=lambda facts: facts.has(r"blocks\.\d+\..*attention_biases"),
    settings=LEVIT_SETTINGS,
    architecture=levit_architecture,
    prepared=with_usual_indices,
)
