"""LeViT, the dense baseline of Evo-ViT on LeViT: constructor arguments and keys -> LevitSpec.

Source: facebookresearch/LeViT. What Evo-ViT's own LeViT shares with it, `evo_levit_reader` takes from here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dovit_deploy.checkpoints.images import IMAGE_SETTINGS
from dovit_deploy.checkpoints.keys import KeyFacts, KeyMap, KeyTable, packed_by_head, refuse_faults
from dovit_deploy.checkpoints.reader import Architecture, Reader
from dovit_deploy.checkpoints.settings import Section, Sources, SpecValue, has, size, training_size
from dovit_deploy.errors import CheckpointMismatch, ConfigError
from dovit_deploy.families.evovit.levit import distance_index
from dovit_deploy.families.evovit.spec import LevitPyramid, LevitSpec, LevitStage, LevitSubsample

# Key names. `c` is a linear layer or convolution, `bn` the batch norm after it; in a head the norm comes first.

STEM_AND_HEAD_KEYS: KeyTable = {
    "patch_embed.0.c.weight": "stem.down.0.projection.weight",
    "patch_embed.0.bn.{entry}": "stem.down.0.norm.{entry}",
    "patch_embed.2.c.weight": "stem.down.1.projection.weight",
    "patch_embed.2.bn.{entry}": "stem.down.1.norm.{entry}",
    "patch_embed.4.c.weight": "stem.down.2.projection.weight",
    "patch_embed.4.bn.{entry}": "stem.down.2.norm.{entry}",
    "patch_embed.6.c.weight": "stem.down.3.projection.weight",
    "patch_embed.6.bn.{entry}": "stem.down.3.norm.{entry}",
    "head.bn.{entry}": "head.classifier.prior.{entry}",
    "head.l.{entry}": "head.classifier.projection.{entry}",
    "head_dist.bn.{entry}": "head.distilled.prior.{entry}",
    "head_dist.l.{entry}": "head.distilled.projection.{entry}",
}
SUBSAMPLE_KEYS: KeyTable = {
    "blocks.{cross}.kv.c.weight": packed_by_head("downs.{down}.attention.{part}.projection.weight", "key", "value"),
    "blocks.{cross}.kv.bn.{entry}": packed_by_head("downs.{down}.attention.{part}.norm.{entry}", "key", "value"),
    "blocks.{cross}.q.1.c.weight": "downs.{down}.attention.query.projection.weight",
    "blocks.{cross}.q.1.bn.{entry}": "downs.{down}.attention.query.norm.{entry}",
    "blocks.{cross}.proj.1.c.weight": "downs.{down}.attention.output.projection.weight",
    "blocks.{cross}.proj.1.bn.{entry}": "downs.{down}.attention.output.norm.{entry}",
    "blocks.{cross_mlp}.m.0.c.weight": "downs.{down}.mlp.expand.projection.weight",
    "blocks.{cross_mlp}.m.0.bn.{entry}": "downs.{down}.mlp.expand.norm.{entry}",
    "blocks.{cross_mlp}.m.2.c.weight": "downs.{down}.mlp.contract.projection.weight",
    "blocks.{cross_mlp}.m.2.bn.{entry}": "downs.{down}.mlp.contract.norm.{entry}",
}
LEVIT_KEYS: KeyTable = {
    **STEM_AND_HEAD_KEYS,
    **SUBSAMPLE_KEYS,
    "blocks.{cross}.attention_biases": "downs.{down}.attention.biases",
    "blocks.{block}.m.qkv.c.weight": packed_by_head(
        "layers.{layer}.attention.{part}.projection.weight", "query", "key", "value"
    ),
    "blocks.{block}.m.qkv.bn.{entry}": packed_by_head(
        "layers.{layer}.attention.{part}.norm.{entry}", "query", "key", "value"
    ),
    "blocks.{block}.m.proj.1.c.weight": "layers.{layer}.attention.output.projection.weight",
    "blocks.{block}.m.proj.1.bn.{entry}": "layers.{layer}.attention.output.norm.{entry}",
    "blocks.{block}.m.attention_biases": "layers.{layer}.attention.biases",
    # Attention and MLP of a layer are two numbered blocks of the source.
    "blocks.{mlp}.m.0.c.weight": "layers.{layer}.mlp.expand.projection.weight",
    "blocks.{mlp}.m.0.bn.{entry}": "layers.{layer}.mlp.expand.norm.{entry}",
    "blocks.{mlp}.m.2.c.weight": "layers.{layer}.mlp.contract.projection.weight",
    "blocks.{mlp}.m.2.bn.{entry}": "layers.{layer}.mlp.contract.norm.{entry}",
}
_INDEX = "attention_bias_idxs"
"""A buffer of the source that says for each query and key which bias is theirs."""


def official_numbers(spec: LevitPyramid, *, blocks_per_layer: int) -> Callable[[Mapping[str, str]], Mapping[str, int]]:
    """For `KeyMap.numbers`: the source numbers its blocks over all stages, with two for each subsampling.

    `block` is a layer's, `cross` a subsampling's; `mlp` and `cross_mlp` are the blocks after them.
    """

    def numbers(fields: Mapping[str, str]) -> Mapping[str, int]:
        if "layer" in fields:
            layer = int(fields["layer"])
            stage = next(number for number, (_, end) in enumerate(spec.stage_layers) if layer < end)
            block = blocks_per_layer * layer + 2 * stage
            return {"block": block, "mlp": block + 1, "heads": spec.stages[stage].heads}
        if "down" in fields:
            down = int(fields["down"])
            cross = blocks_per_layer * spec.stage_layers[down][1] + 2 * down
            return {"cross": cross, "cross_mlp": cross + 1, "heads": spec.subsamples[down].heads}
        return {}

    return numbers


# What the names show of the stages: LeViT's own names, and both views that Evo-ViT registers.


@dataclass(frozen=True)
class LevitLayout:
    """Stages as far as keys show them; empty where no key of a layer is there."""

    attentions: tuple[tuple[str, ...], ...]
    """Per stage, the names of its attention layers' modules."""
    pruned: tuple[bool, ...] | None
    """Per layer, whether it is in a StageModule; None: only the layer-wise view is there, which does not show it."""

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers of each stage."""
        return tuple(len(names) for names in self.attentions)


@functools.lru_cache(maxsize=1)
def layout_from_keys(facts: KeyFacts) -> LevitLayout:
    """Read both `stage_blocks.*` and `blocks.*`, whichever are there."""
    # Remembered for the one file that is being read: four values ask for it, and names are searched block by block.
    stage_view, layer_view = _stage_view(facts), _layer_view(facts)
    pruned = tuple(".m." in name for name in stage_view if name) if stage_view else None
    return LevitLayout(_by_stage(layer_view or stage_view), pruned)


def _by_stage(modules: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Modules of attention layers in order, cut where an empty name stands for a subsampling."""
    stages: list[list[str]] = [[]]
    for name in modules:
        if name:
            stages[-1].append(name)
        else:
            stages.append([])
    return tuple(tuple(stage) for stage in stages) if any(stages) else ()


