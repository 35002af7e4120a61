from __future__ import annotations

import json

import pytest
import torch

from dovit_deploy.errors import CheckError, ConfigError, InputError, UsageError
from dovit_deploy.measure.datasets import SegmentationFolder
from dovit_deploy.train.config import Augmentation, Phase, TokenPassing, TrainConfig
from dovit_deploy.train.loop import Trainer, trainable_model
from dovit_deploy.train.schedule import learning_rate_at, progress_of
from dovit_deploy.train.state import LOG, STATE, RunFolder
from tests.tiny import tiny_spec
from tests.train.tiny_folder import write_folder

SPEC = tiny_spec(head="pup", gate="fcn", stem="conv", gates=(1, 2), size=(40, 56), classes=4, aggregate_rate=0.1)
STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return SegmentationFolder(write_folder(tmp_path_factory.mktemp("data") / "set"), "train")


def config_of(**changes):
    return TrainConfig(
        spec=changes.pop("spec", SPEC),
        steps=changes.pop("steps", STEPS),
        phases=(Phase(until=0.5, crop=(32, 32), batch=3), Phase(until=1, crop=(48, 64), batch=2)),
        passing=TokenPassing(start=0.3, share=1.0, thresholds=(0.3, 0.5)),
        **{"validations": 0, **changes},
    )


def trained(path, data, *, stop_after=None, watched=None, **changes):
    config = config_of(**changes)
    trainer = Trainer(config, data, watched, RunFolder.create(path, config))
    trainer.run(stop_after=stop_after)
    return trainer


def resumed(path, data, **settings):
    folder, config = RunFolder.open(path)
    trainer = Trainer(config, data, None, folder)
    assert trainer.resume()
    trainer.run(**settings)
    return trainer


def rows(path):
    """The log without its clock."""
    logged = [json.loads(line) for line in (path / LOG).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in logged]


def assert_same(one, two):
    for mine, theirs in ((one.model, two.model), (one.average, two.average)):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_a_resumed_run_is_the_straight_run(tmp_path, data, stop_after):
    straight = trained(tmp_path / "straight", data)
    trained(tmp_path / "parts", data, stop_after=stop_after)
    parts = resumed(tmp_path / "parts", data)
    assert_same(straight, parts)
    assert rows(tmp_path / "straight") == rows(tmp_path / "parts")
    assert len(rows(tmp_path / "parts")) == STEPS


def test_steps_run_after_the_last_state_are_logged_once(tmp_path, data):
    first = trained(tmp_path / "run", data, stop_after=2)
    first.train_step()
    first.folder.log({"step": 3, "loss": 0.0})
    with (tmp_path / "run" / LOG).open("a") as file:
        file.write('{"step": 4, "lo')
    resumed(tmp_path / "run", data)
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, STEPS + 1))


def test_the_seed_decides_the_run(tmp_path, data):
    same = [trained(tmp_path / name, data, steps=3) for name in ("a", "b")]
    other = trained(tmp_path / "c", data, steps=3, seed=1)
    assert_same(*same)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert rows(tmp_path / "a")[0]["loss"] != rows(tmp_path / "c")[0]["loss"]
    assert not torch.equal(other.model.positions, same[0].model.positions)


def test_it_learns_and_passes_tokens(tmp_path, data):
    easy = Augmentation(scale=(1, 1.2), gamma=(1, 1), brightness=(1, 1), saturation=(1, 1))
    run = trained(tmp_path / "run", data, steps=80, learning_rate=8e-3, augmentation=easy)
    logged = rows(tmp_path / "run")
    first, last = (sum(row["loss"] for row in part) / 6 for part in (logged[:6], logged[-6:]))
    assert last < 0.8 * first
    assert all(row["kept0"] == 1 for row in logged[:24])
    late = logged[30:]
    assert min(row["kept1"] for row in late) < 1
    assert all(row["kept1"] <= row["kept0"] for row in late)
    assert all(0.3 <= row["threshold"] <= 0.5 for row in late)
    assert run.progress == 1


def test_every_step_draws_its_own_views(tmp_path, data):
    config = config_of()
    trainer = Trainer(config, data, None, RunFolder.create(tmp_path / "run", config))
    views = []
    trainer.batch = lambda phase, rng, draw=trainer.batch: views.append(rng.random()) or draw(phase, rng)
    for _ in range(3):
        trainer.train_step()
    assert len(set(views)) == 3


