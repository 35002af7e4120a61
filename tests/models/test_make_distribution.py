"""The script that makes road-small's distribution and its card, around a tiny bundle instead of the real export."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tomllib
from types import SimpleNamespace

import pytest

from dovit_deploy.errors import CheckError, InputError
from dovit_deploy.train.recipe import Recipe
from tests.datasets.labelled_folder import write_labelled
from tests.paths import ROOT

FOLDER = ROOT / "models" / "road-small"
RECIPE = 'steps = 3\nsplit = "train:-0006R0"\n'


@pytest.fixture(scope="module")
def scripts():
    """`make_distribution` and `make_card`."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("make_distribution"), importlib.import_module("make_card")
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture
def run(tmp_path):
    """What a run leaves, as far as it is read, and its recipe."""
    folder = tmp_path / "run"
    (folder / "checkpoint").mkdir(parents=True)
    record = {
        "recipe": Recipe(steps=3, split="train:-0006R0", seed=2).model_dump(mode="json"),
        "data": {"images": 266},
        "init": {"source": "start.safetensors", "sha256": "ab" * 32},
    }
    (folder / "checkpoint" / "train.json").write_text(json.dumps(record))
    (folder / "log.jsonl").write_text('{"step": 2, "seconds": 1}\n{"step": 3, "seconds": 90.0}\n')
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture
def make(scripts, run, compact_bundle_path, monkeypatch, tmp_path):
    """Makes the distribution; in place of the export the tiny bundle is copied."""
    asked = []

    def exported(checkpoint, dataset, output, *, threshold):
        asked.append((checkpoint, dataset, threshold))
        shutil.copytree(compact_bundle_path, output)

    monkeypatch.setattr(scripts[0], "export", exported)

    def made(*, bundle=exported, threshold="0.9", choice=None):
        monkeypatch.setattr(scripts[0], "export", bundle)
        given = {"recipe": tmp_path / "recipe.toml", "threshold": threshold, "version": "1.2.3", "choice": choice}
        return scripts[0].make(run, tmp_path / "set", folder=tmp_path / "made", **given)

    made.asked = asked
    return made


def test_a_whole_distribution_is_made(make, scripts, tmp_path, run) -> None:
    size = make()
    made = tmp_path / "made"
    assert make.asked == [(run, tmp_path / "set", "0.9")] and size > 10_000
    body = tomllib.loads((made / "pyproject.toml").read_text())["project"]
    assert body["version"] == "1.2.3"
    assert body["entry-points"]["dovit.models"] == {"road-small": "dovit_model_road_small"}
    assert all((made / name).is_file() for name in (*body["license-files"], body["readme"], "classes.json"))
    assert "Apache License" in (made / "LICENSE-APACHE").read_text()
    module = {}
    exec((made / "dovit_model_road_small" / "__init__.py").read_text(), module | {"__file__": "x"}, module)
    assert module["LICENSE_LINE"].startswith("road-small: weights ")
    card = (made / "MODEL_CARD.md").read_text()
    for text in ("Trained on 266 of its 367", "seed 2: 3 steps in 1.5 minutes", "ab" * 32, "recipes/recipe.toml"):
        assert text in " ".join(card.split())
    # No result, no section; and nothing is left of the template.
    assert "## Figures" not in card and "{" not in card and "\n\n\n" not in card
    # Made again as the default model it stays the default one.
    project = made / "pyproject.toml"
    project.write_text(project.read_text().replace("road-small = ", f"{scripts[0].DEFAULT_LINE}road-small = "))
    make()
    assert set(tomllib.loads(project.read_text())["project"]["entry-points"]["dovit.models"]) == {
        "road-small",
        "default",
    }


EXPORT = """
import sys
output = sys.argv[sys.argv.index("-o") + 1]
print(output)
print("verified against PyTorch")
if "--quiet" not in sys.argv:
    print("next: dovit run images --bundle", output, file=sys.stderr)
"""
"""What `dovit export` prints, in place of it."""


