from __future__ import annotations

import re
from pathlib import Path

import pytest

from dovit_deploy.errors import ConfigError, DatasetError, InputError, UsageError
from dovit_deploy.families.parts import FcnHead, LinearHead, MaskHead, PatchStem, SetrHead
from dovit_deploy.train.config import Phase, Scaling, TokenPassing
from dovit_deploy.train.network import NetworkChoice, spec_from_choice
from dovit_deploy.train.recipe import Recipe, recipe_from_file, run_config, with_flags
from dovit_deploy.train.state import RunRecord, refuse_other_data, refuse_other_recipe
from tests.paths import ROOT
from tests.tiny import tiny_spec
from tests.train.runs import record_of

TOML = """
steps = 30
rendered = 0.25
learning_rate = 0.002
[network]
stem = "patch"
head = "mask"
gates = [2, 4]
[passing]
mode = "annealed"
final = 0.85
[[phases]]
until = 0.5
crop = [32, 48]
batch = 8
rendered = 1
[[phases]]
until = 1
"""
YAML = """
steps: 30
rendered: 0.25
learning_rate: 0.002
network: {stem: patch, head: mask, gates: [2, 4]}
passing: {mode: annealed, final: 0.85}
phases:
- {until: 0.5, crop: [32, 48], batch: 8, rendered: 1}
- {until: 1}
"""


def written(folder, text, name="recipe.toml"):
    (folder / name).write_text(text)
    return folder / name


def test_toml_and_yaml_say_the_same(tmp_path):
    recipe = recipe_from_file(written(tmp_path, TOML))
    assert recipe == recipe_from_file(written(tmp_path, YAML, "recipe.yaml"))
    assert recipe.passing == TokenPassing(mode="annealed", final=0.85)
    config = run_config(recipe, tiny_spec(size=(64, 96)), scaling=Scaling())
    assert config.phases == (
        Phase(until=0.5, crop=(32, 48), batch=8, rendered=1),
        Phase(until=1, crop=(64, 96), batch=4, rendered=0.25),
    )
    assert (config.steps, config.minutes, config.learning_rate) == (30, None, 0.002)


def test_an_empty_file_is_the_default_recipe(tmp_path):
    assert recipe_from_file(written(tmp_path, "")) == recipe_from_file(written(tmp_path, "", "r.yml")) == Recipe()
    config = run_config(Recipe(), tiny_spec(size=(360, 480)), scaling=Scaling())
    assert config.minutes == 60
    assert config.phases == (Phase(until=0.6, crop=(272, 352), batch=8), Phase(until=1, crop=(368, 480), batch=4))


def test_pre_training_is_a_phase_of_scenes_alone():
    config = run_config(Recipe(pretrain=0.5, rendered=0.1), tiny_spec(), scaling=Scaling())
    assert [(phase.until, phase.rendered) for phase in config.phases] == [(0.5, 1), (0.8, 0.1), (1, 0.1)]
    alone = run_config(Recipe(), tiny_spec(), scaling=Scaling(), rendered_only=True)
    assert {phase.rendered for phase in alone.phases} == {1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = ", "not TOML"),
        ("step = 4", "step: Extra inputs"),
        ("steps = 4\nminutes = 2", "either steps or minutes"),
        ("[network]\nstem = 'deep'", r"network\.stem: .*'conv' or 'patch'.*'deep' given"),
        ("[passing]\nthresholds = [0.9, 0.8]", r"thresholds \(0.9, 0.8\)"),
        ("[augmentation]\nscale = [0, 1]", r"augmentation: scale \(0.0, 1.0\)"),
        ("pretrain = 0.5\n[[phases]]\nuntil = 1", "either phases"),
    ],
)
def test_wrong_keys_and_values_are_named(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        recipe_from_file(written(tmp_path, text))


def test_yaml_that_is_none_and_absent_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="not YAML"):
        recipe_from_file(written(tmp_path, "a: [", "r.yaml"))
    with pytest.raises(ConfigError, match="valid dictionary"):
        recipe_from_file(written(tmp_path, "- a", "r.yaml"))
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\)$"):
        recipe_from_file(tmp_path / "absent.toml")


def test_the_documented_defaults_are_the_defaults(tmp_path):
    page = (ROOT / "docs" / "training.md").read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    stated, default = recipe_from_file(written(tmp_path, blocks[0])), Recipe()
    for name in set(Recipe.model_fields) - {"minutes", "network"}:
        assert getattr(stated, name) == getattr(default, name), name
    assert spec_from_choice(stated.network, (360, 480), 11) == spec_from_choice(default.network, (360, 480), 11)
    unstated = set(Recipe.model_fields) - stated.model_fields_set
    assert unstated == {"steps", "phases", "init_config", "head_rate", "gate_rate"}
    assert all(getattr(stated, name).model_fields_set for name in ("passing", "distillation", "augmentation"))
    for block in blocks[1:]:
        recipe_from_file(written(tmp_path, block))


