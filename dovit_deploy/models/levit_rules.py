"""Key names of the parts that LeViT and Evo-ViT on LeViT name alike. Source: facebookresearch/LeViT."""

from __future__ import annotations

from dovit_deploy.bundle.levit_spec import LevitPyramid
from dovit_deploy.models.official_keys import Rule, affine, rule

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
