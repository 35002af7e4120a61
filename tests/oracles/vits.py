"""Small random vision transformers of transformers and timm, and what each gives for the patches of an image."""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tests.oracles.packages import timm_vision_transformer, transformers

WIDTH, DEPTH, HEADS = 48, 3, 3
TRAINED = 4
"""Rows and columns of the grid that positions are made for, with patches of 14."""


EOMT_WIDTH, EOMT_CLASSES, EOMT_SIDE = 32, 4, 64


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` with every parameter drawn: nothing is 0 or 1, as a forgotten part would be."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = 0.3 if parameter.dim() == 1 else parameter[0].numel() ** -0.5 if "weight" in name else 0.5
            parameter.copy_(gain * noise + (1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0))
    return model.eval()


def dinov2(*, registers: int = 0, gated: bool = False, seed: int = 0) -> Any:
    """A DINOv2 of transformers, of small width; `gated`: SwiGLU, as the size g has it."""
    package = transformers()
    kind = ("Dinov2WithRegisters", "num_register_tokens") if registers else ("Dinov2", None)
    config = getattr(package, f"{kind[0]}Config")(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=14 * TRAINED,
        patch_size=14,
        use_swiglu_ffn=gated,
        **({kind[1]: registers} if kind[1] else {}),
    )
    return randomised(getattr(package, f"{kind[0]}Model")(config), seed)


def dinov2_patches(model: Any, pixels: Tensor) -> Tensor:
    """(1, 3, H, W) of whole patches -> (N, C), behind the last norm."""
    registers = getattr(model.config, "num_register_tokens", 0)
    with torch.no_grad():
        return model(pixels).last_hidden_state[0, 1 + registers :]


class NoLoss(nn.Module):
    """What of EoMT's loss is in a checkpoint. The loss itself needs SciPy, and a finished network does not need it."""

    def __init__(self, config: Any, weight_dict: Any) -> None:
        super().__init__()
        self.num_labels, self.eos_coef = config.num_labels, config.no_object_weight
        self.register_buffer("empty_weight", torch.ones(config.num_labels + 1))


def eomt(*, gated: bool = False, depth: int = 4, seed: int = 0) -> Any:
    """An EoMT of transformers whose every weight is random; `gated`: SwiGLU."""
    package = transformers()
    from transformers.models.eomt import modeling_eomt

    config = package.EomtConfig(
        hidden_size=EOMT_WIDTH,
        num_hidden_layers=depth,
        num_attention_heads=2,
        image_size=EOMT_SIDE,
        patch_size=16,
        num_blocks=2,
        num_queries=9,
        num_labels=EOMT_CLASSES,
        use_swiglu_ffn=gated,
    )
    with mock.patch.object(modeling_eomt, "EomtLoss", NoLoss):
        model = package.EomtForUniversalSegmentation(config).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.attn_mask_probs.zero_()
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.dim() < 2 else 1.3 * parameter[0].numel() ** -0.5
            parameter.copy_(spread * torch.randn(parameter.shape, generator=draw) + ("norm" in name) * 1.0)
    return model


def timm_vit(*, seed: int = 0, **options: Any) -> Any:
    """A vision transformer of timm for inputs of any size, of small width, without a classifier unless asked for."""
    fields = {"img_size": 14 * TRAINED, "patch_size": 14, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    size = {"num_classes": 0, "dynamic_img_size": True, **options}
    return randomised(timm_vision_transformer().VisionTransformer(**{**fields, **size}), seed)


def timm_distilled(seed: int = 0) -> Any:
    """timm's DeiT with a distillation token."""
    # Importing one of timm's modules imports all of them.
    timm_vision_transformer()
    size = {"img_size": 14 * TRAINED, "patch_size": 14, "num_classes": 0, "dynamic_img_size": True}
    deit = sys.modules["timm.models.deit"].VisionTransformerDistilled
    return randomised(deit(embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, **size), seed)


def timm_patches(model: Any, pixels: Tensor) -> Tensor:
    """(1, 3, H, W) of whole patches -> (N, C) of `forward_features`."""
    with torch.no_grad():
        return model.forward_features(pixels)[0, model.num_prefix_tokens :]


def official_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A DINOv2 of transformers 5, as its modules call it, under the names of DINOv2's own code."""
    renamed: dict[str, Tensor] = {}
    single = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.register_tokens": "register_tokens",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
    }
    inner = {
        "attention.o_proj": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "mlp.down_proj": "mlp.w3",
    }
    packed = {"attention.q_proj": "attn.qkv", "attention.k_proj": "attn.qkv", "attention.v_proj": "attn.qkv"}
    packed |= {"mlp.gate_proj": "mlp.w12", "mlp.up_proj": "mlp.w12"}
    for name, tensor in state.items():
        if name in single:
            renamed[single[name]] = tensor
            continue
        number, _, rest = name.removeprefix("encoder.layer.").partition(".")
        part, _, end = rest.rpartition(".")
        if part in packed:
            # Query, key and value come in this order, and so do the gate and what it multiplies.
            target = f"blocks.{number}.{packed[part]}.{end}"
            renamed[target] = torch.cat([renamed[target], tensor]) if target in renamed else tensor
        else:
            target = inner.get(rest) or f"{inner.get(part, part)}.{end}"
            renamed[f"blocks.{number}.{target}"] = tensor
    return renamed
