"""Official key names of Evo-ViT on DeiT and of plain DeiT against ours.

Sources: YifanXu74/Evo-ViT, facebookresearch/deit.
"""

from __future__ import annotations

from dovit_deploy.bundle.evovit_deit_spec import EvoDeitSpec
from dovit_deploy.models.official_keys import TIMM_BLOCK, Rule, affine, block_rules, rule


def evo_deit_rules(spec: EvoDeitSpec, *, biases: bool) -> list[Rule]:
    """Every entry that inference reads of Evo-ViT on DeiT; a layer's weights lie in five lists of the source.

    `biases`: query, key and value have one (`qkv_bias`); without it ours are zero.
    """
    rules = _deit_rules(spec)
    width, hidden = spec.width, spec.hidden
    for number in range(spec.depth):
        target = f"blocks.{number}"
        attention = [f"{target}.attention.{part}" for part in ("query", "key")]
        rules += [
            *affine(f"norms.{number}", f"{target}.norm1", width),
            Rule((f"qks.{number}.qk.weight",), (2 * width, width), tuple(f"{part}.weight" for part in attention)),
            Rule(
                (f"qks.{number}.qk.bias",),
                (2 * width,),
                tuple(f"{part}.bias" for part in attention),
                zero_if_absent=not biases,
            ),
            rule(f"vs.{number}.v.weight", f"{target}.attention.value.weight", width, width),
            rule(f"vs.{number}.v.bias", f"{target}.attention.value.bias", width, zero_if_absent=not biases),
            *affine(f"projs.{number}", f"{target}.attention.output", width, width),
            *affine(f"blocks.{number}.norm2", f"{target}.norm2", width),
            *affine(f"blocks.{number}.mlp.fc1", f"{target}.mlp.expand", hidden, width),
            *affine(f"blocks.{number}.mlp.fc2", f"{target}.mlp.contract", width, hidden),
        ]
    return rules


def plain_deit_rules(spec: EvoDeitSpec) -> list[Rule]:
    """Every entry of a plain (or distilled) DeiT, timm's ViT for classification."""
    rules = _deit_rules(spec)
    for number in range(spec.depth):
        place = f"blocks.{number}"
        rules += block_rules(place, place, TIMM_BLOCK, width=spec.width, hidden=spec.hidden)
    if spec.extra_tokens == 2:
        rules += affine("head_dist", "head.distilled", spec.classes, spec.width)
    return rules


def _deit_rules(spec: EvoDeitSpec) -> list[Rule]:
    """What Evo-ViT and plain DeiT name alike."""
    extra = ("cls_token", "dist_token")[: spec.extra_tokens]
    return [
        *affine("patch_embed.proj", "stem.projection", spec.width, 3, spec.patch, spec.patch),
        Rule(extra, (1, 1, spec.width), ("extra_tokens",)),
        rule("pos_embed", "positions", 1, spec.tokens, spec.width),
        *affine("norm", "norm", spec.width),
        *affine("head", "head.classifier", spec.classes, spec.width),
    ]
