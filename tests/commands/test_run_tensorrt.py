"""`dovit run --engine tensorrt-rtx` through the command line: with a fake GPU, and every way in which it is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.cli import _application, _run
from dovit_deploy.engines.cuda import driver
from dovit_deploy.engines.plugins.library import VARIABLE
from dovit_deploy.engines.tensorrt import package as tensorrt_package
from dovit_deploy.engines.tensorrt import run as tensorrt_run
from dovit_deploy.engines.tensorrt.store import EngineCache, EngineSet, copy_into_bundle
from tests.conftest import Run
from tests.datasets.labelled_folder import write_labelled
from tests.engines.tensorrt.bindings import PLAIN
from tests.engines.tensorrt.fake_tensorrt import fake_tensorrt
from tests.engines.tensorrt.run_fakes import Bench, built

RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not RTX, reason="tensorrt_rtx is not installed (requirements-dev.txt)")
NO_DRIVER = not Path("/proc/driver/nvidia/version").exists()


@pytest.fixture(scope="module")
def sound(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    """Engines of the tiny bundle for the fake TensorRT; read them, do not change them."""
    home = tmp_path_factory.mktemp("xdg") / "dovit-deploy"
    return built(Bundle.open(tiny_bundle_path), EngineCache(home), buckets=(8, 16))


@pytest.fixture
def home(sound: EngineSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the cache with them, as the command line finds it."""
    shutil.copytree(sound.folder.parents[1], tmp_path / "xdg" / "dovit-deploy")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "xdg" / "dovit-deploy"


@pytest.fixture
def folder(home: Path, sound: EngineSet) -> Path:
    """The engines, to be damaged."""
    return home / "engines" / sound.folder.name


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 72, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    return tmp_path / "x.png"


@pytest.fixture
def gpu(sound: EngineSet, home: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A fake GPU with a fake TensorRT, in this process."""
    return with_gpu(Bench(sound, home), monkeypatch)


def with_gpu(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for module in (tensorrt_run, tensorrt_package):
        monkeypatch.setattr(module, "tensorrt_package", lambda engine: fake_tensorrt(bench.state))
    monkeypatch.setattr(tensorrt_run, "opened_memory", bench.opened_memory)
    # The registry checks whether it can be imported at all.
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return bench


def command(*arguments: object) -> int:
    return _run(_application(), [str(argument) for argument in arguments])


def run(image: Path, bundle: Path, *arguments: object, engine: str = "tensorrt-rtx") -> int:
    return command("run", image, "--bundle", bundle, "--engine", engine, "-o", "out", "--quiet", *arguments)


def test_an_image(gpu: Bench, tiny_bundle_path: Path, image: Path, tmp_path: Path, capsys) -> None:
    assert run(image, tiny_bundle_path) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["engine"], summary["precision"], summary["frames"]) == ("tensorrt-rtx", "fp16", 1)
    (row,) = map(json.loads, (tmp_path / "out" / "frames.jsonl").read_text().splitlines())
    assert row["tokens"]["kept"][0] == 21
    assert gpu.memory.closed and not gpu.memory.live


def test_an_image_with_plain_tensorrt(
    tiny_bundle_path: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The newest version has `create_runtime_config`, too, and little of what TensorRT for RTX has behind it."""
    home = tmp_path / "xdg" / "dovit-deploy"
    engines = built(Bundle.open(tiny_bundle_path), EngineCache(home), version=PLAIN, buckets=(8,))
    bench = with_gpu(Bench(engines, home, version=PLAIN), monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    assert run(image, tiny_bundle_path, engine="tensorrt") == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["engine"] == "tensorrt"
    assert bench.memory.closed and not bench.memory.live


def test_out_of_memory_on_the_way(gpu: Bench, tiny_bundle_path: Path, image: Path, tmp_path: Path, capsys) -> None:
    """The frames that were done stay, whole, as they do on a full disk."""
    (tmp_path / "many").mkdir()
    for number in range(6):
        shutil.copyfile(image, tmp_path / "many" / f"{number}.png")
    stages, frames = 3, 4
    gpu.memory.launches_left = stages * frames + 1
    words = ("out of memory", f"done until then: {frames} images, in out")
    refused(capsys, 5, run(tmp_path / "many", tiny_bundle_path), *words)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["frames"] == frames and summary["interrupted"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "frames.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(frames))
    assert not list(tmp_path.glob("out.*"))
    assert gpu.memory.closed and not gpu.memory.live
    # Not one frame: nothing is left behind.
    shutil.rmtree(tmp_path / "out")
    gpu.memory.launches_left = 0
    refused(capsys, 5, run(tmp_path / "many", tiny_bundle_path), "out of memory")
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_rtx_does_not_support(gpu: Bench, folder: Path, tiny_bundle_path: Path, image: Path, capsys) -> None:
    gpu.memory.device = driver.GpuDevice("NVIDIA H200", "9.0")
    refused(
        capsys, 5, run(image, tiny_bundle_path), "does not support this GPU", "use --engine tensorrt, or --engine cuda"
    )
    shutil.rmtree(folder)
    refused(
        capsys, 5, run(image, tiny_bundle_path), "does not support this GPU", "use --engine tensorrt, or --engine cuda"
    )


def test_bench_beside_another_engine(gpu: Bench, tiny_bundle_path: Path, image: Path, tmp_path: Path, capsys) -> None:
    arguments = ("--engine", "onnxruntime,tensorrt-rtx", "--frames", image, "--repeat", 1, "--json", "b.json")
    assert command("bench", tiny_bundle_path, *arguments) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "b.json").read_text())["results"]
    assert [(entry["engine"], entry["precision"]) for entry in results] == [
        ("onnxruntime", "fp32"),
        ("tensorrt-rtx", "fp16"),
    ]


def test_eval(gpu: Bench, tiny_bundle_path: Path, tmp_path: Path, capsys) -> None:
    write_labelled(tmp_path / "set", images=2)
    arguments = ("--engine", "tensorrt-rtx", "--cuda-memory", "pycuda", "--json", "e.json")
    assert command("eval", tiny_bundle_path, "set", *arguments) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "e.json").read_text())
    assert (report["engine"], report["precision"], report["images"]) == ("tensorrt-rtx", "fp16", 2)
    assert gpu.memory.closed and not gpu.memory.live


