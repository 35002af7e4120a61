"""Plain DeiT, the dense baseline of Evo-ViT: constructor arguments and keys -> EvoDeitSpec without selections.

Source: facebookresearch/deit (timm's ViT for classification).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.models.architecture import Architecture
from dovit_deploy.models.deit_settings import DEIT_SETTINGS, LAYERS, UNUSED, deit_width, dense_deit_spec
from dovit_deploy.models.evovit_deit_keys import plain_deit_rules
from dovit_deploy.models.key_facts import KeyFacts
from dovit_deploy.models.reader import Reader
from dovit_deploy.models.section import Ledger, Section


def plain_deit_architecture(
    settings: Mapping[str, object], facts: KeyFacts, source: str, *, thresholds: Sequence[float] | None
) -> Architecture:
    """Understand a checkpoint of plain DeiT, with or without distillation token, as a dense model.

    Raises:
        CheckpointMismatch: the configuration wants tokens passed on, which these weights were not trained for.
        ConfigError: values unknown, unsupported, or contradicting the keys.
    """
    del thresholds
    ledger, section = Ledger(source), Section("", settings)
    if any(ratio != 1 for ratio in section.numbers("prune_ratio") or ()):
        raise CheckpointMismatch(
            f"{source} is a plain DeiT (blocks.*.attn.qkv), not an Evo-ViT (qks.*), and its configuration selects "
            "tokens; leave 'prune_ratio' out to export it as the dense baseline"
        )
    depth = ledger.settle("depth", section.integer("depth"), facts.count("blocks"), stand_in=LAYERS)
    seen = facts.has("dist_token")
    distilled = ledger.settle("distilled", section.flag("distilled"), seen, stand_in=seen)
    width = deit_width(section, facts, ledger)
    spec = dense_deit_spec(section, facts, ledger, depth=depth, width=width, extra=2 if distilled else 1)
    ledger.finish()
    section.must_be("qkv_bias", True)
    return Architecture(spec, plain_deit_rules(spec), UNUSED)


PLAIN_DEIT = Reader(
    recognises=lambda facts: facts.has(r"blocks\.\d+\.attn\.qkv\..*"),
    settings=DEIT_SETTINGS,
    architecture=plain_deit_architecture,
)
