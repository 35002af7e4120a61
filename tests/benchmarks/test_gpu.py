"""`make prove-gpu` as far as it can be tried without a GPU: self-test, budget, programs, report and tables."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu import baselines, cases, engines, kernels, programs, prove, sections, selftest, tables
from gpu.cases import all_cases, cases_on, conditions_on, guess_s, run_case, run_cases
from gpu.kernels import kernel_checks
from gpu.latency import Paired, latency, paired
from gpu.models import EVERYTHING, PIXELS, PROFILES, TINY_PIXELS, WIDTHS, Case, TinyCase
from gpu.packed_stages import masked_attention
from gpu.result import AIMS, DenseRatio, Gpu, GpuReport, Latency, OneGraphRow, Outcome, StagedRow, Undone
from gpu.section import Bench, Found, NotDone, TimeBudget
from gpu.sections import GPU_ITSELF, SECTIONS
from gpu.tables import NOT_RUN, TABLES, mark, write_tables
from report import END

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.cuda.driver import GpuDevice
from dovit_deploy.engines.registry import ENGINES, backend_from_name
from dovit_deploy.errors import ProviderMissing
from tests.engines.tensorrt.fake_builder import fake_package
from tests.paths import ROOT
from tests.test_floors import imports

CPU = torch.device("cpu")
HERE = conditions_on(CPU)

HERE_ARE = Path(__file__).parent

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run make prove-gpu")


def collected(found: Iterable[Found]) -> GpuReport:
    """A report of what was found."""
    report = GpuReport(command="", date="", machine={}, versions={}, minutes=0, gpu=None)
    for each in found:
        report = report.with_found(*each)
    return report


def page_with_marks(folder: Path) -> Path:
    page = folder / "page.md"
    page.write_text("\n".join(f"about {name}\n{mark(name)}\nof yesterday\n{END}" for name in TABLES))
    return page


@no_gpu
@pytest.mark.slow
def test_on_a_bare_machine_without_a_gpu_the_selftest_runs_and_says_what_was_not_done(tmp_path) -> None:
    """The real command, where nothing can be imported but what docs/tensorrt.md lists."""
    output, page = tmp_path / "gpu.json", page_with_marks(tmp_path)
    words = ["--minutes", "7", "-o", str(output), "--docs", str(page)]
    environment = {**os.environ, "PYTHONPATH": str(HERE_ARE / "bare_machine")}
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu" / "prove.py"), *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    report = GpuReport.model_validate_json(output.read_text())
    assert GpuReport.model_validate_json(ran.stdout) == report
    assert report.gpu is None and not report.staged and not report.engines and report.copy_gb_per_s is None
    assert len(report.selftest) >= 5 and all(outcome.ok for outcome in report.selftest)
    assert report.undone == () or shutil.which("g++") is None, "on a bare machine all of the self-test runs"
    outcomes = {section.name: section.outcome for section in report.sections}
    assert outcomes.pop("self-test on the CPU") == "done"
    assert set(outcomes) == {GPU_ITSELF.name, *(section.name for section in SECTIONS if not section.everywhere)}
    assert set(outcomes.values()) == {"not done"}
    text = page.read_text()
    assert all(f"| section | {name} | not done | PyTorch" in text for name in outcomes)
    assert "of yesterday" not in text and text.count(NOT_RUN) == len(TABLES) - 1 and "no GPU" in text
    written = page.read_text()
    page.write_text(page_with_marks(tmp_path).read_text())
    assert prove.main(["--tables", str(output), "--docs", str(page)]) == 0
    assert page.read_text() == written, "the tables come from the JSON"


def test_what_a_bare_machine_must_be_given_is_in_one_list_and_on_the_page() -> None:
    brought = (ROOT / "benchmarks" / "gpu" / "wheels.txt").read_text()
    names = [line for line in brought.splitlines() if not line.startswith("#")]
    finders = list(sys.meta_path)
    bare = runpy.run_path(str(HERE_ARE / "bare_machine" / "sitecustomize.py"))
    sys.meta_path[:] = finders
    assert {name.replace("-", "_") for name in needed(names)} == bare["BROUGHT"]
    page = (ROOT / "docs" / "tensorrt.md").read_text()
    assert all(f"`{name}`" in page for name in needed(names)) and "benchmarks/gpu/wheels.txt" in page


def test_no_section_imports_what_a_bare_machine_lacks() -> None:
    """Nor where only a GPU would lead."""
    finders = list(sys.meta_path)
    bare = runpy.run_path(str(HERE_ARE / "bare_machine" / "sitecustomize.py"))
    sys.meta_path[:] = finders
    for path in (ROOT / "benchmarks" / "gpu").glob("*.py"):
        unlisted = {name for name, _ in imports(path) if name.partition(".")[0] not in bare["LISTED"]}
        assert not unlisted, path.name


def needed(names: list[str]) -> set[str]:
    """`names` and the distributions that they need, but for what PyTorch brings."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in found and name != "typing-extensions":
            found.add(name)
            needs = importlib.metadata.requires(name) or []
            left += [re.split(r"[^\w-]", need)[0] for need in needs if "extra ==" not in need]
    return found


