"""Every line of the exit-code table, through the real command line: clear errors, nothing lost or half there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dovit_deploy.checkpoints.own_format import OwnConfig, save_checkpoint
from tests.bundles import tiny_checkpoint
from tests.conftest import Run
from tests.sources.clips import make_clip
from tests.tiny import tiny_spec


def image_file(path: Path, size: tuple[int, int] = (80, 60), mode: str = "RGB") -> Path:
    random = np.random.default_rng(1)
    Image.fromarray(random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(path)
    return path


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The exit code, one or two lines on stderr, no traceback, the words in it."""
    assert result.returncode == code, f"{result.returncode}\n{result.stdout}\n{result.stderr}"
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def usage(result: subprocess.CompletedProcess[str], word: str) -> None:
    """Refused by the option parser or by us, with exit code 2."""
    assert result.returncode == 2, f"{result.returncode}\n{result.stderr}"
    assert word in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return image_file(tmp_path / "picture.png")


@pytest.fixture
def runs(dovit: Run, tiny_bundle_path: Path):
    """`dovit run` with the tiny bundle."""

    def run(*arguments: object, **rest: object) -> subprocess.CompletedProcess[str]:
        return dovit("run", "--threads", 1, "--bundle", tiny_bundle_path, *arguments, **rest)

    return run


def nothing_left(tmp_path: Path, *names: str) -> None:
    """Only the named entries lie in the folder: no output, no `.partial`."""
    assert {entry.name for entry in tmp_path.iterdir()} == set(names)


# 0: these work


@pytest.mark.parametrize(
    "make",
    [
        lambda path: image_file(path, (1, 1)),
        lambda path: image_file(path, (1, 37)),
        lambda path: image_file(path, (37, 1)),
        lambda path: image_file(path, mode="L"),
        lambda path: image_file(path, mode="P"),
        lambda path: image_file(path, mode="LA"),
        lambda path: image_file(path, mode="RGBA"),
        lambda path: image_file(path.with_suffix(".tif"), mode="CMYK"),
        lambda path: sixteen_bit(path),
    ],
    ids=["1x1", "1x37", "37x1", "grey", "palette", "LA", "RGBA", "CMYK", "16-bit"],
)
def test_odd_images_work(runs, tmp_path: Path, make) -> None:
    source = make(tmp_path / "odd.png")
    result = runs(source, "-o", "out", "--save", "overlay,masks,tokens")
    assert result.returncode == 0, result.stderr
    with Image.open(source) as given, Image.open(tmp_path / "out" / "masks" / "odd.png") as mask:
        assert mask.size == given.size
        assert mask.mode == "P"
        assert np.asarray(mask).max() < 5
    for kind in ("overlay", "tokens"):
        assert (tmp_path / "out" / kind / "odd.png").is_file()


def sixteen_bit(path: Path) -> Path:
    Image.fromarray(np.arange(60 * 80, dtype=np.uint16).reshape(60, 80) * 13).save(path)
    return path


def test_a_turned_image_is_put_upright(runs, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert runs(tmp_path / "turned.jpg", "-o", "out").returncode == 0
    with Image.open(tmp_path / "out" / "masks" / "turned.png") as mask:
        assert mask.size == (40, 80)


def test_the_report_is_the_contracts(runs, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", count=6)
    result = runs("clip.mp4", "-o", "out", "--json", "copy.json", "--save", "overlay,masks,tokens")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "frames.jsonl").read_text().splitlines()]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary == json.loads((tmp_path / "copy.json").read_text())
    assert [row["index"] for row in rows] == list(range(6))
    for row in rows:
        assert set(row) == {*("index", "source", "time_s", "windows", "latency_ms", "tokens", "gmacs", "flops_saved")}
        assert set(row["latency_ms"]) == {"decode", "preprocess", "model", "postprocess", "total"}
        assert row["tokens"]["kept"][0] == row["tokens"]["total"] == 21
        assert len(row["tokens"]["kept"]) == 3
        assert row["flops_saved"] == pytest.approx(1 - row["gmacs"]["actual"] / row["gmacs"]["dense"])
    assert (summary["frames"], summary["interrupted"], summary["engine"]) == (6, False, "onnxruntime")
    assert summary["thresholds"] == [0.7, 0.7]
    assert Path(summary["bundle"]).is_absolute()
    assert {"mean", "p50", "p90", "p99"} == set(summary["latency_ms"]["model"]) == set(summary["flops_saved"])
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    masks = {f"masks/{number:06d}.png" for number in range(6)}
    assert names == masks | {"frames.jsonl", "summary.json", "overlay.mp4", "tokens.mp4"}


