"""How does one PyTorch module become one ONNX graph?

By PyTorch's exporter, with standard operators. Attention, with a bias of each key or without, and the rotation of its
queries and keys alone stay one node each (`dovit.Attention`, `dovit.AttentionWithBias`, `dovit.Rotation`), which the
forms of a bundle lower in their own ways (`dovit_deploy/graphs/attention.py`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import onnx_ir as ir
import onnxscript
import torch
from onnx.defs import OpSchema

from dovit_deploy.bundle.interface import INDEX, KEPT, GraphInterface, Port
from dovit_deploy.graphs.attention import ATTENTION, ATTENTION_WITH_BIAS, DOMAIN, ROTATION
from dovit_deploy.graphs.forms import EXPORTED
from dovit_deploy.graphs.passes import applied

OPSET = 20
"""The first with Gelu as one operator."""

_TORCH_TYPES = {"float32": torch.float32, "int64": torch.int64}


def _operator(name: str, inputs: tuple[str, ...], output: str) -> onnxscript.values.Op:
    """Our operator `name` on `inputs`, with the number of heads."""
    parameter = OpSchema.FormalParameter
    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[parameter(one, "T") for one in inputs],
        outputs=[parameter(output, "T")],
        type_constraints=[("T", ["tensor(float)"], "tokens")],
        attributes=[OpSchema.Attribute("heads", OpSchema.AttrType.INT, required=True)],
    )
    return onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), name, schema)


_ATTENTION = _operator(ATTENTION, ("query", "key", "value"), "mixed")
_ATTENTION_WITH_BIAS = _operator(ATTENTION_WITH_BIAS, ("query", "key", "value", "bias"), "mixed")
_ROTATION = _operator(ROTATION, ("tokens", "cosines", "sines"), "turned")


def _translate_attention(query: Any, key: Any, value: Any, heads: int) -> Any:  # noqa: ANN401
    return _ATTENTION(query, key, value, heads=heads)


def _translate_attention_with_bias(query: Any, key: Any, value: Any, bias: Any, heads: int) -> Any:  # noqa: ANN401
    return _ATTENTION_WITH_BIAS(query, key, value, bias, heads=heads)


def _translate_rotation(tokens: Any, cosines: Any, sines: Any, heads: int) -> Any:  # noqa: ANN401
    return _ROTATION(tokens, cosines, sines, heads=heads)


def onnx_from_module(module: torch.nn.Module, interface: GraphInterface, *, always: int = 1) -> ir.Model:
    """Export `module` with the inputs and outputs of `interface`, in order.

    Weights keep the names of the module's parameters. The one symbolic dimension is that of `index`, of whose entries
    the first `always` are there whatever stops: the extra tokens.
    """
    least = max(1, always)
    examples = tuple(_example(port, least) for port in interface.takes)
    kept = {0: torch.export.Dim(KEPT, min=least)}
    shapes: list[Any] = [kept if KEPT in port.shape else None for port in interface.takes]
    # The exporter wants a shape for each parameter; what goes into `*carried` is one of them. A tuple of None it would
    # take for the sides of one tensor.
    named = [one for one in signature(module.forward).parameters.values() if one.kind is not one.VAR_POSITIONAL]
    if len(shapes) > len(named):
        shapes = [*shapes[: len(named)], tuple({} for _ in shapes[len(named) :])]
    with _quiet():
        program = torch.onnx.export(
            module,
            examples,
            # The older exporter has neither `dynamic_shapes` nor a table for operators of our own.
            dynamo=True,
            opset_version=OPSET,
            input_names=list(interface.inputs),
            output_names=list(interface.outputs),
            dynamic_shapes=tuple(shapes),
            custom_translation_table={
                torch.ops.dovit.attention.default: _translate_attention,
                torch.ops.dovit.attention_with_bias.default: _translate_attention_with_bias,
                torch.ops.dovit.rotation.default: _translate_rotation,
            },
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return applied(program.model, EXPORTED).model


def _example(port: Port, least: int) -> torch.Tensor:
    # Any count of running tokens but 0 and 1 serves: the exporter would treat those as constants.
    shape = [least + 2 if side == KEPT else int(side) for side in port.shape]
    if port.name == INDEX:
        return torch.arange(shape[0])
    return torch.zeros(shape, dtype=_TORCH_TYPES[port.dtype])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about packages it does not need and its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