def test_on_the_cpu_the_sections_code_runs_on_tiny_models(tmp_path, monkeypatch) -> None:
    """Every section but those that only a GPU can have; the self-test above has its own test."""
    monkeypatch.setattr(prove, "SECTIONS", tuple(section for section in SECTIONS if not section.everywhere))
    output = tmp_path / "gpu.json"
    assert prove.main(["--device", "cpu", "--minutes", "5", "-o", str(output)]) == 0
    report = GpuReport.model_validate_json(output.read_text())
    for section in SECTIONS:
        outcome = next((each for each in report.sections if each.name == section.name), None)
        if not section.everywhere:
            assert outcome is not None
            assert (outcome.outcome == "done") == (not section.only_gpu), f"{outcome.name}: {outcome.why}"
    assert report.failures == () and report.undone == ()
    assert {row.way: row.agreement for row in report.baselines if "fp8" not in row.way} == {
        way.name: 1.0 for way in baselines.WAYS
    }
    assert len(report.baselines) == 3 and {row.way for row in report.traces} >= {"dense", "staged"}
    assert {(row.images, row.profile) for row in report.staged} == {
        (images, profile) for images in (1, 3) for profile in (EVERYTHING, *PROFILES)
    }


def test_a_selftest_that_fails_is_exit_code_4(monkeypatch, tmp_path) -> None:
    def wrong():
        yield "selftest", Outcome(name="x", ok=False, detail="it is wrong")

    monkeypatch.setattr(sections, "selftest", wrong)
    monkeypatch.setattr(prove, "SECTIONS", tuple(section for section in SECTIONS if section.everywhere))
    assert prove.main(["-o", str(tmp_path / "gpu.json"), "--device", "cpu"]) == 4


def test_a_wrong_stage_fails_the_selftest(monkeypatch) -> None:
    monkeypatch.setattr(selftest, "_engines", lambda: "")
    monkeypatch.setattr(selftest, "_kernels", lambda: "")

    def leaking(query, key, value, heads, bounds, longest):
        whole = torch.stack([bounds[0], bounds[-1] + 1])
        return masked_attention(query, key, value, heads, whole, longest)

    monkeypatch.setattr(cases, "masked_attention", leaking)
    outcomes = [outcome for _, outcome in selftest.selftest()]
    assert [outcome.ok for outcome in outcomes[:2]] == [False, False], "attention that sees padding or other images"
    assert "differ" in outcomes[0].detail


def test_a_wrong_kernel_fails_the_check() -> None:
    class Nothing:
        """Launches nothing."""

        def gather(self, *addresses, **sizes) -> None: ...
        def scatter(self, *addresses, **sizes) -> None: ...
        def compact(self, *addresses, **sizes) -> None: ...

    outcomes = kernel_checks(Nothing(), CPU, stream=0, totals=kernels.FEW_TOTALS, masks=kernels.FEW_MASKS)
    assert [outcome.ok for outcome in outcomes] == [False, False]
    assert "rows of" in outcomes[0].detail and "entries of" in outcomes[1].detail


