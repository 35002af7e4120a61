"""The naive Evo-ViT itself: it reproduces what the official code gave on the fixtures, from the official keys.

The mapping of keys is written out here once more, so that a mistake in the package's own mapping cannot hide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from dovit_deploy.families.evovit.spec import EvoDeitSpec, EvoLevitSpec, LevitStage, LevitSubsample, TokenSelection
from tests.golden import Case, cases
from tests.naive_evovit import NaiveEvoRun, naive_deit, naive_levit
from tests.plain_maths import Array

DEIT = [case for case in cases("evovit") if "deit" in case.name]
LEVIT = [case for case in cases("evovit") if "levit" in case.name]
absent = pytest.mark.skipif(not DEIT, reason="the golden fixtures are not beside this checkout")


def read(case: Case) -> tuple[dict[str, Array], dict[str, Array]]:
    weights, io = (
        {name: tensor.double().numpy() for name, tensor in load_file(path).items()} for path in (case.weights, case.io)
    )
    return weights, io


def compare(run: NaiveEvoRun, io: dict[str, Array], kept: list[str]) -> None:
    wanted = io["logits"][0]
    assert np.abs(run.logits - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max())
    assert len(run.chosen) == len(kept)
    for mine, name in zip(run.chosen, kept, strict=True):
        assert mine == sorted(io[name][0].astype(int).tolist())


@absent
@pytest.mark.parametrize("case", DEIT, ids=lambda case: case.name)
def test_deit(case: Case) -> None:
    facts, (official, io) = case.facts, read(case)
    stage_wise = facts["stage_wise_prune"]
    firsts = [one["before_block"] for one in facts["selections"]]
    spec = EvoDeitSpec(
        size=(facts["img_size"],) * 2,
        width=48,
        depth=12,
        heads=3,
        hidden=192,
        classes=20,
        selections=tuple(
            TokenSelection(first=first, last=first + (4 if stage_wise else 1), ratio=one["ratio"])
            for first, one in zip(firsts, facts["selections"], strict=True)
        ),
        tradeoffs=tuple(facts["tradeoff"]),
        rejoin_last=not facts["prunecls"],
    )
    run = naive_deit(spec, deit_weights(official), io["input"][0])
    compare(run, io, [f"sel{number + 1}.kept" for number in range(len(firsts))])


def deit_weights(official: dict[str, Array]) -> dict[str, Array]:
    ours = {
        "extra_tokens": official["cls_token"][0],
        "positions": official["pos_embed"][0],
    }
    for entry in ("weight", "bias"):
        ours[f"stem.projection.{entry}"] = official[f"patch_embed.proj.{entry}"]
        ours[f"norm.{entry}"] = official[f"norm.{entry}"]
        ours[f"head.classifier.{entry}"] = official[f"head.{entry}"]
        for layer in range(12):
            at = f"blocks.{layer}"
            query, key = np.split(official[f"qks.{layer}.qk.{entry}"], 2)
            ours |= {
                f"{at}.norm1.{entry}": official[f"norms.{layer}.{entry}"],
                f"{at}.attention.query.{entry}": query,
                f"{at}.attention.key.{entry}": key,
                f"{at}.attention.value.{entry}": official[f"vs.{layer}.v.{entry}"],
                f"{at}.attention.output.{entry}": official[f"projs.{layer}.{entry}"],
                f"{at}.norm2.{entry}": official[f"{at}.norm2.{entry}"],
                f"{at}.mlp.expand.{entry}": official[f"{at}.mlp.fc1.{entry}"],
                f"{at}.mlp.contract.{entry}": official[f"{at}.mlp.fc2.{entry}"],
            }
    return ours


@absent
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=pytest.mark.exhaustive if "ratios" in case.name else ()) for case in LEVIT],
)
def test_levit(case: Case) -> None:
    facts, (official, io) = case.facts, read(case)
    widths, depths, heads = ([int(part) for part in facts[name].split("_")] for name in "CXN")
    key = facts["D"]
    edges = np.cumsum([0, *depths]).tolist()
    per_layer, per_stage = facts["prune_ratio"]
    if facts["stage_wise_prune"]:
        cuts = []
        for stage, ratio in enumerate(per_stage):
            pruned = [layer for layer in range(edges[stage], edges[stage + 1]) if per_layer[layer] < 1]
            cuts += [(pruned[0], edges[stage + 1], ratio)] if pruned else []
    else:
        cuts = [(layer, layer + 1, ratio) for layer, ratio in enumerate(per_layer) if ratio < 1]
    spec = EvoLevitSpec(
        size=(facts["img_size"],) * 2,
        stages=tuple(
            LevitStage(width=width, depth=depth, heads=count, key=key, value=2 * key, hidden=2 * width)
            for width, depth, count in zip(widths, depths, heads, strict=True)
        ),
        subsamples=tuple(
            LevitSubsample(heads=op[2], key=op[1], value=op[3] * op[1], hidden=op[4] * width)
            for op, width in zip(facts["down_ops"], widths[1:], strict=True)
        ),
        classes=20,
        distilled=facts["distillation"],
        selections=tuple(TokenSelection(first=first, last=last, ratio=ratio) for first, last, ratio in cuts),
        tradeoff=None if facts["learn_tradeoff_mode"] else 0.5,
    )
    run = naive_levit(spec, levit_weights(spec, official), io["input"][0])
    # The source numbers patches by the first grid throughout.
    side = spec.grid[0]
    for number, (chosen, (rows, _)) in enumerate(zip(run.chosen, spec.keep_grids, strict=True)):
        stride = -(-side // rows)
        run.chosen[number] = [position // rows * stride * side + position % rows * stride for position in chosen]
    compare(run, io, [f"gather{one['gather']}.kept" for one in facts["selections"]])


def levit_weights(spec: EvoLevitSpec, official: dict[str, Array]) -> dict[str, Array]:
    ours: dict[str, Any] = {"class_token": official["cls_token"][0], "positions": official["poss"][0]}

    def folded(source: str, target: str, rows: Any = slice(None)) -> None:
        weight = official[f"{source}.c.weight"]
        scale = official[f"{source}.bn.weight"] / np.sqrt(official[f"{source}.bn.running_var"] + 1e-5)
        bias = official[f"{source}.bn.bias"] - official[f"{source}.bn.running_mean"] * scale
        ours[f"{target}.weight"] = (weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))[rows]
        ours[f"{target}.bias"] = bias[rows]

    def parts(source: str, target: str, heads: int, **widths: int) -> None:
        each, start = sum(widths.values()), 0
        for name, width in widths.items():
            rows = [head * each + start + position for head in range(heads) for position in range(width)]
            folded(source, f"{target}.attention.{name}", rows)
            start += width

    for number in range(4):
        folded(f"patch_embed.{2 * number}", f"stem.down.{number}")
    block = 0
    for stage, (first, last) in enumerate(spec.stage_layers):
        one = spec.stages[stage]
        for layer in range(first, last):
            source, target = f"blocks.{block}", f"layers.{layer}"
            parts(f"{source}.m1.m.qkv", target, one.heads, query=one.key, key=one.key, value=one.value)
            folded(f"{source}.m1.m.proj.1", f"{target}.attention.output")
            ours[f"{target}.attention.tradeoff"] = official[f"{source}.m1.m.learn_tradeoff"]
            folded(f"{source}.m2.m.0", f"{target}.mlp.expand")
            folded(f"{source}.m2.m.2", f"{target}.mlp.contract")
            block += 1
        if stage < len(spec.subsamples):
            down, source, target = spec.subsamples[stage], f"blocks.{block}", f"downs.{stage}"
            ours[f"{target}.positions"] = official[f"{source}.poss"][0]
            parts(f"{source}.kv", target, down.heads, key=down.key, value=down.value)
            folded(f"{source}.q.1", f"{target}.attention.query")
            folded(f"{source}.proj.1", f"{target}.attention.output")
            ours[f"{target}.attention.tradeoff"] = official[f"{source}.learn_tradeoff"]
            folded(f"blocks.{block + 1}.m.0", f"{target}.mlp.expand")
            folded(f"blocks.{block + 1}.m.2", f"{target}.mlp.contract")
            block += 2
    for source, target in (("head", "head.classifier"), ("head_dist", "head.distilled"))[: 1 + spec.distilled]:
        scale = official[f"{source}.bn.weight"] / np.sqrt(official[f"{source}.bn.running_var"] + 1e-5)
        shift = official[f"{source}.bn.bias"] - official[f"{source}.bn.running_mean"] * scale
        ours[f"{target}.weight"] = official[f"{source}.l.weight"] * scale
        ours[f"{target}.bias"] = official[f"{source}.l.bias"] + official[f"{source}.l.weight"] @ shift
    return ours
