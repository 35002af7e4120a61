"""STViT on DeiT: keys and settings of the composed network -> Architecture. No official checkpoint of it exists."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from dovit_deploy.bundle.stvit_deit_spec import StvitDeitSpec
from dovit_deploy.models.architecture import Architecture, training_size
from dovit_deploy.models.image_facts import IMAGE_SETTINGS
from dovit_deploy.models.key_facts import KeyFacts
from dovit_deploy.models.reader import Reader
from dovit_deploy.models.section import Ledger, Section
from dovit_deploy.models.swin_keys import stvit_deit_rules

SETTINGS = frozenset({"dim", "heads", "depth", "stgm_start", "img_size", "k", "num_classes", "ln_eps"})
_BLOCK = r"blocks\.\d+"


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
    width = ledger.settle("dim", section.integer("dim"), facts.size((rf"{_BLOCK}\.norm[12]\..*", 0)), stand_in=1)
    patch = facts.size((r"patch_embed\.weight", 2)) or 16
    size = training_size(section, "img_size", facts, ledger, positions=r"pos_embed", extra=0, patch=patch)
    tokens = facts.size((r"semantic_token2", 1))
    contents = {
        "size": size,
        "patch": patch,
        "width": width,
        "depth": ledger.settle("depth", section.integer("depth"), facts.count(r"blocks"), stand_in=1),
        "heads": ledger.settle("heads", section.integer("heads"), None, stand_in=1),
        "hidden": facts.size((rf"{_BLOCK}\.mlp\.fc1\..*", 0)) or 4 * width,
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
    recognises=lambda facts: facts.has(r"semantic_token2") and facts.has(rf"{_BLOCK}\.attn\.kv\..*"),
    settings=SETTINGS | IMAGE_SETTINGS,
    architecture=stvit_deit_architecture,
)