def test_a_case_gives_parity_every_profile_and_the_boundary() -> None:
    results = collected(run_case(TinyCase("S", TINY_PIXELS, 2), HERE))
    assert [row.profile for row in results.staged] == [EVERYTHING, *PROFILES]
    assert results.staged[0].predicted <= 1 < results.staged[1].predicted < results.staged[3].predicted
    assert results.staged[0].kept == (1.0, 1.0, 1.0)
    assert len(results.boundaries) == 1 and not results.parity[0].failures and results.parity[0].precision == "float32"
    for row in results.staged:
        assert row.efficiency == pytest.approx(row.speedup / row.predicted)
        assert 0 < row.dense.p50 <= row.dense.p99 and row.runs >= 10


def bench(seconds: float, say=lambda text: None) -> Bench:
    return Bench(CPU, TimeBudget(time.monotonic() + seconds), say)


def test_what_does_not_fit_is_left_out_and_said() -> None:
    said: list[str] = []
    results = collected(run_cases([Case("L", 1024, 1), TinyCase("S", 64, 1)], bench(5, said.append), HERE))
    assert said == ["  " + TinyCase("S", 64, 1).name] and len(results.staged) == 4
    (left_out,) = results.undone
    assert left_out.what == "ViT-L 1024 px, 1 image" and "needed" in left_out.why


def test_a_case_that_fails_leaves_the_others(monkeypatch) -> None:
    def failing(case, conditions):
        if case.pixels == 512:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nand more")
        if case.pixels == 768:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")
        yield from run_case(case, conditions)

    monkeypatch.setattr(cases, "run_case", failing)
    tried = [Case("S", 512, 1), Case("S", 768, 1), TinyCase("S", 64, 1)]
    results = collected(run_cases(tried, bench(600), HERE))
    assert results.undone == (Undone(what="ViT-S 512 px, 1 image", why="CUDA out of memory. Tried to allocate 1 GiB."),)
    assert [(each.name, each.ok) for each in results.broken] == [("ViT-S 768 px, 1 image", False)]
    assert results.failures == (
        "ViT-S 768 px, 1 image: RuntimeError: CUDA error: operation not permitted when stream is capturing",
    )
    assert len(results.staged) == 4


def test_cases_are_all_there_the_aims_first() -> None:
    cases = list(all_cases())
    assert [(case.size, case.pixels, case.images) for case in cases[:3]] == [(size, 768, 1) for size in AIMS]
    assert len(set(cases)) == len(cases) == 2 * len(WIDTHS) * len(PIXELS)
    assert [case.spec.width for case in cases[:3]] == [1024, 768, 384]
    assert cases[0].spec.tokens == 48 * 48 + 1
    card = Gpu(name="G", compute_capability="9.0", memory_gb=80.0, torch_cuda="13.0")
    gpu = Bench(torch.device("cuda"), TimeBudget(math.inf), lambda text: None, card)
    parts = [list(cases_on(gpu, batches=many, aimed=aimed)) for many in (False, True) for aimed in (True, False)]
    assert [case for part in parts for case in part] == cases
    # What has aims fits into seven minutes, with a minute to spare, beside what else comes first.
    assert sum(guess_s(case) for case in [*parts[0], *parts[2]]) < 3 * 60


def test_only_what_is_asked_for_is_run_and_unknown_words_are_refused(capsys, tmp_path) -> None:
    chosen = prove.chosen_sections(["fp8", "baselines"])
    assert [section.name for section in chosen] == ["dense baselines", "dense in fp8"]
    assert prove.chosen_sections(None) == SECTIONS
    with pytest.raises(SystemExit) as ended:
        prove.main(["--only", "fp9", "-o", str(tmp_path / "gpu.json")])
    assert ended.value.code == 2 and "'fp9'" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()


def test_latency_is_percentiles_in_milliseconds() -> None:
    assert latency(tuple(number / 1000 for number in range(1, 101))) == Latency(p50=50.5, p99=100.0)
    both = Paired((2.0, 4.0, 6.0), (1.0, 1.0, 1.0))
    assert both.ratio == 4.0 and both.difference == -3.0


