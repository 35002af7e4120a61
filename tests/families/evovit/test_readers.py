"""Official checkpoints of Evo-ViT and of plain DeiT: keys, both views of a layer, settings, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from safetensors.torch import save_file
from torch import Tensor

from dovit_deploy.checkpoints.checkpoint import Checkpoint, checkpoint_from_path
from dovit_deploy.checkpoints.keys import KeyFacts, KeyMap
from dovit_deploy.checkpoints.settings import Sources
from dovit_deploy.errors import CheckpointMismatch, ConfigError, UsageError
from dovit_deploy.export.plan import ExportPlan
from dovit_deploy.families.evovit.deit_reader import EVO_DEIT_KEYS, evo_deit_architecture
from dovit_deploy.families.evovit.evo_levit_reader import evo_levit_architecture, evo_levit_key_map
from dovit_deploy.families.evovit.spec import EvoDeitSpec, EvoLevitSpec
from dovit_deploy.families.registry import family_of, model_from_spec, spec_at_size, state_at_size
from tests.families.evovit import official
from tests.families.official_state import official_shapes
from tests.tiny import tiny_pixels


def read(
    tmp_path: Path, state: dict[str, Tensor], settings: dict[str, Any] | None, key: str = "model_kwargs"
) -> Checkpoint:
    """The checkpoint of `state`, saved as the official code does, with `settings` under `key` (or at the top)."""
    weights, config = tmp_path / "checkpoint.pth", tmp_path / "settings.json"
    torch.save({"model": state, "epoch": 3, "args": None}, weights)
    if settings is None:
        return checkpoint_from_path(weights)
    config.write_text(json.dumps({key: settings} if key else settings))
    return checkpoint_from_path(weights, config=config)


def logits(checkpoint: Checkpoint, seed: int = 0) -> Tensor:
    model = model_from_spec(checkpoint.spec, checkpoint.state)
    with torch.inference_mode():
        return family_of(checkpoint.spec).stages(model)[0](tiny_pixels(checkpoint.spec.size, seed))[0]


def test_evo_deit_from_pth(tmp_path: Path) -> None:
    state = official.deit_state()
    checkpoint = read(tmp_path, state, official.DEIT)
    assert checkpoint.spec == official.deit_spec()
    assert checkpoint.thresholds == ()
    ours = checkpoint.state
    packed = state["qks.3.qk.weight"]
    assert torch.equal(ours["blocks.3.attention.query.weight"], packed[:16])
    assert torch.equal(ours["blocks.3.attention.key.weight"], packed[16:])
    assert torch.equal(ours["blocks.3.attention.value.weight"], state["vs.3.v.weight"])
    assert torch.equal(ours["blocks.3.norm1.bias"], state["norms.3.bias"])


def test_safetensors_and_train_only_heads_or_not(tmp_path: Path) -> None:
    state = official.deit_state()
    whole = read(tmp_path, state, official.DEIT)
    bare = {name: tensor for name, tensor in state.items() if "_cls" not in name}
    save_file(bare, tmp_path / "bare.safetensors")
    again = checkpoint_from_path(tmp_path / "bare.safetensors", config=tmp_path / "settings.json")
    assert again.spec == whole.spec
    assert torch.equal(logits(again), logits(whole))


def test_layer_wise_selections_and_prunecls(tmp_path: Path) -> None:
    ratios = [1, 1, 0.6, 1, 0.7, 0.7, 1, 1, 0.5, 0.5, 0.5, 0.4]
    settings = {**official.DEIT, "stage_wise_prune": False, "prunecls": True, "prune_ratio": ratios}
    spec = read(tmp_path, official.deit_state(), settings).spec
    assert isinstance(spec, EvoDeitSpec)
    assert [(one.first, one.last, one.ratio) for one in spec.selections] == [
        *((2, 3, 0.6), (4, 5, 0.7), (5, 6, 0.7), (8, 9, 0.5), (9, 10, 0.5), (10, 11, 0.5), (11, 12, 0.4))
    ]
    assert not spec.rejoin_last
    assert spec.counts == (17, 10, 12, 12, 9, 9, 9, 7)


def test_one_tradeoff_stands_for_all_layers_and_ratios_1_are_dense(tmp_path: Path) -> None:
    settings = {**official.DEIT, "tradeoff": 0.5, "prune_ratio": [1] * 12}
    spec = read(tmp_path, official.deit_state(), settings).spec
    assert isinstance(spec, EvoDeitSpec)
    assert spec.tradeoffs == (0.5,) * 12
    assert spec.counts == (17,)


def test_settings_at_the_top_level_are_found_and_others_there_ignored(tmp_path: Path) -> None:
    settings = {**official.DEIT, "tiny_embed": True, "seed": 3, "selections": []}
    assert read(tmp_path, official.deit_state(), settings, key="").spec == official.deit_spec()


def test_missing_biases_are_zero_when_denied(tmp_path: Path) -> None:
    state = {n: t for n, t in official.deit_state().items() if not n.endswith((".qk.bias", ".v.bias"))}
    with pytest.raises(CheckpointMismatch, match=r"missing: qks\.0\.qk\.bias"):
        read(tmp_path, state, official.DEIT)
    ours = read(tmp_path, state, {**official.DEIT, "qkv_bias": False}).state
    assert not ours["blocks.0.attention.query.bias"].any()


WRONG = {
    "another width": ({"embed_dim": 32}, ConfigError, "'embed_dim' is 32 in the configuration and 16 in the keys"),
    "another depth": ({"depth": 10}, ConfigError, "'depth' is 10"),
    "another size": ({"img_size": 224}, ConfigError, "224x224 makes 14x14 patches of 16"),
    "another number of classes": ({"num_classes": 1000}, ConfigError, "'num_classes' is 1000"),
    "ratios of fewer layers": ({"prune_ratio": [1, 0.5]}, ConfigError, "'prune_ratio' has 2 entries for 12 layers"),
    "a ratio above 1": ({"prune_ratio": [1] * 11 + [1.5]}, ConfigError, "each must be between 0 and 1"),
    "no scores to choose by": (
        {"prune_ratio": [0.5] * 12, "stage_wise_prune": False},
        ConfigError,
        "of the first layer must be 1",
    ),
    "nothing to classify by": (
        {"prune_ratio": [1] * 8 + [0.01] * 4, "prunecls": True},
        ConfigError,
        "leaves no token to classify by",
    ),
    "an unknown setting": ({"keep_rate": 0.7}, ConfigError, "'model_kwargs.keep_rate' not known here"),
    "a representation layer": ({"representation_size": 64}, ConfigError, "only None is supported"),
    "heads that do not divide": ({"num_heads": 3}, ConfigError, "width 16 is not divisible by 3 heads"),
}


@pytest.mark.parametrize(("change", "error", "words"), WRONG.values(), ids=WRONG.keys())
def test_settings_that_do_not_fit(tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words.replace("(", r"\(")):
        read(tmp_path, official.deit_state(), {**official.DEIT, **change})


def test_what_no_source_knows_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"cannot be determined from checkpoint\.pth: tradeoff, num_heads; state them in a file given with",
    ):
        read(tmp_path, official.deit_state(), None)
    with pytest.raises(ConfigError, match=": D; state them in a file given with --config"):
        read(tmp_path, official.levit_state(), None)


def test_the_published_sizes_need_no_configuration() -> None:
    """Names and shapes of EvoLeViT_128S and of evo_deit_tiny, as the source builds them."""
    from tests.families.evovit.test_cost import published_deit

    tiny = published_deit(192, 3, 224)
    facts = KeyFacts(official_shapes(KeyMap(EVO_DEIT_KEYS), tiny))
    assert evo_deit_architecture(Sources("", {}, facts, "x.pth")).spec == tiny
    stages = [(128, 2, 4), (256, 3, 6), (384, 4, 8)]
    fields = [
        {"width": width, "depth": depth, "heads": heads, "key": 16, "value": 32, "hidden": 2 * width}
        for width, depth, heads in stages
    ]
    downs = [{"heads": 8, "key": 16, "value": 64, "hidden": 512}, {"heads": 16, "key": 16, "value": 64, "hidden": 768}]
    cuts = [{"first": 2, "last": 5, "ratio": 0.5}, {"first": 5, "last": 9, "ratio": 0.5}]
    smallest = EvoLevitSpec.model_validate(
        {
            "size": (224, 224),
            "stages": fields,
            "subsamples": downs,
            "classes": 1000,
            "distilled": True,
            "selections": cuts,
        }
    )
    facts = KeyFacts(official_shapes(evo_levit_key_map(smallest), smallest))
    assert evo_levit_architecture(Sources("", {}, facts, "x.pth")).spec == smallest


FAULTS = {
    "missing": lambda state: state.pop("projs.3.weight"),
    "unexpected": lambda state: state.update({"blocks.3.attn.extra": torch.zeros(1)}),
    "wrong shape": lambda state: state.update({"vs.1.v.weight": torch.zeros(16, 8)}),
    "NaN or Inf": lambda state: state["norm.bias"].fill_(float("nan")),
    "not floating point": lambda state: state.update({"head.bias": torch.zeros(5, dtype=torch.int64)}),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_any_difference_is_refused_and_listed(tmp_path: Path, kind: str) -> None:
    state = official.deit_state()
    FAULTS[kind](state)
    with pytest.raises(CheckpointMismatch, match=kind):
        read(tmp_path, state, official.DEIT)


# LeViT --------------------------------------------------------------------------------------------------------------


def test_either_view_of_a_levit_or_both(tmp_path: Path) -> None:
    layers, stages = official.levit_state(), official.in_stage_view(official.levit_state())
    assert layers.keys() != stages.keys()
    one = read(tmp_path, layers, official.LEVIT)
    assert one.spec == official.levit_spec()
    for state in (stages, {**layers, **stages}):
        other = read(tmp_path, state, official.LEVIT)
        assert other.spec == one.spec
        assert all(torch.equal(other.state[name], tensor) for name, tensor in one.state.items())


def test_views_that_differ_or_are_not_whole_are_refused(tmp_path: Path) -> None:
    layers = official.levit_state()
    stages = official.in_stage_view(layers)
    changed = {**layers, **stages, "stage_blocks.4.m.1.m.2.c.weight": stages["stage_blocks.4.m.1.m.2.c.weight"] + 1}
    with pytest.raises(CheckpointMismatch, match=r"different from .* stage_blocks\.4\.m\.1\.m\.2\.c\.weight"):
        read(tmp_path, changed, official.LEVIT)
    for name in ("stage_blocks.9.m.0.m.qkv.c.weight", "blocks.6.m1.m.qkv.c.weight"):
        partial = {key: tensor for key, tensor in {**layers, **stages}.items() if key != name}
        with pytest.raises(CheckpointMismatch, match=f"missing: {name}"):
            read(tmp_path, partial, official.LEVIT)


def test_the_stage_view_shows_which_layers_are_pruned(tmp_path: Path) -> None:
    stages = official.in_stage_view(official.levit_state())
    settings = {**official.LEVIT, "prune_ratio": [[1, 1, 0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]}
    with pytest.raises(
        ConfigError, match="'prune_ratio below 1' is 2x3x4x5 in the configuration and 2x4x5 in the keys"
    ):
        read(tmp_path, stages, settings)


def test_queries_keys_and_values_of_a_levit_lie_head_by_head(tmp_path: Path) -> None:
    state = official.levit_state()
    ours = read(tmp_path, state, official.LEVIT).state
    name = "blocks.5.m1.m.qkv"
    tokens = torch.randn(7, 12)
    packed = functional.batch_norm(
        tokens @ state[f"{name}.c.weight"].T,
        *(state[f"{name}.bn.{entry}"] for entry in ("running_mean", "running_var", "weight", "bias")),
    )
    query, key, value = packed.reshape(7, 2, 16).split([4, 4, 8], dim=2)
    for name, part in (("query", query), ("key", key), ("value", value)):
        mine = functional.linear(tokens, *(ours[f"layers.3.attention.{name}.{entry}"] for entry in ("weight", "bias")))
        assert torch.allclose(mine, part.flatten(1), atol=1e-5)


def test_the_norm_before_a_head_is_folded(tmp_path: Path) -> None:
    state = official.levit_state()
    ours = read(tmp_path, state, official.LEVIT).state
    mean = torch.randn(3, 16)
    normed = functional.batch_norm(
        mean, *(state[f"head_dist.bn.{entry}"] for entry in ("running_mean", "running_var", "weight", "bias"))
    )
    wanted = functional.linear(normed, state["head_dist.l.weight"], state["head_dist.l.bias"])
    mine = functional.linear(mean, ours["head.distilled.weight"], ours["head.distilled.bias"])
    assert torch.allclose(mine, wanted, atol=1e-5)


def test_a_fixed_tradeoff_leaves_the_learned_ones_unread(tmp_path: Path) -> None:
    checkpoint = read(tmp_path, official.levit_state(), {**official.LEVIT, "learn_tradeoff_mode": False})
    assert checkpoint.spec == official.levit_spec(tradeoff=0.5)
    assert not any("tradeoff" in name for name in checkpoint.state)
    short = {name: tensor for name, tensor in official.levit_state().items() if name != "blocks.3.learn_tradeoff"}
    with pytest.raises(CheckpointMismatch, match=r"missing: blocks\.3\.learn_tradeoff"):
        read(tmp_path, short, official.LEVIT)


def test_the_constructors_own_names_say_the_same(tmp_path: Path) -> None:
    settings = {
        **{name: value for name, value in official.LEVIT.items() if name not in "CDXN"},
        "embed_dim": [8, 12, 16],
        "key_dim": [4, 4, 4],
        "depth": [3, 2, 1],
        "num_heads": [1, 2, 3],
        "attn_ratio": [2, 2, 2],
        "mlp_ratio": [2, 2, 2],
        "down_ops": [["Subsample", 4, 2, 4, 2, 2], ["Subsample", 4, 3, 4, 2, 2], [""]],
        "distillation": True,
    }
    assert read(tmp_path, official.levit_state(), settings).spec == official.levit_spec()


WRONG_LEVIT = {
    "one list of ratios": ({"prune_ratio": [1, 1, 0.5]}, "two lists are needed"),
    "another depth": ({"X": "3_2_2"}, "'X' is 3x2x2 in the configuration and 3x2x1 in the keys"),
    "other widths": ({"C": "128_256_384"}, "'C' is 128x256x384"),
    "other heads": ({"N": "2_2_3"}, "'N' is 2x2x3 in the configuration and 1x2x3 in the keys"),
    "one head": ({"distillation": False}, "'distillation' is False in the configuration and True in the keys"),
    "not a list of widths": ({"C": "128-256"}, "whole numbers joined by _ are needed"),
    "stages out of order": (
        {"prune_ratio": [[1, 0.5, 1, 1, 0.5, 0.5], [0.4, 0.5, 0.6]]},
        "the layers with ratio 1 of a stage come first",
    ),
    "one down_op": ({"down_ops": [["Subsample", 4, 2, 4, 2, 2]]}, "2 entries are needed"),
}


@pytest.mark.parametrize(("change", "words"), WRONG_LEVIT.values(), ids=WRONG_LEVIT.keys())
def test_settings_that_do_not_fit_a_levit(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, official.levit_state(), {**official.LEVIT, **change})


# Plain DeiT ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [1, 2])
def test_plain_deit_is_the_dense_baseline(tmp_path: Path, extra: int) -> None:
    """What timm's ViT computes: the norm, then the class token's head, the mean with the distillation token's."""
    state = official.plain_state(extra=extra)
    settings = {name: value for name, value in official.DEIT.items() if name not in ("prune_ratio", "tradeoff")}
    checkpoint = read(tmp_path, state, settings)
    assert checkpoint.spec == official.plain_spec(extra=extra)
    assert checkpoint.spec.counts == (16 + extra,)
    model = model_from_spec(checkpoint.spec, checkpoint.state)
    with torch.inference_mode():
        tokens = model.run(model.embed(tiny_pixels((64, 64))), ()).tokens
        normed = functional.layer_norm(tokens, (16,), state["norm.weight"], state["norm.bias"], 1e-6)
        wanted = functional.linear(normed[:1], state["head.weight"], state["head.bias"])
        if extra == 2:
            other = functional.linear(normed[1:2], state["head_dist.weight"], state["head_dist.bias"])
            wanted = (wanted + other) / 2
    assert torch.allclose(logits(checkpoint), wanted, atol=1e-5)


