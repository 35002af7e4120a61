"""What the constructors of LeViT and of Evo-ViT on LeViT have in common: settings and keys -> stages and head."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dovit_deploy.bundle.levit_spec import LevitStage, LevitSubsample
from dovit_deploy.errors import ConfigError
from dovit_deploy.models.image_facts import IMAGE_SETTINGS
from dovit_deploy.models.key_facts import KeyFacts
from dovit_deploy.models.levit_layout import LevitLayout
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