def test_pairs_alternate_and_wait_for_the_device() -> None:
    journal: list[str] = []
    times = paired(
        lambda: journal.append("a"), lambda: journal.append("b"), seconds=0.0, finish=lambda: journal.append("|")
    )
    assert len(times.first) == len(times.second) == 10
    measured = "".join(journal)[12:]
    assert measured.startswith("|a||b||b||a|"), measured


def done(code: int, stdout: str = "", stderr: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], code, stdout, stderr)


class Programs:
    """Stands for `subprocess.run`: answers by what a command line contains, and notes it."""

    def __init__(self, **answers: subprocess.CompletedProcess[str] | None) -> None:
        self.answers, self.commands = answers, []

    def __call__(self, command, **options):
        assert options["cwd"] == ROOT and options["timeout"] == 7
        self.commands.append([str(word) for word in command])
        for word, answer in self.answers.items():
            if any(word in part for part in self.commands[-1]):
                if answer is None:
                    raise subprocess.TimeoutExpired(command, 7)
                return answer
        raise AssertionError(command)


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.setattr(programs.shutil, "which", lambda name: f"/bin/{name}")


def test_the_harness_is_built_for_this_gpu_and_its_last_line_is_reported(tools) -> None:
    run = Programs(make=done(0, "built"), harness=done(0, "x\n251 of 251 cases equal, through dovit_enqueue\n"))
    found = collected(programs.plugin_outcomes("9.0", seconds=7, run=run))
    assert found.plugin == (
        Outcome(name="C++ plugins", ok=True, detail="251 of 251 cases equal, through dovit_enqueue"),
    )
    assert "ARCHS=90" in run.commands[0] and {"plugins", "harness"} <= set(run.commands[0])
    assert run.commands[1][1].endswith("libdovit_kernels.so") and found.undone[0].what == "IPluginV3's enqueue"
    collected(programs.plugin_outcomes("12.0", seconds=7, headers="/x/include", run=run))
    assert {"ARCHS=120", "TENSORRT_INCLUDE=/x/include"} <= set(run.commands[2])


def test_a_harness_that_differs_crashes_or_hangs_is_wrong(tools) -> None:
    for answer, detail in (
        (done(1, "differs: compaction\n250 of 251 cases equal\n"), "250 of 251"),
        (done(-11, "", ""), "left with code -11"),
        (None, "took too long"),
    ):
        run = Programs(make=done(0), harness=answer)
        outcomes = collected(programs.plugin_outcomes("8.6", seconds=7, run=run)).plugin
        assert [outcome.ok for outcome in outcomes] == [False] and detail in outcomes[0].detail
    run = Programs(make=done(2, "", "nvcc fatal: x\n"))
    outcomes = collected(programs.plugin_outcomes("8.6", seconds=7, run=run)).plugin
    assert outcomes[0].detail == "not built: nvcc fatal: x"


def test_what_the_harness_cannot_run_is_not_done(tools, monkeypatch) -> None:
    run = Programs(make=done(0), harness=done(2, "", "no GPU: no CUDA-capable device is detected\n"))
    with pytest.raises(NotDone, match="no GPU"):
        collected(programs.plugin_outcomes("8.6", seconds=7, run=run))
    monkeypatch.setattr(programs.shutil, "which", lambda name: None if name == "nvcc" else name)
    with pytest.raises(NotDone, match="nvcc is not installed"):
        collected(programs.plugin_outcomes("8.6", seconds=7, run=run))


def test_memory_is_proved_by_its_contract() -> None:
    missing = "dovit_deploy.errors.PackageMissing: the package 'pycuda.driver' is needed\n"
    run = Programs(**{"cuda-core": done(0, "13 promises kept by cuda-core on X\n"), "pycuda": done(1, "", missing)})
    found = collected(programs.memory_outcomes(seconds=7, run=run))
    assert found.memory == (Outcome(name="cuda-core", ok=True, detail="13 promises kept by cuda-core on X"),)
    assert [entry.what for entry in found.undone] == ["memory by pycuda"]
    run = Programs(**{"cuda-core": done(1, "", "AssertionError: bytes differ\n"), "pycuda": None})
    found = collected(programs.memory_outcomes(seconds=7, run=run))
    assert [outcome.ok for outcome in found.memory] == [False, False] and not found.undone


