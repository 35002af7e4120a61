"""The one look at what was never seen: refused unless everything was frozen before; and each drive left out in turn."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from protocol import frozen, leave_one_out
from protocol.looks import looks_in

from dovit_deploy.bundle.bundle import file_entry
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import CheckError, ConfigError, InputError
from dovit_deploy.train.recipe import Recipe, recipe_from_file
from dovit_deploy.train.state import names_digest
from tests.datasets.labelled_folder import write_labelled

RECIPE = 'minutes = 20\nseed = 4\nsplit = "train:-drive_00"\nwatch = "train:drive_010"\n\n[network]\nsize = [48, 64]\n'
START = frozen.GivenFacts(source="backbone.safetensors", sha256="1" * 64)


@pytest.fixture
def case(tmp_path, monkeypatch):
    """A data set, a frozen choice, a run's checkpoint and the bundle made of it; evaluations are counted, not run."""
    data = write_labelled(tmp_path / "set", images=12, split="train")
    recipe, held, checkpoint = tmp_path / "final.toml", tmp_path / "held.txt", tmp_path / "checkpoint"
    recipe.write_text(RECIPE)
    held.write_text("drive_011\n")
    checkpoint.mkdir()
    (checkpoint / frozen.WEIGHTS).write_bytes(b"weights of one seed")
    trained = recipe_from_file(recipe).model_copy(update={"seed": 7})
    write_record(checkpoint, trained)
    monkeypatch.setattr(frozen, "given_facts", lambda given: START)
    monkeypatch.setattr(frozen, "given_at", lambda path, config: path)
    provenance = SimpleNamespace(source_sha256=file_entry(checkpoint / frozen.WEIGHTS).sha256)
    bundle = SimpleNamespace(path=tmp_path / "seed.dovit", manifest=SimpleNamespace(provenance=provenance))
    monkeypatch.setattr(frozen.Bundle, "open", lambda path: bundle)
    looks: list[frozen.Frozen] = []

    def evaluated(bundle: Path, dataset: Path, choice: frozen.Frozen) -> dict[str, object]:
        del bundle, dataset
        looks.append(choice)
        return {"dense": {"miou": 50.0}, "dynamic": {"miou": 49.8}}

    monkeypatch.setattr(frozen, "evaluation", evaluated)
    git(tmp_path, "init", "-q")
    words = [
        "--recipe",
        str(recipe),
        "--init",
        "backbone.safetensors",
        "--thresholds",
        "0.9,0.85",
        "--tried",
        "5",
        "--chosen-on",
        f"train:@{held}",
    ]
    frozen.main(["freeze", *words, "--reads", "train:drive_00", "-o", str(tmp_path / "frozen.json")])

    def read(output: str, *more: str, commit: bool = True) -> int | str | None:
        words = ["--checkpoint", str(checkpoint), "--bundle", str(bundle.path), "--dataset", str(data), *more]
        if commit:
            git(tmp_path, "add", "frozen.json")
            git(tmp_path, "commit", "-q", "--allow-empty", "-m", "frozen")
        try:
            frozen.main(["read", str(tmp_path / "frozen.json"), *words, "-o", str(tmp_path / output)])
        except SystemExit as left:
            return left.code
        return 0

    return SimpleNamespace(folder=tmp_path, checkpoint=checkpoint, bundle=bundle, looks=looks, read=read, words=words)


def git(folder: Path, *words: str) -> None:
    author = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *author, *words], cwd=folder, check=True)


def write_record(checkpoint: Path, recipe: Recipe) -> None:
    stems = dataset_from_path(checkpoint.parent / "set", recipe.split).stems
    data = {"name": "set", "images": len(stems), "classes": [], "digest": names_digest(stems), "frequencies": []}
    record = {"recipe": recipe.model_dump(mode="json"), "init": START.model_dump(mode="json"), "data": data}
    (checkpoint / frozen.TRAINING).write_text(json.dumps(record))