def test_phases_that_do_not_fit_the_network_are_refused(tmp_path):
    recipe = recipe_from_file(written(tmp_path, TOML))
    with pytest.raises(ConfigError, match=r"crop \(32, 48\) must be multiples of 16 up to \(32, 32\)"):
        run_config(recipe, tiny_spec(size=(32, 32)), scaling=Scaling())


def test_flags_have_the_say():
    flagged = with_flags(Recipe(steps=9, seed=1), minutes=2.0, seed=5, teacher=False)
    assert (flagged.steps, flagged.minutes, flagged.seed) == (None, 2.0, 5)
    assert with_flags(Recipe(steps=9), minutes=None, seed=None, teacher=False) == Recipe(steps=9)


@pytest.mark.parametrize(("minutes", "seed", "flag"), [(1e300, None, "--minutes"), (1.0, 10**30, "--seed")])
def test_flags_are_bounded_as_recipes_are(minutes, seed, flag):
    with pytest.raises(UsageError, match=f"^{flag}: .* given"):
        with_flags(Recipe(), minutes=minutes, seed=seed, teacher=False)


def test_the_network_is_built_from_the_choice():
    default = spec_from_choice(NetworkChoice(), (360, 480), 11)
    assert [gate.layer for gate in default.gates] == [3, 6, 9]
    assert default.head == SetrHead(channels=96, convs=2, up_scale=2, kernel=3)
    assert default.gates[0].head == FcnHead(channels=128)
    choice = NetworkChoice(stem="patch", head="mask", width=128, depth=4, gates=(1,), gate_channels=0)
    plain = spec_from_choice(choice, (64, 64), 3)
    assert (plain.stem, plain.head, plain.heads) == (PatchStem(), MaskHead(width=128, layers=2, heads=2), 2)
    assert [(gate.layer, gate.head) for gate in plain.gates] == [(1, LinearHead())]
    dense = spec_from_choice(NetworkChoice(head="linear", gates=()), (64, 64), 3)
    assert (dense.family, dense.gates, dense.head) == ("segmenter", (), LinearHead())


def record(recipe):
    made = record_of(run_config(recipe, tiny_spec(), scaling=Scaling()))
    return RunRecord.model_validate({**made.model_dump(), "recipe": recipe.model_dump(exclude_unset=True)})


def test_a_run_goes_on_as_it_began():
    own = record(Recipe(steps=9, seed=2, learning_rate=0.01))
    refuse_other_recipe(own, Recipe(), whole=False)
    refuse_other_recipe(own, Recipe(seed=2), whole=False)
    refuse_other_recipe(own, Recipe(steps=9, seed=2, learning_rate=0.01), whole=True)
    with pytest.raises(UsageError, match="seed is 2 in the run and 3 is given"):
        refuse_other_recipe(own, Recipe(seed=3), whole=False)
    with pytest.raises(UsageError, match=r"minutes is None in the run and 5\.0 is given"):
        refuse_other_recipe(own, Recipe(minutes=5), whole=False)
    with pytest.raises(UsageError, match=r"learning_rate is 0.01 in the run and 0.001 is given"):
        refuse_other_recipe(own, Recipe(steps=9, seed=2), whole=True)


def test_a_run_goes_on_with_its_own_images():
    own = record(Recipe(steps=9))
    refuse_other_data(own, own.data)
    with pytest.raises(DatasetError, match="has 6 images to train on, the run began with 5"):
        refuse_other_data(own, own.data.model_copy(update={"images": 6}))
    with pytest.raises(DatasetError, match="5 of made up, others"):
        refuse_other_data(own, own.data.model_copy(update={"digest": "1"}))
    with pytest.raises(DatasetError, match="other classes"):
        refuse_other_data(own, own.data.model_copy(update={"classes": own.data.classes[:2]}))


def test_fullness_is_a_range_within_0_and_1():
    assert run_config(Recipe(fullness=(0.0, 1.0)), tiny_spec(), scaling=Scaling()).fullness == (0.0, 1.0)
    for wrong in ((0.5, 0.2), (-0.1, 1.0), (0.0, 1.5)):
        with pytest.raises(ConfigError, match="fullness"):
            run_config(Recipe(fullness=wrong), tiny_spec(), scaling=Scaling())


_LEVELS = (f"{c}: &{c} [{f'*{b},' * 9}]\n" for b, c in zip("abcdefghi", "bcdefghij", strict=True))
BOMB = f"a: &a [x]\n{''.join(_LEVELS)}seed: *j"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deep.toml", "a = " + "[" * 5000),
        ("deep.yaml", "[" * 2000),
        ("date.yaml", "seed: 2001-99-99"),
        ("bomb.yaml", BOMB),
    ],
)
def test_odd_files_end_in_one_short_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as refused:
        recipe_from_file(tmp_path / name)
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)
