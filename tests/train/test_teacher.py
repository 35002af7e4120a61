"""`--teacher`: a run learns from the answers of another checkpoint, deeper and of another size, to its own crops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dovit_deploy.bundle.manifest import ClassEntry
from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.cli import _application, _run
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import ConfigError, UsageError
from dovit_deploy.families.registry import model_from_spec, spec_at_size, state_at_size
from dovit_deploy.train.config import Distillation, Phase, Scaling, TrainConfig
from dovit_deploy.train.data import TrainingData
from dovit_deploy.train.forward import training_forward
from dovit_deploy.train.loop import Trainer
from dovit_deploy.train.recipe import Recipe, with_flags
from dovit_deploy.train.state import RunFolder
from dovit_deploy.train.target import Labels
from dovit_deploy.train.teacher import teacher_from_path
from tests.tiny import tiny_spec
from tests.train.runs import record_of
from tests.train.tiny_folder import write_folder

COMMON = "steps = 3\nvalidations = 0\nprecision = 'fp32'\naverage_decay = 0\n[passing]\nmode = 'off'\n"
NETWORK = "[network]\nwidth = 16\nheads = 2\nhead_channels = 8\ngate_channels = 8\n"
TEACHER = COMMON + NETWORK + "depth = 4\nsize = [64, 80]\nhead = 'light'\nanswer = 'lens'\n"
PUPIL = COMMON + "[distillation]\nteacher = 'checkpoint'\n" + NETWORK + "depth = 2\nhead = 'linear'\n"


def train(*arguments: object) -> int:
    return _run(_application(), ["train", *map(str, arguments), "--quiet"])


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "set", images=3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, folder):
    """Of four layers with gates and lenses, another decode head and larger inputs than its pupils."""
    made = tmp_path_factory.mktemp("teacher")
    recipe = written(made / "recipe.toml", TEACHER)
    assert train(folder, "--config", recipe, "-o", made / "run") == 0
    return made / "run" / "checkpoint"


def pupil(folder, made, name, *arguments, text=PUPIL):
    recipe = written(made / "pupil.toml", text)
    return train(folder, "--config", recipe, "-o", made / name, *arguments)


def rows(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_every_step_learns_from_it_and_the_record_says_from_what(tmp_path, folder, teacher):
    assert pupil(folder, tmp_path, "taught", "--teacher", teacher) == 0
    assert pupil(folder, tmp_path, "alone", text=PUPIL.replace("'checkpoint'", "'off'")) == 0
    taught, alone = (rows(tmp_path / name) for name in ("taught", "alone"))
    assert [row["distillation"] > 0 for row in taught] == [True] * 3
    assert not any("distillation" in row for row in alone)
    # The first step starts from one network; what it learns there differs.
    assert taught[0]["loss"] == alone[0]["loss"]
    assert taught[1]["loss"] != alone[1]["loss"]
    record = json.loads((tmp_path / "taught" / "train.json").read_text())
    assert record["teacher"]["source"] == "checkpoint" and len(record["teacher"]["sha256"]) == 64
    assert json.loads((tmp_path / "alone" / "train.json").read_text())["teacher"] is None


def run_of(spec=None, **changes):
    """A run of a pupil whose input is smaller than the teacher's."""
    spec = spec or tiny_spec(head="linear", gates=(), stem="conv", size=(40, 56), classes=4, width=24)
    phases = (Phase(until=1, crop=(32, 32), batch=2),)
    return TrainConfig(spec=spec, steps=3, phases=phases, **{"distillation": Distillation(features=0), **changes})


def test_it_answers_as_its_checkpoint_does_at_the_size_of_the_run(teacher):
    given, config = checkpoint_from_path(teacher), run_of()
    taught = teacher_from_path(teacher, config, given.classes)
    spec = spec_at_size(given.spec, config.spec.size)
    whole = model_from_spec(spec, state_at_size(given.state, given.spec, config.spec.size))
    pixels = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    answer = training_forward(taught.network, pixels).logits
    for number in range(2):
        wanted = whole.one_image(pixels[number : number + 1], dense=True).results[0]
        torch.testing.assert_close(answer[number : number + 1], wanted, rtol=1e-4, atol=1e-4)
    assert answer.shape[-2:] == (6, 8) and not taught.network.spec.gates
    assert not taught.network.training and not any(one.requires_grad for one in taught.network.parameters())


