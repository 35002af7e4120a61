"""The closed form for Evo-ViT against PyTorch's own counter and against the published figures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.evovit.deit_reader import selections_from_ratios
from dovit_deploy.families.evovit.spec import (
    ClassTokenHead,
    EvoDeitSpec,
    EvoLevitSpec,
    LevitStage,
    LevitSubsample,
    TokenSelection,
)
from dovit_deploy.families.registry import family_of
from tests.families.vit.test_cost import counted
from tests.golden import Case, case_parameters, cases
from tests.tiny import tiny_pixels
from tests.tiny_evovit import network, tiny_deit_spec, tiny_levit_spec

SPECS = {
    "stage-wise": tiny_deit_spec(),
    "dense": tiny_deit_spec(selections=()),
    "one left out, one of all": tiny_deit_spec(selections=((1, 2, 0.95), (2, 4, 1.0))),
    "nothing chosen": tiny_deit_spec(selections=((1, 4, 0.0),)),
    "prunecls": tiny_deit_spec(selections=((2, 5, 0.3),), rejoin_last=False),
    "mask head": tiny_deit_spec(head="mask", size=(50, 70)),
    "setr head, conv stem": tiny_deit_spec(head="setr", stem="conv", size=(50, 70)),
    "distilled DeiT": EvoDeitSpec(
        size=(32, 48), width=16, depth=2, heads=2, hidden=32, classes=7, extra_tokens=2, head=ClassTokenHead()
    ),
    "levit": tiny_levit_spec(),
    "levit, odd grids": tiny_levit_spec(size=112, selections=((1, 2, 0.3), (2, 3, 0.7), (3, 4, 0.95), (4, 5, 0.0))),
    "levit, dense, one head": tiny_levit_spec(selections=(), distilled=False),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_equals_the_flop_counter(spec: EvoDeitSpec | EvoLevitSpec) -> None:
    model = network(spec).eval()
    family, cost = family_of(spec), cost_model(spec)
    macs, outputs = counted(family.stages(model)[0], tiny_pixels(spec.size))
    assert cost.actual(spec.counts).total == macs
    assert tuple(outputs[1].tolist()) == spec.counts
    assert cost.dense().total == counted(family.dense(model), tiny_pixels(spec.size))[0]


def published_deit(width: int, heads: int, size: int, *, ratio: float = 0.5) -> EvoDeitSpec:
    return EvoDeitSpec(
        size=(size, size),
        width=width,
        depth=12,
        heads=heads,
        hidden=4 * width,
        classes=1000,
        selections=selections_from_ratios((1.0,) * 4 + (ratio,) * 8, stage_wise=True),
        tradeoffs=(1.0,) * 4 + (0.5,) * 8,
    )


@pytest.mark.parametrize(
    ("width", "heads", "size", "dense", "evovit"),
    [
        (192, 3, 224, 1.25, 0.82),
        (384, 6, 224, 4.60, 3.03),
        (768, 12, 224, 17.56, 11.66),
        (768, 12, 384, 55.5, 36.1),
    ],
    ids=["tiny", "small", "base", "base 384"],
)
def test_macs_of_the_released_sizes(width: int, heads: int, size: int, dense: float, evovit: float) -> None:
    spec = published_deit(width, heads, size)
    cost, digits = cost_model(spec), 2 if size == 224 else 1
    assert round(cost.dense().total / 1e9, digits) == dense
    assert round(cost.actual(spec.counts).total / 1e9, digits) == evovit
    assert spec.counts == ((197, 99, 99) if size == 224 else (577, 289, 289))


@pytest.mark.parametrize(
    ("widths", "key", "depths", "heads", "parameters"),
    [
        ((128, 256, 384), 16, (2, 3, 4), (4, 6, 8), 7.835),
        ((128, 256, 384), 16, (4, 4, 4), (4, 8, 12), 9.269),
        ((192, 288, 384), 32, (4, 4, 4), (3, 5, 6), 11.032),
        ((256, 384, 512), 32, (4, 4, 4), (4, 6, 8), 19.007),
        ((384, 512, 768), 32, (4, 4, 4), (6, 9, 12), 39.296),
    ],
    ids=["128S", "128", "192", "256", "384"],
)
def test_the_released_levits_have_their_parameters(
    widths: tuple[int, ...], key: int, depths: tuple[int, ...], heads: tuple[int, ...], parameters: float
) -> None:
    """The published figure counts batch norms as four numbers a channel less two buffers: weight and bias."""
    stages = tuple(
        LevitStage(width=width, depth=depth, heads=count, key=key, value=2 * key, hidden=2 * width)
        for width, depth, count in zip(widths, depths, heads, strict=True)
    )
    subsamples = tuple(
        LevitSubsample(heads=before // key, key=key, value=4 * key, hidden=2 * after)
        for before, after in ((widths[0], widths[1]), (widths[1], widths[2]))
    )
    selections = tuple(
        TokenSelection(first=first, last=last, ratio=0.5)
        for first, last in ((2, depths[0]), (depths[0], sum(depths[:2])), (sum(depths[:2]), sum(depths)))
        if last > first
    )
    spec = EvoLevitSpec(
        size=(224, 224), stages=stages, subsamples=subsamples, classes=1000, distilled=True, selections=selections
    )
    with torch.device("meta"):
        model = family_of(spec).build(spec, trainable=True)
    assert round(sum(one.numel() for one in model.parameters()) / 1e6, 3) == parameters
    saved = 1 - cost_model(spec).actual(spec.counts).total / cost_model(spec).dense().total
    assert 0.1 < saved < 0.35
    assert spec.counts == (197, *([100] if depths[0] > 2 else []), 26, 10)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in cases("evovit")] or case_parameters("evovit"))
def test_the_fixtures_cost_what_the_counter_says(case: Case) -> None:
    spec = checkpoint_from_path(case.weights, config=case.config).spec
    with torch.no_grad():
        macs, _ = counted(family_of(spec).stages(family_of(spec).build(spec).eval())[0], tiny_pixels(spec.size))
    assert cost_model(spec).actual(spec.counts).total == macs


@settings(max_examples=40, derandomize=True, deadline=None)
@given(some.sampled_from([SPECS["stage-wise"], SPECS["mask head"], SPECS["levit"]]), some.data())
def test_cost_rises_with_every_count_of_a_selection(spec: EvoDeitSpec | EvoLevitSpec, data: some.DataObject) -> None:
    cost = cost_model(spec)
    counts = [spec.tokens, *(data.draw(some.integers(1, most)) for most in spec.counts[1:])]
    for position in range(1, len(counts)):
        more = [count + (number == position) for number, count in enumerate(counts)]
        assert cost.actual(more).total > cost.actual(counts).total


def test_a_wrong_number_of_counts_is_refused() -> None:
    for spec in (SPECS["stage-wise"], SPECS["levit"]):
        with pytest.raises(ValueError, match="2 token counts for 3 stages"):
            cost_model(spec).actual([9, 5])
