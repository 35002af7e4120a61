"""STViT-R and STViT in PyTorch against the golden cases of the official code, block by block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.families.folding import deployed
from dovit_deploy.families.registry import model_from_spec, spec_at_size, state_at_size
from dovit_deploy.families.stvit.attention import WindowAttention, WindowLayout, window_layout
from dovit_deploy.families.stvit.keys import SWIN_MAP, UNIT_PARTS
from dovit_deploy.families.stvit.semantic import (
    CrossAttention,
    CrossBlock,
    WindowPooling,
    raster_order,
    seen_while_pooling,
    semantic_pooling,
)
from dovit_deploy.families.stvit.spec import REDUCED_STAGE, SAMPLES, UNIT, StvitBackboneSpec, StvitSwinSpec
from dovit_deploy.families.stvit.swin import block_shape
from dovit_deploy.families.stvit.windows import GatherRows
from tests.golden import Case, case_parameters, compare, load

NETWORKS = [p for p in case_parameters("stvit", every=True) if not p.id.startswith("stvit_r_modules")]
MODULES = [p for p in case_parameters("stvit", every=True) if p.id.startswith(("stvit_r_modules", "absent"))]


def recorded(stage: nn.Module) -> dict[int, Tensor]:
    """What each block of the reduced stage gives, by its number in the source, filled in while the network runs."""
    seen: dict[int, Tensor] = {}

    def record(number: int, raster: nn.Module | None) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[number] = output if raster is None else raster(output)

        return hook

    for number, unit in enumerate(stage.units):
        for offset, part in enumerate(UNIT_PARTS):
            # Before they are put in raster order, semantic tokens stand window after window.
            attention = getattr(unit, part).attention
            windowed = part in ("pooling", "exchange") and not isinstance(attention, CrossAttention)
            getattr(unit, part).register_forward_hook(record(UNIT * number + offset, unit.raster if windowed else None))
    return seen


def inputs(io: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Suffix and pixels of every image set: `input`, or `input0`, `input1`, ..."""
    return [(name.removeprefix("input"), io[name]) for name in sorted(io) if name.startswith("input")]


@pytest.mark.parametrize("case", NETWORKS)
def test_stvit_is_reproduced(case: Case) -> None:
    io = load(case)
    checkpoint = checkpoint_from_path(case.weights, config=case.config)
    for suffix, pixels in inputs(io):
        size = (pixels.shape[-2], pixels.shape[-1])
        spec = spec_at_size(checkpoint.spec, size)
        model = model_from_spec(spec, state_at_size(checkpoint.state, checkpoint.spec, size))
        blocks = recorded(model.stages[REDUCED_STAGE]) if hasattr(model, "stages") else {}
        with torch.inference_mode():
            answer = model(pixels)
        if isinstance(spec, StvitBackboneSpec):
            compared = [compare(io, f"out{stage}_{suffix}", map_) for stage, map_ in enumerate(answer)]
            assert compared.count(True) >= 3
        else:
            assert compare(io, "logits", answer)
        end = f".out{suffix}" if isinstance(spec, StvitBackboneSpec) else ""
        compared = [compare(io, f"layers.2.blocks.{number}{end}", value) for number, value in blocks.items()]
        assert compared.count(True) >= 5 or not blocks


def block_of(case: Case, name: str, block: CrossBlock, *, relative: int = 0) -> CrossBlock:
    """`block` with the official entries that begin with `name`."""
    from safetensors.torch import load_file

    state, wanted = load_file(case.weights), block.state_dict()
    # As the fourth block of a unit, in training form: layer scales and the table of biases are still apart.
    ours, official = "stages.2.units.0.local.", "layers.2.blocks.3."
    shapes = {n: tuple(t.shape) for n, t in wanted.items() if not n.endswith(".values")}
    shapes |= {"scale1.factor": (48,), "scale2.factor": (48,)}
    if relative:
        shapes["attention.bias.table"] = ((2 * relative - 1) ** 2, 3)
    training = {ours + n: torch.zeros(shape) for n, shape in shapes.items()}
    for rule in SWIN_MAP.rules({ours + n: shape for n, shape in shapes.items()}):
        rule.fill(training, state[rule.official.replace(official, f"{name}.")].float())
    final = {n.removeprefix(ours): value for n, value in deployed(training).items()}
    assert final.keys() == wanted.keys()
    block.load_state_dict(final)
    return block.eval()


@pytest.mark.parametrize("case", MODULES)
def test_modules_are_reproduced(case: Case) -> None:
    """Every way in which the source's blocks can be put together, its batch of two at once."""
    io = load(case)
    spec = StvitSwinSpec(size=(224, 224), width=12, depths=(1, 1, 6, 1), heads=(1, 1, 3, 1), classes=2)
    shape = block_shape(spec, REDUCED_STAGE, trainable=False)
    grid, raster = (14, 14), raster_order(spec.semantic_grid, SAMPLES)
    windowed = window_layout(spec.semantic_grid, SAMPLES)
    seen = GatherRows(seen_while_pooling(spec), 36 + 196)

    def looking(pooled: Tensor, name: str, *, residual: bool) -> Tensor:
        block = CrossBlock(shape, WindowAttention(shape, WindowLayout(4)), residual=residual)
        return raster(block_of(case, name, block)(pooled, seen(torch.cat([pooled, x], -2))))

    def convolved(pool: WindowPooling) -> WindowPooling:
        from safetensors.torch import load_file

        state = load_file(case.weights)
        entries = ("weight", "bias")
        pool.load_state_dict({f"convolution.{e}": state[f"sab_sc.conv_pos.proj.0.{e}"].float() for e in entries})
        return pool

    x, whole = io["x"], CrossBlock(shape, CrossAttention(shape))
    with torch.inference_mode():
        pool = semantic_pooling(grid, 7, convolved=0)
        sab = looking(pool(x), "sab", residual=False)
        assert compare(io, "sab", sab)
        assert compare(
            io, "sab_sc", looking(convolved(semantic_pooling(grid, 7, convolved=48))(x), "sab_sc", residual=True)
        )
        # Given semantic tokens are cut into windows again.
        assert compare(io, "sab_with_y", looking(windowed.queries(sab), "sab", residual=False))
        block_of(case, "blk", whole)
        assert compare(io, "blk_cross_up", whole(x, sab))
        assert compare(io, "blk_cross_cat", whole(sab, torch.cat([sab, x], -2)))
        assert compare(io, "blk_self", whole(sab))
        local = CrossBlock(shape, WindowAttention(shape, windowed))
        assert compare(io, "blk_local", block_of(case, "blk_local", local)(sab))
        everywhere = CrossBlock(shape, WindowAttention(shape, WindowLayout(1), relative=6))
        assert compare(io, "blk_rel", block_of(case, "blk_rel", everywhere, relative=6)(sab))
