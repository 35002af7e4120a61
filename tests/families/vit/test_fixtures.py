"""The PyTorch reference against the golden cases of the official code, stage by stage."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from dovit_deploy.checkpoints.checkpoint import Checkpoint, checkpoint_from_path
from dovit_deploy.families.registry import model_from_spec, spec_at_size, state_at_size
from dovit_deploy.families.tokens import aggregate, aggregate_limit, put_back, take
from dovit_deploy.families.vit.network import VisionTransformer
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests import golden
from tests.staged_loop import StagedRun, run_staged


class Run:
    """One image through the stages of a checkpoint, with what the fixtures also look at."""

    def __init__(self, checkpoint: Checkpoint, pixels: Tensor) -> None:
        height, width = pixels.shape[-2:]
        self.spec: VisionTransformerSpec = spec_at_size(checkpoint.spec, (height, width))
        state = state_at_size(checkpoint.state, checkpoint.spec, (height, width))
        self.model: VisionTransformer = model_from_spec(self.spec, state)
        self.after: dict[int, Tensor] = {}
        for number, block in enumerate(self.model.blocks):
            block.register_forward_hook(lambda _, __, output, number=number: self.after.update({number: output}))
        limits = torch.tensor([[value] * self.spec.classes for value in checkpoint.thresholds])
        self.embed = self.model.embed(pixels)
        self.staged: StagedRun = run_staged(self.model, pixels, thresholds=limits, floor=checkpoint.floor)
        self.logits = self.staged.logits
        cover = (height, width)
        if checkpoint.preprocessing.logits_cover == "padded":
            cover = (self.spec.grid[0] * self.spec.patch, self.spec.grid[1] * self.spec.patch)
        full = functional.interpolate(self.logits, size=cover, mode="bilinear", align_corners=False)
        self.resized = full[..., :height, :width]

    def grid(self, tokens: Tensor) -> Tensor:
        """(E + N, C) -> (1, C, h, w)."""
        return tokens[self.spec.extra_tokens :].T.reshape(1, -1, *self.spec.grid)

    def layer_in(self, gate: int) -> Tensor:
        """(1, kept, C): what enters the layer behind `gate`."""
        tokens, index = self.staged.tokens[gate], self.staged.indices[gate]
        limit = aggregate_limit(self.spec.aggregate_rate, self.spec.tokens)
        return torch.cat([aggregate(tokens, index, limit), take(tokens, index[1:])])[None]

    def out(self, gate: int, layer: int) -> Tensor:
        """(1, C, h, w): the full grid after `layer`, which runs behind `gate` (ignored without gates)."""
        tokens = self.after[layer]
        if self.spec.gates:
            tokens = put_back(self.staged.tokens[gate], self.staged.indices[gate], tokens)
        return self.grid(self.model.norm(tokens) if layer == self.spec.depth - 1 else tokens)

    def keep(self, gate: int) -> Tensor:
        """(h, w) uint8: still running after `gate`."""
        mask = torch.zeros(self.spec.tokens, dtype=torch.uint8)
        mask[self.staged.indices[gate]] = 1
        return mask[self.spec.extra_tokens :].reshape(self.spec.grid)


def same_classes(run_logits: Tensor, reference: Tensor, *, near_ties: int) -> None:
    """Argmax equal, but for at most `near_ties` pixels whose two best classes are within tolerance."""
    mine = run_logits.argmax(1).reshape(reference.shape)
    different = mine != reference.long()
    assert int(different.sum()) <= near_ties
    best = run_logits.topk(2, dim=1)[0]
    margin = (best[:, 0] - best[:, 1]).reshape(reference.shape)
    assert not different.any() or float(margin[different].max()) < 1e-4


@pytest.mark.parametrize("case", golden.case_parameters("dovit"))
def test_dovit_is_reproduced(case: golden.Case) -> None:
    io, facts = golden.load(case), case.facts
    checkpoint = checkpoint_from_path(case.weights, config=case.config)
    outputs = facts["config"]["backbone"]["out_indices"]
    for prefix in ("", "b."):
        if f"{prefix}input" not in io:
            continue
        run = Run(checkpoint, io[f"{prefix}input"])
        result = facts["result" if not prefix else "result_b"]
        assert golden.compare(io, f"{prefix}embed", run.embed[None])
        for gate in range(len(outputs) - 1):
            assert torch.equal(run.keep(gate), io[f"{prefix}stage{gate}.keep_mask"][0])
            confidence, reference = run.staged.confidences[gate], io[f"{prefix}stage{gate}.aux_conf"].reshape(-1)
            looked_at = ~confidence.isnan()
            assert torch.allclose(confidence[looked_at], reference[looked_at], rtol=0.0, atol=1e-4)
            assert golden.compare(io, f"{prefix}stage{gate}.layer_in", run.layer_in(gate))
        for number, layer in enumerate(outputs):
            # The feature after layer out_indices[k] is one layer behind gate k; the last one behind the last gate.
            assert golden.compare(io, f"{prefix}outs.{number}", run.out(min(number, len(outputs) - 2), layer))
        assert run.staged.kept[1:] == result["keep_nodes"][1:]
        assert golden.compare(io, f"{prefix}logits", run.logits)
        assert golden.compare(io, f"{prefix}logits_resized", run.resized)
        ties = result["argmax_pixels_with_margin_below_1e_4"]
        same_classes(run.resized, io[f"{prefix}argmax"], near_ties=ties)


@pytest.mark.parametrize("case", golden.case_parameters("segmenter"))
def test_dense_models_are_reproduced(case: golden.Case) -> None:
    io, facts = golden.load(case), case.facts
    checkpoint = checkpoint_from_path(case.weights, config=case.config)
    for key in [name for name in io if name.startswith("input")]:
        suffix = key.removeprefix("input")
        for image in range(len(io[key])):
            run = Run(checkpoint, io[key][image : image + 1])
            one = {name: t[image : image + 1] for name, t in io.items() if t.dim() == 4 and len(t) == len(io[key])}
            if "kwargs" in facts:
                last = run.after[run.spec.depth - 1]
                tokens = {"enc_tokens": io[f"enc_tokens{suffix}"][image : image + 1]}
                assert golden.compare(tokens, "enc_tokens", run.model.norm(last)[None])
                assert golden.compare(one, f"dec_masks{suffix}", run.logits)
                assert golden.compare(one, f"logits{suffix}", run.resized)
            else:
                assert golden.compare(one, "dec_logits", run.logits)
                for number, layer in enumerate(facts["config"]["backbone"]["out_indices"]):
                    assert golden.compare(one, f"out{number}", run.out(0, layer))
            # These files count no near-ties; each must prove to be one by its margin.
            same_classes(
                run.resized, io[f"argmax{suffix}"][image], near_ties=math.ceil(1e-4 * run.resized[0, 0].numel())
            )