def refused(capsys, code: int, returned: int, *words: str) -> str:
    error = capsys.readouterr().err
    assert returned == code, error
    lines = error.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), error
    for word in words:
        assert word in error
    return error


def test_none_built(gpu: Bench, folder: Path, tiny_bundle_path: Path, image: Path, capsys) -> None:
    shutil.rmtree(folder)
    line = f"build them with: dovit build {tiny_bundle_path} --engine tensorrt-rtx --precision fp16"
    refused(capsys, 5, run(image, tiny_bundle_path), "has no engines for tensorrt-rtx 1.7.1 in fp16", line)
    refused(capsys, 5, run(image, tiny_bundle_path, "--precision", "fp32"), "--precision fp32")
    assert not gpu.state.engines


def test_those_of_a_bundle_run_on_request(
    gpu: Bench, folder: Path, bundle_copy: Path, sound: EngineSet, image: Path, capsys
) -> None:
    copy_into_bundle(sound, Bundle.open(bundle_copy))
    shutil.rmtree(folder)
    refused(capsys, 6, run(image, bundle_copy), "came with the bundle", "--trust-engine")
    assert not gpu.state.engines
    assert run(image, bundle_copy, "--trust-engine") == 0, capsys.readouterr().err
    assert gpu.state.engines


DAMAGE = {
    "truncated": lambda folder: (folder / "stage2.engine").write_bytes(b"short"),
    "flipped": lambda folder: (folder / "stage0.engine").write_bytes(
        bytes([(folder / "stage0.engine").read_bytes()[0] ^ 1]) + (folder / "stage0.engine").read_bytes()[1:]
    ),
    "foreign": lambda folder: shutil.copyfile(folder / "stage2.engine", folder / "stage1.engine"),
    "foreign with its sidecar": lambda folder: [
        shutil.copyfile(folder / f"stage2{end}", folder / f"stage1{end}") for end in (".engine", ".json")
    ],
    "no sidecar": lambda folder: (folder / "stage1.json").unlink(),
    "no engine": lambda folder: (folder / "stage1.engine").unlink(),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_engines(
    damage: str, gpu: Bench, folder: Path, tiny_bundle_path: Path, image: Path, capsys, tmp_path: Path
) -> None:
    DAMAGE[damage](folder)
    refused(capsys, 6, run(image, tiny_bundle_path), "dovit build ")
    assert not gpu.state.engines, "TensorRT saw nothing of it"
    assert not gpu.memory.live
    assert not (tmp_path / "out").exists()


def test_engines_of_another_version(gpu: Bench, tiny_bundle_path: Path, image: Path, capsys, monkeypatch) -> None:
    newer = fake_tensorrt(gpu.state)
    object.__setattr__(newer, "version", "1.8.0")
    monkeypatch.setattr(tensorrt_run, "tensorrt_package", lambda engine: newer)
    refused(capsys, 6, run(image, tiny_bundle_path), "built by tensorrt-rtx 1.7.1; 1.8.0 is installed")


def test_another_gpu(gpu: Bench, tiny_bundle_path: Path, image: Path, capsys) -> None:
    gpu.memory.device = driver.GpuDevice("another", "7.5")
    refused(capsys, 6, run(image, tiny_bundle_path), "compute capability 8.0, 8.6, this GPU has 7.5")


def test_out_of_memory(gpu: Bench, tiny_bundle_path: Path, image: Path, capsys) -> None:
    gpu.memory.limit = 5000
    refused(capsys, 5, run(image, tiny_bundle_path), "out of GPU memory")


def test_a_plugin_library_that_is_not_there(
    gpu: Bench, tiny_bundle_path: Path, image: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines without plugins do not ask for it."""
    monkeypatch.setenv(VARIABLE, "/nowhere/libdovit_plugins.so")
    assert run(image, tiny_bundle_path) == 0
    refused(capsys, 5, command("build", tiny_bundle_path), f"{VARIABLE}: no plugin library", "make plugins")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--engine", "onnxruntime", "--trust-engine"), "--trust-engine means nothing to engine onnxruntime"),
        (("--engine", "torch", "--cuda-memory", "pycuda"), "it is for: tensorrt-rtx, tensorrt"),
        (("--engine", "tensorrt-rtx", "--precision", "int8"), "it runs: fp16, fp32"),
        (("--engine", "tensorrt-rtx", "--cuda-memory", "cupy"), "there are: cuda-core, pycuda"),
        (("--engine", "tensorrt_rtx"), "unknown engine 'tensorrt_rtx'"),
    ],
)
def test_usage(arguments, words: str, tiny_bundle_path: Path, image: Path, capsys) -> None:
    returned = command("run", image, "--bundle", tiny_bundle_path, "-o", image.parent / "out", "--quiet", *arguments)
    refused(capsys, 2, returned, words)


def test_an_option_for_one_of_several_engines(gpu: Bench, tiny_bundle_path: Path, image: Path, capsys) -> None:
    frames = ("--frames", image, "--repeat", 1, "--quiet")
    both = command("bench", tiny_bundle_path, "--engine", "onnxruntime,tensorrt-rtx", "--trust-engine", *frames)
    assert both == 0, capsys.readouterr().err
    capsys.readouterr()
    refused(capsys, 2, command("bench", tiny_bundle_path, "--trust-engine", *frames), "--trust-engine means nothing")


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_without_the_package(engine: str, dovit: Run, tiny_bundle_path: Path, image: Path, tmp_path: Path) -> None:
    """An import that is blocked, in the real command line."""
    blocked = tmp_path / "blocked" / engine.replace("-", "_")
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text(f"raise ModuleNotFoundError('blocked', name={blocked.name!r})\n")
    path = os.pathsep.join(part for part in (str(blocked.parent), os.environ.get("PYTHONPATH", "")) if part)
    result = dovit("run", image, "--bundle", tiny_bundle_path, "--engine", engine, PYTHONPATH=path)
    assert result.returncode == 5, result.stderr
    assert f"pip install 'dovit-deploy[{engine}]'" in result.stderr


@needs_rtx
@pytest.mark.skipif(not NO_DRIVER, reason="there is a driver")
def test_built_for_real_and_no_driver(dovit: Run, dense_bundle_path: Path, image: Path, tmp_path: Path) -> None:
    """TensorRT for RTX itself builds; what is whole asks for a driver, what is not is refused before."""
    home = {"XDG_CACHE_HOME": str(tmp_path / "real")}
    run = ("run", image, "--bundle", dense_bundle_path, "--engine", "tensorrt-rtx", "--quiet")
    missing = dovit(*run, **home)
    assert missing.returncode == 5
    line = missing.stderr.split("build them with: ")[1].split()
    assert line[:2] == ["dovit", "build"]
    done = dovit(*line[1:], timeout=600, **home)
    assert done.returncode == 0, done.stderr
    result = dovit(*run, **home)
    assert result.returncode == 5
    assert "no NVIDIA driver here" in result.stderr
    (engine,) = (tmp_path / "real").rglob("stage0.engine")
    content = engine.read_bytes()
    for bad in (content[:-10], content[:500] + b"?" + content[501:]):
        engine.write_bytes(bad)
        result = dovit(*run, **home)
        assert result.returncode == 6, result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()