def test_no_line_names_the_folder_that_is_renamed_at_the_end(scripts, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(scripts[0], "DOVIT", [sys.executable, "-c", EXPORT])
    scripts[0].export(tmp_path / "run", tmp_path / "set", tmp_path / "aside" / "x.dovit", threshold=None)
    printed = capfd.readouterr()
    assert printed.out == "verified against PyTorch\n"
    assert "exporting" in printed.err and "aside" not in printed.err


def test_what_is_published_is_what_was_frozen(make, scripts, run, monkeypatch) -> None:
    choice, asked = SimpleNamespace(threshold_text="0.8,0.7"), []
    monkeypatch.setattr(scripts[0], "check_bundle", lambda *given: asked.append(given[:2]))
    make(threshold=None, choice=choice)
    assert make.asked[-1][2] == "0.8,0.7" and asked == [(choice, run / "checkpoint")]


def test_what_must_not_be_published_is_refused(make, scripts, run, tmp_path, tiny_bundle_path, monkeypatch) -> None:
    def whole(checkpoint, dataset, output, *, threshold):
        shutil.copytree(tiny_bundle_path, output)

    with pytest.raises(CheckError, match="rounded weights"):
        make(bundle=whole)
    with pytest.raises(CheckError, match="has chosen no thresholds"):
        make(threshold=None)
    with monkeypatch.context() as patched, pytest.raises(CheckError, match="1,000 are allowed"):
        patched.setattr(scripts[0], "MOST_BYTES", 1000)
        make()
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("3", "4"))
    with pytest.raises(CheckError, match=r"another recipe than .*recipe.toml: it differs in steps"):
        make()
    shutil.rmtree(run / "checkpoint")
    with pytest.raises(InputError, match="no folder of a `dovit train` run"):
        make()
    # Nothing of all that can be installed.
    assert not (tmp_path / "made" / "pyproject.toml").exists()
    assert not (tmp_path / "made" / "dovit_model_road_small").exists()


def test_the_card_has_the_figures_of_eval(make, scripts, tmp_path, dovit) -> None:
    make()
    bundle, results = tmp_path / "made" / "dovit_model_road_small" / "road-small.dovit", tmp_path / "results"
    results.mkdir()
    data, report = write_labelled(tmp_path / "set"), results / "road-small-val.json"
    done = dovit("eval", bundle, data, "--controls", "--threads", 1, "--json", report)
    assert done.returncode == 0, done.stderr
    text = scripts[1].card(tmp_path / "made", results)
    found = json.loads(report.read_text())
    dynamic, controls = found["dynamic"], found["controls"]
    (row,) = (line for line in text.splitlines() if line.startswith("| **stopped by the gates**"))
    assert row == (
        f"| **stopped by the gates** | {dynamic['miou']:.1f} | {dynamic['boundary_iou']:.1f} | {dynamic['drop']:.2f} "
        f"| {dynamic['flops_saved']:.0%} |"
    )
    assert f"{controls['position']['rule_gain']:.2f} over position alone" in text and "| class 3 |" in text
    (smaller, *_) = controls["smaller_input"]
    height, width = smaller["size"]
    worth = f"{smaller['rule_gain']:.2f} at {height}x{width} ({smaller['flops_saved']:.0%} saved)"
    assert f"Over the same weights, dense and smaller: {worth}" in text
    # The look that the protocol takes wraps the same report.
    drive, read = results / "road-small-look.json", found | {"split": "train:0006R0"}
    drive.write_text(json.dumps({"frozen": "x", "tried": 5, "looks_before": 0, "eval": read}))
    text = scripts[1].card(tmp_path / "made", results)
    assert "0006R0: mIoU" in text and "elsewhere: 5; looks before the choice: 0." in text
    for content, words in (
        (read, "no look of benchmarks/protocol/frozen.py"),
        ({"frozen": "x", "eval": read | {"source_sha256": "0" * 64}}, "measured with other weights"),
        (found, "another result of val"),
    ):
        drive.write_text(json.dumps(content))
        with pytest.raises(InputError, match=words):
            scripts[1].card(tmp_path / "made", results)
    drive.unlink()
    report.write_text(json.dumps(found | {"thresholds": [0.5]}))
    with pytest.raises(InputError, match=r"road-small-val.json: measured at thresholds \[0.5\]"):
        scripts[1].card(tmp_path / "made", results)


@pytest.mark.skipif(not (FOLDER / "pyproject.toml").exists(), reason="the distribution is not made yet")
def test_the_committed_card_is_the_generated_one(scripts) -> None:
    assert (FOLDER / "MODEL_CARD.md").read_text() == scripts[1].card(FOLDER, scripts[1].RESULTS)
