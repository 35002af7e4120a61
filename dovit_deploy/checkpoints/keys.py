"""Official key names against ours: which entry of a published checkpoint becomes which of our parameters.

The tables are built from a `VisionTransformerSpec`, so that they also say which shape each entry must have. Sources:
FLHonker/DoViT-code and mmsegmentation (`mmseg_rules`), rstrudel/segmenter (`segmenter_rules`).
Target names are those of the network in training form (batch norms apart); see `batch_norm.folded`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.families.folding import deployed
from dovit_deploy.families.parts import FcnHead, LinearHead, MaskHead, SetrHead
from dovit_deploy.families.registry import family_of
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.families.vit.spec import VisionTransformerSpec

Change = Literal["as_is", "transposed", "without_first"]
"""`transposed`: a raw parameter used as x @ W; `without_first`: the class token's position is dropped."""


@dataclass(frozen=True)
class Rule:
    """`sources`, each of `shape`, one below the other, are cut into equal parts that become `targets`."""

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    change: Change = "as_is"
    zero_if_absent: bool = False
    heads: int = 0
    """If not 0: the rows lie head by head, and each head's are cut into the targets' shares, equal or not."""


def rule(source: str, target: str, *shape: int, change: Change = "as_is", zero_if_absent: bool = False) -> Rule:
    """One entry that becomes one parameter."""
    return Rule((source,), shape, (target,), change, zero_if_absent)


def affine(source: str, target: str, *shape: int) -> list[Rule]:
    """Weight of `shape` and bias of its first axis, of a linear layer, convolution or LayerNorm."""
    return [
        rule(f"{source}.weight", f"{target}.weight", *shape),
        rule(f"{source}.bias", f"{target}.bias", shape[0]),
    ]


@dataclass(frozen=True)
class AttentionKeys:
    """How a source names packed query, key and value, and the output projection."""

    weight: str
    bias: str
    output: str
    has_bias: bool = True


QKV = AttentionKeys("attn.qkv.weight", "attn.qkv.bias", "attn.proj")
"""DoViT-code and timm."""
IN_PROJ = AttentionKeys("attn.attn.in_proj_weight", "attn.attn.in_proj_bias", "attn.attn.out_proj")
"""mmcv's wrapper of torch.nn.MultiheadAttention."""


@dataclass(frozen=True)
class BlockKeys:
    """How a source names the parts of a transformer block."""

    norm1: str
    norm2: str
    expand: str
    contract: str
    attention: AttentionKeys


def mmseg_block_keys(attention: AttentionKeys) -> BlockKeys:
    """mmsegmentation's TransformerEncoderLayer."""
    return BlockKeys("ln1", "ln2", "ffn.layers.0.0", "ffn.layers.1", attention)


TIMM_BLOCK = BlockKeys("norm1", "norm2", "mlp.fc1", "mlp.fc2", QKV)


def block_rules(source: str, target: str, keys: BlockKeys, *, width: int, hidden: int) -> list[Rule]:
    """All entries of one transformer block."""
    attention = keys.attention
    parts = [f"{target}.attention.{part}" for part in ("query", "key", "value")]
    return [
        *affine(f"{source}.{keys.norm1}", f"{target}.norm1", width),
        Rule((f"{source}.{attention.weight}",), (3 * width, width), tuple(f"{part}.weight" for part in parts)),
        Rule(
            (f"{source}.{attention.bias}",),
            (3 * width,),
            tuple(f"{part}.bias" for part in parts),
            zero_if_absent=not attention.has_bias,
        ),
        *affine(f"{source}.{attention.output}", f"{target}.attention.output", width, width),
        *affine(f"{source}.{keys.norm2}", f"{target}.norm2", width),
        *affine(f"{source}.{keys.expand}", f"{target}.mlp.expand", hidden, width),
        *affine(f"{source}.{keys.contract}", f"{target}.mlp.contract", width, hidden),
    ]


def conv_norm_rules(source: str, target: str, *shape: int) -> list[Rule]:
    """mmcv's ConvModule: a convolution without bias, and its batch norm."""
    norms = ("weight", "bias", "running_mean", "running_var")
    return [
        rule(f"{source}.conv.weight", f"{target}.projection.weight", *shape),
        *(rule(f"{source}.bn.{entry}", f"{target}.norm.{entry}", shape[0]) for entry in norms),
    ]


def fcn_rules(source: str, target: str, head: FcnHead, *, width: int, classes: int) -> list[Rule]:
    """FCNHead with one 1x1 convolution; ours are linear layers."""
    return [
        *conv_norm_rules(f"{source}.convs.0", f"{target}.hidden", head.channels, width, 1, 1),
        *affine(f"{source}.conv_seg", f"{target}.classifier", classes, head.channels, 1, 1),
    ]