def test_what_was_frozen_is_read_once_per_seed(case, capsys):
    assert case.read("first.json") == 0
    assert "after 5 recipes tried" in capsys.readouterr().out
    (choice,) = case.looks
    assert (choice.reads, choice.thresholds) == ("train:drive_00", [0.9, 0.85])
    look = json.loads((case.folder / "first.json").read_text())
    assert look["eval"]["dynamic"]["miou"] == 49.8
    assert case.read("second.json") == 4
    assert "were read on" in capsys.readouterr().err
    assert len(case.looks) == 1 and not (case.folder / "second.json").exists()
    # The same seed, trained again, is no other look; another seed of the same recipe is.
    (case.checkpoint / frozen.WEIGHTS).write_bytes(b"other weights")
    case.bundle.manifest.provenance.source_sha256 = file_entry(case.checkpoint / frozen.WEIGHTS).sha256
    assert case.read("second.json") == 4
    assert "weights of seed 7 were read on" in capsys.readouterr().err
    changed(case.checkpoint / frozen.TRAINING, lambda it: it["recipe"].update(seed=8))
    assert case.read("first.json") == 2
    assert "cannot be taken again" in capsys.readouterr().err
    assert json.loads((case.folder / "first.json").read_text()) == look
    assert case.read("second.json") == 0
    assert [look.seed for look in looks_in(case.folder)] == [7, 8]


def test_an_interrupted_look_is_noted(case, capsys, monkeypatch):
    def interrupted(*given):
        raise SystemExit(130)

    with monkeypatch.context() as patched:
        patched.setattr(frozen, "evaluation", interrupted)
        assert case.read("look.json") == 130
    assert case.read("look.json") == 4
    assert "these weights were read" in capsys.readouterr().err
    assert case.read("look.json", "--again") == 0
    assert "look 2 at train:drive_00" in capsys.readouterr().out
    # Other weights of the seed are no second chance.
    (case.checkpoint / frozen.WEIGHTS).write_bytes(b"other weights")
    case.bundle.manifest.provenance.source_sha256 = file_entry(case.checkpoint / frozen.WEIGHTS).sha256
    assert case.read("other.json", "--again") == 4
    assert len(looks_in(case.folder)) == 2


def test_who_freezes_again_after_a_look_is_known_to_have_looked(case, capsys):
    assert case.read("look.json") == 0
    for reads, looks in (("train:drive_00", 1), ("train:drive_01", 0)):
        other = case.folder / f"after-{looks}.json"
        frozen.main(["freeze", *case.words, "--reads", reads, "-o", str(other)])
        assert frozen.frozen_from_file(other).looks_before == looks
    (case.folder / "looks.json").write_text("[{}]")
    assert case.read("again.json") == 3
    assert "cannot be read as looks" in capsys.readouterr().err


def test_what_is_frozen_is_committed_before_a_look(case, capsys):
    assert case.read("look.json", commit=False) == 4
    assert "is not committed as it stands" in capsys.readouterr().err
    assert not case.looks and not looks_in(case.folder)
    # Edited by hand, digest and all, it has to be committed again, where the history shows it.
    assert case.read("look.json") == 0
    changed(case.folder / "frozen.json", lambda it: it["frozen"].update(tried=1))
    content = json.loads((case.folder / "frozen.json").read_text())
    digest = frozen.Frozen.model_validate(content["frozen"]).digest
    changed(case.folder / "frozen.json", lambda it: it.update(digest=digest))
    assert case.read("other.json", "--again", commit=False) == 4
    assert "is not committed as it stands" in capsys.readouterr().err


def test_a_teacher_is_frozen_too(case, capsys):
    recipe = case.folder / "final.toml"
    with pytest.raises(SystemExit) as left:
        frozen.main(
            ["freeze", *case.words, "--teacher", "t", "--reads", "train:drive_00", "-o", str(case.folder / "o.json")]
        )
    assert left.value.code == 2 and "--teacher is for a recipe" in capsys.readouterr().err
    recipe.write_text(RECIPE + '\n[distillation]\nteacher = "checkpoint"\n')
    (case.folder / "frozen.json").unlink()
    words = ["--teacher", "t", "--reads", "train:drive_00", "-o", str(case.folder / "frozen.json")]
    frozen.main(["freeze", *case.words, *words])
    write_record(case.checkpoint, recipe_from_file(recipe))
    assert case.read("look.json") == 4
    assert "trained with no teacher, which is not what was frozen (backbone.safetensors" in capsys.readouterr().err
    changed(case.checkpoint / frozen.TRAINING, lambda it: it.update(teacher=START.model_dump()))
    assert case.read("look.json") == 0


