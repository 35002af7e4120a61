"""Training from a backbone with rotary positions: DINOv3's own names, two layers of random weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.checkpoints.own_format import OwnConfig, save_checkpoint
from dovit_deploy.errors import ConfigError
from dovit_deploy.families.stages import DenseNetwork
from dovit_deploy.train.initialise import initialise, load_start, trainable_model
from dovit_deploy.train.job import TrainingRequest, train
from dovit_deploy.train.masked import masked_forward
from dovit_deploy.train.network import NetworkChoice
from dovit_deploy.train.recipe import Recipe
from dovit_deploy.train.start import start_from_path
from tests.bundles import tiny_checkpoint
from tests.families.official_state import random_state
from tests.families.vit.official import dinov3_map, dinov3_spec
from tests.tiny import tiny_pixels, tiny_spec, tiny_state
from tests.train.tiny_folder import write_folder

PERIODS = [0.9, 2.5, 11.0, 70.0]


@pytest.fixture
def backbone(tmp_path):
    state = {name: tensor for name, tensor in random_state(dinov3_map(), dinov3_spec()).items() if "head" not in name}
    save_file({**state, "rope_embed.periods": torch.tensor(PERIODS)}, tmp_path / "backbone.safetensors")
    # Beside the file, as a configuration: no key shows the number of heads.
    (tmp_path / "config.json").write_text('{"num_heads": 4}')
    return tmp_path / "backbone.safetensors"


def started(path, size=(40, 56), **choice):
    config = str(path.with_name("config.json"))
    return start_from_path(path, NetworkChoice(**choice), config=config, size=size, classes=4)


def test_it_starts_with_the_periods_of_the_file_and_the_tables_of_the_run(backbone):
    start = started(backbone, gates=(1,), answer="lens")
    assert (start.spec.rotary, start.spec.extra_tokens, start.spec.mlp) == (True, 5, "swiglu")
    model = trainable_model(start.spec)
    initialise(model, 3)
    load_start(model, start.state)
    assert model.rotary.periods.tolist() == pytest.approx(PERIODS)
    assert model.rotary.cosines.shape == (5 + 3 * 4, 8)
    pixels = tiny_pixels((40, 56), 1)
    with torch.no_grad():
        torch.testing.assert_close(masked_forward(model, pixels).logits, DenseNetwork(model)(pixels), atol=1e-4, rtol=0)
    masked_forward(model, pixels).logits.square().mean().backward()
    assert model.blocks[0].attention.query.weight.grad.abs().sum() > 0


def test_a_run_trains_crops_and_keeps_the_periods(backbone, tmp_path):
    folder = write_folder(tmp_path / "set", images=3, splits=("train", "val"))
    recipe = Recipe.model_validate(
        {
            "steps": 2,
            "init_config": str(backbone.with_name("config.json")),
            "network": {"size": (48, 64), "gates": (1,), "answer": "lens"},
            "passing": {"mode": "quota", "share": 1.0, "start": 0.0},
            "phases": [{"until": 1.0, "crop": [32, 32], "batch": 2}],
            "precision": "bf16",
            "validations": 0,
        }
    )
    request = TrainingRequest(str(folder), tmp_path / "run", recipe, recipe_given=True, init=backbone)
    made = checkpoint_from_path(train(request, progress=lambda now: None, remark=lambda text: None).checkpoint)
    assert "DINOv3 License" in made.license
    assert made.spec.rotary and made.state["rotary.periods"].tolist() == pytest.approx(PERIODS)
    given = started(backbone).given
    assert not torch.equal(
        made.state["blocks.1.attention.query.weight"], given.state["blocks.1.attention.query.weight"]
    )


def saved(folder, spec):
    plain = tiny_checkpoint(spec)
    config = OwnConfig(spec=spec, preprocessing=plain.preprocessing, classes=plain.classes, thresholds=plain.thresholds)
    save_checkpoint(folder, config, tiny_state(spec))
    return folder


@pytest.mark.parametrize(
    ("spec", "choice", "message"),
    [
        (tiny_spec(head="linear", rotary=True), {"family": "evovit"}, "turns queries and keys by position"),
        (tiny_spec(head="query", gates=(1,)), {}, "queries answer .*is not trained here"),
        (tiny_spec(gates=(1,), context="pooled"), {}, "layers see what has stopped .*is not trained here"),
    ],
    ids=["rotary positions in Evo-ViT", "queries", "pooled context"],
)
def test_what_is_not_trained_is_refused(tmp_path, spec, choice, message):
    path = saved(tmp_path / "made", spec)
    with pytest.raises(ConfigError, match=message):
        start_from_path(path, NetworkChoice(**choice), config=None, size=spec.size, classes=spec.classes)
