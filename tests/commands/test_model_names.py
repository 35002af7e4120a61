"""Names of installed models, and folders with folders in them, through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.cli import _application, _run
from tests.datasets.labelled_folder import write_labelled
from tests.installed_models import install


@pytest.fixture
def named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs the command line where `road-tiny`, also the default, is installed; returns the exit code and stderr."""
    monkeypatch.chdir(tmp_path)
    install(monkeypatch, {"default": tiny_bundle_path, "road-tiny": tiny_bundle_path})

    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = _run(_application(), [str(argument) for argument in arguments])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def image(tmp_path: Path) -> Path:
    rgb = np.random.default_rng(1).integers(0, 256, (56, 72, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_run_bench_and_inspect_take_a_name(named: Callable[..., tuple[int, str]], image: Path, tmp_path: Path) -> None:
    for given in ("--bundle", "road-tiny"), ():
        code, errors = named("run", image, *given, "--save", "masks", "--threads", 1)
        assert code == 0, errors
        assert "licence of " in errors
    code, errors = named("bench", "road-tiny", "--frames", image, "--repeat", 1, "--json", "bench.json")
    assert code == 0, errors
    assert json.loads((tmp_path / "bench.json").read_text())["frames"] == 1
    assert named("inspect", "road-tiny")[0] == 0
    code, errors = named("inspect", "road-tiny.dovit")
    assert code == 3 and "did you mean road-tiny?" in errors
    code, errors = named("inspect", "road-tinny")
    assert code == 3 and "did you mean road-tiny?" in errors


def test_eval_takes_a_name_or_the_default(named: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    write_labelled(tmp_path / "set", images=2)
    for number, given in enumerate((("road-tiny", "set"), ("set",))):
        code, errors = named("eval", *given, "--threads", 1, "--json", f"{number}.json")
        assert code == 0, errors
    reports = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)]
    assert reports[0]["dynamic"] == reports[1]["dynamic"]


@pytest.mark.parametrize("verb", ["eval", "calibrate"])
def test_a_bundle_alone_is_no_data_set(
    named: Callable[..., tuple[int, str]], tiny_bundle_path: Path, verb: str
) -> None:
    code, errors = named(verb, tiny_bundle_path, *(("--flops", 0.3) if verb == "calibrate" else ()))
    assert code == 2
    assert "DATASET is missing" in errors


def test_calibrate_takes_a_name_and_the_folders_below(named: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for folder in ("left", "right/far"):
        (tmp_path / "drive" / folder).mkdir(parents=True)
        for number in range(4):
            rgb = rng.integers(0, 256, (56, 72, 3), dtype=np.uint8)
            Image.fromarray(rgb).save(tmp_path / "drive" / folder / f"{number}.png")
    arguments = ("calibrate", "road-tiny", "drive", "--flops", 0.01, "-o", "new.dovit", "--json", "report.json")
    code, errors = named(*arguments, "--recursive")
    assert code == 0, errors
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert {name for part in parts for name in part["images"]} >= {"left/0.png", "right/far/3.png"}
    code, errors = named("calibrate", "road-tiny", "nothing", "--flops", 0.01, "--recursive", "--dry-run")
    assert code == 3


def test_folders_below_keep_their_names(named: Callable[..., tuple[int, str]], image: Path, tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    for name in ("a.png", "left/a.png", "left/a.jpg", "left/far/a.png", "b.png/a.png"):
        (drive / name).parent.mkdir(parents=True, exist_ok=True)
        (drive / name).write_bytes(image.read_bytes())
    image.rename(drive / "b.jpg")
    (drive / "left" / "up").symlink_to(drive)
    arguments = ("run", "drive", "-o", "out", "--save", "masks", "--threads", 1, "--recursive")
    code, errors = named(*arguments)
    assert code == 0, errors
    masks = {path.relative_to(tmp_path / "out" / "masks").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    masks -= {"b.png"}
    assert masks == {
        "a.png",
        "b-2.png",
        "b.png/a.png",
        "left/a.jpg.png",
        "left/a.png.png",
        "left/far/a.png",
    }
    sources = [json.loads(line)["source"] for line in (tmp_path / "out" / "frames.jsonl").read_text().splitlines()]
    assert sources == [
        f"drive/{name}" for name in ("a.png", "b.jpg", "b.png/a.png", "left/a.jpg", "left/a.png", "left/far/a.png")
    ]
    # All of it is ours, so it is replaced; with a file of the user's in a folder below it is not.
    assert named(*arguments, "--overwrite")[0] == 0
    (tmp_path / "out" / "masks" / "left" / "notes.txt").write_text("mine")
    code, errors = named(*arguments, "--overwrite")
    assert code == 2 and "masks/left/notes.txt" in errors


def test_classes_of_a_data_set_name_the_classes(
    named: Callable[..., tuple[int, str]], image: Path, tmp_path: Path
) -> None:
    entries = [{"id": number, "name": f"name {number}", "color": [number, 0, 0]} for number in range(5)]
    void = {"id": 255, "name": "void", "color": [0, 0, 0]}
    (tmp_path / "classes.json").write_text(json.dumps({"classes": [*reversed(entries), void], "ignore": 255}))
    code, errors = named("run", image, "-o", "out", "--save", "masks", "--classes", "classes.json")
    assert code == 0, errors
    palette = Image.open(tmp_path / "out" / "masks" / "a.png").getpalette()
    assert palette is not None and palette[:15:3] == [0, 1, 2, 3, 4]
