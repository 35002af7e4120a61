"""`dovit adapt` through the command line: small dense networks become bundles, or are refused with nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from dovit_deploy.adapt import adapt as room
from dovit_deploy.adapt import features, fitting
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.cli import _application, _run
from dovit_deploy.errors import OutputFailed
from dovit_deploy.export.plan import ExportPlan
from dovit_deploy.families.registry import model_from_spec, state_at_size
from dovit_deploy.runtime.session import Session
from tests.adapt.dense_networks import saved_quiet, write_images
from tests.bundles import export, saved_tiny
from tests.families.official_state import random_state
from tests.families.vit import official
from tests.tiny import tiny_pixels, tiny_spec
from tests.train.tiny_folder import write_folder

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs `dovit adapt` in this process, in an empty folder; gives its exit code, results and what else it says."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*words: object) -> tuple[int, str, str]:
        code = _run(_application(), ["adapt", *map(str, words)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run


def dense_logits(bundle: Bundle) -> np.ndarray:
    """What ONNX Runtime gives with nothing stopped."""
    with Session(bundle, threads=1) as session:
        return session.run(tiny_pixels(bundle.manifest.spec.size, seed=7).numpy(), dense=True)[0]


def test_a_dense_network_becomes_dynamic_and_stays_itself(call: Call, tmp_path: Path) -> None:
    given, images = saved_quiet(tmp_path / "dense"), write_images(tmp_path / "images", 24, bad=1)
    code, out, err = call(given, images, "-o", "made.dovit", "--gates", "2", "--json", "report.json")
    # One image could not be read: all else is done, and it says so.
    assert code == 7, err
    assert "1 image of" in err and "bad0.png: cannot be decoded" in err
    bundle, report = Bundle.open("made.dovit"), json.loads(Path("report.json").read_text())
    spec = bundle.manifest.spec
    assert [gate.layer for gate in spec.gates] == [2] and spec.answer == "gate" and spec.aggregate_rate == 1.0
    assert report["bundle"] == str(bundle.path) and report["taken"] == 24 and len(report["failed"]) == 1
    assert bundle.manifest.defaults.thresholds == ((report["thresholds"][0],) * spec.classes,)
    (table,) = report["tables"]
    rule, random, static, *small = table["ways"]
    assert rule["flops_saved"] > 0 and rule["agreement"] >= 0.98
    assert (rule["kind"], random["kind"], static["kind"]) == ("rule", "random", "static")
    assert [way["name"] for way in small] == ["dense at 32x48", "dense at 32x48"][: len(small)] and small
    assert out.splitlines()[0] == report["verdict"]
    assert ("everything at gate 2" in out and out.splitlines()[-1] == "made.dovit") or str(bundle.path) in out
    calibration = json.loads((bundle.path / "calibration.json").read_text())
    assert calibration["budget"]["kind"] == "max-disagree" and calibration["budget"]["confidence"] is None
    # The dense answer, in ONNX Runtime, is that of the export of the network as it was.
    original, _ = export(checkpoint_from_path(given), tmp_path / "original.dovit")
    np.testing.assert_array_equal(dense_logits(bundle), dense_logits(original))
    # What it made is dynamic: it is not taken again, and not replaced unasked.
    code, _, err = call(bundle.path, images, "-o", "again.dovit")
    assert code == 2 and "is dynamic already (gates before layers 2)" in err
    code, _, err = call(given, images, "-o", "made.dovit")
    assert code == 2 and "--overwrite" in err
    assert sorted(path.name for path in Path().iterdir()) == ["made.dovit", "report.json"]


def test_labels_give_a_second_table(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "STEPS", 100)
    root = write_folder(tmp_path / "data", images=10, size=(48, 64), splits=("train", "val"))
    given = saved_quiet(tmp_path / "dense", depth=2, classes=4)
    code, out, err = call(given, root, "--labels", root, "--json", "report.json")
    assert code == 0, err
    assert "gates are fitted to and thresholds searched on the same half" in err
    # Without -o the bundle lies beside the network.
    bundle, report = Bundle.open(tmp_path / "dense-adapted.dovit"), json.loads(Path("report.json").read_text())
    assert report["bundle"] == str(bundle.path) and report["total"] == 10
    held_out, labelled = report["tables"]
    assert not held_out["labelled"] and labelled["labelled"] and labelled["images"] == 10
    static = next(way for way in labelled["ways"] if way["kind"] == "static")
    assert static["drop"] == pytest.approx(labelled["dense_miou"] - static["miou"])
    assert f"10 labelled images of {root} (val); dense: mIoU" in out
    assert ("mIoU drop" in report["verdict"]) == (report["thresholds"] is not None)
    # Labels of other classes say nothing of this network.
    code, _, err = call(saved_quiet(tmp_path / "five", depth=2), root, "--labels", root)
    assert code == 3 and "gives 4 classes" in err


@pytest.mark.slow
@pytest.mark.slow
def test_layers_behind_gates_may_see_what_has_stopped(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fitting, "STEPS", 100)
    given, images = saved_quiet(tmp_path / "dense", depth=3), write_images(tmp_path / "images", 8)
    words = (given, images, "--gates", "1,2", "--quiet")
    for context in ("none", "pooled"):
        code, _, err = call(*words, "--context", context, "-o", f"{context}.dovit")
        assert code == 0, err
    plain, pooled = Bundle.open("none.dovit"), Bundle.open("pooled.dovit")
    assert pooled.manifest.spec.model_dump() == {**plain.manifest.spec.model_dump(), "context": "pooled"}
    np.testing.assert_array_equal(dense_logits(pooled), dense_logits(plain))
    pixels = tiny_pixels(pooled.manifest.spec.size, seed=7).numpy()
    with Session(plain, threads=1) as without, Session(pooled, threads=1) as beside:
        keep = [np.arange(12).reshape(3, 4) % 3 > 0] * 2
        (alone, cheap), (seeing, costly) = (one.run(pixels, keep=keep) for one in (without, beside))
    assert cheap.kept == costly.kept and cheap.gmacs_actual < costly.gmacs_actual
    assert np.abs(alone - seeing).max() > 1e-4
    assert _run(_application(), ["inspect", "pooled.dovit"]) == 0
    assert "behind gates 5 keys of what has stopped" in capsys.readouterr().out


def dinov2_files(folder: Path) -> list[object]:
    """Backbone and linear head in two files, with what the keys do not show."""
    state = random_state(official.dinov2_map(), official.dinov2_spec())
    save_file({name: one for name, one in state.items() if not name.startswith("head.")}, folder / "dinov2.safetensors")
    head = {name.rpartition(".")[2]: one for name, one in state.items() if name.startswith("head.")}
    save_file(head, folder / "head.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_heads": 1}))
    return ["--backbone", folder / "dinov2.safetensors", "--head", folder / "head.safetensors"]


@pytest.mark.parametrize(
    "kind", [pytest.param("segmenter", marks=pytest.mark.slow), "dinov2", pytest.param("eomt", marks=pytest.mark.slow)]
)
def test_networks_that_people_have(call: Call, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path / "images", 6)
    words: list[object]
    if kind == "dinov2":
        words = [images, *dinov2_files(tmp_path), "--config", tmp_path / "config.json", "--gates", "1"]
    elif kind == "eomt":
        spec = tiny_spec(head="query", gates=(), depth=4, size=(48, 64))
        words = [saved_tiny(spec, tmp_path / "eomt"), images]
    else:
        words = [saved_tiny(tiny_spec(gates=(), depth=2, size=(48, 64)), tmp_path / "segmenter"), images]
    # What is fitted is random anyway.
    monkeypatch.setattr(fitting, "STEPS", 20)
    dense = []
    resolve = room.AdaptPlan.resolve

    def noted(checkpoint, output, **flags):
        dense.append(checkpoint)
        return resolve(checkpoint, output, **flags)

    monkeypatch.setattr(room.AdaptPlan, "resolve", noted)
    code, out, err = call(*words, "-o", "made.dovit", "--size", "48x64", "--quiet")
    assert code == 0, err
    bundle = Bundle.open("made.dovit")
    assert len(bundle.manifest.spec.gates) == 1
    assert bundle.manifest.spec.answer == ("gate" if kind == "dinov2" else "lens")
    # Random weights answer at random: whether something stops there or not, it is said.
    assert "nothing stops" in out or "of the MACs saved" in out
    plan = ExportPlan.resolve(dense[0], Path("x.dovit"), size=(48, 64))
    spec = plan.manifest.spec
    network = model_from_spec(spec, state_at_size(dense[0].state, dense[0].spec, spec.size))
    wanted = network.one_image(tiny_pixels(spec.size, seed=7), dense=True).results[0]
    np.testing.assert_allclose(dense_logits(bundle), wanted.numpy(), atol=2e-4)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("dense",), 2, "one argument given"),
        (("dense", "images", "-o", "made.folder"), 2, "a bundle is called NAME.dovit"),
        (("dense", "images", "--gates", "2,9"), 2, "--gates 2,9: layers from 1 to 3 that rise are needed"),
        (("dense", "images", "--gates", "two"), 2, "--gates: 'two' given; layers separated by commas"),
        (("dense", "images", "--answer", "feature"), 2, "--answer 'feature' given; there are: gate, lens"),
        (("dense", "images", "--context", "all"), 2, "--context 'all' given; there are: none, pooled"),
        (
            ("dense", "images", "--context", "pooled", "--minutes", "1"),
            2,
            "leave out --context pooled, or --minutes and --resume",
        ),
        (("dense", "images", "--context", ""), 2, "--context '' given; there are: none, pooled"),
        (("dense", "few"), 3, "3 images; at least 5 are needed"),
        (("dense", "empty"), 3, "no image in this folder"),
        (("dense", "nowhere"), 3, "no such file or folder"),
        (("nothing", "images"), 3, "no checkpoint at"),
        (("gated", "images"), 2, "is dynamic already (gates before layers 1, 3)"),
        (("dense", "images", "--labels", "nowhere"), 3, "no such data set"),
        (("dense", "images", "--backbone", "dense"), 2, "are both given; give one of them"),
        (("images", "--backbone", "dense"), 2, "--backbone dense needs --head FILE"),
        (("dense", "images", "--limit", "2"), 2, "--limit 2: at least 5 images are needed"),
    ],
)
def test_bad_input_is_refused_with_nothing_written(
    call: Call, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    here = tmp_path / "here"
    saved_quiet(here / "dense")
    saved_tiny(tiny_spec(), here / "gated")
    write_images(here / "images", 6)
    write_images(here / "few", 3)
    (here / "empty").mkdir()
    before = sorted(path.name for path in here.iterdir())
    found, _, err = call(*words)
    assert (found, said in err) == (code, True), err
    assert sorted(path.name for path in here.iterdir()) == before


def test_a_full_disk_leaves_nothing_behind(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, images = saved_quiet(tmp_path / "dense"), write_images(tmp_path / "images", 6)
    monkeypatch.setattr(features, "IN_MEMORY", 0)
    monkeypatch.setattr(features.FeatureCache, "_file", lambda self, number: Path("/dev/full"))
    code, _, err = call(given, images, "-o", "made.dovit")
    assert code == OutputFailed.exit_code == 5 and "cannot write" in err
    assert not list(Path().iterdir())


def test_an_interruption_leaves_nothing_behind(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, images = saved_quiet(tmp_path / "dense"), write_images(tmp_path / "images", 6)

    def stopped(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "fitted_parts", stopped)
    code, _, err = call(given, images, "-o", "made.dovit")
    assert code == 130 and "interrupted" in err
    assert not list(Path().iterdir())


def test_a_promise_is_tested_on_images_that_nothing_was_fitted_to(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "STEPS", 100)
    given, images = saved_quiet(tmp_path / "dense", depth=2), write_images(tmp_path / "images", 14)
    promise = ("--max-disagree", "0.25", "--confidence", "0.76")
    code, out, err = call(given, images, *promise, "--unit", "image", "-o", "made.dovit", "--json", "report.json")
    assert code == 0, err
    assert "14 images count as independent of each other, as the user says" in err
    report, bundle = json.loads(Path("report.json").read_text()), Bundle.open("made.dovit")
    test = report["promise"]
    # Five to fit to, three to choose on, six to test on; five are what a test takes.
    assert (report["fitted"], test["units_searched"], test["units"], test["least_units"]) == (5, 3, 6, 5)
    assert report["tables"][0]["images"] == 6
    assert "promised of images like these: at most 25.00% of the pixels differ" in out and "6 held-out images" in out
    written = json.loads((bundle.path / "calibration.json").read_text())
    assert written["test"] == test and written["budget"]["confidence"] == 0.76
    chosen = test["sequence"][test["boldest"]]["thresholds"]
    assert report["thresholds"] == chosen == [row[0] for row in bundle.manifest.defaults.thresholds]
    # What is too little is said before anything is fitted.
    monkeypatch.setattr(room, "fitted_parts", lambda *words: pytest.fail("it was fitted"))
    few = write_images(tmp_path / "few", 8)
    before = sorted(path.name for path in Path().iterdir())
    for words, wanted, said in (
        (
            (few, *promise),
            4,
            "takes 5 held-out images, even if no pixel differs, 2 more to choose thresholds on and 2",
        ),
        ((few, "--max-disagree", "0.02", "--confidence", "0.95"), 4, "takes 149 held-out images"),
        ((few, "--max-disagree", "0.02"), 2, "belong together"),
        ((few, "--unit", "image"), 2, "say what --max-disagree counts"),
        ((few, *promise, "--unit", "day"), 2, "--unit: 'day' given"),
        ((few, "--json", "/proc/report.json"), 5, "cannot write /proc/report.json"),
    ):
        code, _, err = call(given, *words, "-o", "other.dovit")
        assert code == wanted and said in err, err
    assert sorted(path.name for path in Path().iterdir()) == before