def test_a_run_that_goes_on_needs_it_again(tmp_path, folder, teacher, capsys):
    assert pupil(folder, tmp_path, "run", "--teacher", teacher, text=PUPIL.replace("steps = 3", "steps = 2")) == 0
    run, whole = tmp_path / "run", (tmp_path / "run" / "state.pt").read_bytes()
    # The teacher is larger than its pupil, and is not saved with it.
    assert torch.load(run / "state.pt", weights_only=True)["teacher"] is None
    for arguments, words in (
        ([], "began with --teacher, the checkpoint checkpoint; give what it began with"),
        (["--teacher", run / "checkpoint"], "not with"),
    ):
        assert train(folder, "-o", run, "--resume", *arguments) == 2
        assert words in capsys.readouterr().err
    assert train(folder, "-o", teacher.parent, "--resume", "--teacher", teacher) == 2
    assert "began without --teacher" in capsys.readouterr().err
    # A recipe that says nothing of teachers, as it was given with the flag.
    (tmp_path / "plain.toml").write_text("steps = 2")
    assert train(folder, "-o", run, "--resume", "--config", tmp_path / "plain.toml") == 2
    assert "began with --teacher, the checkpoint checkpoint; give what" in capsys.readouterr().err
    assert (run / "state.pt").read_bytes() == whole
    assert train(folder, "-o", run, "--resume", "--teacher", teacher) == 0


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, folder, teacher):
    data, given = dataset_from_path(folder, "train"), checkpoint_from_path(teacher)
    config = run_of(distillation=Distillation(teacher="checkpoint", features=0), validations=0, precision="fp32")
    network = teacher_from_path(teacher, config, given.classes).network

    def trainer(path):
        there = path.exists()
        run = RunFolder(path) if there else RunFolder.create(path, record_of(config))
        shares = data.class_frequencies()
        made = Trainer(config, TrainingData(data, None), None, run, target=Labels.of(shares, config), teacher=network)
        assert made.resume() == there
        return made

    straight = trainer(tmp_path / "straight")
    straight.run()
    trainer(tmp_path / "parts").run(stop_after=1)
    parts = trainer(tmp_path / "parts")
    parts.run()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scaling": Scaling(mean=(0, 0, 0))}, "they see the same crops"),
        ({"distillation": Distillation()}, "features = 0 in"),
        ({"spec": tiny_spec(head="linear", gates=(), size=(40, 56), classes=3)}, "4 classes, the data set has 3"),
    ],
    ids=["scaling", "width", "number of classes"],
)
def test_what_does_not_fit_the_run_is_refused(teacher, changes, words):
    classes = checkpoint_from_path(teacher).classes
    with pytest.raises(ConfigError, match=words):
        teacher_from_path(teacher, run_of(**changes), classes)


@pytest.mark.parametrize("change", [{"name": "sea"}, {"color": (1, 2, 3)}], ids=["name", "colour"])
def test_other_classes_are_refused(teacher, change):
    first, *rest = checkpoint_from_path(teacher).classes
    wanted = (ClassEntry.model_validate({**first.model_dump(), **change}), *rest)
    with pytest.raises(ConfigError, match="class 0 is 'class 0'"):
        teacher_from_path(teacher, run_of(), wanted)


def test_flag_and_recipe_agree(tmp_path, folder, capsys):
    assert with_flags(Recipe(), minutes=None, seed=None, teacher=True).distillation.teacher == "checkpoint"
    stated = Recipe(distillation=Distillation(teacher="init"))
    with pytest.raises(UsageError, match=r"distillation.teacher = 'init'; take one of them out"):
        with_flags(stated, minutes=None, seed=None, teacher=True)
    assert pupil(folder, tmp_path, "run") == 3
    assert "--teacher gives the network" in capsys.readouterr().err
    assert pupil(folder, tmp_path, "run", "--teacher", tmp_path / "absent") == 3
    assert not (tmp_path / "run").exists()