@no_gpu
def test_the_memory_programs_really_start() -> None:
    """Without a driver they report that: everything but the GPU is exercised."""
    found = collected(programs.memory_outcomes(seconds=60))
    assert found.memory == () and len(found.undone) == len(programs.MEMORIES)


def test_every_engine_that_uses_a_gpu_is_tried() -> None:
    tried = [(name, precision) for name, precision, _ in engines.gpu_backends(None)]
    for name, entry in ENGINES.items():
        assert entry.on_gpu == all((name, precision) in tried for precision in entry.precisions)
    assert ("cuda", "fp16") in tried and ("torch on the GPU", "fp32") in tried


@pytest.mark.parametrize(("capability", "built"), [("8.6", 4), ("9.0", 2)])
def test_engines_that_are_built_are_built_first(capability: str, built: int, tiny_bundle_path, monkeypatch) -> None:
    """The last line of a build that fails is what is reported; nothing is built that this GPU could not run."""
    commands = []
    monkeypatch.setattr(engines, "packages", SimpleNamespace(load=lambda name: None))
    monkeypatch.setattr(engines, "tensorrt_package", fake_package)
    monkeypatch.setattr(engines, "gpu_device", lambda: GpuDevice("a GPU", capability))

    def run(words, **options):
        commands.append(words[3:])
        return done(5, "", "progress\nTensorRT needs a GPU\n")

    bundle = Bundle.open(tiny_bundle_path)
    backends = [entry for entry in engines.gpu_backends(bundle, run) if entry[0].startswith("tensorrt")]
    found = collected(engines.engine_rows(bundle, backends, TimeBudget(math.inf), seconds=0.0))
    assert found.engines == () and len(found.undone) == len(backends) == 4
    whys = [entry.why for entry in found.undone]
    assert whys.count("TensorRT needs a GPU") == len(commands) == built
    assert sum("tensorrt-rtx 1.7.1 does not support this GPU" in why for why in whys) == 4 - built
    assert ["build", str(bundle.path), "--engine", "tensorrt", "--precision", "fp16", "--quiet"] in commands


def test_an_engine_that_is_refused_is_named_with_its_own_words(tiny_bundle_path) -> None:
    def refused():
        raise ProviderMissing("no NVIDIA driver here")

    def wrong():
        raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED\nand more")

    backends = [
        ("cuda", "fp32", refused),
        ("tensorrt", "fp16", wrong),
        ("onnxruntime", "fp32", lambda: backend_from_name("onnxruntime", threads=1)),
    ]
    found = collected(engines.engine_rows(Bundle.open(tiny_bundle_path), backends, TimeBudget(math.inf), seconds=0.0))
    assert found.undone == (Undone(what="engine cuda fp32", why="no NVIDIA driver here"),)
    assert found.failures == ("engine tensorrt fp16: RuntimeError: CUDNN_STATUS_EXECUTION_FAILED",)
    (row,) = found.engines
    assert row.engine == "onnxruntime" and row.parity == () and row.predicted > 0


def row(model="L", pixels=768, images=1, profile="p45", speedup=1.5, predicted=1.6) -> StagedRow:
    return StagedRow(
        model=model,
        pixels=pixels,
        images=images,
        profile=profile,
        attention="packed",
        thresholds=(0.5, 0.5, 0.5),
        kept=(0.7, 0.45, 0.3),
        dense=Latency(p50=3.0, p99=3.5),
        staged=Latency(p50=2.0, p99=2.5),
        runs=100,
        predicted=predicted,
        speedup=speedup,
        graphs=4,
    )


def report_of(**fields) -> GpuReport:
    facts = {"command": "c", "date": "d", "machine": {"cpu": "C"}, "versions": {"torch": "2"}, "minutes": 10}
    card = Gpu(name="G", compute_capability="9.0", memory_gb=80.0, torch_cuda="13.0")
    return GpuReport.model_validate({**facts, "gpu": card, "selftest": (), **fields})