def test_every_image_is_seen_once_an_epoch(tmp_path, data):
    config = config_of()
    trainer = Trainer(config, data, None, RunFolder.create(tmp_path / "run", config))
    epochs = [[trainer.next_index() for _ in range(len(data))] for _ in range(3)]
    assert all(sorted(epoch) == list(range(len(data))) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_average_follows_the_weights(tmp_path, data):
    config = config_of()
    trainer = Trainer(config, data, None, RunFolder.create(tmp_path / "run", config))
    before = trainer.average.positions.clone()
    trainer.train_step()
    expected = before.lerp(trainer.model.positions.detach(), 0.9)
    torch.testing.assert_close(trainer.average.positions, expected)
    assert trainer.average.stem.down[0].norm.num_batches_tracked == 1
    assert not trainer.average.stem.down[0].norm.running_mean.eq(0).all()


def test_the_watched_split_is_logged(tmp_path, data):
    trained(tmp_path / "run", data, watched=data, validations=2)
    looks = [row for row in rows(tmp_path / "run") if "miou" in row]
    assert [row["step"] for row in looks] == [3, 6]
    assert all(0 <= row["miou"] <= 100 for row in looks)


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_state(tmp_path, data):
    trainer = trained(tmp_path / "run", data, stop_after=1)
    before = (tmp_path / "run" / STATE).read_bytes()
    with torch.no_grad():
        trainer.model.positions.fill_(float("nan"))
    with pytest.raises(CheckError, match="step 1: the gradient is not finite"):
        trainer.run()
    assert (tmp_path / "run" / STATE).read_bytes() == before


def test_an_existing_folder_is_refused_and_left_alone(tmp_path, data):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="exists"):
        RunFolder.create(tmp_path / "run", config_of())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_folder_without_a_run_is_no_run_to_resume(tmp_path):
    with pytest.raises(InputError, match="no run to resume"):
        RunFolder.open(tmp_path)


def test_a_damaged_state_is_named(tmp_path, data):
    trained(tmp_path / "run", data, stop_after=1)
    path = tmp_path / "run" / STATE
    path.write_bytes(path.read_bytes()[:1000])
    folder, config = RunFolder.open(tmp_path / "run")
    with pytest.raises(InputError, match=r"state\.pt: cannot be read"):
        Trainer(config, data, None, folder).resume()


def test_other_classes_than_the_networks_are_refused(tmp_path, data):
    config = config_of(spec=tiny_spec(head="pup", stem="conv", size=(40, 56), classes=5))
    with pytest.raises(ConfigError, match="4 classes, the network has 5"):
        Trainer(config, data, None, RunFolder(tmp_path))


def test_gates_that_mix_neighbours_are_refused():
    with pytest.raises(ConfigError, match="up-sampling"):
        trainable_model(tiny_spec(gate="setr"))


def test_the_learning_rate_warms_up_and_falls_to_zero():
    config = config_of(steps=100, warm_up=0.1, learning_rate=1.0)
    rates = [learning_rate_at(config, progress / 100) for progress in range(101)]
    assert rates[0] > 0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0)


def test_progress_is_counted_in_steps_or_in_processor_time():
    assert progress_of(config_of(steps=8), step=2, seconds=1e9) == 0.25
    timed = TrainConfig(**{**config_of().model_dump(), "steps": None, "minutes": 2.0})
    assert progress_of(timed, step=10**9, seconds=30) == 0.25
    assert progress_of(timed, step=0, seconds=500) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"minutes": 1.0},
        {"steps": None},
        {"phases": ()},
        {"phases": (Phase(until=0.5, crop=(32, 32), batch=1),)},
        {"phases": (Phase(until=1, crop=(32, 40), batch=1),)},
        {"phases": (Phase(until=1, crop=(64, 64), batch=1),)},
    ],
    ids=["both budgets", "no budget", "no phase", "an end left open", "half a patch", "larger than the input"],
)
def test_contradictory_configurations_are_refused(changes):
    with pytest.raises(ValueError, match=r"steps or minutes|phases end|crop"):
        TrainConfig(**{**config_of().model_dump(), **changes})