def _layer_view(facts: KeyFacts) -> list[str]:
    found = []
    for number in range(_count(facts, "blocks")):
        block = f"blocks.{number}"
        if facts.has(f"{block}.m1.**"):
            found.append(f"{block}.m1.m")
        elif facts.has(f"{block}.m.qkv.**"):
            found.append(f"{block}.m")
        elif facts.has(f"{block}.kv.**"):
            found.append("")
    return found


def _stage_view(facts: KeyFacts) -> list[str]:
    """A StageModule's layers are `stage_blocks.N.m.I.m`, others `stage_blocks.N.m`."""
    found = []
    for number in range(_count(facts, "stage_blocks")):
        block = f"stage_blocks.{number}"
        if facts.has(f"{block}.m.qkv.**"):
            found.append(f"{block}.m")
        elif facts.has(f"{block}.kv.**"):
            found.append("")
        inner = range(_count(facts, f"{block}.m"))
        found += [f"{block}.m.{layer}.m" for layer in inner if facts.has(f"{block}.m.{layer}.m.qkv.**")]
    return found


def _count(facts: KeyFacts, prefix: str) -> int:
    """One more than the highest number after `prefix`.

    Not `KeyFacts.count`: blocks differ so much in their number of entries that small ones would pass for stray entries.
    """
    return 1 + max(facts.numbers(prefix), default=-1)


