"""Rotary positions in ONNX Runtime: standard operators, or its own RotaryEmbedding.

    python benchmarks/rotary.py -o benchmarks/results/rotary.json

    none       attention and its four linear layers, nothing turned
    operators  queries and keys turned by Split, Mul, Sub, Add and Concat, as the portable form has it
    kernel     by `com.microsoft.RotaryEmbedding`, as the fast form has it

Width 384, 6 heads, fused attention, one thread, interleaved, CPU time of the process; ratios to `none`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from attention_forms import Figures, Step, command_line, step_of, timed
from torch import Tensor

from dovit_deploy.bundle.interface import GraphInterface, Port
from dovit_deploy.export.to_onnx import onnx_from_module
from dovit_deploy.families.layers import Attention, attend_turned, attention
from dovit_deploy.families.rotary import Rotations, periods_from_base, rotation_tables
from dovit_deploy.graphs.forms import FAST
from dovit_deploy.graphs.passes import applied

WIDTH, HEADS = 384, 6
PORTS = {"tokens": WIDTH, "cosines": WIDTH // HEADS // 2, "sines": WIDTH // HEADS // 2}


def turned_by_operators(tokens: Tensor, rotations: Rotations) -> Tensor:
    """What the operator of `families.rotary` computes, in operators that the exporter sees."""
    cosines, sines = (table.unsqueeze(1) for table in rotations)
    first, second = tokens.reshape(-1, HEADS, WIDTH // HEADS).chunk(2, dim=-1)
    turned = torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
    return turned.reshape(-1, WIDTH)


class Turning(torch.nn.Module):
    """`tokens` (n, C), `cosines` and `sines` (n, D / 2) -> `mixed` (n, C), in one of the three forms."""

    def __init__(self, layer: Attention, form: str) -> None:
        super().__init__()
        self.layer, self.form = layer, form

    def forward(self, tokens: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        rotations = Rotations(cosines, sines)

        def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
            if self.form == "kernel":
                return attend_turned(rotations)(query, key, value, heads)
            if self.form == "operators":
                query, key = (turned_by_operators(one, rotations) for one in (query, key))
            return attention(query, key, value, heads)

        return self.layer(tokens, attend)


def step_of_form(module: Turning, count: int, folder: Path) -> Step:
    """One run of the fast form of `module` in one thread on random tokens."""
    takes = tuple(Port(name, "float32", (count, width)) for name, width in PORTS.items())
    graph = onnx_from_module(module, GraphInterface(takes, (Port("mixed", "float32", (count, WIDTH)),)))
    # One row of patches, so that any count is a grid.
    tables = rotation_tables(periods_from_base(100.0, WIDTH // HEADS), 0, (1, count))
    tokens = np.random.default_rng(0).normal(size=(count, WIDTH)).astype(np.float32)
    feed = {"tokens": tokens, "cosines": tables.cosines.numpy(), "sines": tables.sines.numpy()}
    return step_of(applied(graph, FAST).model, folder, feed)


def measure(count: int, repeat: int, folder: Path) -> Figures:
    """Median milliseconds, and median of form / none, for `count` tokens."""
    layer = Attention(WIDTH, HEADS).eval().requires_grad_(False)
    steps = {form: step_of_form(Turning(layer, form).eval(), count, folder) for form in ("none", "operators", "kernel")}
    # A form that computed something else would be measured for nothing.
    assert np.allclose(steps["operators"](), steps["kernel"](), atol=1e-4)
    return timed(steps, repeat)


def main() -> None:
    """Command line."""
    command_line("rotary.py", (__doc__ or "").splitlines()[0], counts=(1029, 400, 150), measure=measure)


if __name__ == "__main__":
    main()
