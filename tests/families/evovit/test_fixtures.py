"""Both Evo-ViT networks in PyTorch against the golden cases of the official code, inside and out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.families.evovit.spec import EvoDeitSpec
from dovit_deploy.families.registry import family_of, model_from_spec
from tests import evovit_cases
from tests.golden import Case, case_parameters, cases, load, tolerance

PARAMETERS = [pytest.param(case, id=case.name) for case in cases("evovit")] or case_parameters("evovit")


def watched(model: torch.nn.Module) -> dict[str, Tensor]:
    """What the official names of a case's intermediates are here, filled while the model runs."""
    seen: dict[str, Tensor] = {}

    def watch(module: torch.nn.Module, name: str) -> None:
        def keep(_: Any, __: Any, output: Tensor) -> None:
            seen[name] = output

        module.register_forward_hook(keep)

    if hasattr(model, "blocks"):
        watch(model.norm, "pooled_norm")
        for number, block in enumerate(model.blocks):  # type: ignore[arg-type]
            watch(block, f"block{number}.out")
    else:
        watch(model.stem, "patch_embed")
    return seen


@pytest.mark.parametrize("case", PARAMETERS)
def test_evovit_is_reproduced(case: Case) -> None:
    io, checkpoint = load(case), checkpoint_from_path(case.weights, config=case.config)
    spec = checkpoint.spec
    model = model_from_spec(spec, checkpoint.state)
    (stage,) = family_of(spec).stages(model)
    seen = watched(model)
    compared = 0
    for image in range(len(io["input"])):
        with torch.inference_mode():
            logits, kept, *choices = stage(io["input"][image : image + 1])
        keep = [choice.reshape(grid).bool().numpy() for choice, grid in zip(choices, spec.keep_grids, strict=True)]
        report = SimpleNamespace(kept=tuple(kept.tolist()), keep=keep)
        evovit_cases.agrees(report, logits.numpy(), case, io, image)
        for name in seen.keys() & io.keys():
            reference = io[name][image]
            assert (seen[name].reshape(reference.shape) - reference).abs().max() <= tolerance(reference), name
            compared += 1
    assert compared >= len(io["input"]) * (3 if isinstance(spec, EvoDeitSpec) else 1)


@pytest.mark.parametrize("case", PARAMETERS)
def test_figures_of_the_configuration(case: Case) -> None:
    spec, facts = checkpoint_from_path(case.weights, config=case.config).spec, case.facts
    assert spec.counts == evovit_cases.counts(case)
    assert spec.size == (facts["img_size"],) * 2
    assert spec.outputs == {"logits": (1, 20)}
    assert len(spec.keep_grids) == len(facts["selections"])
    if isinstance(spec, EvoDeitSpec):
        assert list(spec.tradeoffs) == facts["tradeoff"]
        assert spec.rejoin_last is not facts["prunecls"]
    else:
        assert spec.distilled is facts["distillation"]
        assert (spec.tradeoff is None) is facts["learn_tradeoff_mode"]