def test_two_files_of_one_stem_do_not_overwrite_each_other(runs, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.jpg", "b.png"):
        image_file(tmp_path / "in" / name)
    assert runs("in", "-o", "out").returncode == 0
    assert {path.name for path in (tmp_path / "out" / "masks").iterdir()} == {"a.png.png", "a.jpg.png", "b.png"}


def test_default_outputs_are_numbered(runs, image: Path, tmp_path: Path) -> None:
    for _ in range(3):
        assert runs(image).returncode == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"picture", "picture-2", "picture-3"}


# 2: usage


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--engine", "abacus"), "abacus"),
        (("--precision", "fp7"), "fp7"),
        (("--no-such-flag",), "--no-such-flag"),
        (("--threshold", "1.5"), "[0, 1]"),
        (("--threshold", "-0.1"), "[0, 1]"),
        (("--threshold", "nan"), "[0, 1]"),
        (("--threshold", "0.5,0.5,0.5"), "2 gates"),
        (("--threshold", "half"), "half"),
        (("--dense", "--threshold", "0.5"), "--dense"),
        (("--save", "pictures"), "pictures"),
        (("--start", "1"), "--start"),
        (("--every", "0"), "--every"),
        (("--max-frames", "0"), "--max-frames"),
        (("--threads", "0"), "--threads"),
        (("--json", "no/such/folder/x.json"), "--json"),
    ],
)
def test_usage(runs, image: Path, tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    usage(runs(image, "-o", "out", *arguments), word)
    nothing_left(tmp_path, image.name)


def test_an_existing_output_is_refused_and_kept(runs, image: Path, tmp_path: Path) -> None:
    assert runs(image, "-o", "out", "--save", "masks").returncode == 0
    refused(runs(image, "-o", "out"), 2, "--overwrite")
    assert not (tmp_path / "out" / "overlay").exists()
    assert runs(image, "-o", "out", "--overwrite").returncode == 0
    assert (tmp_path / "out" / "overlay" / "picture.png").is_file()


@pytest.mark.parametrize("output", ["in", ".", "in/picture.png"])
def test_output_that_is_or_holds_the_input(runs, tmp_path: Path, output: str) -> None:
    (tmp_path / "in").mkdir()
    source = image_file(tmp_path / "in" / "picture.png")
    data = source.read_bytes()
    refused(runs("in/picture.png" if output != "in" else "in", "-o", output, "--overwrite"), 2, "input")
    assert source.read_bytes() == data


def test_a_glob_that_reaches_into_the_output(runs, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = image_file(tmp_path / "in" / "picture.png")
    refused(runs("i*/*.png", "-o", "in", "--overwrite"), 2, "in is not replaced")
    assert source.is_file()


def test_a_report_that_is_the_input(runs, image: Path) -> None:
    data = image.read_bytes()
    refused(runs(image, "-o", "out", "--json", image), 2, "--json")
    assert image.read_bytes() == data


# 3: input


def test_a_missing_source(runs, tmp_path: Path) -> None:
    refused(runs("absent.mp4", "-o", "out"), 3, "absent.mp4")
    nothing_left(tmp_path)


def test_a_text_file_called_mp4(runs, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_text("once upon a time\n" * 50)
    refused(runs("film.mp4", "-o", "out"), 3, "film.mp4")
    nothing_left(tmp_path, "film.mp4")


def test_an_empty_folder(runs, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(runs("empty", "-o", "out"), 3, "empty")
    nothing_left(tmp_path, "empty")


def test_an_undecodable_image(runs, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 100)
    refused(runs("bad.png", "-o", "out"), 3, "bad.png")


def test_a_folder_of_nothing_but_bad_images(runs, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_bytes(b"nonsense")
    result = runs("in", "-o", "out")
    assert result.returncode == 3
    assert not (tmp_path / "out").exists()


def test_a_picture_of_fifty_thousand_squared(runs, tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\x00" * 1000)), (b"IEND", b"")]
    data = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    refused(runs("huge.png", "-o", "out"), 3, "--max-pixels")
    nothing_left(tmp_path, "huge.png")


def test_a_camera_that_is_not_there(runs) -> None:
    refused(runs("97", "-o", "out"), 3, "97")


def test_a_stream_that_does_not_answer(runs) -> None:
    refused(runs("rtsp://127.0.0.1:9/none", "-o", "out"), 3, "rtsp://127.0.0.1:9/none")


def test_a_missing_bundle(dovit: Run, image: Path) -> None:
    refused(dovit("run", image, "--bundle", "absent.dovit"), 3, "absent.dovit")


def test_a_missing_checkpoint_and_a_missing_config(dovit: Run, tmp_path: Path) -> None:
    refused(dovit("export", "absent.pth"), 3, "absent.pth")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    refused(dovit("export", "x.safetensors", "--config", "absent.json"), 3, "absent.json")


def test_configuration_values_that_cannot_be_determined_are_named(dovit: Run, tmp_path: Path) -> None:
    state = {
        "backbone.cls_token": torch.zeros(1, 1, 8),
        "backbone.pos_embed": torch.zeros(1, 5, 8),
        "backbone.patch_embed.projection.weight": torch.zeros(8, 3, 16, 16),
    }
    save_file(state, tmp_path / "x.safetensors")
    result = dovit("export", "x.safetensors")
    assert result.returncode in (3, 6), result.stderr
    assert "Traceback" not in result.stderr
    nothing_left(tmp_path, "x.safetensors")


# 4: a check failed


def test_a_parity_check_that_proves_nothing(dovit: Run, tmp_path: Path) -> None:
    """All confidences equal: no threshold splits the tokens, so decisions cannot be compared."""
    checkpoint = tiny_checkpoint(tiny_spec(gates=(1,), depth=2, head="linear", gate="linear"))
    state = dict(checkpoint.state)
    state["gates.0.head.classifier.weight"] = torch.zeros_like(state["gates.0.head.classifier.weight"])
    save_own(checkpoint, state, tmp_path / "flat")
    refused(dovit("export", "flat", "-o", "flat.dovit"), 4, "proves nothing")
    nothing_left(tmp_path, "flat")


def save_own(checkpoint, state: dict[str, torch.Tensor], folder: Path) -> None:
    config = OwnConfig(
        spec=checkpoint.spec,
        preprocessing=checkpoint.preprocessing,
        classes=checkpoint.classes,
        thresholds=checkpoint.thresholds,
    )
    save_checkpoint(folder, config, state)


# 5: environment


def test_an_engine_whose_package_is_missing(runs, image: Path, tmp_path: Path) -> None:
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "onnxruntime.py").write_text("raise ImportError('not here')\n")
    result = runs(image, "-o", "out", PYTHONPATH=str(tmp_path / "block"))
    refused(result, 5, "onnxruntime", "pip install 'dovit-deploy[cpu]'")
    assert not (tmp_path / "out").exists()


# 6: not to be trusted


class Bomb:
    """Executes code when unpickled."""

    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_a_pickle_that_executes_code(dovit: Run, tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": torch.zeros(1)}, "meta": Bomb()}, tmp_path / "bomb.pth")
    refused(dovit("export", "bomb.pth"), 6, "pickle")
    with (tmp_path / "plain.pth").open("wb") as file:
        pickle.dump(Bomb(), file)
    refused(dovit("export", "plain.pth"), 6)
    nothing_left(tmp_path, "bomb.pth", "plain.pth")


@pytest.mark.parametrize("harm", ["missing", "unexpected", "misshaped", "nan", "inf"])
def test_a_checkpoint_that_does_not_fit(dovit: Run, tmp_path: Path, harm: str) -> None:
    checkpoint = tiny_checkpoint(tiny_spec(gates=(), depth=1, head="linear"))
    save_own(checkpoint, checkpoint.state, tmp_path / "own")
    state = load_file(tmp_path / "own" / "model.safetensors")
    name = "blocks.0.mlp.expand.bias"
    if harm == "missing":
        del state[name]
    elif harm == "unexpected":
        state[name := "blocks.7.surprise"] = torch.zeros(1)
    elif harm == "misshaped":
        state[name] = torch.zeros(3)
    else:
        state[name][0] = float(harm)
    save_file(state, tmp_path / "own" / "model.safetensors")
    refused(dovit("export", "own", "-o", "x.dovit"), 6, name)
    nothing_left(tmp_path, "own")


def flip(path: Path) -> None:
    data = bytearray((path / "weights.safetensors").read_bytes())
    data[-5] ^= 4
    (path / "weights.safetensors").write_bytes(data)


def rewrite(path: Path, **changes: object) -> None:
    from tests.bundle.test_bundle import rewritten

    rewritten(path, **changes)


HARMS = {
    "flipped byte": flip,
    "missing file": lambda path: (path / "stage1.ort.onnx").unlink(),
    "unlisted file": lambda path: (path / "extra.bin").write_bytes(b"x"),
    "unknown version": lambda path: rewrite(path, version=2),
    "path that leaves": lambda path: rewrite(path, files={"../x": {"sha256": "0" * 64, "bytes": 0}}),
    "manifest cut short": lambda path: (path / "manifest.json").write_text("{"),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
@pytest.mark.parametrize("verb", ["run", "bench", "inspect"])
def test_a_harmed_bundle(dovit: Run, bundle_copy: Path, image: Path, tmp_path: Path, harm, verb: str) -> None:
    harm(bundle_copy)
    arguments = (image, "--bundle", bundle_copy, "-o", "out") if verb == "run" else (bundle_copy,)
    refused(dovit(verb, *arguments), 6)
    assert not (tmp_path / "out").exists()


# 7: finished, but some inputs failed


def test_a_bad_file_in_a_folder(runs, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image_file(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"nonsense")
    result = runs("in", "-o", "out")
    assert result.returncode == 7, result.stderr
    assert "bad.png" in result.stderr
    assert (tmp_path / "out" / "masks" / "good.png").is_file()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["frames"] == 1


def test_a_truncated_video(runs, tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mkv", count=60, noise=True)
    data = whole.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    result = runs("cut.mkv", "-o", "out")
    assert result.returncode == 7, result.stderr
    frames = json.loads((tmp_path / "out" / "summary.json").read_text())["frames"]
    assert 0 < frames < 60


# 130: interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupt_leaves_a_playable_file_and_a_valid_report(
    tiny_bundle_path: Path, tmp_path: Path, number: signal.Signals
) -> None:
    make_clip(tmp_path / "long.mp4", count=3000, size=(240, 320))
    arguments = [
        "run",
        "long.mp4",
        "--bundle",
        str(tiny_bundle_path),
        "-o",
        "out",
        "--threads",
        "1",
        "--engine",
        "onnxruntime",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "dovit_deploy", *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(
        report.stat().st_size > 2000 for report in tmp_path.glob("out.*.partial/frames.jsonl")
    ):
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    rows = (tmp_path / "out" / "frames.jsonl").read_text().splitlines()
    assert summary["interrupted"] is True
    assert 0 < summary["frames"] == len(rows) < 3000
    assert frames_of(tmp_path / "out" / "overlay.mp4") == len(rows)
    assert not list(tmp_path.glob("out.*"))
    shutil.rmtree(tmp_path / "out")


def frames_of(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_rates_stay_exact(runs, tmp_path: Path) -> None:
    import av

    make_clip(tmp_path / "ntsc.mp4", count=8, rate=Fraction(30000, 1001))
    assert runs("ntsc.mp4", "-o", "out").returncode == 0
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