def _rows(sources: Sources, layer: str) -> tuple[int, ...] | None:
    """Per stage, the rows of `layer` of its attentions."""
    ends = ("c.weight", "bn.weight", "bn.bias")
    return (
        tuple(
            sources.facts.size(*((f"{name}.{layer}.{end}", 0) for name in names for end in ends)) or 0
            for names in layout_from_keys(sources.facts).attentions
        )
        or None
    )


# What the constructors of LeViT and of Evo-ViT on LeViT have in common.

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
_LONG = {"C": "embed_dim", "X": "depth", "N": "num_heads"}
"""The constructor's names for what `model_factory` abbreviates."""


def _stated_list(section: Section, key: str) -> tuple[int, ...] | None:
    """A list of whole numbers, under either name; the short one is written "128_256_384" by the source."""
    value = section.values.get(key)
    if isinstance(value, str):
        if not re.fullmatch(r"\d+(_\d+)*", value):
            raise section.wrong(key, "whole numbers joined by _ are needed")
        return tuple(int(number) for number in value.split("_"))
    return section.integers(key) or section.integers(_LONG[key])


def _stated_key(section: Section, key: str) -> int | None:
    stated, per_stage = section.positive(key), section.integers("key_dim")
    if stated is not None or per_stage is None:
        return stated
    if len(set(per_stage)) > 1 or per_stage[0] < 1:
        raise section.wrong("key_dim", "one width above 0 for all stages is needed")
    return per_stage[0]


def _stated_ratios(section: Section, key: str) -> tuple[float, ...] | None:
    ratios = section.numbers(key) or None
    if ratios is not None and min(ratios) <= 0:
        raise section.wrong(key, "numbers above 0 are needed")
    return ratios


def _twice(network: Sources) -> tuple[float, ...]:
    return (2.0,) * len(network[WIDTHS])


def _shown_heads(network: Sources) -> tuple[int, ...] | None:
    # Each head has a query, a key, and a value `attn_ratio` times as wide.
    rows = zip(_rows(network, "qkv") or (), network[ATTENTION_RATIOS], strict=False)
    return tuple(round(count / ((2 + ratio) * network[KEY])) for count, ratio in rows) or None


WIDTHS = SpecValue[tuple[int, ...]]("C", _stated_list, (8,), shown=lambda network: _rows(network, "proj.1"))
DEPTHS = SpecValue[tuple[int, ...]](
    "X", _stated_list, (1,), shown=lambda network: layout_from_keys(network.facts).depths or None
)
# Rows of queries are heads times width, so the keys show neither alone.
KEY = SpecValue("D", _stated_key, 1, default=lambda network: _KEY_DIMS.get(network[WIDTHS]))
ATTENTION_RATIOS = SpecValue[tuple[float, ...]]("attn_ratio", _stated_ratios, (2.0,), default=_twice)
MLP_RATIOS = SpecValue[tuple[float, ...]]("mlp_ratio", _stated_ratios, (2.0,), default=_twice)
HEADS = SpecValue[tuple[int, ...]]("N", _stated_list, (1,), shown=_shown_heads)
CLASSES = SpecValue("num_classes", Section.positive, 1, shown=size(("head.l.*", 0)))
DISTILLED = SpecValue("distillation", Section.flag, False, shown=has("head_dist.**"))


def pyramid_values(network: Sources, image: SpecValue[tuple[int, int]]) -> dict[str, object]:
    """The arguments that both specs have, after naming all values that stayed unknown; `image`: the training size.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys or one another.
    """
    network.must_all_be({"in_chans": (3,), "patch_size": (16,)})
    key, classes, distilled = network[KEY], network[CLASSES], network[DISTILLED]
    columns = (
        network[WIDTHS],
        network[DEPTHS],
        network[HEADS],
        network[ATTENTION_RATIOS],
        network[MLP_RATIOS],
    )
    side = network[image]
    network.finish()
    if len({len(column) for column in columns}) > 1:
        widths, depths, heads = (len(column) for column in columns[:3])
        raise ConfigError(f"{widths} widths, {depths} depths and {heads} numbers of heads: one each")
    stages = [
        LevitStage(width=width, depth=depth, heads=heads, key=key, value=int(attention * key), hidden=int(width * mlp))
        for width, depth, heads, attention, mlp in zip(*columns, strict=True)
    ]
    subsamples = _subsamples(network)
    return {"size": side, "stages": stages, "subsamples": subsamples, "classes": classes, "distilled": distilled}


