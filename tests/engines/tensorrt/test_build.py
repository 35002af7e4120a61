"""Building without TensorRT: a fake builder ends in every way that a real process can."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import dovit_deploy
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.tensorrt import build as tensorrt_build
from dovit_deploy.engines.tensorrt import record as engine_record
from dovit_deploy.engines.tensorrt.build import build_engines
from dovit_deploy.engines.tensorrt.record import BuildRequest, engine_key, graph_names, profiles_for
from dovit_deploy.engines.tensorrt.store import EngineCache
from dovit_deploy.errors import EngineBuildFailed, OutputFailed, UsageError
from dovit_deploy.graphs.forms import VERSIONS
from tests.engines.tensorrt.fake_builder import MODULE, VARIABLE, fake_package
from tests.paths import ROOT

PACKAGE = Path(dovit_deploy.__file__).parent


@pytest.fixture
def bundle(tiny_bundle_path: Path) -> Bundle:
    """Three stages and a dense graph."""
    return Bundle.open(tiny_bundle_path)


@pytest.fixture
def single(dense_bundle_path: Path) -> Bundle:
    """One graph, hence one process for each build."""
    return Bundle.open(dense_bundle_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setattr(tensorrt_build, "BUILDER", MODULE)
    return EngineCache(tmp_path / "cache")


def build(bundle: Bundle, cache: EngineCache, *, rebuild: bool = False, steps: list[str] | None = None, **choices):
    said = steps if steps is not None else []
    request = BuildRequest(**choices)
    return build_engines(bundle, request, package=fake_package(), cache=cache, rebuild=rebuild, progress=said.append)


def test_built_once_then_taken_from_the_cache(bundle: Bundle, cache: EngineCache) -> None:
    steps: list[str] = []
    engines, built = build(bundle, cache, steps=steps)
    assert built
    assert list(engines.records) == ["stage0", "stage1", "stage2", "dense"]
    assert steps[1:] == [f"building {name} ({number} of 4)" for number, name in enumerate(engines.records, start=1)]
    record = engines.records["stage1"]
    assert (record.seconds, record.layers.attention, record.compute_capabilities) == (1.5, 2, ("8.0", "8.6"))
    assert record.profiles == (bundle.manifest.counts[1],)
    assert record.plugins is not None
    assert record.plugins.calls["TokenScatterValid"] == 1
    again, built = build(bundle, cache)
    assert not built
    assert again.entry == engines.entry
    assert not list(cache.root.glob("*/*.job"))


def test_what_is_built_is_described(bundle: Bundle, cache: EngineCache) -> None:
    engines, _ = build(bundle, cache, plugins=False)
    folder = engines.folder
    for graph, record in engines.records.items():
        assert record.plugins is None
        assert record.onnx.bytes == (folder / f"{graph}.onnx").stat().st_size
        assert record.weights.bytes == (folder / "weights.safetensors").stat().st_size


def test_rebuild(single: Bundle, cache: EngineCache) -> None:
    assert [build(single, cache, rebuild=again)[1] for again in (False, True, False)] == [True, True, False]


def test_a_damaged_entry_is_built_again_and_said(single: Bundle, cache: EngineCache) -> None:
    engines, _ = build(single, cache)
    engines.engine_path("stage0").write_bytes(b"cut")
    steps: list[str] = []
    again, built = build(single, cache, steps=steps)
    assert built
    assert steps[0].startswith("damaged, built again: ")
    assert again.engine_path("stage0").read_bytes() != b"cut"


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("segfault", r"stage0: .* SIGSEGV; its last words: Internal Error: CHECK\(is_const\(\)\) failed"),
        ("exit", "stage0: .* ended with status 3"),
        ("refuse", "the parser of TensorRT refuses the graph: NonZero"),
    ],
)
def test_a_process_that_dies_or_refuses_is_an_error_and_the_cache_as_before(
    behaviour: str, words: str, single: Bundle, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = build(single, cache)
    monkeypatch.setenv(VARIABLE, behaviour)
    with pytest.raises(EngineBuildFailed, match=words) as caught:
        build(single, cache, rebuild=True)
    assert caught.value.exit_code == 5
    assert len(str(caught.value).splitlines()) == 1
    after, built = build(single, cache)
    assert not built
    assert after.entry == before.entry
    assert [path.name for path in cache.root.iterdir() if path.is_dir()] == [before.folder.name]


def test_a_full_disk_is_an_error_and_the_cache_as_before(
    single: Bundle, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = build(single, cache)

    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputFailed, match=r"No space left on device.*nothing is changed"):
            build(single, cache, rebuild=True)
    assert build(single, cache)[0].entry == before.entry


def test_of_two_at_once_one_builds_and_both_have_it(
    single: Bundle, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "slow")
    results, steps = [], []

    def one() -> None:
        results.append(build(single, EngineCache(cache.root.parent), steps=steps))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(built for _, built in results) == [False, True]
    assert "waiting for another build of the same engines" in steps
    assert steps.count("deriving graphs") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_build_that_is_killed_leaves_no_process_and_the_cache_as_before(
    number: signal.Signals, single: Bundle, cache: EngineCache
) -> None:
    before, _ = build(single, cache)
    code = f"""
