"""trained = "gates": gates learn, the network around them and its dense answer stay."""

from __future__ import annotations

import pytest
import torch

from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import ConfigError
from dovit_deploy.families.folding import deployed
from dovit_deploy.families.registry import model_from_spec
from dovit_deploy.families.stages import DenseNetwork
from dovit_deploy.train.config import Phase, TrainConfig
from dovit_deploy.train.data import TrainingData
from dovit_deploy.train.job import TrainingRequest, train
from dovit_deploy.train.loop import Trainer
from dovit_deploy.train.recipe import Recipe
from dovit_deploy.train.start import Start
from dovit_deploy.train.state import RunFolder
from dovit_deploy.train.target import Labels
from tests.bundles import tiny_checkpoint
from tests.tiny import tiny_pixels, tiny_spec
from tests.train.runs import record_of
from tests.train.tiny_folder import write_folder

SPEC = tiny_spec(head="pup", gate="fcn", stem="conv", gates=(1, 2), size=(40, 56), classes=4)


def test_gates_learn_and_the_dense_network_stays(tmp_path):
    data = dataset_from_path(write_folder(tmp_path / "set"), "train")
    config = TrainConfig(
        spec=SPEC,
        steps=4,
        phases=(Phase(until=1, crop=(32, 32), batch=3),),
        precision="fp32",
        validations=0,
        trained="gates",
        average_decay=0.0,
    )
    checkpoint = tiny_checkpoint(SPEC)
    start = Start(SPEC, checkpoint.state, checkpoint)
    folder = RunFolder.create(tmp_path / "run", record_of(config))
    trainer = Trainer(
        config,
        TrainingData(data, None),
        None,
        folder,
        target=Labels.of(data.class_frequencies().tolist(), config),
        start=start,
    )
    trainer.run()
    state = deployed(dict(trainer.average.state_dict()))
    pixels = tiny_pixels(SPEC.size, seed=3)
    with torch.no_grad():
        before, after = (DenseNetwork(model_from_spec(SPEC, one))(pixels) for one in (checkpoint.state, state))
    assert torch.allclose(before, after, atol=1e-5 * float(before.abs().max()))
    moved = {name for name, tensor in state.items() if not torch.allclose(tensor, checkpoint.state[name], atol=1e-4)}
    assert moved
    assert all(name.startswith("gates.") for name in moved)


def test_gates_alone_need_a_network_around_them(tmp_path):
    recipe = Recipe(steps=1, trained="gates")
    request = TrainingRequest(str(write_folder(tmp_path / "set")), tmp_path / "run", recipe, recipe_given=True)
    with pytest.raises(ConfigError, match="--init"):
        train(request, progress=lambda now: None, remark=lambda text: None)
    assert not (tmp_path / "run").exists()
