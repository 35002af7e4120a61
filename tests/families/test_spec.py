"""What holds for every architecture: its facts, the order of its JSON, and that every table has a line for it."""

from __future__ import annotations

import pkgutil
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError
from torch import nn

from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.cost import COSTS, cost_model
from dovit_deploy.families.evovit.spec import LevitSpec
from dovit_deploy.families.macs import FixedCost
from dovit_deploy.families.registry import FAMILIES, Family, family_of, model_from_spec
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.families.stages import DenseNetwork, WholeStage
from tests.tiny import tiny_pixels, tiny_spec
from tests.tiny_evovit import tiny_deit_spec, tiny_levit_spec
from tests.tiny_stvit import tiny_backbone, tiny_classifier, tiny_deit, tiny_segmenter, tiny_swin

PYRAMID = tiny_levit_spec()
LEVIT = LevitSpec(
    size=PYRAMID.size, stages=PYRAMID.stages, subsamples=PYRAMID.subsamples, classes=PYRAMID.classes, distilled=True
)
SWIN = ("size", "stem", "width", "depths", "heads", "window", "hidden_ratio", "norm_eps")
REDUCED = (*SWIN, "family", "local_convolution")
ANY_SIZE = (*REDUCED, "neighbourhoods", "recovery_neighbourhood", "padding_mask", "architecture", "classes")
VIT = ("size", "patch", "stem", "width", "depth", "heads", "hidden", "extra_tokens", "norm_eps")
LEVITS = ("size", "patch", "stages", "subsamples", "classes", "distilled", "architecture", "family")
FIELDS: list[tuple[ModelSpec, tuple[str, ...]]] = [
    (tiny_spec(), ("family", *VIT, "final_norm", "classes", "gates", "aggregate_rate", "position_mode", "head")),
    (
        tiny_deit_spec(),
        (
            *("architecture", "family", *VIT, "classes", "selections", "tradeoffs"),
            *("rejoin_last", "position_mode", "head"),
        ),
    ),
    (PYRAMID, (*LEVITS, "selections", "tradeoff")),
    (LEVIT, LEVITS),
    (tiny_swin(), (*SWIN, "architecture", "family", "classes")),
    (
        tiny_classifier(),
        (
            *(*REDUCED, "architecture", "classes", "pooled_residual", "global_tokens"),
            *("relative_positions", "layer_scale"),
        ),
    ),
    (tiny_backbone(), ANY_SIZE),
    (tiny_segmenter(), (*ANY_SIZE, "head")),
    (
        tiny_deit(),
        (
            *("architecture", "family", "size", "patch", "width", "depth", "heads", "hidden", "norm_eps"),
            *("reduced_from", "samples", "classes"),
        ),
    ),
]
"""Every architecture, and the keys of its JSON in the order that manifests have had from the beginning."""
SPECS = [pytest.param(spec, id=type(spec).__name__) for spec, _ in FIELDS]


@pytest.mark.parametrize(("spec", "fields"), [pytest.param(*one, id=type(one[0]).__name__) for one in FIELDS])
def test_manifests_keep_their_keys_and_their_order(spec: ModelSpec, fields: tuple[str, ...]) -> None:
    assert tuple(spec.model_dump(mode="json")) == fields
    assert TypeAdapter(AnySpec).validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"answer": "lens"}, "a lens at each gate"),
        ({"head": "linear", "answer": "gate"}, "gates answer for what stops"),
        ({"taps": (1, 2)}, "on the tokens after 1, 2 and all layers"),
        ({"answer": "lens", "taps": (1, 2), "tap_answer": "lens"}, "a lens at each gate for every layer behind it"),
        ({"context": "pooled"}, "behind gates 5 keys of what has stopped"),
        ({"mlp": "swiglu"}, None),
        ({"padding": "centre"}, None),
        ({"rotary": True}, "rotary positions"),
    ],
)
def test_options_of_a_vision_transformer_are_written_only_where_they_are_used(
    options: dict[str, Any], words: str | None
) -> None:
    spec = tiny_spec(**options)
    assert spec.model_dump().keys() - tiny_spec().model_dump().keys() == options.keys() - {"head"}
    assert TypeAdapter(AnySpec).validate_json(spec.model_dump_json()) == spec
    assert words is None or any(words in text for _, text in spec.parts)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"taps": (2, 1)}, "must rise and stay below the depth 4"),
        ({"taps": (1, 4)}, "must rise and stay below the depth 4"),
        ({"taps": (0,)}, "greater than or equal to 1"),
    ],
)
def test_taps_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        tiny_spec(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"answer": "gate"}, "gates answer where they and the decode head look at one token at a time"),
        ({"answer": "gate", "head": "linear", "gate": "setr"}, "look at one token at a time"),
        ({"context": "pooled", "gate": "setr"}, "pooled by class where gates look at one token at a time"),
        ({"context": "most"}, "'none' or 'pooled'"),
        (
            {"tap_answer": "lens", "taps": (1,)},
            "taps have lenses where the last layer has, and the answer is 'feature'",
        ),
    ],
)
def test_answers_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        tiny_spec(**options)


