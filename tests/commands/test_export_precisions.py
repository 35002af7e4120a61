"""`dovit export --precision fp32,int8`, through the command line in this process."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.cli import _application, _run
from dovit_deploy.commands.console import ProgressDisplay
from dovit_deploy.commands.precisions import PrecisionRequest, calibration_images
from dovit_deploy.errors import DatasetError
from dovit_deploy.runtime import auto
from tests.datasets.labelled_folder import noise, write_labelled


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = _run(_application(), [str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, " ".join(printed.err.split())

    return run


def folder(root: Path, count: int) -> Path:
    root.mkdir()
    for seed in range(count):
        Image.fromarray(noise((56, 72), classes=5, seed=seed)[0]).save(root / f"{seed}.png")
    return root


def test_the_bundle_runs_in_int8_and_says_what_it_loses(
    command, dense_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = folder(tmp_path / "images", 8)
    words = ("--precision", "fp32,int8", "--calibration", calibration, "--max-drop", 100)
    code, out, err = command("export", dense_bundle_path, "-o", "new.dovit", *words, "--json", "new.json")
    assert code == 0, err
    # Each long step with the number of what is to be done; images run once for ranges.
    for step in ("verify fast 0/2 runs", "measure ranges for int8 0/8 images", "run fp32 0/8 images"):
        assert step in err
    assert "measure onnxruntime int8 0/8 images" in err and "write int8" in err
    bundle = Bundle.open("new.dovit")
    assert bundle.manifest.precisions == ("fp32", "int8")
    assert {"weights.int8.safetensors", "stage0.int8.onnx", "merged.int8.ort.onnx"} <= set(bundle.manifest.files)
    entries = json.loads((bundle.path / "parity.json").read_text())["precisions"]
    assert entries == json.loads(Path("new.json").read_text())["parity"]["precisions"]
    assert json.loads((bundle.path / "parity.json").read_text())["max_drop"] == 100
    code, _, err = command("export", "new.dovit", "-o", "again.dovit")
    assert code == 0 and "new.dovit also has int8; --precision fp32,int8 --calibration SRC makes it anew" in err
    first = entries[0]
    assert (first["engine"], first["precision"], first["images"], first["drop"]) == ("onnxruntime", "int8", 8, None)
    assert "onnxruntime int8: " in out and "of the pixels as in fp32" in out
    monkeypatch.setattr(auto, "this_machine", lambda: SimpleNamespace(features=("avx2", "avx512_vnni")))
    run = ("run", calibration / "0.png", "--bundle", "new.dovit", "-o", "out", "--precision", "int8")
    code, _, err = command(*run, "--engine", "onnxruntime")
    assert code == 0 and "no instructions for products in 8 bits" not in err
    assert json.loads(Path("out/summary.json").read_text())["precision"] == "int8"
    monkeypatch.setattr(auto, "this_machine", lambda: SimpleNamespace(features=("avx2",)))
    code, _, err = command(*run, "--overwrite")
    assert code == 0 and "no instructions for products in 8 bits" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--precision", "int8"), 2, "give --calibration SRC, 8 or more images"),
        (("--precision", "fp32,int4"), 2, "'int4' given; forms: fp32, int8"),
        (("--precision", "bf16"), 2, "--engine openvino --precision bf16"),
        (("--max-drop", "1"), 2, "--max-drop is measured on the images of --calibration"),
        (("--calibration", "few", "--max-drop", "nan"), 2, "points from 0 to 100"),
        (("--calibration", "few", "--precision", "int8"), 3, "few: 3 images; to take ranges for int8"),
        (("--calibration", "nothing", "--precision", "int8"), 3, "nothing: no such file or folder"),
        (("--calibration", "halves", "--precision", "int8"), 3, "1 image in one of its splits"),
        (("--calibration", "other", "--precision", "int8"), 3, "gives 4 classes"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    command, tiny_bundle_path: Path, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    folder(tmp_path / "few", 3)
    write_labelled(tmp_path / "other", images=2, classes=4)
    write_labelled(write_labelled(tmp_path / "halves", images=8, split="train"), images=1)
    given, _, err = command("export", tiny_bundle_path, "-o", "new.dovit", *words, "--quiet")
    assert given == code and message in err
    assert not Path("new.dovit").exists()


def test_layers_are_tried_by_labels_where_there_are_labels(tiny_bundle_path: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(tiny_bundle_path).manifest
    shape = (1, manifest.spec.classes, *manifest.spec.grid)
    before, after = ([np.random.default_rng(seed + n).normal(size=shape) for n in range(8)] for seed in (0, 100))
    before, after = ([one.astype(np.float32) for one in answers] for answers in (before, after))
    lost = []
    for given in (write_labelled(tmp_path / "set", images=8), folder(tmp_path / "images", 8)):
        plan = PrecisionRequest.from_flags("fp32,int8", str(given), 3).plan(calibration_images(str(given), manifest))
        assert plan is not None and plan.allowed == 1.5
        lost.append(plan.lost(before, after))
    # Answers that have nothing to do with each other change most classes, and mIoU hardly.
    assert lost[0] is not None and abs(lost[0]) < 10 and lost[1] is None


def test_ranges_come_of_the_part_of_a_data_set_that_is_named(tiny_bundle_path: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(tiny_bundle_path).manifest
    root = write_labelled(write_labelled(tmp_path / "set", images=18, split="train"), images=9)
    given = (root, f"{root}:train:-drive_00", f"{root}:val:drive_00")
    whole, part, own = (calibration_images(str(name), manifest) for name in given)
    # drive_000 to drive_017.
    assert (len(whole.ranged), len(part.ranged)) == (18, 8)
    # What it loses is measured on val in both; of val itself alone, on the same few images.
    assert len(whole.compared) == len(part.compared) == len(own.compared) == len(own.ranged) == 9
    with pytest.raises(DatasetError, match="none starts with 'street'"):
        calibration_images(f"{root}:train:street", manifest)


def test_an_interrupt_in_a_long_step_leaves_nothing(
    command, dense_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(self: ProgressDisplay, name: str, total: float | None = None, *, unit: str | None = None) -> None:
        if name == "run fp32":
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressDisplay, "begin", begin)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    calibration = folder(tmp_path / "images", 8)
    words = ("--precision", "fp32,int8", "--calibration", calibration, "--max-drop", 100, "--json", "new.json")
    assert command("export", dense_bundle_path, "-o", "new.dovit", *words)[0] == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "temporary"]
    assert not any((tmp_path / "temporary").iterdir())


def test_a_bundle_without_int8_is_refused_with_the_line_that_makes_it(command, tiny_bundle_path, tmp_path) -> None:
    image = folder(tmp_path / "images", 1) / "0.png"
    words = ("--engine", "onnxruntime", "--precision", "int8", "-o", "out")
    code, _, err = command("run", image, "--bundle", tiny_bundle_path, *words)
    assert code == 2 and "dovit export CHECKPOINT --precision fp32,int8 --calibration IMAGES" in err
    assert not Path("out").exists()


def test_eval_in_int8_says_what_is_lost_against_dense_fp32(command, int8_bundle_path: Path, tmp_path: Path) -> None:
    data = write_labelled(tmp_path / "set", images=8)
    words = ("eval", int8_bundle_path, data, "--threads", 1, "-v")
    code, out, err = command(*words, "--precision", "int8", "--json", "int8.json")
    assert code == 0, err
    assert command(*words, "--json", "fp32.json")[0] == 0
    int8, fp32 = (json.loads(Path(name).read_text()) for name in ("int8.json", "fp32.json"))
    against = int8["against_fp32"]
    assert (against["miou"], against["boundary_iou"]) == (fp32["dense"]["miou"], fp32["dense"]["boundary_iou"])
    assert against["drop"] == pytest.approx(fp32["dense"]["miou"] - int8["dynamic"]["miou"])
    assert fp32["against_fp32"]["drop_interval"] == fp32["dynamic"]["drop_interval"]
    assert f"against dense onnxruntime fp32: mIoU drop {against['drop']:z.2f} (" in out
    assert f"same class as there: {against['agreement']:.2f} % of the pixels" in out
    assert "as dense fp32" in out