def setr_rules(source: str, target: str, head: SetrHead, *, width: int, classes: int) -> list[Rule]:
    """SETRUPHead."""
    rules = affine(f"{source}.norm", f"{target}.norm", width)
    for number in range(head.convs):
        inputs = width if number == 0 else head.channels
        shape = (head.channels, inputs, head.kernel, head.kernel)
        rules += conv_norm_rules(f"{source}.up_convs.{number}.0", f"{target}.up.{number}", *shape)
    return rules + affine(f"{source}.conv_seg", f"{target}.classifier", classes, head.channels, 1, 1)


def mask_rules(source: str, head: MaskHead, *, width: int, classes: int) -> list[Rule]:
    """SegmenterMaskTransformerHead of mmsegmentation as decode head."""
    keys, inner = mmseg_block_keys(IN_PROJ), head.width
    rules = [
        rule(f"{source}.cls_emb", "head.class_tokens", 1, classes, inner),
        *affine(f"{source}.dec_proj", "head.embed", inner, width),
        rule(f"{source}.patch_proj.weight", "head.patch_projection.weight", inner, inner),
        rule(f"{source}.classes_proj.weight", "head.class_projection.weight", inner, inner),
        *affine(f"{source}.decoder_norm", "head.norm", inner),
        *affine(f"{source}.mask_norm", "head.mask_norm", classes),
    ]
    for number in range(head.layers):
        place = f"head.blocks.{number}"
        rules += block_rules(f"{source}.layers.{number}", place, keys, width=inner, hidden=4 * inner)
    return rules


def mmseg_head_rules(
    source: str, target: str, spec: VisionTransformerSpec, head: FcnHead | LinearHead | SetrHead
) -> list[Rule]:
    """An auxiliary or decode head of mmsegmentation that is made of convolutions; FCNHead without any is linear."""
    if isinstance(head, LinearHead):
        return affine(f"{source}.conv_seg", f"{target}.classifier", spec.classes, spec.width, 1, 1)
    if isinstance(head, SetrHead):
        return setr_rules(source, target, head, width=spec.width, classes=spec.classes)
    return fcn_rules(source, target, head, width=spec.width, classes=spec.classes)


def mmseg_rules(spec: VisionTransformerSpec, attention: AttentionKeys, *, patch_bias: bool) -> list[Rule]:
    """Every entry of a DoViT or stock mmsegmentation ViT segmentor.

    Args:
        spec: the architecture at its training size.
        attention: how the backbone names its attention.
        patch_bias: the patch embedding has a bias; without it ours is zero.
    """
    width, patch = spec.width, spec.patch
    stem, target = "backbone.patch_embed.projection", "stem.projection"
    # The source always stores a class token's position, even where the token itself is then dropped.
    change: Change = "as_is" if spec.extra_tokens else "without_first"
    rules = [
        rule(f"{stem}.weight", f"{target}.weight", width, 3, patch, patch),
        rule(f"{stem}.bias", f"{target}.bias", width, zero_if_absent=not patch_bias),
        rule("backbone.pos_embed", "positions", 1, 1 + spec.patches, width, change=change),
    ]
    if spec.extra_tokens:
        rules.append(rule("backbone.cls_token", "extra_tokens", 1, 1, width))
    for number in range(spec.depth):
        source, keys = f"backbone.layers.{number}", mmseg_block_keys(attention)
        rules += block_rules(source, f"blocks.{number}", keys, width=width, hidden=spec.hidden)
    if spec.final_norm:
        rules += affine("backbone.ln1", "norm", width)
    for number, gate in enumerate(spec.gates):
        rules += mmseg_head_rules(f"backbone.auxiliary_head.{number}", f"gates.{number}.head", spec, gate.head)
    if isinstance(spec.head, MaskHead):
        return rules + mask_rules("decode_head", spec.head, width=width, classes=spec.classes)
    # Our per-token decode heads are wrapped, to lay their logits out as a grid.
    target = "head" if isinstance(spec.head, SetrHead) else "head.head"
    return rules + mmseg_head_rules("decode_head", target, spec, spec.head)


