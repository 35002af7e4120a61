"""A run counted in minutes ends in about as many, whatever is measured in between and at its end."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.train import loop as module
from dovit_deploy.train import result
from dovit_deploy.train.config import Scaling
from dovit_deploy.train.data import TrainingData
from dovit_deploy.train.loop import Trainer
from dovit_deploy.train.result import threshold_curve
from dovit_deploy.train.state import LOG, RunFolder
from dovit_deploy.train.target import Labels
from dovit_deploy.train.validation import Validation, spread_order
from tests.train.runs import record_of
from tests.train.test_loop import SPEC, config_of
from tests.train.tiny_folder import write_folder

STEP_S, IMAGE_S = 2.0, 5.0


class Clock:
    """Seconds that only pass where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = write_folder(tmp_path_factory.mktemp("data") / "set", images=12, splits=("train", "val"))
    return dataset_from_path(root, "train"), dataset_from_path(root, "val")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Every step takes 2 s and every image that is validated 5 s; neither is computed."""
    clock = Clock()

    def step(trainer, batch):
        clock.now += STEP_S
        trainer.step += 1
        return {"loss": 1.0}

    def validate(model, data, *, most=None, go_on=lambda done: True, **_given):
        done = 0
        for number in spread_order(len(data))[:most]:
            del number
            clock.now += IMAGE_S
            done += 1
            if not go_on(done):
                break
        counts = np.tile(np.array(model.spec.counts), (done, 1))
        return Validation(np.eye(model.spec.classes, dtype=np.int64), counts)

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(module, "validate", validate)
    monkeypatch.setattr(result, "validate", validate)
    return clock


def trainer_of(folder, record, sets, clock):
    train, val = sets
    data = TrainingData(train, None)
    return Trainer(
        record.config, data, val, folder, target=Labels.of(train.class_frequencies(), record.config), clock=clock
    )


def begun(path, sets, clock, **changes):
    record = record_of(config_of(**{"steps": None, "minutes": 3.0, "validations": 3, "save_seconds": 30.0, **changes}))
    return trainer_of(RunFolder.create(path, record), record, sets, clock)


def test_validation_takes_no_minutes_and_is_bounded(tmp_path, sets, clock):
    trainer = begun(tmp_path / "run", sets, clock)
    trainer.run()
    assert trainer.step == 90
    assert trainer.seconds == pytest.approx(180)
    # A fifth of the run at most, and the images that were begun: 3 validations of at most 12 s, of 12 images of 5 s.
    measured = clock.now - 1000 - 180
    assert 3 * IMAGE_S <= measured <= 36 + 3 * IMAGE_S
    rows = trainer.folder.rows()
    assert sum("miou" in row for row in rows) == 3
    assert (tmp_path / "run" / LOG).is_file()


def test_a_run_counted_in_steps_is_validated_on_all_images(tmp_path, sets, clock):
    trainer = begun(tmp_path / "run", sets, clock, minutes=None, steps=6, validations=2)
    trainer.run()
    assert clock.now - 1000 == 6 * STEP_S + 2 * 12 * IMAGE_S


def test_a_resumed_run_ends_after_the_same_minutes(tmp_path, sets, clock):
    first = begun(tmp_path / "run", sets, clock)
    first.run(stop_after=50)
    assert first.seconds == pytest.approx(100)
    # However long the computer was off.
    clock.now += 10_000
    folder, record = RunFolder.open(tmp_path / "run")
    second = trainer_of(folder, record, sets, clock)
    assert second.resume()
    second.run()
    assert second.step == 90
    assert second.seconds == pytest.approx(180)


def test_asked_to_stop_a_validation_ends_at_once_and_is_not_logged(tmp_path, sets, clock):
    trainer = begun(tmp_path / "run", sets, clock, minutes=None, steps=6, validations=1)
    reports = []

    def stopped() -> bool:
        return trainer.step == 6

    with pytest.raises(module.Interrupted):
        trainer.run(stopped=stopped, report=reports.append)
    assert clock.now - 1000 == 6 * STEP_S + IMAGE_S
    assert not any("miou" in row for row in trainer.folder.rows())
    assert reports[-1].steps_per_s == pytest.approx(1 / STEP_S)


def test_the_curve_takes_its_time_and_every_point_the_same_images(tmp_path, sets, clock):
    trainer = begun(tmp_path / "run", sets, clock)
    assert trainer.config.curve_seconds == 60
    shown = []
    began = clock.now
    curve = threshold_curve(
        trainer.average,
        sets[1],
        scaling=Scaling(),
        thresholds=(0.0, 0.5, 0.9),
        seconds=trainer.config.curve_seconds,
        clock=clock,
        advance=lambda done, total: shown.append((done, total)),
    )
    assert (curve.images, len(curve.points)) == (3, 4)
    assert clock.now - began == 4 * 3 * IMAGE_S
    assert shown[-1] == (12, 12)
    assert all(before[0] < after[0] for before, after in itertools.pairwise(shown))
    whole = threshold_curve(trainer.average, sets[1], scaling=Scaling(), thresholds=(0.5,), clock=clock)
    assert whole.images == 12


def test_every_beginning_of_the_order_is_spread():
    assert list(spread_order(8)) == [0, 4, 2, 6, 1, 5, 3, 7]
    assert [sorted(spread_order(count)) for count in range(20)] == [list(range(count)) for count in range(20)]
    for some in range(4, 101):
        gaps = np.diff(sorted(spread_order(101)[:some]))
        assert gaps.max() <= 4 * 101 / some
    assert SPEC.gates