def test_each_seed_may_have_a_teacher_of_its_own(case, capsys, monkeypatch):
    monkeypatch.setattr(frozen, "given_facts", lambda given: frozen.GivenFacts(source="t", sha256=str(given)[0] * 64))
    recipe = case.folder / "final.toml"
    recipe.write_text(RECIPE + '\n[distillation]\nteacher = "checkpoint"\n')
    (case.folder / "frozen.json").unlink()
    words = [*case.words, "--init", "1", "--teacher", "8", "9", "--reads", "train:drive_00"]
    frozen.main(["freeze", *words, "-o", str(case.folder / "frozen.json")])
    write_record(case.checkpoint, recipe_from_file(recipe))
    for digit, code in (("7", 4), ("9", 0)):
        teacher = {"source": "dense", "sha256": digit * 64}
        changed(case.checkpoint / frozen.TRAINING, lambda it, teacher=teacher: it.update(teacher=teacher))
        assert case.read(f"{digit}.json") == code
    assert "trained with dense, which is not what was frozen (t 888888888888, t 999999999999" in capsys.readouterr().err


def changed(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            lambda case: changed(case.folder / "frozen.json", lambda it: it["frozen"].update(thresholds=[0.8])),
            "changed after it was frozen",
        ),
        (
            lambda case: changed(case.checkpoint / frozen.TRAINING, lambda it: it["recipe"].update(minutes=21)),
            "differs in minutes",
        ),
        (
            lambda case: changed(case.checkpoint / frozen.TRAINING, lambda it: it["recipe"]["network"].update(depth=5)),
            "differs in network",
        ),
        (
            lambda case: changed(case.checkpoint / frozen.TRAINING, lambda it: it["init"].update(sha256="2" * 64)),
            "trained from backbone.safetensors, which is not what was frozen",
        ),
        (
            lambda case: changed(case.checkpoint / frozen.TRAINING, lambda it: it.update(init=None)),
            "trained from drawn weights",
        ),
        (
            lambda case: changed(case.checkpoint / frozen.TRAINING, lambda it: it.update(teacher=it["init"])),
            "trained with backbone.safetensors, which is not what was frozen (no teacher",
        ),
        (
            lambda case: changed(case.checkpoint / frozen.TRAINING, lambda it: it["data"].update(digest="2" * 64)),
            "images of set, which are not the",
        ),
        (lambda case: (case.checkpoint / frozen.WEIGHTS).write_bytes(b"x"), "made of another checkpoint"),
        (lambda case: (case.folder / "held.txt").write_text("drive_010\n"), "the list was changed"),
        (lambda case: (case.folder / "held.txt").write_text("drive_003\n"), "was chosen on"),
    ],
    ids=["file", "recipe", "network", "start", "no start", "teacher", "data", "weights", "list", "peeked"],
)
def test_what_was_not_frozen_is_not_measured(case, capsys, harm, words):
    harm(case)
    assert case.read("look.json") == 4
    assert words in capsys.readouterr().err
    assert not case.looks and not (case.folder / "look.json").exists()


@pytest.mark.parametrize("line", ['split = "train"', 'watch = "train:drive_003"'])
def test_a_recipe_that_looks_at_the_drive_is_refused(case, capsys, line):
    recipe = case.folder / "final.toml"
    key = line.split()[0]
    recipe.write_text("\n".join(line if kept.startswith(key) else kept for kept in RECIPE.splitlines()))
    trained = recipe_from_file(recipe)
    write_record(case.checkpoint, trained)
    (case.folder / "frozen.json").unlink()
    frozen.main(["freeze", *case.words, "--reads", "train:drive_00", "-o", str(case.folder / "frozen.json")])
    assert case.read("look.json") == 4
    assert "images of train:drive_00" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["split", "watch"])
