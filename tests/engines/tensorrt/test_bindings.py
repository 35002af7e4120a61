"""The fakes have the shape of the real bindings, and bindings.json says what the installed ones have."""

from __future__ import annotations

import importlib.util
import re

import pytest

from tests.engines.tensorrt.bindings import PLAIN, RTX, FakeOf, all_bindings, fake_module
from tests.engines.tensorrt.read_bindings import module_entries


def test_a_fake_with_an_attribute_that_no_version_has_cannot_be_defined() -> None:
    with pytest.raises(TypeError, match="Invented has enqueue, which no IExecutionContext of TensorRT has"):

        class Invented(FakeOf, of="IExecutionContext"):
            def enqueue(self) -> None: ...


def test_a_fake_that_takes_other_arguments_cannot_be_defined() -> None:
    with pytest.raises(TypeError, match=r"Renamed\.set_tensor_address takes other arguments"):

        class Renamed(FakeOf, of="IExecutionContext"):
            def set_tensor_address(self, name: str, address: int) -> None: ...


class Config(FakeOf, of="IRuntimeConfig"):
    """Defined in RTX alone."""

    cuda_graph_strategy = None


def test_a_fake_shows_what_its_version_has_and_no_more() -> None:
    rtx, plain = Config(all_bindings()[RTX]), Config(all_bindings()[PLAIN])
    rtx.cuda_graph_strategy = 1
    assert rtx.cuda_graph_strategy == 1
    with pytest.raises(AttributeError, match="'IRuntimeConfig' object has no attribute 'cuda_graph_strategy'"):
        plain.cuda_graph_strategy = 1
    assert not hasattr(plain, "cuda_graph_strategy")
    with pytest.raises(AttributeError, match="no attribute 'cuda_graphs'"):
        rtx.cuda_graphs = 1


def test_a_module_has_nothing_that_its_version_lacks() -> None:
    plain = fake_module(all_bindings()[PLAIN])
    assert int(plain.BuilderFlag.TF32) == 6
    assert not hasattr(plain, "CudaGraphStrategy") and not hasattr(plain.BuilderFlag, "REQUIRE_USER_ALLOCATION")
    with pytest.raises(AssertionError, match="has no CudaGraphStrategy"):
        fake_module(all_bindings()[PLAIN], {"CudaGraphStrategy": object()})


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="tensorrt_rtx is not installed")
def test_the_list_is_that_of_the_installed_bindings() -> None:
    """What a later version adds is no fault; what it takes away is."""
    import tensorrt_rtx

    found = module_entries(tensorrt_rtx)
    for kind, attributes in all_bindings()[RTX].classes.items():
        names = {re.split(r"[=(]", entry)[0] for entry in found[kind]}
        assert attributes.keys() <= names, f"{kind} of {tensorrt_rtx.__version__}"
