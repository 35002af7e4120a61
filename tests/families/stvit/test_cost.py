"""The closed form of STViT-R, STViT and Swin against PyTorch's own counter and the published figures."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.registry import family_of
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.families.stvit.cost import SwinCost
from dovit_deploy.families.stvit.spec import StvitSwinSpec
from dovit_deploy.families.stvit.swin_spec import SwinSpec
from tests.tiny_stvit import tiny_backbone, tiny_classifier, tiny_deit, tiny_segmenter, tiny_swin

SPECS: dict[str, ModelSpec] = {
    "classifier": tiny_classifier(units=2),
    "classifier, everything on": tiny_classifier((192, 192), window=12, options=True),
    "backbone, whole windows": tiny_backbone((96, 144)),
    "backbone, padded": tiny_backbone((100, 150)),
    "segmenter, linear": tiny_segmenter(units=2),
    "segmenter, mask": tiny_segmenter((40, 100), head="mask"),
    "segmenter, setr": tiny_segmenter((50, 64), head="pup"),
    "deit": tiny_deit(),
    "swin": tiny_swin(),
    "swin, conv stem": tiny_swin((64, 128), stem="conv"),
}


def counted(model: torch.nn.Module, size: tuple[int, int]) -> int:
    """MACs by FlopCounterMode, with attention decomposed: it misses the fused kernel on the CPU."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.zeros(1, 3, *size))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_actual_equals_the_flop_counter(spec: ModelSpec) -> None:
    family = family_of(spec)
    stage = family.stages(family.build(spec))[0]
    assert cost_model(spec).actual(spec.counts).total == counted(stage, spec.size)


@pytest.mark.parametrize("spec", [SPECS["swin"], SPECS["swin, conv stem"]])
def test_a_plain_swin_is_its_own_dense_network(spec: ModelSpec) -> None:
    family = family_of(spec)
    assert cost_model(spec).dense().total == counted(family.dense(family.build(spec)), spec.size)


@pytest.mark.parametrize(
    ("width", "heads", "published", "counted_here", "normed"),
    [
        (96, (3, 6, 12, 24), 5.826, 5_798_731_776, 5 * (4_608_768 + 903_168)),
        (128, (4, 8, 16, 32), 10.264, 10_227_384_320, 5 * (6_145_024 + 1_204_224)),
    ],
    ids=["S", "B"],
)
def test_published_figures(
    width: int, heads: tuple[int, ...], published: float, counted_here: int, normed: int
) -> None:
    """The published ones count five operations for every value that a norm sees; without these they are ours."""
    spec = StvitSwinSpec(size=(224, 224), width=width, depths=(2, 2, 18, 2), heads=heads, classes=1000)
    total = cost_model(spec).actual(spec.counts).total
    assert total == counted_here
    assert total / 1e9 == pytest.approx(published, rel=0.006)
    assert round((total + normed) / 1e9, 3) == published


def test_dense_is_a_swin_of_the_same_shape() -> None:
    spec = tiny_classifier((192, 192), window=12)
    plain = SwinSpec(
        size=spec.size,
        stem="conv",
        width=spec.width,
        depths=spec.depths,
        heads=spec.heads,
        window=spec.window,
        classes=spec.classes,
    )
    assert cost_model(spec).dense() == SwinCost(plain).dense()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_other_counts_are_refused(spec: ModelSpec) -> None:
    with pytest.raises(ValueError, match="token counts"):
        cost_model(spec).actual([count + 1 for count in spec.counts])
