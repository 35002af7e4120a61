"""What runs on the GPU: ViT-S, B and L with random weights at three sizes, different images, profiles of kept tokens.

Attention and MLP cost the same whatever the weights are. The gates really decide: their thresholds are chosen on the
images themselves, gate after gate, so that a given share of all patches runs on; each image keeps its own number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.parts import GateSpec, LinearHead
from dovit_deploy.families.registry import family_of, model_from_spec
from dovit_deploy.families.vit.network import VisionTransformer
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from gpu.packed_runner import StagedRunner

WIDTHS = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}
"""Width, depth, heads."""
PIXELS = (512, 768, 1024)
TINY_PIXELS = 80
PROFILES = {"p70": (0.85, 0.70, 0.55), "p45": (0.70, 0.45, 0.30), "p12": (0.50, 0.25, 0.12)}
"""Share of all patches that runs on after each gate."""
EVERYTHING = "all kept"
CLASSES = 19
GATE_GAIN = 4.0
"""Factor on the gates' weights: random heads are unsure of everything, larger weights spread their confidences."""


@dataclass(frozen=True)
class Case:
    """A model at an input size, and a number of images that run together."""

    size: str
    pixels: int
    images: int

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f"ViT-{self.size} {self.pixels} px, {self.images} image{'s' if self.images > 1 else ''}"

    @property
    def spec(self) -> VisionTransformerSpec:
        """The architecture: four stages of a quarter of the layers each."""
        width, depth, heads = WIDTHS[self.size]
        return vit_spec(width, depth, heads, self.pixels)


class TinyCase(Case):
    """A case of a model small enough for the CPU; its size is called S because tables need one of the known names."""

    @property
    def spec(self) -> VisionTransformerSpec:
        """Four layers, 26 tokens."""
        return vit_spec(32, 4, 4, self.pixels)


def vit_spec(width: int, depth: int, heads: int, pixels: int) -> VisionTransformerSpec:
    """A DoViT with patches of 16, three gates and linear heads."""
    gates = tuple(GateSpec(layer=depth * part // 4, head=LinearHead()) for part in (1, 2, 3))
    return VisionTransformerSpec(
        family="dovit",
        size=(pixels, pixels),
        width=width,
        depth=depth,
        heads=heads,
        hidden=4 * width,
        classes=CLASSES,
        gates=gates,
        head=LinearHead(),
    )


def random_model(spec: VisionTransformerSpec, device: torch.device) -> VisionTransformer:
    """Weights of gain about 1 in fp32, the same on every device."""
    draw = torch.Generator().manual_seed(0)
    # On the meta device nothing is allocated or drawn: of a large model that takes seconds.
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in family_of(spec).build(spec).state_dict().items()}
    state = {}
    for name, shape in shapes.items():
        if "norm" in name:
            state[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        elif name.endswith("bias"):
            state[name] = torch.zeros(shape)
        else:
            spread = shape[1:].numel() ** -0.5 if len(shape) > 1 else 0.02
            gain = GATE_GAIN if name.startswith("gates.") else 1.0
            state[name] = gain * spread * torch.randn(shape, generator=draw)
    return model_from_spec(spec, state).to(device)


def random_pixels(spec: VisionTransformerSpec, images: int, device: torch.device) -> Tensor:
    """(B, 3, H, W) float32: blocks of even colour under noise, every image of other blocks and contrast."""
    draw = torch.Generator().manual_seed(1)
    height, width = spec.size
    blocks = torch.randn((images, 3, height // 32 + 1, width // 32 + 1), generator=draw)
    coarse = blocks.repeat_interleave(32, dim=2).repeat_interleave(32, dim=3)[:, :, :height, :width]
    contrast = torch.linspace(0.5, 1.5, images).view(-1, 1, 1, 1)
    noise = torch.randn(coarse.shape, generator=draw)
    return (contrast * (coarse + 0.5 * noise)).to(device)


def thresholds_for(runner: StagedRunner, pixels: Tensor, shares: tuple[float, ...]) -> list[float]:
    """Thresholds at which `shares` of all patches run on after each gate, over all images; the runner keeps them."""
    spec = runner.model.spec
    chosen = [1.0] * len(spec.gates)
    for gate, share in enumerate(shares):
        runner.set_thresholds(chosen)
        runner.run(pixels)
        confidence = runner.decisions[gate].confidence
        seen = confidence[confidence.isfinite()].sort().values
        wanted = min(max(round(share * runner.images * spec.patches), 1), len(seen) - 1)
        # Half-way between two tokens, so that rounding decides neither.
        chosen[gate] = float((seen[wanted - 1].double() + seen[wanted].double()) / 2)
    runner.set_thresholds(chosen)
    return chosen


def predicted_speedup(spec: VisionTransformerSpec, counts: list[list[int]]) -> float:
    """Dense MACs over actual MACs of all images, from `counts` (gates, B)."""
    cost, images = cost_model(spec), len(counts[0])
    actual = sum(cost.actual([spec.tokens, *(row[image] for row in counts)]).total for image in range(images))
    return images * cost.dense().total / actual
