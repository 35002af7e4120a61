"""A file of no supported family: what is supported, what its names look like, and which family is nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dovit_deploy.checkpoints.keys import KeyFacts, facts_from_state
from dovit_deploy.checkpoints.nearest import no_family
from dovit_deploy.checkpoints.readers import readers
from tests.checkpoints.test_keys import MAPS
from tests.families.official_state import official_shapes
from tests.families.vit import official


def said(state: dict[str, Tensor]) -> tuple[str, str]:
    return no_family(facts_from_state(state), readers(), "m.pth")


@pytest.mark.parametrize("name", MAPS)
def test_every_reader_knows_the_names_of_its_checkpoints(name: str) -> None:
    facts = KeyFacts(official_shapes(*MAPS[name]))
    reader = next(reader for reader in readers() if reader.recognises(facts))
    assert all(facts.has(pattern) for pattern in reader.needed)
    state = {f"x.{key}": torch.empty(shape, device="meta") for key, shape in facts.shapes.items()}
    count = len(facts.shapes)
    assert f"{reader.title} ({count} of {count} entries fit without 'x.'" in said(state)[1]


def test_a_network_like_none() -> None:
    first, second = said({"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1), **_many(6)})
    assert "conv1.weight, fc.bias" in first and "and 4 more" in first
    assert second.startswith("Supported: Segmenter, ") and "nearest" not in second


def _many(count: int) -> dict[str, Tensor]:
    return {f"layer{number}.conv": torch.zeros(1) for number in range(count)}


def test_a_backbone_without_its_prefix() -> None:
    state = {
        name.removeprefix("backbone."): tensor
        for name, tensor in official.dovit_state().items()
        if name.startswith("backbone.")
    }
    count = len(state)
    assert f"{count} of {count} entries fit with 'backbone.' before; there is no decode_head.**" in said(state)[1]


def test_the_first_shape_that_differs() -> None:
    shapes = {f"x.{key}": shape for key, shape in official_shapes(*MAPS["Swin"]).items()}
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    state["x.norm.weight"] = torch.zeros(3, 3)
    assert "; norm.weight is [3, 3] instead of [32])" in said(state)[1]
    del state["x.norm.weight"]
    assert "; there is no norm.weight)" in said(state)[1]


def test_endless_names_are_shortened() -> None:
    assert len(said({"n" * 5000: torch.zeros(1)})[0]) < 250


def test_an_empty_state() -> None:
    assert said({})[0] == "m.pth is of no supported family; it is empty"
