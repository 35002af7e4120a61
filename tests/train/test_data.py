from __future__ import annotations

import numpy as np
import pytest
import torch

from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import DatasetError
from dovit_deploy.train.batches import BatchMaker, Planner, batches
from dovit_deploy.train.config import Phase, TrainConfig
from dovit_deploy.train.data import TrainingData, found_in, validation_data
from dovit_deploy.train.recipe import Recipe
from tests.datasets.labelled_folder import ade20k_folder
from tests.tiny import tiny_spec
from tests.train.tiny_folder import write_folder


def config_of(*phases, **changes):
    return TrainConfig(spec=tiny_spec(size=(40, 56), classes=4), steps=100, phases=phases, **changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "set")


def test_every_image_is_seen_once_an_epoch():
    planner = Planner(config_of(Phase(until=1, crop=(32, 32), batch=3)), 5)
    seen = [number for step in range(5) for number in planner.plan(step, 0).images]
    epochs = [seen[:5], seen[5:10], seen[10:]]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_planner_goes_on_where_a_plan_ended():
    config = config_of(Phase(until=1, crop=(32, 32), batch=3, rendered=0.4))
    planner = Planner(config, 5)
    plans = [planner.plan(step, 0) for step in range(8)]
    seen, scenes = plans[3].seen
    later = Planner(config, 5, seen=seen, scenes=scenes)
    assert [later.plan(step, 0) for step in range(4, 8)] == plans[4:]


def test_the_share_of_scenes_is_the_phases():
    config = config_of(
        Phase(until=0.5, crop=(32, 32), batch=4, rendered=0.25), Phase(until=1, crop=(32, 32), batch=4, rendered=1)
    )
    planner = Planner(config, 5)
    mixed = [len(planner.plan(step, 0.1).scenes) for step in range(100)]
    assert 70 < sum(mixed) < 130
    assert {len(planner.plan(step, 0.9).scenes) for step in range(9)} == {4}
    assert len(Planner(config, 0).plan(0, 0.1).scenes) == 4


def test_every_step_draws_its_own_views_and_the_same_again(root):
    data = dataset_from_path(root, "train")
    config = config_of(Phase(until=1, crop=(32, 48), batch=2))
    maker = BatchMaker(config, TrainingData(data, None))
    plans = [Planner(config, 5).plan(step, 0) for step in (0, 1)]
    first, second = batches(maker, plans, workers=0)
    again = maker.batch(plans[0])
    assert first.plan.images == second.plan.images
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.pixels, second.pixels)
    assert first.pixels.shape == (2, 3, 32, 48)
    assert np.abs(first.pixels.numpy()).max() < 5


def test_the_default_split_to_look_at_may_be_absent_but_not_faulty(root, tmp_path):
    assert validation_data(str(root), Recipe(), (40, 56)) is None
    both = write_folder(tmp_path / "both", images=2, splits=("train", "val"))
    assert len(validation_data(str(both), Recipe(), (40, 56))) == 2
    (both / "val.txt").write_text("absent\n")
    with pytest.raises(DatasetError, match="no image for 'absent'"):
        validation_data(str(both), Recipe(), (40, 56))
    with pytest.raises(DatasetError, match=r"test\.txt"):
        validation_data(str(root), Recipe(watch="test"), (40, 56))
    # A run's record holds every key, the default of this one, too.
    recorded = Recipe.model_validate_json(Recipe().model_dump_json())
    assert validation_data(str(root), recorded, (40, 56), resumed=True) is None
    with pytest.raises(DatasetError, match="test"):
        validation_data(str(root), Recipe(watch="test"), (40, 56), resumed=True)


def test_what_was_found_is_said_of_both_splits_and_a_doubt_once(root, tmp_path):
    data = dataset_from_path(root, "train")
    assert found_in(data, None).lines()[1:] == ["no validation split: no threshold will be measured"]
    own = ade20k_folder(tmp_path / "own", values=(0, 1, 2))
    train, doubt, val = found_in(dataset_from_path(own, "train"), dataset_from_path(own, "val")).lines()
    assert "(train): ADE20K" in train and "read as ADE20K" in doubt and "(val): ADE20K" in val
    assert found_in(None, None).training is None
