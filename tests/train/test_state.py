"""A run folder outlives the code that wrote it: a run recorded by version 0.1.0 opens, resumes and goes on.

`recorded_run/train.json` is that run's own record. `recorded_run/state.json` is its `state.pt` with every tensor given
as its dtype and shape, so that no binary file has to be kept; the values are made up here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dovit_deploy.datasets.scenes import RenderedScenes
from dovit_deploy.errors import InputError
from dovit_deploy.train.data import TrainingData
from dovit_deploy.train.loop import Trainer
from dovit_deploy.train.recipe import recipe_from_file
from dovit_deploy.train.state import RECORD, STATE, RunFolder
from dovit_deploy.train.target import Labels
from tests.paths import ROOT

RECORDED = Path(__file__).with_name("recorded_run")


def restored(entry: Any, generator: torch.Generator) -> Any:
    """The value that `entry` describes; drawn values are positive, as second moments must be."""
    if isinstance(entry, dict):
        return {int(key) if key.isdecimal() else key: restored(value, generator) for key, value in entry.items()}
    if isinstance(entry, list) and entry and isinstance(entry[0], str):
        return torch.rand(entry[1:], generator=generator).to(getattr(torch, entry[0])) * 1e-2
    return [restored(value, generator) for value in entry] if isinstance(entry, list) else entry


@pytest.fixture
def recorded_run(tmp_path: Path) -> Path:
    state = json.loads((RECORDED / "state.json").read_text())
    shutil.copy(RECORDED / "train.json", tmp_path / RECORD)
    torch.save(restored(state, torch.Generator().manual_seed(0)), tmp_path / STATE)
    return tmp_path


def within(value, recorded):
    """`value` without the keys that came after `recorded` was written."""
    if not isinstance(recorded, dict):
        return value
    return {key: within(value[key], entry) for key, entry in recorded.items()}


def test_a_recorded_run_resumes_where_it_stopped_and_goes_on(recorded_run: Path) -> None:
    folder, record = RunFolder.open(recorded_run)
    state = torch.load(recorded_run / STATE, weights_only=True)
    scenes = RenderedScenes("train 0", size=record.config.spec.size, count=1)
    config = record.config.model_copy(update={"steps": 3})
    trainer = Trainer(
        config, TrainingData(None, scenes), None, folder, target=Labels.of(record.data.frequencies, config), start=None
    )
    assert trainer.resume()
    assert (trainer.step, trainer.scenes) == (2, 16)
    for name, value in trainer.average.state_dict().items():
        assert torch.equal(value, state["average"][name]), name
    assert trainer.teacher is not None
    trainer.run()
    assert trainer.step == 3
    read, recorded = RunFolder.open(recorded_run)[1].to_json(), (RECORDED / "train.json").read_text()
    assert within(json.loads(read), json.loads(recorded)) == json.loads(recorded)


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*/recipes/*.toml")), ids=lambda path: path.stem)
def test_the_recipes_beside_the_models_are_read(path: Path) -> None:
    assert recipe_from_file(path).network.family == "dovit"


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04"])
def test_a_state_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE).write_bytes(content)
    with pytest.raises(InputError, match="delete it to start the run again"):
        RunFolder(tmp_path).load()