def test_aims_stand_beside_what_was_reached() -> None:
    rows = [row(speedup=1.5, predicted=1.6), row("B", speedup=1.2), row("S", pixels=512), row(profile=EVERYTHING)]
    lines = tables.latency_table(report_of(staged=rows)).splitlines()
    assert lines[2].endswith("| 1.50x | 1.60x | 0.94 | 0.92 reached |")
    assert lines[3].endswith("| 0.75 | 0.85 missed |")
    assert lines[4].endswith("| 0.94 |  |") and lines[5].endswith("| 0.94 |  |")


def test_one_graph_is_held_to_the_fastest_dense_way() -> None:
    def frame(images: int, *ratios: float) -> OneGraphRow:
        ways = [DenseRatio(name=f"way {n}", latency=Latency(p50=2.0, p99=2.5), ratio=r) for n, r in enumerate(ratios)]
        return OneGraphRow(
            model="S",
            pixels=768,
            images=images,
            profile="p45",
            attention="packed",
            kept=(0.7, 0.45, 0.3),
            buckets=((128, 256),) * 3,
            chosen=(256, 128, 128),
            dense=tuple(ways),
            staged=Latency(p50=1.5, p99=1.6),
            staged_ratio=1.25,
            one_graph=Latency(p50=1.2, p99=1.3),
            images_per_s=833.0,
            predicted=2.0,
            graph_seconds=0.12,
            graph_bytes=5_000_000,
            graph_nodes=640,
        )

    lines = tables.frames_table(report_of(frames=[frame(1, 1.9, 1.6), frame(32, 1.9, 1.6)])).splitlines()
    dense = "| way 0 2.00 (1.90x); way 1 2.00 (1.60x) "
    assert f"{dense}| 1.50 (1.25x) | 1.20 / 1.30 | 833 | 2.00x | 0.80 | 0.75 reached |" in lines[2]
    assert lines[2].endswith("| 640 nodes, 0.12 s, 5 MB |")
    assert "| 0.80 | 0.90 missed |" in lines[3]
    assert report_of(frames=[frame(1, 0.5)]).failures == (), "slow is not wrong"


def test_where_dense_is_faster_the_map_says_so() -> None:
    profiles = {EVERYTHING: (0.9, 0.99), "p70": (0.95, 1.25), "p45": (1.05, 1.6), "p12": (1.6, 2.2)}
    rows = [row("S", 512, 8, name, *figures) for name, figures in profiles.items()]
    table = tables.break_even_table(report_of(staged=rows)).splitlines()
    assert table[2].startswith("| ViT-S 512 px, 8 images | dense (0.90x) | dense (0.95x) | 1.05x | 1.60x |")
    # Half way between savings of 20 % and 37.5 %.
    assert table[2].endswith("| 29% |")
    never = [row("S", 512, 8, "p12", 0.8, 2.0)]
    assert tables.break_even_table(report_of(staged=never)).splitlines()[2].endswith("| above 50% |")
    gains = [row("S", 512, 8, "p70", 1.1, 1.25)]
    assert tables.break_even_table(report_of(staged=gains)).splitlines()[2].endswith("| below 20% |")


def test_what_is_wrong_is_a_failure_and_slow_is_not() -> None:
    assert report_of(staged=[row(speedup=0.5)]).failures == ()
    wrong = report_of(memory=[Outcome(name="pycuda", ok=False, detail="bytes differ")])
    assert wrong.failures == ("pycuda: bytes differ",)
    assert "**wrong**" in tables.proved_table(wrong)


def test_a_missing_mark_leaves_the_page_as_it_was(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{mark('proved')}\nof yesterday\n{END}\n")
    with pytest.raises(ValueError, match="latency"):
        write_tables(report_of(), page)
    assert "of yesterday" in page.read_text()


def test_the_page_of_the_project_shows_the_committed_result(tmp_path) -> None:
    page = ROOT / "docs" / "benchmarks.md"
    copy = tmp_path / "benchmarks.md"
    copy.write_text(page.read_text())
    report = GpuReport.model_validate(json.loads((ROOT / "benchmarks" / "results" / "gpu.json").read_text()))
    write_tables(report, copy)
    assert copy.read_text() == page.read_text()
