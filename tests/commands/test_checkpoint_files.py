"""Checkpoints as people have them, through the command line: inspect and export agree, and say what was done."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.cli import _application, _run
from dovit_deploy.errors import DovitError, ParityError
from dovit_deploy.export import pipeline
from dovit_deploy.export.plan import ExportPlan
from tests.families.vit import official

Command = Callable[..., tuple[int, str, str]]
CONFIG = official.config_text(official.DOVIT)
STATE = official.dovit_state()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process, in an empty folder; returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = _run(_application(), [str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> object:
    """An object of mmengine's class, which can be stored here and is not installed when it is read."""
    module: Any = ModuleType("mmengine_elsewhere")

    class HistoryBuffer:
        def __init__(self) -> None:
            self.values = [1.0]

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine_elsewhere", "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    monkeypatch.setitem(sys.modules, "mmengine_elsewhere", module)
    return HistoryBuffer()


def _before_the_graphs(*_: object, **__: object) -> None:
    raise ParityError("the graphs come next")


def test_a_file_of_mmengine_from_a_compiled_network_is_taken(
    command: Command, history: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What comes after is held by the tests of exports.
    monkeypatch.setattr(pipeline, "bundle_from_plan", _before_the_graphs)
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in STATE.items()}
    contents = {
        "meta": {"cfg": CONFIG},
        "state_dict": wrapped | {"criterion.weight": torch.ones(5)},
        "message_hub": {"log_scalars": {"loss": history}},
    }
    torch.save(contents, "m.pth")
    del sys.modules["mmengine_elsewhere"]
    code, _, errors = command("export", "m.pth", "-v")
    assert code == ParityError.exit_code and "the graphs come next" in errors, errors
    assert "m.pth: taken off the names: _orig_mod., module." in errors
    assert "m.pth: left out: the entries of losses and metrics" in errors
    assert "entries are taken; ignored: backbone.auxiliary_head.0.convs.0.bn.num_batches_tracked" in errors


ONE_WEIGHT = {
    "compiled": ({"model": {"_orig_mod.encoder.blocks.0.norm1.weight": torch.ones(4)}}, "_orig_mod."),
    "model_state_dict": ({"model_state_dict": {"encoder.blocks.0.norm1.weight": torch.ones(4)}}, "model_state_dict"),
    "mmengine": ({"state_dict": {"backbone.cls_token": torch.ones(1, 1, 4)}, "meta": {"epoch": 1}}, "state_dict"),
}


@pytest.mark.parametrize("kind", ONE_WEIGHT)
def test_a_part_of_a_network_is_described_and_not_exported(command: Command, kind: str) -> None:
    contents, said = ONE_WEIGHT[kind]
    torch.save(contents, "m.pth")
    code, printed, errors = command("inspect", "m.pth", "-v", "--json", "report.json")
    assert code == 0, errors
    assert "1 (1 float32), 4 parameters" in printed and "not determined: m.pth " in printed
    assert said in errors and "next: dovit doctor" in errors
    report = json.loads(Path("report.json").read_text())
    assert report["network"] is None and report["problem"] and not {"export", "remarks"} & report.keys()
    assert command("export", "m.pth")[0] == 6


def _part(prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in STATE.items() if not name.startswith(prefix)}


def _with_config(path: str, value: object) -> dict[str, object]:
    return {"meta": {"config": official.config_text(official.changed(official.DOVIT, path, value))}}


SLIDING = {"mode": "slide", "crop_size": [8, 8], "stride": [8, 8]}
KINDS: dict[str, tuple[dict[str, object], int, str]] = {
    "sound": ({"state_dict": STATE, "meta": {"config": CONFIG}}, 0, "dovit export m.pth\n"),
    "half": ({"state_dict": {k: v.half() for k, v in STATE.items()}, "meta": {"config": CONFIG}}, 0, "export m.pth\n"),
    "no configuration": ({"state_dict": STATE}, 0, "dovit export m.pth --config FILE\n"),
    "other classes": (
        {"state_dict": STATE, **_with_config("decode_head.num_classes", 19)},
        0,
        "dovit export m.pth --config FILE\n",
    ),
    "a window too small": ({"state_dict": STATE, **_with_config("test_cfg", SLIDING)}, 0, "export m.pth --size HxW\n"),
    "no decode head": ({"state_dict": _part("decode_head"), "meta": {"config": CONFIG}}, 6, "Nothing of 'decode_head'"),
    "no gates": ({"state_dict": _part("backbone.aux"), "meta": {"config": CONFIG}}, 6, "or export it dense"),
    "another network": ({"state_dict": {"conv1.weight": torch.ones(1)}}, 0, "next: dovit doctor\n"),
    "NaN": (
        {"state_dict": STATE | {"backbone.ln1.weight": torch.full((16,), torch.nan)}, "meta": {"config": CONFIG}},
        6,
        "diverged",
    ),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_inspect_recommends_an_export_only_where_it_succeeds(command: Command, kind: str, suffix: str) -> None:
    contents, expected, words = KINDS[kind]
    path = Path(f"m.{suffix}")
    if suffix == "pth":
        torch.save(contents, path)
    else:
        save_file(contents["state_dict"], path)  # type: ignore[arg-type]
    code, _, errors = command("inspect", path)
    if suffix == "pth":
        assert (code, words in errors) == (expected, True), errors
    try:
        ExportPlan.resolve(checkpoint_from_path(path), Path("m.dovit"))
    except DovitError:
        assert f"next: dovit export {path}\n" not in errors
    else:
        assert f"next: dovit export {path}\n" in errors


def test_a_dense_export_of_a_network_without_its_gates(tmp_path: Path) -> None:
    """What the error recommends works."""
    model: dict[str, Any] = official.changed(official.DOVIT, "backbone.type", "VisionTransformer")
    for setting in ("exit_conf", "diff_conf", "agg_rate"):
        del model["backbone"][setting]
    del model["auxiliary_head"]
    (tmp_path / "dense.json").write_text(json.dumps(model))
    path = official.save_pth(tmp_path / "m.pth", _part("backbone.aux"))
    checkpoint = checkpoint_from_path(path, config=tmp_path / "dense.json")
    assert checkpoint.spec.gates == () and checkpoint.spec.family == "vit"