def test_lists_that_the_recipe_names_are_frozen_too(case, capsys, key):
    listed = case.folder / "listed.txt"
    listed.write_text("drive_011\n")
    recipe = case.folder / "final.toml"
    lines = [f'{key} = "train:@{listed}"' if line.startswith(key) else line for line in RECIPE.splitlines()]
    recipe.write_text("\n".join(lines))
    write_record(case.checkpoint, recipe_from_file(recipe))
    (case.folder / "frozen.json").unlink()
    frozen.main(["freeze", *case.words, "--reads", "train:drive_00", "-o", str(case.folder / "frozen.json")])
    listed.write_text("drive_010\n")
    assert case.read("look.json") == 4
    assert f"train:@{listed}: the list was changed" in capsys.readouterr().err
    listed.write_text("drive_011\n")
    assert case.read("look.json") == 0


def test_a_recipe_that_keeps_layers_of_its_start_names_it(case, capsys):
    (case.folder / "final.toml").write_text("frozen_layers = 3\n" + RECIPE)
    words = [word for word in case.words if word not in ("--init", "backbone.safetensors")]
    with pytest.raises(SystemExit) as left:
        frozen.main(["freeze", *words, "--reads", "train:drive_00", "-o", str(case.folder / "other.json")])
    assert left.value.code == 2 and "keeps 3 layers of --init" in capsys.readouterr().err


def test_what_is_frozen_stays_so_and_the_seed_is_open(case, capsys):
    with pytest.raises(SystemExit) as left:
        frozen.main(["freeze", *case.words, "--reads", "train:drive_01", "-o", str(case.folder / "frozen.json")])
    assert left.value.code == 2 and "stays so" in capsys.readouterr().err
    other = case.folder / "other.json"
    with pytest.raises(SystemExit) as left:
        frozen.main(["freeze", *case.words, "--thresholds", "2", "--reads", "train:drive_01", "-o", str(other)])
    assert left.value.code == 2 and "--thresholds: 2 is outside" in capsys.readouterr().err
    assert not other.exists()
    assert frozen.recipe_content(Recipe(seed=1)) == frozen.recipe_content(Recipe(seed=2)) == {}


# Each drive left out in turn.


