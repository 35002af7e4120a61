"""LeViT, the dense baseline of Evo-ViT on LeViT: constructor arguments and keys -> LevitSpec.

Source: facebookresearch/LeViT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dovit_deploy.bundle.levit_spec import LevitSpec
from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.models.architecture import Architecture, training_size
from dovit_deploy.models.key_facts import KeyFacts
from dovit_deploy.models.levit import distance_index
from dovit_deploy.models.levit_layout import layout_from_keys
from dovit_deploy.models.levit_rules import head_rules, mlp_rules, normed_rules, packed_rules, stem_rules
from dovit_deploy.models.levit_settings import LEVIT_SETTINGS, levit_parts, levit_subsamples
from dovit_deploy.models.official_keys import Rule, rule
from dovit_deploy.models.official_state import refuse_faults
from dovit_deploy.models.reader import Reader
from dovit_deploy.models.section import Ledger, Section

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