def test_every_gate_before_a_tap_writes_what_it_sees_of_what_stops() -> None:
    spec = tiny_spec(gates=(1, 3), depth=5, head="linear", taps=(1, 2, 4), answer="lens", tap_answer="lens")
    assert [(one.name, one.given_by, one.taken_by) for one in spec.carried] == [
        ("answers", (0, 1), (1, 2)),
        ("tap1", (0,), (2,)),
        ("tap2", (0, 1), (1, 2)),
        ("tap4", (0, 1), (1, 2)),
    ]
    (answers,) = tiny_spec(gates=(1, 3), head="linear", gate="linear", answer="gate").carried
    assert answers.shape == (20, 5), "the logits of each patch"


def test_what_stopped_is_carried_as_sums_of_one_size() -> None:
    spec = tiny_spec(gates=(1, 2, 3), depth=5, head="linear", gate="linear", answer="gate", context="pooled")
    assert [(one.name, one.shape, one.given_by, one.taken_by) for one in spec.carried[1:]] == [
        ("votes", (20, 5), (0, 1, 2), (1, 2, 3)),
        ("context", (5, 17), (1, 2), (2, 3)),
    ]
    # Behind a single gate nothing had stopped before; without gates nothing stops.
    assert [one.name for one in tiny_spec(gates=(1,), context="pooled").carried] == ["votes"]
    assert tiny_spec(gates=(), context="pooled").carried == ()


def test_what_nobody_makes_or_takes_is_not_carried() -> None:
    assert tiny_spec().carried == tiny_spec(gates=(), answer="lens").carried == tiny_spec(gates=(), taps=(1,)).carried
    # The last stage reads its own taps, the one before gives the others.
    (early,) = tiny_spec(gates=(2,), taps=(2, 3)).carried
    assert (early.name, early.given_by, early.taken_by) == ("tap2", (0,), (1,))


def test_every_architecture_has_a_line_in_every_table() -> None:
    union = get_args(get_args(AnySpec)[0])
    members = {get_args(member)[0] for member in union}
    assert members == {type(spec) for spec, _ in FIELDS} == set(COSTS)
    assert {member.__name__ for member in members} == set(FAMILIES)
    assert all(isinstance(pkgutil.resolve_name(name), Family) for name in FAMILIES.values())


@pytest.mark.parametrize("spec", SPECS)
def test_the_facts_agree_with_each_other(spec: ModelSpec) -> None:
    assert spec.patches == spec.grid[0] * spec.grid[1]
    assert spec.tokens == spec.extra_tokens + spec.patches
    assert spec.counts[0] == spec.tokens
    assert len(spec.keep_grids) in (0, len(spec.counts) - 1)
    assert all(name and text for name, text in spec.parts)
    if spec.task != "features":
        assert spec.outputs == {"logits": (1, spec.classes, *spec.logits_grid)}
        assert len(spec.logits_grid) == (2 if spec.task == "segmentation" else 0)


@pytest.mark.parametrize("spec", SPECS)
def test_an_image_has_at_least_sixteen_pixels_a_side(spec: ModelSpec) -> None:
    with pytest.raises(ValidationError, match=r"both sides must be at least 16 pixels"):
        type(spec).model_validate({**spec.model_dump(), "size": (spec.size[0], 15)})


@pytest.mark.parametrize("spec", SPECS)
def test_one_stage_gives_what_the_spec_says_and_dense_is_refused_where_there_is_none(spec: ModelSpec) -> None:
    model: nn.Module = model_from_spec(spec)
    if not spec.gates:
        (stage,) = family_of(spec).stages(model)
        assert isinstance(stage, WholeStage)
        shapes = [tuple(value.shape) for value in stage(tiny_pixels(spec.size))]
        choices = [(rows * columns,) for rows, columns in spec.keep_grids]
        assert shapes == [*spec.outputs.values(), (len(spec.counts),), *choices]
    if not spec.has_dense:
        with pytest.raises(TypeError, match="has no dense network"):
            DenseNetwork(model)


@pytest.mark.parametrize("spec", SPECS)
def test_a_cost_refuses_counts_of_another_network(spec: ModelSpec) -> None:
    cost = cost_model(spec)
    with pytest.raises(ValueError, match="token counts"):
        cost.actual([*spec.counts, 1])
    if isinstance(cost, FixedCost):
        with pytest.raises(ValueError, match="this network has"):
            cost.actual([spec.counts[0] - 1, *spec.counts[1:]])
