"""A fake of `triton_python_backend_utils`, which only a server has: the parts that `model.py` uses, in their shapes.

Tensors go through DLPack as they do there. What it does not show: how a server batches, refuses and frees.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


class TritonModelException(Exception):
    pass


class TritonError(Exception):
    INVALID_ARG, INTERNAL = "INVALID_ARG", "INTERNAL"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Tensor:
    name: str
    array: np.ndarray

    @classmethod
    def from_dlpack(cls, name: str, lent: object) -> Tensor:
        return cls(name, np.from_dlpack(AsServersTake(lent)).copy())

    def __dlpack__(self, **asked: object) -> object:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


@dataclass
class AsServersTake:
    """A server asks without arguments."""

    lent: Any

    def __dlpack__(self, **asked: object) -> object:
        return self.lent.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.lent.__dlpack_device__()


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None

    def array(self, name: str) -> np.ndarray:
        assert self.error is None, self.error
        return next(tensor.array for tensor in self.output_tensors if tensor.name == name)


@dataclass
class FakeRequest:
    arrays: dict[str, np.ndarray]
    wanted: tuple[str, ...] = ("logits", "kept", "gmacs_dense", "gmacs_actual", "milliseconds")

    def requested_output_names(self) -> list[str]:
        return list(self.wanted)


def get_input_tensor_by_name(request: FakeRequest, name: str) -> Tensor | None:
    return Tensor(name, request.arrays[name]) if name in request.arrays else None


class MetricFamily:
    COUNTER = "counter"
    made: dict[str, MetricFamily] = {}  # noqa: RUF012

    def __init__(self, *, name: str, description: str, kind: str) -> None:
        assert name not in self.made, "a server takes a second family of one name for another description"
        self.values: dict[tuple[tuple[str, str], ...], float] = {}
        self.made[name] = self

    def Metric(self, *, labels: dict[str, str]) -> Metric:
        return Metric(self, tuple(sorted(labels.items())))


@dataclass
class Metric:
    family: MetricFamily
    labels: tuple[tuple[str, str], ...]

    def increment(self, by: float) -> None:
        self.family.values[self.labels] = self.family.values.get(self.labels, 0.0) + by


@contextmanager
def loaded_model(version: Path, *, max_batch: int = 8) -> Iterator[Any]:
    """The model of a version's folder, loaded as a server loads it, with this module in the place of the server's."""
    name = "triton_python_backend_utils"
    assert name not in sys.modules
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(
        {each: globals()[each] for each in ("TritonModelException", "TritonError", "Tensor", "InferenceResponse")},
        get_input_tensor_by_name=get_input_tensor_by_name,
        MetricFamily=MetricFamily,
    )
    MetricFamily.made.clear()
    try:
        spec = importlib.util.spec_from_file_location("served_model", version / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        model.initialize(
            {
                "model_repository": str(version.parent),
                "model_version": version.name,
                "model_name": version.parent.name,
                "model_config": json.dumps({"max_batch_size": max_batch}),
            }
        )
        yield model
        model.finalize()
    finally:
        del sys.modules[name]
