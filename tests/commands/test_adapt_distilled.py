"""`dovit adapt --minutes`: the network learns from its own dense answers; killed or stopped, it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from dovit_deploy.adapt import adapt as room
from dovit_deploy.adapt import fitting
from dovit_deploy.adapt.division import divided
from dovit_deploy.adapt.images import given_images
from dovit_deploy.bundle.bundle import WEIGHTS, Bundle
from dovit_deploy.cli import _application, _run
from dovit_deploy.commands import adapt_steps
from dovit_deploy.errors import CheckError, OutputFailed
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_deploy.train import loop
from tests.adapt.dense_networks import saved_quiet, write_images
from tests.bundles import saved_tiny
from tests.tiny import tiny_spec

Call = Callable[..., tuple[int, str, str]]
MINUTES = ("--minutes", "0.03", "--clock", "processor")
"""Of this process, so that a busy machine changes nothing."""
FOLDER = Path("made.distilling")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs `dovit adapt ... -o made.dovit` in this process, in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(fitting, "STEPS", 100)

    def run(*words: object) -> tuple[int, str, str]:
        code = _run(_application(), ["adapt", *map(str, words), "-o", "made.dovit", "--gates", "1"])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run


@pytest.fixture
def given(tmp_path: Path) -> tuple[Path, Path]:
    """A dense network and images."""
    return saved_quiet(tmp_path / "dense", depth=2), write_images(tmp_path / "images", 24)


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def steps() -> list[int]:
    return [json.loads(line)["step"] for line in (FOLDER / "log.jsonl").read_text().splitlines()]


def test_a_network_learns_to_do_without_what_stopped(call: Call, given: tuple[Path, Path], tmp_path: Path) -> None:
    # Its stem has norms in training form, which are folded at the end.
    dense, images = saved_quiet(tmp_path / "network", depth=2, stem="conv"), given[1]
    code, out, err = call(dense, images, *MINUTES, "--keep-dense", "--json", "report.json")
    assert code == 0, err
    # What was kept on the way is gone, and both bundles are whole.
    assert names() == ["made-dense.dovit", "made.dovit", "report.json"]
    made, kept, report = (
        Bundle.open("made.dovit"),
        Bundle.open("made-dense.dovit"),
        json.loads(Path("report.json").read_text()),
    )
    assert report["original"] == str(kept.path) and not kept.manifest.spec.gates and str(kept.path) in out
    run = report["distilled"]
    assert (run["minutes"], run["clock"], run["seed"], run["images"]) == (0.03, "processor", 0, 12)
    assert run["steps"] > 2 and 1.5 < run["seconds"] < 30
    # Only what stands behind the gate has changed, and what stands before it has not, bit for bit.
    one, other = (safetensors.torch.load_file(bundle.path / WEIGHTS) for bundle in (made, kept))
    changed = {name.rpartition(".")[0] for name in other if not one[name].equal(other[name])}
    assert any(name.startswith("blocks.1.") for name in changed) and any(name.startswith("head") for name in changed)
    assert not [name for name in changed if name.startswith(("stem", "positions", "extra_tokens", "blocks.0."))]
    # The agreement that it states is the one that anybody finds who runs both bundles on the held-out images.
    opened = given_images(str(images), limit=None, folder=tmp_path, advance=lambda: None)
    division = divided(opened.images)
    with Session(made, threads=1) as first, Session(kept, threads=1) as second:
        tuned, original = Predictor(first), Predictor(second)
        same = []
        for index in division.held_out:
            rgb = division.judged.image(index).rgb
            pair = [one.predict(rgb, dense=True).class_map for one in (tuned, original)]
            same.append(np.mean(pair[0] == pair[1]))
    assert report["dense_agreement"] == pytest.approx(np.mean(same), abs=1e-12)
    assert f"with nothing stopped {np.mean(same):.2%}" in out
    nothing, *ways = report["tables"][0]["ways"]
    assert (nothing["kind"], nothing["flops_saved"]) == ("dense", 0) and nothing["agreement"] == report[
        "dense_agreement"
    ]
    # A smaller input is one of the network as it was given.
    assert {way["kind"] for way in ways} >= {"static", "smaller-input"}


@pytest.mark.slow
def test_it_is_stopped_at_any_step_and_goes_on(
    call: Call, given: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, images = given

    def stopped(*words: object, **named: object) -> None:
        raise KeyboardInterrupt

    # Before anything is fitted: what it began with is known, and nothing else.
    with monkeypatch.context() as patched:
        patched.setattr(room, "fitted_parts", stopped)
        code, _, err = call(dense, images, *MINUTES, "--quiet")
    assert code == 130 and "made.distilling keeps what was done, and the same command with --resume goes on" in err
    assert names() == ["made.distilling"] and [path.name for path in FOLDER.iterdir()] == ["adapt.json"]
    # Not by accident over what was begun, and with nothing else than what it began with.
    others = write_images(tmp_path / "others", 24, seed=5)
    another = saved_tiny(tiny_spec(head="linear", gates=(), depth=2, size=(48, 64)), tmp_path / "another")
    promise = ("--max-disagree", "0.25", "--confidence", "0.76", "--unit", "image")
    darker = Path(shutil.copytree(dense, tmp_path / "darker"))
    config = json.loads((darker / "config.json").read_text())
    config["preprocessing"]["mean"][0] += 5
    (darker / "config.json").write_text(json.dumps(config))
    for words, said in (
        ((dense, images, *MINUTES), "made.distilling holds a run that was not finished; go on with it: --resume"),
        ((dense, others, "--resume"), "has other images than the run began with"),
        ((dense, images, "--resume", "--limit", "20"), "has other images than the run began with"),
        ((dense, images, "--resume", *promise), "which are learnt from (--limit, --max-disagree, --unit)"),
        ((another, images, "--resume"), "the run began with another network, mean or std"),
        ((darker, images, "--resume"), "another network, mean or std"),
        ((dense, images, "--resume", "--minutes", "5"), "--minutes is 0.03 in the run and 5.0 is given"),
        ((dense, images, "--resume", "--seed", "3"), "--seed is 0 in the run and 3 is given"),
        ((dense, images, "--resume", "--clock", "wall"), "--clock is processor in the run and wall is given"),
        ((dense, images, "--resume", "--size", "32x48"), "other --gates, --answer or --size"),
        ((dense, images, "--resume", "--answer", "lens"), "other --gates, --answer or --size"),
    ):
        code, _, err = call(*words)
        assert code == 2 and said in err, err
    # At its third step, by Ctrl-C.
    step = loop.Trainer.train_step

    def third(trainer: loop.Trainer, batch: object) -> object:
        if trainer.step == 2:
            signal.raise_signal(signal.SIGINT)
        return step(trainer, batch)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "train_step", third)
        code, _, err = call(dense, images, "--resume")
    assert code == 130 and "stopped after step 3; the same command with --resume goes on" in err
    assert names() == ["made.distilling"] and steps() == [1, 2, 3]
    assert sorted(path.name for path in FOLDER.iterdir()) == [
        "adapt.json",
        "fitted.safetensors",
        "log.jsonl",
        "state.pt",
    ]
    # After the last one: nothing is trained or fitted again.
    with monkeypatch.context() as patched:
        patched.setattr(adapt_steps, "exported_draft", stopped)
        assert call(dense, images, "--resume")[0] == 130

    def converted(*words: object, **named: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise RuntimeError("conversion failed") from error

    # Some libraries make errors of their own of Ctrl-C.
    with monkeypatch.context() as patched:
        patched.setattr(adapt_steps, "exported_draft", converted)
        code, _, err = call(dense, images, "--resume")
    assert code == 130 and "made.distilling keeps what was done; --resume goes on" in err

    def unfit(*words: object, **named: object) -> None:
        raise CheckError("not good enough")

    with monkeypatch.context() as patched:
        patched.setattr(adapt_steps, "exported_draft", unfit)
        code, _, err = call(dense, images, "--resume")
    assert code == 4 and "not good enough" in err and "made.distilling keeps what was done; --resume goes on" in err
    # Of two bundles that are written at the end none is left alone, in the way of what goes on.
    write = adapt_steps.write_adapted

    def full(draft: Bundle, *words: object, **named: object) -> Bundle:
        if draft.path.name == "made.dovit":
            raise OutputFailed("cannot write made.dovit: No space left on device")
        return write(draft, *words, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(adapt_steps, "write_adapted", full)
        code, _, err = call(dense, images, "--resume", "--keep-dense")
    assert code == 5 and "made.distilling keeps what was done; --resume goes on" in err
    assert names() == ["made.distilling"]
    done = steps()
    assert done == list(range(1, len(done) + 1)) and len(done) > 3
    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "train_step", lambda *words: pytest.fail("it was trained again"))
        patched.setattr(room, "fitted_parts", lambda *words: pytest.fail("it was fitted again"))
        code, _, err = call(dense, images, "--resume", "--json", "report.json")
    assert code == 0, err
    assert names() == ["made.dovit", "report.json"]
    assert json.loads(Path("report.json").read_text())["distilled"]["steps"] == len(done)


SAVING = """
import sys
from dovit_deploy.adapt import distil, fitting
distil.SAVE_SECONDS, fitting.STEPS = (0.01, 0.01), 20
from dovit_deploy.cli import _application, _run
sys.exit(_run(_application(), sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_it_goes_on_from_its_last_state(
    call: Call, given: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "adapt",
        *map(str, given),
        "-o",
        "made.dovit",
        "--gates",
        "1",
        "--minutes",
        "0.5",
        "--clock",
        "processor",
        "--quiet",
    ]
    process = subprocess.Popen([sys.executable, "-c", SAVING, *words])
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (FOLDER / "state.pt").exists():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and (FOLDER / "state.pt").exists()
    assert "made.dovit" not in names()
    began: list[int] = []

    def noted(trainer: loop.Trainer, batch: object) -> object:
        began.append(trainer.step)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Trainer, "train_step", noted)
    code, _, err = call(*given, "--resume")
    assert code == 130 and "--resume goes on" in err
    assert began[0] >= 1
    # What the killed process left half done is tidied up.
    assert names() == ["made.distilling"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--minutes", "0.00001"), 2, "to see 12 images once takes about"),
        (("--minutes", "0"), 2, "--minutes: 0 given; a number above 0"),
        (("--minutes", "nan"), 2, "--minutes: nan given"),
        (("--keep-dense",), 2, "--keep-dense is for --minutes M"),
        (("--minutes", "1", "--keep-dense", "--json", "made-dense.dovit"), 2, "this is the output folder made-dense"),
        (("--minutes", "1", "--json", "made.distilling"), 2, "this is the output folder made.distilling"),
        (("--seed", "1"), 2, "--seed is for --minutes M"),
        (("--minutes", "1", "--clock", "sun"), 2, "--clock: 'sun' given; allowed: wall, processor"),
        (("--resume",), 2, "there is nothing to go on with at made.distilling; begin with --minutes M"),
    ],
)
def test_what_cannot_be_distilled_is_said_before(
    call: Call, given: tuple[Path, Path], words: tuple[str, ...], code: int, said: str
) -> None:
    found, _, err = call(*given, *words)
    assert (found, said in err) == (code, True), err
    assert names() == []


def test_networks_that_answer_by_queries_are_not_fine_tuned(
    call: Call, given: tuple[Path, Path], tmp_path: Path
) -> None:
    network = saved_tiny(tiny_spec(head="query", gates=(), depth=4, size=(48, 64)), tmp_path / "eomt")
    code, _, err = call(network, given[1], "--minutes", "1")
    assert code == 2 and "answers by queries" in err and names() == []


def test_a_folder_of_somebody_else_is_not_replaced(call: Call, given: tuple[Path, Path]) -> None:
    FOLDER.mkdir()
    (FOLDER / "notes.txt").write_text("mine")
    for more in ((), ("--overwrite",)):
        code, _, err = call(*given, *MINUTES, *more)
        assert code == 2 and "made.distilling" in err
    assert [path.name for path in FOLDER.iterdir()] == ["notes.txt"]
    shutil.rmtree(FOLDER)