from tests.engines.tensorrt.test_build import *
# In the background of a shell it would be ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
tensorrt_build.BUILDER = MODULE
build(Bundle.open({str(single.path)!r}), EngineCache(Path({str(cache.root.parent)!r})), rebuild=True)
"""
    environment = {**os.environ, VARIABLE: "hang", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL) as parent:
        while not list(cache.root.glob("*.partial/*.job")):
            assert parent.poll() is None
            time.sleep(0.05)
        children = []
        while not children:
            children = psutil.Process(parent.pid).children()
        time.sleep(0.2)
        parent.send_signal(number)
        assert parent.wait(timeout=30) != 0
    assert psutil.wait_procs(children, timeout=30)[1] == []
    found, built = build(single, cache)
    assert not built
    assert found.entry == before.entry


def test_the_child_imports_what_its_parent_does_wherever_it_starts(tmp_path: Path) -> None:
    """Neither the working directory nor an installed copy is imported instead of the code that is running."""
    decoy, source = tmp_path / "decoy", tmp_path / "source"
    for folder in (decoy, source):
        (folder / "dovit_deploy").mkdir(parents=True)
    (decoy / "dovit_deploy" / "__init__.py").write_text("raise SystemExit('the working directory was imported')")
    shutil.rmtree(source / "dovit_deploy")
    shutil.copytree(PACKAGE, source / "dovit_deploy", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "probe.py").write_text(
        "from pathlib import Path\nfrom dovit_deploy.engines.tensorrt import builder\n"
        "def main(path): Path(path).write_text(builder.__file__)\n"
    )
    code = f"""
import sys
from pathlib import Path
sys.path[0] = {str(source)!r}
from dovit_deploy.engines.tensorrt import build
from types import SimpleNamespace
build.BUILDER, build.library_folder = "probe", lambda package: None
status, errors = build.run_child(Path({str(tmp_path / "answer")!r}), SimpleNamespace())
sys.exit(errors or status)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=decoy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = source / "dovit_deploy" / "engines" / "tensorrt" / "builder.py"
    assert Path((tmp_path / "answer").read_text()) == expected


@pytest.mark.parametrize(
    "choices",
    [
        {"precision": "fp32"},
        {"plugins": False},
        {"buckets": (8,)},
        {"compute_capabilities": ("8.6",)},
        {"merged": True},
    ],
)
def test_every_choice_has_engines_of_its_own(choices, bundle: Bundle) -> None:
    package = fake_package()
    changed = engine_key(bundle, BuildRequest(**choices), package)
    assert changed.name != engine_key(bundle, BuildRequest(), package).name


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"merged": True, "plugins": False}, "leave out --no-plugins"),
        ({"precision": "int8"}, "'int8' given; engines are built in: fp16, fp32"),
        ({"buckets": (8, 22)}, "22 given; a stage of this bundle runs 1 to 21"),
        ({"compute_capabilities": ("9.0",)}, r"'9\.0' given to tensorrt-rtx"),
    ],
)
def test_choices_that_cannot_be(choices, words: str, bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=words):
        engine_key(bundle, BuildRequest(**choices), fake_package())


def test_another_version_of_a_pass_makes_other_keys(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    before = engine_key(bundle, BuildRequest(), fake_package())
    monkeypatch.setitem(VERSIONS, "padding", VERSIONS["padding"] + 1)
    assert engine_key(bundle, BuildRequest(), fake_package()).name != before.name


def test_a_change_of_the_builder_makes_other_keys(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    before = engine_key(bundle, BuildRequest(), fake_package())
    monkeypatch.setattr(engine_record, "BUILDER_VERSION", engine_record.BUILDER_VERSION + 1)
    assert engine_key(bundle, BuildRequest(), fake_package()).name != before.name


def test_buckets_are_profiles_of_one_size_up_to_the_largest_count(bundle: Bundle) -> None:
    profiles = profiles_for(bundle, (8, 16), graph_names(bundle))
    assert profiles["stage0"] == profiles["dense"] == ()
    sizes = [(entry.minimum, entry.typical, entry.maximum) for entry in profiles["stage2"]]
    assert sizes == [(8, 8, 8), (16, 16, 16), (21, 21, 21)]


def test_a_model_without_gates_is_one_graph(single: Bundle) -> None:
    assert graph_names(single) == graph_names(single, merged=True) == ("stage0",)


def test_all_stages_in_one_beside_them(bundle: Bundle) -> None:
    assert graph_names(bundle, merged=True) == ("stage0", "stage1", "stage2", "merged", "dense")
    assert engine_key(bundle, BuildRequest(merged=True), fake_package()).profiles["merged"] == ()