def segmenter_rules(spec: VisionTransformerSpec) -> list[Rule]:
    """Every entry of rstrudel/segmenter."""
    width, patch = spec.width, spec.patch
    extra = ("encoder.cls_token", "encoder.dist_token")[: spec.extra_tokens]
    rules = [
        *affine("encoder.patch_embed.proj", "stem.projection", width, 3, patch, patch),
        Rule(extra, (1, 1, width), ("extra_tokens",)),
        rule("encoder.pos_embed", "positions", 1, spec.tokens, width),
        *affine("encoder.norm", "norm", width),
    ]
    for number in range(spec.depth):
        source, target = f"encoder.blocks.{number}", f"blocks.{number}"
        rules += block_rules(source, target, TIMM_BLOCK, width=width, hidden=spec.hidden)
    if isinstance(spec.head, LinearHead):
        return rules + affine("decoder.head", "head.head.classifier", spec.classes, width)
    if not isinstance(spec.head, MaskHead):
        raise TypeError("Segmenter has a linear or a mask decoder")
    inner = spec.head.width
    rules += [
        rule("decoder.cls_emb", "head.class_tokens", 1, spec.classes, inner),
        *affine("decoder.proj_dec", "head.embed", inner, width),
        # Raw parameters of the source, used as x @ W.
        rule("decoder.proj_patch", "head.patch_projection.weight", inner, inner, change="transposed"),
        rule("decoder.proj_classes", "head.class_projection.weight", inner, inner, change="transposed"),
        *affine("decoder.decoder_norm", "head.norm", inner),
        *affine("decoder.mask_norm", "head.mask_norm", spec.classes),
    ]
    for number in range(spec.head.layers):
        source, target = f"decoder.blocks.{number}", f"head.blocks.{number}"
        rules += block_rules(source, target, TIMM_BLOCK, width=inner, hidden=4 * inner)
    return rules


# An official state dict carried over to our names, or refused with a list of what is wrong with it.

_SHOWN = 4
"""Names shown in a message before only their number is told."""


def shapes_of(spec: ModelSpec, *, trainable: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of every entry of the network's state dict, without allocating it."""
    with torch.device("meta"):
        model = family_of(spec).build(spec, trainable=trainable)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def listed(names: Iterable[str]) -> str:
    """The first few of `names`, and how many more there are."""
    ordered = list(names)
    rest = len(ordered) - _SHOWN
    return ", ".join(ordered[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def refuse_faults(faults: Mapping[str, list[str]], source: str) -> None:
    """Raise CheckpointMismatch if any list of `faults` (kind -> entries) is not empty."""
    told = "; ".join(f"{kind}: {listed(names)}" for kind, names in faults.items() if names)
    if told:
        raise CheckpointMismatch(f"{source} is not a complete checkpoint of its configuration; {told}")


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the entries that hold a NaN or an infinity."""
    return [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]


def ours_from_official(
    state: Mapping[str, Tensor], rules: list[Rule], spec: ModelSpec, *, unused: re.Pattern[str], source: str
) -> dict[str, Tensor]:
    """The state dict of the network of `spec` in deployment form, fp32.

    Args:
        state: official names -> tensors of any floating type.
        rules: from `official_keys`, for `spec`.
        spec: the architecture at its training size.
        unused: entries that may be there and are not needed.
        source: the file's name, for messages.

    Raises:
        CheckpointMismatch: missing, unexpected, misshaped, not floating or not finite entries.
    """
    wanted = {name: rule for rule in rules for name in rule.sources}
    present = {name: tensor for name, tensor in state.items() if name in wanted}
    misshaped = [
        f"{name} {list(tensor.shape)} instead of {list(wanted[name].shape)}"
        for name, tensor in present.items()
        if tuple(tensor.shape) != wanted[name].shape
    ]
    integer = [name for name, tensor in present.items() if not tensor.is_floating_point()]
    present = {name: tensor.float() for name, tensor in present.items()}
    faults = {
        "missing": [n for n, rule in wanted.items() if n not in state and not rule.zero_if_absent],
        "unexpected": [n for n in state if n not in wanted and not unused.fullmatch(n)],
        "wrong shape": misshaped,
        "not floating point": integer,
        "NaN or Inf": not_finite(present),
    }
    refuse_faults(faults, source)
    shapes = shapes_of(spec, trainable=True)
    training = {name: part for rule in rules for name, part in _parts(rule, present, shapes)}
    ours = deployed(training)
    # A negative running variance is finite and still makes no number.
    refuse_faults({"NaN or Inf after folding": not_finite(ours)}, source)
    return ours


def _parts(rule: Rule, state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, Tensor]]:
    blank = torch.zeros(rule.shape)
    whole = torch.cat([state.get(name, blank) for name in rule.sources])
    if rule.change == "transposed":
        whole = whole.T
    elif rule.change == "without_first":
        whole = whole[:, 1:]
    pieces = _by_head(whole, rule, shapes) if rule.heads else whole.chunk(len(rule.targets))
    return [
        (name, piece.reshape(shapes[name]).contiguous().clone())
        for name, piece in zip(rule.targets, pieces, strict=True)
    ]


def _by_head(whole: Tensor, rule: Rule, shapes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
    """Rows (heads * (a + b + ...), ...) -> (heads * a, ...), (heads * b, ...), ..."""
    shares = [shapes[name][0] // rule.heads for name in rule.targets]
    by_head = whole.reshape(rule.heads, -1, *whole.shape[1:])
    return [piece.flatten(0, 1) for piece in torch.split(by_head, shares, dim=1)]