def _subsamples(network: Sources) -> list[LevitSubsample]:
    """`down_ops`: ('Subsample', key_dim, num_heads, attn_ratio, mlp_ratio, stride); unstated as in `model_factory`."""
    widths, width_of_key = network[WIDTHS], network[KEY]
    default = [["Subsample", width_of_key, width // width_of_key, 4, 2, 2] for width in widths[:-1]]
    stated = network.values.get("down_ops", default)
    # The source's own lists end in [""], for the stage that no subsampling follows.
    entries = [entry for entry in stated if entry != [""]] if isinstance(stated, list | tuple) else []
    if len(entries) != len(widths) - 1:
        raise network.wrong("down_ops", f"{len(widths) - 1} entries are needed")
    return [_subsample(network, entry, width) for entry, width in zip(entries, widths[1:], strict=True)]


def _subsample(network: Section, entry: object, width: int) -> LevitSubsample:
    if not isinstance(entry, list | tuple) or len(entry) != 6 or entry[0] != "Subsample":
        raise network.wrong(
            "down_ops", "entries ['Subsample', key_dim, heads, attn_ratio, mlp_ratio, stride] are needed"
        )
    if any(isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 for value in entry[1:]):
        raise network.wrong("down_ops", "numbers above 0 are needed")
    key, heads, attention, mlp, stride = entry[1:]
    return LevitSubsample(
        heads=int(heads), key=int(key), value=int(attention * key), hidden=int(width * mlp), stride=int(stride)
    )


# LeViT itself.

SIZE = training_size("img_size", positions="blocks.0.m.attention_biases", extra=lambda _: 0, patch=lambda _: 16)


def levit_architecture(network: Sources) -> Architecture:
    """Understand a checkpoint of LeViT, as a dense model; `network` is its constructor's arguments.

    Raises:
        CheckpointMismatch: the configuration selects tokens, which these weights were not trained for.
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    if network.values.get("prune_ratio") is not None:
        raise CheckpointMismatch(
            f"{network.checkpoint} is a vanilla LeViT (attention_biases), not an Evo-ViT on LeViT (poss), and its "
            "configuration selects tokens; leave 'prune_ratio' out to export it as the dense baseline"
        )
    spec = LevitSpec.model_validate(pyramid_values(network, SIZE))
    return Architecture(spec, levit_key_map(spec))


def levit_key_map(spec: LevitSpec) -> KeyMap:
    """LeViT's names for the blocks of `spec`."""
    return KeyMap(
        LEVIT_KEYS,
        unused=(f"**.{_INDEX}", "**.num_batches_tracked"),
        numbers=official_numbers(spec, blocks_per_layer=2),
    )


def with_usual_indices(state: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """`state` as it is, after comparing the buffers that assign biases with the rule that is used here.

    Raises:
        CheckpointMismatch: a buffer says something else.
    """
    other = [name for name, tensor in state.items() if name.endswith(_INDEX) and not _is_usual(tensor)]
    refuse_faults({"biases assigned in another way than LeViT's": other}, source)
    return state


def _is_usual(index: Tensor) -> bool:
    if index.dim() != 2:
        return False
    fewer, side = (round(count**0.5) for count in index.shape)
    # Queries stand on every stride-th row and column, the first included: fewer = ceil(side / stride).
    expected = distance_index((side, side), -(-side // max(fewer, 1)))
    return expected.shape == index.shape and torch.equal(expected, index.long())


READER = Reader(
    title="LeViT",
    recognises=lambda facts: facts.has("blocks.*.**attention_biases"),
    settings=LEVIT_SETTINGS,
    architecture=levit_architecture,
    tables=(LEVIT_KEYS,),
    needed=("blocks.*.m.qkv.c.weight", "patch_embed.0.c.weight", "head.l.*"),
    prepared=with_usual_indices,
)