@pytest.mark.parametrize("name", ["class", "road-small"])
def test_what_this_repository_froze_is_what_it_holds(name, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    choice = frozen.frozen_from_file(root / "benchmarks" / "protocol" / f"{name}.json")
    recipe = recipe_from_file(root / "models" / "road-small" / "recipes" / choice.recipe_file)
    assert frozen.recipe_content(recipe) == choice.recipe
    assert frozen.list_digests(recipe.split, recipe.watch, choice.chosen_on, choice.reads) == choice.lists


def test_a_drive_is_left_out_of_what_is_trained_on_and_watched(tmp_path):
    data = write_labelled(tmp_path / "set", images=16, split="train")
    classes = data / "classes.json"
    classes.write_text(json.dumps({**json.loads(classes.read_text()), "frame_rate": 0.1}))
    (tmp_path / "r.toml").write_text(RECIPE)
    run = leave_one_out.DriveRun(data, "drive_00", tmp_path / "work" / "drive_00")
    own = leave_one_out.own_recipe(tmp_path / "r.toml", run)
    read = recipe_from_file(own)
    assert (read.split, read.minutes, read.network.size) == ("train:-drive_00", 20, (48, 64))
    watched = dataset_from_path(data, read.watch)
    assert watched.stems == ("drive_012", "drive_015")
    (tmp_path / "r.toml").write_text('"split" = "train"\n')
    with pytest.raises(ConfigError, match="not TOML"):
        leave_one_out.own_recipe(tmp_path / "r.toml", run)


def test_what_is_finished_is_not_done_again(tmp_path):
    run = leave_one_out.DriveRun(Path("set"), "a", tmp_path)
    given = {"init": Path("start.safetensors"), "thresholds": "0.9", "seed": 3}
    train, export, measure = run.commands(Path("own.toml"), **given)
    assert train[-6:] == ["--config", "own.toml", "--seed", "3", "--init", "start.safetensors"]
    assert export[:2] == ["export", str(tmp_path / "run" / "checkpoint")]
    assert measure[3:5] == ["--split", "train:a"] and "--threshold" in measure
    run.run.mkdir()
    # Killed before it saved anything, a run begins again: it needs its start.
    assert run.commands(Path("own.toml"), **given)[0][-3:] == ["--resume", "--init", "start.safetensors"]
    assert run.commands(Path("own.toml"), **given, only="train") == run.commands(Path("own.toml"), **given)[:1]
    (run.run / "curve.json").touch()
    run.bundle.mkdir()
    assert run.commands(Path("own.toml"), **given) == [measure]
    run.report.touch()
    assert run.commands(Path("own.toml"), **given) == []


def test_figures_of_another_recipe_are_not_taken_for_this_one(tmp_path):
    recipe, given = tmp_path / "r.toml", {"init": None, "thresholds": "0.9", "seed": 3}
    recipe.write_text(RECIPE)
    run = leave_one_out.DriveRun(tmp_path / "set", "a", tmp_path / "work" / "a")
    leave_one_out.claim_folder(run, recipe, **given)
    # An interrupted run goes on.
    leave_one_out.claim_folder(run, recipe, **given)
    with pytest.raises(CheckError, match="begun with another thresholds and seed; give another --work"):
        leave_one_out.claim_folder(run, recipe, **{**given, "thresholds": None, "seed": 4})
    recipe.write_text(RECIPE.replace("minutes = 20", "minutes = 21"))
    with pytest.raises(CheckError, match="another recipe"):
        leave_one_out.claim_folder(run, recipe, **given)
    with pytest.raises(InputError, match="cannot be read"):
        leave_one_out.claim_folder(run, tmp_path / "none.toml", **given)


def test_a_drive_that_is_to_stay_unseen_is_read_with_a_note(case, tmp_path, monkeypatch):
    """What is done of the drive is stood in for; `case` has frozen a choice that keeps `drive_00` unseen."""
    monkeypatch.setattr(frozen, "HERE", case.folder)
    data, done = case.folder / "set", []
    run = leave_one_out.DriveRun(data, "drive_00", tmp_path / "work" / "drive_00")
    other = leave_one_out.DriveRun(data, "drive_01", tmp_path / "work" / "drive_01")
    for one in (run, other):
        (one.run / "checkpoint").mkdir(parents=True)
        (one.run / "checkpoint" / frozen.WEIGHTS).write_bytes(b"x")

    def one_command(words, *, check):
        done.append((words[3], len(looks_in(case.folder))))
        return SimpleNamespace(returncode=130 if words[3] == "eval" else 0)

    monkeypatch.setattr(leave_one_out, "subprocess", SimpleNamespace(run=one_command))
    monkeypatch.setattr(leave_one_out, "own_recipe", lambda recipe, run: recipe)
    how = leave_one_out.HowTrained(case.folder / "final.toml", None, "0.9", 7)
    monkeypatch.setattr(leave_one_out, "check_committed", refused := refusal())
    with pytest.raises(CheckError, match="not committed"):
        leave_one_out.carry_out(run, how, only=None)
    assert refused.asked == [case.folder / "frozen.json"] and not done
    for module in (leave_one_out, frozen):
        monkeypatch.setattr(module, "check_committed", lambda path: None)
    # Before the evaluation, and again where it was interrupted.
    for looks in (1, 2):
        with pytest.raises(SystemExit):
            leave_one_out.carry_out(run, how, only=None)
        assert done[-3:] == [("train", looks - 1), ("export", looks - 1), ("eval", looks)]
    assert {(look.reads, look.frozen, look.seed) for look in looks_in(case.folder)} == {("train:drive_00", None, 7)}
    with pytest.raises(SystemExit):
        leave_one_out.carry_out(other, how, only=None)
    assert done[-1] == ("eval", 2)
    # Training looks at nothing.
    leave_one_out.carry_out(run, how, only="train")
    assert done[-1] == ("train", 2)
    # The frozen choice itself, of the same seed, may still be read.
    assert case.read("look.json") == 0


def test_a_look_by_hand_can_be_noted(case, monkeypatch, capsys):
    monkeypatch.setattr(frozen, "HERE", case.folder)
    monkeypatch.setattr(frozen, "check_committed", lambda path: None)

    def noted(split):
        words = ["note", "seed.dovit", str(case.folder / "set"), "--split", split, "--by", "dovit eval seed.dovit set"]
        try:
            frozen.main(words)
        except SystemExit as ended:
            return ended.code
        return 0

    assert noted("train:drive_01") == 2 and "keeps images of it unseen" in capsys.readouterr().err
    assert not looks_in(case.folder)
    assert noted("train:drive_00") == 0
    (look,) = looks_in(case.folder)
    assert (look.frozen, look.seed, look.command) == (None, None, "dovit eval seed.dovit set")


def refusal():
    def refuse(path):
        refuse.asked.append(path)
        raise CheckError("not committed")

    refuse.asked = []
    return refuse


def test_a_drive_without_a_name_is_refused_before_the_first_is_trained(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        leave_one_out.main([str(tmp_path), "--recipe", "r.toml", "--drives", "a,", "--work", str(tmp_path / "work")])
    assert left.value.code == 2 and "--drives a,: names" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_each_drive_is_trained_by_a_command_and_those_that_are_there_are_measured(tmp_path, monkeypatch, capsys):
    data = write_labelled(tmp_path / "set", images=16, split="train")
    classes = data / "classes.json"
    classes.write_text(json.dumps({**json.loads(classes.read_text()), "frame_rate": 0.1}))
    recipe, done = tmp_path / "r.toml", []
    recipe.write_text(RECIPE)
    figures = {"images": 4, "thresholds": [], "bootstrap": {"blocks": 4}, "dense": {"miou": 1.0}, "controls": {}}
    figures["dynamic"] = {"miou": 1.0, "flops_saved": 0.1, "drop": 0.0, "drop_interval": None}
    figures["controls"] = dict.fromkeys(("random", "position", "other"))

    def one_command(words, *, check):
        done.append(words[3])
        folder = Path(words[words.index("-o") + 1]) if words[3] != "eval" else None
        if words[3] == "train":
            (folder / "checkpoint").mkdir(parents=True)
            (folder / "checkpoint" / leave_one_out.WEIGHTS).touch()
            (folder / "curve.json").touch()
        elif words[3] == "export":
            folder.mkdir()
        else:
            Path(words[-1]).write_text(json.dumps(figures))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(leave_one_out, "subprocess", SimpleNamespace(run=one_command))

    def command(*words, drives="drive_00,drive_01"):
        given = ["--recipe", str(recipe), "--drives", drives, "--work", str(tmp_path / "work")]
        leave_one_out.main([str(data), *given, *words])

    with pytest.raises(SystemExit) as left:
        command("--only", "measure")
    assert left.value.code == 4 and "none of drive_00, drive_01 is trained yet" in capsys.readouterr().err
    command("--only", "train", drives="drive_01")
    assert done == ["train"]
    command("--only", "measure", "-o", str(tmp_path / "drives.json"))
    assert done == ["train", "export", "eval"]
    report = json.loads((tmp_path / "drives.json").read_text())
    assert [row["drive"] for row in report["drives"]] == ["drive_01"] and report["missing"] == ["drive_00"]
    assert "missing here: drive_00.**" in leave_one_out.table(report)
    command()
    assert done[3:] == ["train", "export", "eval"]


def test_the_table_has_a_row_for_every_drive():
    control = {"rule_gain": 2.0, "rule_gain_interval": [1.0, 3.0]}
    row = {
        "drive": "0006R0",
        "images": 101,
        "bootstrap": {"blocks": 11},
        "dense": {"miou": 50.04},
        "dynamic": {"miou": 49.8, "flops_saved": 0.45, "drop": 0.24, "drop_interval": None},
        "controls": {"random": control, "position": control, "other": None},
    }
    report = {
        "drives": [row],
        "missing": [],
        "recipe": "r.toml",
        "seed": 0,
        "machine": {"cpu": "c"},
        "date": "d",
        "command": "x",
    }
    wanted = "| 0006R0 | 101, 11 | 50.0 | 49.8 | 45% | 0.24 | 2.00 (1.00 to 3.00) | 2.00 (1.00 to 3.00) | - |"
    assert wanted in leave_one_out.table(report)
