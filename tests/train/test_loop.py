"""The training loop: schedules, resumption that is exact, the log, and what stops it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.datasets.scenes import RenderedScenes
from dovit_deploy.errors import CheckError, InputError, Interrupted, OutputFailed, UsageError
from dovit_deploy.train.config import Augmentation, Distillation, Phase, TokenPassing, TrainConfig
from dovit_deploy.train.data import CachedInFolder, TrainingData
from dovit_deploy.train.initialise import trainable_model
from dovit_deploy.train.loop import Trainer
from dovit_deploy.train.state import LOG, STATE, RunFolder
from dovit_deploy.train.target import Labels
from tests.tiny import tiny_spec
from tests.train.runs import record_of
from tests.train.tiny_folder import write_folder

SPEC = tiny_spec(head="pup", gate="fcn", stem="conv", gates=(1, 2), size=(40, 56), classes=4, aggregate_rate=0.1)
STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset_from_path(write_folder(tmp_path_factory.mktemp("data") / "set"), "train")


def config_of(**changes):
    return TrainConfig(
        **{
            "spec": SPEC,
            "steps": STEPS,
            "phases": (Phase(until=0.5, crop=(32, 32), batch=3), Phase(until=1, crop=(48, 64), batch=2)),
            "passing": TokenPassing(start=0.3, share=1.0, thresholds=(0.3, 0.5)),
            "precision": "bf16",
            "validations": 0,
            **changes,
        }
    )


def trainer_of(folder, config, data, *, validation=None, scenes=None):
    return Trainer(
        config, TrainingData(data, scenes), validation, folder, target=Labels.of(data.class_frequencies(), config)
    )


def trained(path, data, *, stop_after=None, validation=None, scenes=None, **changes):
    config = config_of(**changes)
    trainer = trainer_of(RunFolder.create(path, record_of(config)), config, data, validation=validation, scenes=scenes)
    trainer.run(stop_after=stop_after)
    return trainer


def resumed(path, data, **settings):
    folder, record = RunFolder.open(path)
    trainer = trainer_of(folder, record.config, data)
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


@pytest.mark.parametrize(
    ("stop_after", "changes"),
    [
        (1, {}),
        (2, {"passing": TokenPassing(mode="annealed", share=1.0, final=0.3)}),
        (4, {}),
        (4, {"distillation": Distillation(teacher="average")}),
        (4, {"distillation": Distillation(teacher="current")}),
    ],
    ids=["first phase", "annealed", "second phase", "distilled", "distilled from the current average"],
)
def test_a_resumed_run_is_the_straight_run(tmp_path, data, stop_after, changes):
    straight = trained(tmp_path / "straight", data, **changes)
    trained(tmp_path / "parts", data, stop_after=stop_after, **changes)
    parts = resumed(tmp_path / "parts", data)
    assert_same(straight, parts)
    assert rows(tmp_path / "straight") == rows(tmp_path / "parts")
    assert len(rows(tmp_path / "parts")) == STEPS


def test_steps_run_after_the_last_state_are_logged_once(tmp_path, data):
    first = trained(tmp_path / "run", data, stop_after=2)
    first.train_step(first.maker.batch(next(first.plans(None))))
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


def test_the_teacher_is_the_average_when_tokens_are_first_stopped(tmp_path, data):
    passing = TokenPassing(start=0.5, share=1.0, thresholds=(0.3, 0.5))
    run = trained(tmp_path / "run", data, passing=passing, distillation=Distillation(teacher="average"))
    before = trained(tmp_path / "before", data, passing=passing, stop_after=3)
    for name, value in before.average.state_dict().items():
        assert torch.equal(value, run.teacher.state_dict()[name]), name
    logged = rows(tmp_path / "run")
    assert ["distillation" in row for row in logged] == [False] * 3 + [True] * 3
    assert all(row["distillation"] > 0 for row in logged[3:])


def test_the_current_average_teaches_and_is_not_changed_by_teaching(tmp_path, data):
    passing = TokenPassing(start=0.5, share=1.0, thresholds=(0.3, 0.5))
    _, current = (
        trained(tmp_path / teacher, data, passing=passing, distillation=Distillation(teacher=teacher))
        for teacher in ("average", "current")
    )
    assert current.teacher is None
    assert not current.average.training
    losses = [[row.get("distillation") for row in rows(tmp_path / name)] for name in ("average", "current")]
    # The same network when tokens are first stopped, another one afterwards.
    assert losses[0][:4] == losses[1][:4]
    assert losses[0][4] is not None
    assert losses[0][4] != losses[1][4]
    counted = [int(value) for name, value in current.average.state_dict().items() if "num_batches" in name]
    assert set(counted) == {STEPS}


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_norms_keep_their_statistics_and_learn_scale_and_bias(tmp_path, data, frozen):
    before = trained(tmp_path / "before", data, stop_after=1, freeze_norms=frozen)
    after = trained(tmp_path / "after", data, freeze_norms=frozen)
    assert after.model.training
    first, last = before.model.state_dict(), after.model.state_dict()
    changed = {name for name, value in last.items() if not torch.equal(value, first[name])}
    assert any("running_mean" in name for name in changed) is not frozen
    assert any("running_var" in name for name in changed) is not frozen
    assert "stem.down.0.norm.weight" in changed


def test_workers_change_nothing(tmp_path, data):
    assert_same(trained(tmp_path / "none", data), trained(tmp_path / "two", data, workers=2))
    assert rows(tmp_path / "none") == rows(tmp_path / "two")


def test_a_fault_in_a_worker_names_the_file(tmp_path):
    root = write_folder(tmp_path / "set")
    data = dataset_from_path(root, "train")
    frequencies = data.class_frequencies()
    (root / "images" / "train" / "train_3.png").write_bytes(b"no image")
    config = config_of(workers=1)
    folder = RunFolder.create(tmp_path / "run", record_of(config))
    with pytest.raises(InputError, match=r"^[^\n]*train_3\.png: cannot be decoded[^\n]*$"):
        Trainer(config, TrainingData(data, None), None, folder, target=Labels.of(frequencies, config)).run()


def test_asked_to_stop_it_saves_the_step_it_was_at(tmp_path, data):
    config = config_of()
    trainer = trainer_of(RunFolder.create(tmp_path / "run", record_of(config)), config, data)
    with pytest.raises(Interrupted, match="stopped after step 2"):
        trainer.run(stopped=lambda: trainer.step == 2)
    assert_same(trained(tmp_path / "straight", data), resumed(tmp_path / "run", data))


def test_a_failing_write_keeps_the_earlier_state(tmp_path, data, monkeypatch):
    trainer = trained(tmp_path / "run", data, stop_after=2)
    before = (tmp_path / "run" / STATE).read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("dovit_deploy.files.os.fsync", full)
        with pytest.raises(OutputFailed, match=r"state\.pt: No space left on device.*--resume goes on"):
            trainer.run(stop_after=3)
    assert (tmp_path / "run" / STATE).read_bytes() == before
    assert not list((tmp_path / "run").glob("*.partial"))
    assert_same(trained(tmp_path / "straight", data), resumed(tmp_path / "run", data))


def test_scenes_are_mixed_in_as_asked(tmp_path, data):
    shown = []

    class Scenes:
        classes, name, stems = data.classes, "scenes", ()

        def __len__(self):
            return 3

        def sample(self, index):
            shown.append(index)
            return data.sample(index)

    phases = (
        Phase(until=0.5, crop=(32, 32), batch=3, rendered=1),
        Phase(until=1, crop=(48, 64), batch=2, rendered=0),
    )
    run = trained(tmp_path / "run", data, scenes=Scenes(), phases=phases)
    assert shown == [0, 1, 2] * 3
    assert (run.seen, run.scenes) == (6, 9)


def test_kept_scenes_are_rendered_once_and_come_back_the_same(tmp_path):
    kept = CachedInFolder(RenderedScenes("train 0", size=(48, 64), count=2), tmp_path / "scenes")
    first, again = kept.sample(1), kept.sample(1)
    np.testing.assert_array_equal(first.rgb, again.rgb)
    np.testing.assert_array_equal(first.label, again.label)
    assert first.stem == again.stem
    assert [path.name for path in (tmp_path / "scenes").iterdir()] == ["000001.npz"]
    (tmp_path / "scenes" / "000001.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"000001\.npz: cannot be read"):
        kept.sample(1)


def test_the_average_follows_the_weights(tmp_path, data):
    config = config_of()
    trainer = trainer_of(RunFolder.create(tmp_path / "run", record_of(config)), config, data)
    before = trainer.average.positions.clone()
    trainer.train_step(trainer.maker.batch(next(trainer.plans(None))))
    expected = before.lerp(trainer.model.positions.detach(), 0.9)
    torch.testing.assert_close(trainer.average.positions, expected)
    assert trainer.average.stem.down[0].norm.num_batches_tracked == 1
    assert not trainer.average.stem.down[0].norm.running_mean.eq(0).all()


def test_the_validation_split_is_logged(tmp_path, data):
    trained(tmp_path / "run", data, validation=data, validations=2)
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
        RunFolder.create(tmp_path / "run", record_of(config_of()))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_folder_without_a_run_is_no_run_to_resume(tmp_path):
    with pytest.raises(InputError, match="no run to resume"):
        RunFolder.open(tmp_path)


def test_a_damaged_state_is_named(tmp_path, data):
    trained(tmp_path / "run", data, stop_after=1)
    path = tmp_path / "run" / STATE
    path.write_bytes(path.read_bytes()[:1000])
    folder, record = RunFolder.open(tmp_path / "run")
    with pytest.raises(InputError, match=r"state\.pt: cannot be read"):
        trainer_of(folder, record.config, data).resume()


def test_gates_that_mix_neighbours_are_refused():
    with pytest.raises(InputError, match="up-sampling"):
        trainable_model(tiny_spec(gate="setr"))


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


def schedule_config_of(**changes):
    spec = changes.pop("spec", tiny_spec())
    return TrainConfig(**{"spec": spec, "steps": 8, "phases": (Phase(until=1, crop=(32, 32), batch=1),), **changes})


def thresholds(progress, **rule):
    """What 40 steps at `progress` stop at."""
    config = schedule_config_of(passing=TokenPassing(**rule))
    return [config.stopping_at(progress, np.random.default_rng(step)) for step in range(40)]


def test_the_learning_rate_warms_up_and_falls_to_zero():
    config = schedule_config_of(steps=100, warm_up=0.1, learning_rate=1.0)
    rates = [config.learning_rate_at(progress / 100) for progress in range(101)]
    assert rates[0] > 0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0)


def test_a_run_that_another_goes_on_from_keeps_a_share_of_its_rate():
    config = schedule_config_of(steps=100, warm_up=0.1, learning_rate=2.0, final_rate=0.4)
    rates = [config.learning_rate_at(progress / 100) for progress in range(10, 101)]
    assert (rates[0], rates[45], rates[-1]) == (2, pytest.approx(1.4), pytest.approx(0.8))


def test_progress_is_counted_in_steps_or_in_time():
    assert schedule_config_of(steps=8).progress_at(step=2, seconds=1e9) == 0.25
    timed = TrainConfig(**{**schedule_config_of().model_dump(), "steps": None, "minutes": 2.0})
    assert timed.progress_at(step=10**9, seconds=30) == 0.25
    assert timed.progress_at(step=0, seconds=500) == 1


def test_annealed_thresholds_fall_from_one_to_the_last():
    rule = {"mode": "annealed", "share": 1.0, "final": 0.8, "until": 0.5}
    assert thresholds(0.0, **rule) == [1.0] * 40
    assert thresholds(0.25, **rule) == [pytest.approx(0.9)] * 40
    assert thresholds(0.5, **rule) == thresholds(1.0, **rule) == [pytest.approx(0.8)] * 40


def test_random_thresholds_begin_late_and_stay_in_their_range():
    rule = {"start": 0.6, "share": 0.5, "thresholds": (0.7, 0.9)}
    assert set(thresholds(0.59, **rule)) == {None}
    drawn = thresholds(0.6, **rule)
    assert 8 < sum(value is None for value in drawn) < 32
    assert len({value for value in drawn if value is not None}) > 5
    assert all(0.7 <= value <= 0.9 for value in drawn if value is not None)


def test_nothing_stops_when_off_or_without_gates():
    assert set(thresholds(0.9, mode="off", share=1.0)) == {None}
    dense = schedule_config_of(spec=tiny_spec(gates=()), passing=TokenPassing(share=1.0))
    assert dense.stopping_at(0.9, np.random.default_rng(0)) is None
