"""`dovit bench`: the keys of its report, its arguments, and what it reports of engines."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.commands.bench import _next as next_command
from dovit_deploy.families.cost import cost_model
from dovit_deploy.measure.bench_records import BenchResult, FirstRuns, FrameResult, Percentiles, Side
from dovit_deploy.measure.bench_text import factor_lines, first_line

LATENCY = {"mean", "p50", "p90", "p99"}


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for number in range(2):
        Image.fromarray(rng.integers(0, 255, (56, 72, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def test_the_report_has_the_contracts_keys(dovit, tiny_bundle_path, tmp_path):
    files = ("--json", "bench.json", "--report", "bench.html")
    done = dovit("bench", tiny_bundle_path, "--repeat", 1, *files, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "bench.json").read_text())
    assert {"machine", "versions", "frames", "threads", "results"} <= report.keys()
    assert {"cpu", "cores", "system", "python"} <= report["machine"].keys()
    assert {"dovit-deploy", "onnxruntime", "numpy"} <= report["versions"].keys()
    assert (report["frames"], report["threads"]) == (9, 1)
    (result,) = report["results"]
    wanted = {"engine", "precision", "dense", "dynamic", "speedup", "predicted_speedup", "realised_efficiency"}
    assert wanted | {"flops_saved", "kept"} <= result.keys()
    assert (result["engine"], result["precision"]) == ("onnxruntime", "fp32")
    for side in ("dense", "dynamic"):
        assert result[side]["latency_ms"].keys() == LATENCY and min(result[side]["latency_ms"].values()) > 0
    assert result["realised_efficiency"] == pytest.approx(result["speedup"] / result["predicted_speedup"])
    assert result["flops_saved"] == pytest.approx(1 - 1 / result["predicted_speedup"])
    model = result["latency_model"]
    assert (model["clock"], model["threads"], len(model["stages"])) == ("cpu", 1, 3) and model["held_out"] == 10
    assert "latency model: " in done.stdout and "patterns of tokens predicted within" in done.stdout
    assert result["first_runs"].keys() == {"p50", "p99", "most", "compiled_ms"}
    assert "tokens per stage" in done.stdout and "dynamic" in done.stdout
    assert "first run of each frame, left out above: p50" in done.stdout
    assert f"next: dovit run YOUR_IMAGE_OR_VIDEO --bundle {tiny_bundle_path}" in done.stderr
    page = (tmp_path / "bench.html").read_text()
    assert f"{result['dynamic']['latency_ms']['p50']:.2f}" in page and "hardest quarter" in page
    assert page.count("street 1, density 0.5, dynamic: ") == 1 and "what MACs predict" in page
    assert "<td>onnxruntime" not in page and '<th scope="row">onnxruntime</th>' in page


def test_engines_agree_on_tokens_and_own_frames_are_taken(dovit, tiny_bundle_path, images, tmp_path):
    done = dovit(
        *("bench", tiny_bundle_path, "--frames", images, "--engine", "onnxruntime,torch", "--repeat", 2, "-v"),
        *("--json", "bench.json"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "bench.json").read_text())
    first, second = report["results"]
    assert (first["engine"], second["engine"]) == ("onnxruntime", "torch") and report["frames"] == 2
    assert first["kept"] == second["kept"] and first["flops_saved"] == second["flops_saved"]
    cost = cost_model(Bundle.open(tiny_bundle_path).manifest.spec)
    assert first["kept"][0] == cost.spec.tokens and first["kept"][2] < first["kept"][0]
    actual = sum(cost.actual(entry["kept"]).total for entry in first["per_frame"])
    assert first["predicted_speedup"] == pytest.approx(2 * cost.dense().total / actual)
    assert "against onnxruntime fp32 dense = tokens" in done.stdout and "0.png 0" in done.stdout


def test_a_dense_model_saves_nothing(dovit, dense_bundle_path, images, tmp_path):
    done = dovit("bench", dense_bundle_path, "--frames", images, "--repeat", 1, "--json", "bench.json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    (result,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert (result["predicted_speedup"], result["flops_saved"]) == (1.0, 0.0)
    assert result["latency_model"] is None
    assert len(result["kept"]) == 1


def test_a_bad_image_among_good_ones(dovit, tiny_bundle_path, images):
    (images / "bad.png").write_text("not an image")
    done = dovit("bench", tiny_bundle_path, "--frames", images, "--repeat", 1)
    assert done.returncode == 7
    assert "bad.png" in done.stderr and "onnxruntime fp32:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--engine", "warp"), 2, "allowed: onnxruntime, openvino, cuda, torch"),
        (("--engine", "onnxruntime,onnxruntime"), 2, "names one twice"),
        (("--precision", "fp8"), 2, "allowed: fp32"),
        (("--repeat", "0"), 2, "repeat"),
        (("--threads", "0"), 2, "threads"),
        (("--threshold", "0.5"), 2, "No such option"),
        (("--json", "no/such/folder.json"), 2, "--json"),
        (("--frames", "nowhere.mp4"), 3, "nowhere.mp4"),
    ],
)
def test_bad_arguments(dovit, tiny_bundle_path, arguments, code, said):
    done = dovit("bench", tiny_bundle_path, *arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


def test_no_bundle_there(dovit):
    done = dovit("bench", "nowhere.dovit")
    assert done.returncode == 3 and "nowhere.dovit" in done.stderr


def test_the_factors_multiply():
    side = Side(latency_ms=Percentiles(mean=1, p50=1, p90=1, p99=1), cpu_ms=1)
    frame = FrameResult(frame="a", kept=(9, 3), flops_saved=0.5, speedup=1.8)
    result = BenchResult(
        engine="b",
        precision="fp32",
        dense=side,
        dynamic=side,
        speedup=1.8,
        predicted_speedup=2.0,
        realised_efficiency=0.9,
        flops_saved=0.5,
        kept=(9.0, 3.0),
        cpu_speedup=None,
        engine_factor=1.5,
        first_runs=FirstRuns(p50=6.0, p99=150.0, most=151.0, compiled_ms=400.0),
        per_frame=(frame,),
    )
    first, second = factor_lines(result, first=result.model_copy(update={"engine": "a"}))
    assert math.isclose(result.total_factor, 2.7)
    assert first_line(result).endswith("p50 6.00, p99 150.00 ms; 400 ms in all beyond warm runs")
    assert first == "b fp32: 2.70x against a fp32 dense = tokens 1.80x * engine 1.50x"
    assert "predicted from FLOPs 2.00x, realised 90.0% of it" in second and second.endswith("9 -> 3")


def test_without_a_dense_form_only_engines_are_compared():
    side = Side(latency_ms=Percentiles(mean=1, p50=1, p90=1, p99=1), cpu_ms=1)
    result = BenchResult(
        engine="b",
        precision="fp32",
        dense=None,
        dynamic=side,
        speedup=None,
        predicted_speedup=1.25,
        realised_efficiency=None,
        flops_saved=0.2,
        kept=(9.0, 3.0),
        cpu_speedup=None,
        engine_factor=1.5,
        first_runs=FirstRuns(p50=6.0, p99=150.0, most=151.0, compiled_ms=400.0),
        per_frame=(FrameResult(frame="a", kept=(9, 3), flops_saved=0.2, speedup=None),),
    )
    first, second = factor_lines(result, first=result.model_copy(update={"engine": "a"}))
    assert first == "b fp32: engine 1.50x against a fp32; no dense form to compare tokens with"
    assert second == "  predicted from FLOPs 1.25x; FLOPs saved 20.0%; tokens per stage 9 -> 3"


def test_the_next_command_measures_the_same_again(tiny_bundle_path):
    opened = Bundle.open(tiny_bundle_path)
    shown = next_command(opened, "a b", ("openvino",), ("int8", "bf16"), 2, None)
    flags = "--frames 'a b' --engine openvino --precision int8,bf16 --threads 2 --json bench.json"
    assert shown == f"dovit bench {opened.path} {flags}"
    shown = next_command(opened, None, ("onnxruntime",), (None,), 1, None)
    assert shown == f"dovit bench {opened.path} --json bench.json"


def test_a_check_and_a_comparison(dovit, dense_bundle_path, images, tmp_path):
    command = ("bench", dense_bundle_path, "--frames", images, "--repeat", 1)
    first = dovit(*command, "--json", "old.json", "--report", "bench.csv", "--fail-if", "p50>0")
    assert first.returncode == 4, first.stderr
    old = (tmp_path / "old.json").read_bytes()
    p50 = json.loads(old)["results"][0]["dynamic"]["latency_ms"]["p50"]
    assert f"error: --fail-if p50>0: p50 of onnxruntime fp32 is {p50:.4g} ms" in first.stderr
    assert f"onnxruntime,fp32,dynamic,{p50:.6g}"[:30] in (tmp_path / "bench.csv").read_text()
    # Our own file is replaced; the old report is never written.
    second = dovit(
        *command, "--compare", "old.json", "--report", "bench.md", "--json", "new.json", "--fail-if", "p50<0"
    )
    assert second.returncode == 0, second.stderr
    report = json.loads((tmp_path / "new.json").read_text())
    assert [change["frames"] for change in report["comparison"]["changes"]] == [2, 2]
    assert "dynamic against old.json: " in second.stdout and "too few frames" in second.stdout
    assert "against old.json" in (tmp_path / "bench.md").read_text()
    assert (tmp_path / "old.json").read_bytes() == old


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--report", "bench.txt"), 2, "end in .html, .csv, .md"),
        (("--report", "no/such/bench.html"), 2, "--report"),
        (("--report", "notes.csv"), 2, "no table of dovit bench's, and is not replaced"),
        (("--report", "notes.html"), 2, "no page of dovit's"),
        (("--report", "a.html", "--json", "a.html"), 2, "--json writes there, too"),
        (("--compare", "old.json", "--json", "old.json"), 2, "this is the input"),
        (("--compare", "old.json"), 3, "no report of dovit bench --json"),
        (("--compare", "nowhere.json"), 3, "nowhere.json"),
        (("--fail-if", "p95>3"), 2, "needed: one of p50"),
    ],
)
def test_files_and_limits_that_are_refused_before_the_work(dovit, tiny_bundle_path, tmp_path, arguments, code, said):
    for name, content in (
        ("notes.csv", "a,b"),
        ("notes.html", "<!doctype html><p>mine"),
        ("old.json", '{"frames": 3}'),
    ):
        (tmp_path / name).write_text(content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    done = dovit("bench", tiny_bundle_path, *arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr and done.stdout == ""
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_page_without_jinja2_is_refused_before_the_work(dovit, tiny_bundle_path, without, tmp_path):
    done = dovit("bench", tiny_bundle_path, "--report", "bench.html", **without("jinja2"))
    assert (done.returncode, done.stdout) == (5, "") and "dovit-deploy[report]" in done.stderr