def test_plain_deit_and_evo_deit_of_the_same_weights_run_the_same_layers(tmp_path: Path) -> None:
    evo = official.deit_state()
    plain = {name: tensor for name, tensor in evo.items() if not name.startswith(("norms", "qks", "vs", "projs"))}
    for number in range(12):
        block = f"blocks.{number}"
        for entry in ("weight", "bias"):
            plain[f"{block}.norm1.{entry}"] = evo[f"norms.{number}.{entry}"]
            plain[f"{block}.attn.proj.{entry}"] = evo[f"projs.{number}.{entry}"]
            parts = [evo[f"qks.{number}.qk.{entry}"], evo[f"vs.{number}.v.{entry}"]]
            plain[f"{block}.attn.qkv.{entry}"] = torch.cat(parts)
    one = read(tmp_path, evo, official.DEIT)
    other = read(tmp_path, plain, {**official.DEIT, "prune_ratio": [1] * 12})
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)


def test_plain_deit_where_tokens_are_to_be_selected_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match=r"is a plain DeiT .* leave 'prune_ratio' out"):
        read(tmp_path, official.plain_state(), official.DEIT)


# Sizes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "size", "words"),
    [
        (
            official.deit_spec(),
            (70, 64),
            r"^size 70x64: both sides must be multiples of the patch, 16 \(64x64 is near\)",
        ),
        (official.levit_spec(), (64, 96), r"^size 64x96: a square of a multiple of 16 is needed \(64x64 is near\)"),
        (official.levit_spec(), (100, 100), r"a square of a multiple of 16 is needed \(96x96 is near\)"),
    ],
)
def test_sizes_that_the_family_cannot_take(spec: Any, size: tuple[int, int], words: str) -> None:
    from tests.tiny_evovit import tiny_evo_checkpoint

    with pytest.raises(UsageError, match=words):
        ExportPlan.resolve(tiny_evo_checkpoint(spec), Path("x.dovit"), size=size)


@pytest.mark.parametrize("spec", [official.deit_spec(), official.levit_spec()], ids=["deit", "levit"])
def test_positions_are_resized_to_another_size(spec: Any) -> None:
    from tests.naive import naive_positions
    from tests.tiny_evovit import tiny_evo_state

    state, size = tiny_evo_state(spec), (96, 96)
    target = spec_at_size(spec, size)
    found = state_at_size(state, spec, size)
    model_from_spec(target, found)
    old = official.deit_spec(width=spec.width, heads=1, hidden=8)
    expected = naive_positions(state["positions"].double().numpy(), old, size)
    assert abs(found["positions"].double().numpy() - expected).max() < 1e-5
    assert state_at_size(state, spec, spec.size)["positions"] is state["positions"]
