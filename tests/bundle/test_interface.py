"""Names of graphs, tensors and graph files."""

from __future__ import annotations

import pytest

from dovit_deploy.bundle.interface import (
    DENSE,
    MERGED,
    graph_file,
    graph_interfaces,
    stage_name,
    stage_number,
    tokens_output,
)
from tests.fakes import fake_manifest


@pytest.mark.parametrize("number", [0, 3, 12])
def test_a_stages_name_says_its_number(number: int) -> None:
    assert stage_number(stage_name(number)) == number


@pytest.mark.parametrize("graph", [MERGED, DENSE, "stage", "stages", "3", "stage-1"])
def test_other_graphs_have_no_number(graph: str) -> None:
    assert stage_number(graph) is None


def test_files_are_called_by_their_form() -> None:
    assert (graph_file("stage0"), graph_file(DENSE, fast=True)) == ("stage0.onnx", "dense.ort.onnx")


def test_each_stage_gives_its_tokens_under_the_name_that_is_said() -> None:
    spec = fake_manifest().spec
    graphs = graph_interfaces(spec)
    assert list(graphs) == ["stage0", "stage1", "stage2", "merged", "dense"]
    for number in range(len(spec.gates)):
        interface = graphs[stage_name(number)]
        assert tokens_output(number) in interface.outputs and tokens_output(number) not in interface.inputs
