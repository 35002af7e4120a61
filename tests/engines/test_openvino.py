"""OpenVINO against ONNX Runtime: the same decisions and answers in fp32, explained ones in bf16."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dovit_deploy import Session, packages
from dovit_deploy.bundle.bundle import Bundle, file_entry
from dovit_deploy.bundle.interface import CONFIDENCE, COUNT, FLOOR, INDEX, PIXELS, THRESHOLDS, TOKENS, stage_name
from dovit_deploy.cli import _application, _run
from dovit_deploy.engines.openvino import OpenVinoBackend, arithmetic, compile_properties
from dovit_deploy.engines.openvino_graphs import (
    ALL_IN_ORDER,
    SMALLEST,
    STEPS,
    BucketedGraph,
    FixedGraph,
    bucket_for_count,
    padded,
)
from dovit_deploy.errors import EnvironmentProblem, GraphMismatch, ProviderMissing
from dovit_deploy.export.verify import gated_parity, reference_runs
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.trace import settings_from_images
from tests.tiny import tiny_pixels

if not packages.is_there("openvino"):
    pytest.skip("the package openvino is not installed", allow_module_level=True)
NO_BF16 = "BF16" not in packages.openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(params=["tiny_bundle_path", "setr_bundle_path"])
def gated(request: pytest.FixtureRequest) -> Bundle:
    return Bundle.open(request.getfixturevalue(request.param))


def pixels_of(bundle: Bundle, seed: int = 3) -> np.ndarray:
    return tiny_pixels(bundle.manifest.spec.size, seed=seed).numpy()


def middle(bundle: Bundle) -> RunSettings:
    """Thresholds of which some tokens are on either side."""
    with Session(bundle) as session:
        (_, setting) = settings_from_images(session, [("image", pixels_of(bundle))])
    return RunSettings(setting.thresholds, setting.floor)


def test_fp32_agrees_by_the_contracts_rule(gated: Bundle) -> None:
    images = [(f"image {seed}", pixels_of(gated, seed)) for seed in (3, 4)]
    with Session(gated) as reference, Session(gated, engine="openvino", threads=1) as candidate:
        for expected in reference_runs(reference, settings_from_images(reference, images)):
            found = gated_parity(candidate, expected)
            assert found.failures == ()
            assert max(gate.confidence_error for gate in found.gates) < 1e-4


@pytest.mark.skipif(NO_BF16, reason="this CPU does not compute in bfloat16")
def test_bf16_compares_in_float32(gated: Bundle) -> None:
    settings = middle(gated)
    with Session(gated, engine="openvino", precision="bf16", threads=1) as session:
        confidences = [
            outputs[CONFIDENCE].copy()
            for outputs, index in session.stages(pixels_of(gated), settings)
            if index is not None
        ]
        values = np.concatenate([each[np.isfinite(each)] for each in confidences])
        assert session.backend.precision == "bf16"
    # bfloat16 has 8 significant bits: of values that it can hold, the lower 16 bits are zero.
    assert (values.view(np.uint32) & 0xFFFF).any()


@pytest.mark.skipif(NO_BF16, reason="this CPU does not compute in bfloat16")
def test_bf16_decides_as_its_own_confidence_says(gated: Bundle) -> None:
    """A threshold between a confidence and the next float32 above it: bfloat16 could not tell them apart."""
    pixels, settings = pixels_of(gated), middle(gated)
    with Session(gated, engine="openvino", precision="bf16", threads=1) as session:
        first, _ = next(iter(session.stages(pixels, settings)))
        confidence = np.sort(first[CONFIDENCE].copy())
        for value in confidence[len(confidence) // 2 :][:5]:
            thresholds = settings.thresholds.copy()
            thresholds[0] = value
            outputs, _ = next(iter(session.stages(pixels, RunSettings(thresholds, np.float32(0)))))
            stopped = int((first[CONFIDENCE] > value).sum())
            assert int(outputs[COUNT]) == gated.manifest.spec.tokens - stopped


def test_dense_and_models_without_gates(dense_bundle_path, gated: Bundle) -> None:
    for bundle in (Bundle.open(dense_bundle_path), gated):
        with Session(bundle) as reference, Session(bundle, engine="openvino", threads=1) as candidate:
            for dense in (True, False):
                want, expected = reference.run(pixels_of(bundle), dense=dense)
                got, report = candidate.run(pixels_of(bundle), dense=dense)
                np.testing.assert_allclose(got, want, atol=1e-4 * max(1, np.abs(want).max()))
                assert report.kept == expected.kept


def test_every_count_runs_padding_or_not(tiny_bundle_path) -> None:
    """Each number of tokens that a gate can leave, from extra tokens alone to all of them."""
    bundle = Bundle.open(tiny_bundle_path)
    spec, pixels = bundle.manifest.spec, pixels_of(Bundle.open(tiny_bundle_path))
    with Session(bundle) as reference, Session(bundle, engine="openvino", threads=1) as candidate:
        for left in range(spec.patches + 1):
            cells = np.zeros(spec.patches, dtype=bool)
            cells[np.random.default_rng(left).permutation(spec.patches)[:left]] = True
            keep = [cells.reshape(spec.grid)] * len(spec.gates)
            want, expected = reference.run(pixels, keep=keep)
            got, report = candidate.run(pixels, keep=keep)
            np.testing.assert_allclose(got, want, atol=1e-4 * max(1, np.abs(want).max()))
            assert report.kept == expected.kept
        last = candidate.engine(stage_name(bundle.stages - 1))
        assert isinstance(last, BucketedGraph)
        assert len(last.buckets) <= 3 * STEPS // 4


def test_any_memory_is_read(gated: Bundle) -> None:
    """Read-only, as a mapped file or an array of JAX is, and in another order: OpenVINO takes neither."""
    backend, pixels, settings = OpenVinoBackend(threads=1), pixels_of(gated), RunSettings.resolve(gated.manifest)
    graph = backend.load(gated, stage_name(0))
    others = {THRESHOLDS: settings.thresholds[0], FLOOR: np.asarray(settings.floor)}
    want = graph.run({PIXELS: pixels, **others})[TOKENS].copy()
    read_only = pixels.copy()
    read_only.flags.writeable = False
    for given_pixels in (read_only, np.asfortranarray(pixels)):
        np.testing.assert_array_equal(graph.run({PIXELS: given_pixels, **others})[TOKENS], want)
    with Session(gated, engine="openvino", threads=1) as session:
        np.testing.assert_array_equal(session.run(read_only)[0], session.run(pixels)[0])


def test_results_stay_when_the_next_image_runs(gated: Bundle) -> None:
    with Session(gated, engine="openvino", threads=1) as session:
        logits, report = session.run(pixels_of(gated, 3))
        kept = logits.copy(), [grid.copy() for grid in report.confidence], [grid.copy() for grid in report.keep]
        session.run(pixels_of(gated, 4))
        np.testing.assert_array_equal(logits, kept[0])
        for before, after in zip((*kept[1], *kept[2]), (*report.confidence, *report.keep), strict=True):
            np.testing.assert_array_equal(before, after)


def test_a_run_is_repeated_bit_for_bit_whatever_ran_before(gated: Bundle) -> None:
    settings = middle(gated)
    with Session(gated, engine="openvino", threads=1) as first, Session(gated, engine="openvino", threads=1) as second:
        for seed in (5, 6, 7):
            second.run_one(pixels_of(gated, seed), settings)
        np.testing.assert_array_equal(
            first.run_one(pixels_of(gated), settings)[0], second.run_one(pixels_of(gated), settings)[0]
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_nothing_stops_stages_give_what_the_dense_graph_gives(gated: Bundle, precision: str) -> None:
    if precision == "bf16" and NO_BF16:
        pytest.skip("this CPU does not compute in bfloat16")
    pixels, nothing = pixels_of(gated), RunSettings.stop_nothing(gated.manifest.spec)
    with Session(gated, engine="openvino", precision=precision, threads=1) as session:
        want = session.run(pixels, dense=True)[0]
        got, report = session.run_one(pixels, nothing)
        assert set(report.kept) == {gated.manifest.spec.tokens}
        later = [session.engine(stage_name(number)) for number in range(1, gated.stages)]
        # Nothing is gathered, masked or written back.
        assert [graph.buckets for graph in later] == [(ALL_IN_ORDER,)] * len(later)
        np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())


def test_all_tokens_in_another_order_give_the_same(gated: Bundle) -> None:
    spec, nothing = gated.manifest.spec, RunSettings.stop_nothing(gated.manifest.spec)
    with Session(gated, engine="openvino", threads=1) as session:
        outputs, index = next(iter(session.stages(pixels_of(gated), nothing)))
        stage, inputs = session.engine(stage_name(1)), {TOKENS: outputs[TOKENS], FLOOR: np.zeros((), np.float32)}
        inputs[THRESHOLDS] = nothing.thresholds[0]
        order = np.concatenate([index[: spec.extra_tokens], index[spec.extra_tokens :][::-1]])
        plain, turned = ({**stage.run({**inputs, INDEX: given})} for given in (index, order))
        assert stage.buckets == (ALL_IN_ORDER, spec.tokens)
        for name, value in plain.items():
            np.testing.assert_allclose(turned[name], value, atol=1e-5 * np.abs(value).max())


@pytest.mark.skipif(NO_BF16, reason="this CPU does not compute in bfloat16")
def test_tokens_go_from_stage_to_stage_in_the_precision_they_are_computed_in(gated: Bundle) -> None:
    with Session(gated, engine="openvino", precision="bf16", threads=1) as session:
        outputs, _ = next(iter(session.stages(pixels_of(gated), middle(gated))))
        assert outputs[TOKENS].dtype == np.uint16 and outputs[CONFIDENCE].dtype == np.float32
        tokens = session.backend.download(outputs[TOKENS])
    with Session(gated) as reference:
        want = next(iter(reference.stages(pixels_of(gated), middle(gated))))[0][TOKENS]
    assert tokens.dtype == np.float32
    np.testing.assert_allclose(tokens, want, atol=0.02 * np.abs(want).max())


@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_a_bucket_holds_its_count_and_wastes_little(total: int, share: float) -> None:
    count = round(total * share)
    bucket = bucket_for_count(count, total)
    assert max(count, 1) <= bucket <= total
    assert bucket >= min(SMALLEST, total)
    between = total < 4 * count <= 2 * total
    assert bucket - count < max(4 * SMALLEST, -(-total * (1 if between else 2) // STEPS) + 1)
    assert bucket_for_count(bucket, total) == bucket


def test_who_needs_what_is_compiled_does_not_wait_for_who_compiles_another() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Model:
        outputs = ()

        def clone(self) -> Model:
            return Model()

        def reshape(self, sizes: dict[str, list[int]]) -> None:
            self.large = sizes[INDEX] == [64]

    def compiled(model: Model) -> Model:
        if model.large:
            begun.set()
            assert go_on.wait(20)
        return model

    graph = BucketedGraph(compiled, Model(), total=64)
    small = graph._graph(16)
    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(graph._graph, 64)
        assert begun.wait(20)
        try:
            assert pool.submit(graph._graph, 16).result(20) is small
        finally:
            go_on.set()
        assert large.result(20) is graph._graph(64)
    assert graph.buckets == (16, 64)


@given(st.data())
def test_padding_is_what_does_not_run(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 60))
    index = data.draw(st.lists(st.integers(0, total - 1), unique=True).map(lambda found: np.asarray(found, np.int64)))
    bucket = bucket_for_count(len(index), total)
    full = padded(index, bucket, total)
    assert full.shape == (bucket,)
    np.testing.assert_array_equal(full[: len(index)], index)
    assert len(set(full.tolist())) == bucket
    assert set(full.tolist()) <= set(range(total))


def test_all_that_changes_results_is_set() -> None:
    for precision, name in (("fp32", "f32"), ("bf16", "bf16"), ("int8", "bf16")):
        properties = compile_properties(arithmetic(precision, ["FP32", "BF16", "INT8"]), 2)
        assert properties["INFERENCE_PRECISION_HINT"] == name
        assert properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 0
        assert properties["INFERENCE_NUM_THREADS"] == 2
        assert "INFERENCE_NUM_THREADS" not in compile_properties(name, None)
    assert arithmetic("int8", ["FP32", "INT8"]) == "f32"
    one, several = compile_properties("f32", 1), compile_properties("f32", 1, callers=3)
    assert (one["PERFORMANCE_HINT"], one["NUM_STREAMS"], one["INFERENCE_NUM_THREADS"]) == ("LATENCY", 1, 1)
    assert (several["PERFORMANCE_HINT"], several["NUM_STREAMS"], several["INFERENCE_NUM_THREADS"]) == (
        "THROUGHPUT",
        3,
        3,
    )


class OldCore:
    """A core on a CPU that lists what CPUs of before 2020 have."""

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return ["FP32", "INT8", "BIN", "EXPORT_IMPORT"]


def test_bf16_is_refused_where_the_cpu_would_imitate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "openvino_core", OldCore)
    with pytest.raises(ProviderMissing, match=r"does not compute in bf16; .* --precision fp32"):
        OpenVinoBackend(precision="bf16")
    OpenVinoBackend(precision="fp32")


SIGNALS = """
import gc, os, signal, sys
seen = []
reporting = ("socket.", "urllib.", "subprocess.", "os.fork", "os.posix_spawn", "os.system", "os.exec")
sys.addaudithook(lambda event, arguments: seen.append(event) if event.startswith(reporting) else None)
from dovit_deploy import Session
first, second = (Session(sys.argv[1], engine="openvino", threads=1) for _ in range(2))
for session in (first, second):
    session.close()
# The first goes before the second: not the reverse of the order in which they came.
del session, first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGUSR1, lambda number, frame: print("handled"))
signal.raise_signal(signal.SIGUSR1)
numbers = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ()
opened = [os.readlink(f"/proc/self/fd/{number}") for number in numbers if os.path.lexists(f"/proc/self/fd/{number}")]
print(seen + [name for name in opened if name.startswith("socket:")])
"""


def test_signals_are_handled_after_sessions_have_ended_in_any_order_and_nothing_is_reported(
    tiny_bundle_path, tmp_path
) -> None:
    command = [sys.executable, "-c", SIGNALS, str(tiny_bundle_path)]
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**environment, **home})
    # No process, no socket and no file of OpenVINO's telemetry.
    assert (done.returncode, done.stdout) == (0, "handled\n[]\n"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_is_none_is_refused_in_one_line(tiny_bundle_path, tmp_path) -> None:
    bundle = Bundle.open(tiny_bundle_path)
    broken = tmp_path / "broken.dovit"
    broken.mkdir()
    for name in bundle.manifest.files:
        (broken / name).write_bytes(b"no graph")
    with pytest.raises(GraphMismatch, match=r"stage0\.onnx is no ONNX graph") as refused:
        files = {name: file_entry(broken / name) for name in bundle.manifest.files}
        OpenVinoBackend().load(Bundle(broken, bundle.manifest.model_copy(update={"files": files})), "stage0")
    assert "\n" not in str(refused.value)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files")
def test_a_session_keeps_no_file_open(int8_bundle_path) -> None:
    gc.collect()
    gc.disable()
    try:
        before = open_files()
        with Session(int8_bundle_path, engine="openvino", precision="int8", threads=1):
            # Weights are many tensors, each of which could keep their file open.
            assert open_files() < before + 10
    finally:
        gc.enable()


def with_files(bundle: Bundle, files: dict[str, str]) -> Bundle:
    """`bundle` in which some files are copies of others, all listed as they are."""
    for name, source in files.items():
        shutil.copyfile(bundle.path / source, bundle.path / name)
    entries = {name: file_entry(bundle.path / name) for name in bundle.manifest.files}
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"files": entries}))


@pytest.mark.parametrize("graph", ["stage1", "stage2", "dense"])
def test_another_graph_in_a_file_is_refused_by_its_name(bundle_copy, graph: str) -> None:
    harmed = with_files(Bundle.open(bundle_copy), {f"{graph}.onnx": "stage0.onnx"})
    with pytest.raises(GraphMismatch, match=f"the file of graph '{graph}' holds 'stage0'; export again"):
        OpenVinoBackend(threads=1).load(harmed, graph)


@pytest.mark.parametrize("graph", ["stage0", "stage1", "merged"])
def test_a_graph_of_other_sizes_than_the_manifest_promises_is_refused(tiny_bundle_path, graph: str) -> None:
    bundle = Bundle.open(tiny_bundle_path)
    spec = bundle.manifest.spec.model_copy(update={"classes": 4})
    other = Bundle(bundle.path, bundle.manifest.model_copy(update={"spec": spec}))
    with pytest.raises(GraphMismatch, match=f"graph '{graph}' has .*thresholds float32 .*\n.* promises .*thresholds"):
        OpenVinoBackend(threads=1).load(other, graph)


def test_what_fails_while_it_runs_is_one_of_our_errors(tiny_bundle_path, tmp_path, monkeypatch, capfd) -> None:
    """No traceback: one line, exit code 5, and no half of a result."""

    class Failing:
        def set_input_tensor(self, position: int, tensor: object) -> None:
            pass

        def infer(self, *, share_outputs: bool) -> None:
            raise RuntimeError("Exception from src/plugins/intel_cpu/src/memory.cpp:12:\nno memory for 300 GB\n")

    monkeypatch.setattr(FixedGraph, "_request", lambda self: Failing())
    Image.fromarray(np.zeros((56, 72, 3), np.uint8)).save(tmp_path / "image.png")
    words = ["run", str(tmp_path / "image.png"), "--bundle", str(tiny_bundle_path), "-o", str(tmp_path / "out")]
    assert _run(_application(), [*words, "--engine", "openvino", "--threads", "1"]) == 5
    said = capfd.readouterr().err
    assert "error: OpenVINO failed while it ran tiny.dovit/stage0.onnx: no memory for 300 GB; use" in said
    assert "Traceback" not in said and not (tmp_path / "out").exists()


def test_what_was_compiled_for_a_frame_is_reported_apart(tiny_bundle_path, tmp_path, capfd) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.zeros((56, 72, 3), np.uint8)).save(folder / f"{number}.png")
    words = ["run", str(folder), "--bundle", str(tiny_bundle_path), "-o", str(tmp_path / "out"), "--threads", "1"]
    assert _run(_application(), [*words, "--engine", "openvino"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "frames.jsonl").read_text().splitlines()]
    # A size of each of the two later stages; the same image needs no other.
    assert [row.get("compiled") for row in rows] == [2, None, None]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["compiling"]
    assert summary["frames"] == 1
    assert summary["model_ms"]["cold"]["p99"] == rows[0]["latency_ms"]["model"] > summary["model_ms"]["warm"]["p99"]
    assert "something was compiled during 1 image: model p99 of these " in capfd.readouterr().out


def test_memory_that_ends_while_a_graph_is_loaded_is_named(tiny_bundle_path, monkeypatch) -> None:
    class Full(OldCore):
        def read_model(self, path: str, config: object) -> object:
            raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(packages, "openvino_core", Full)
    with pytest.raises(EnvironmentProblem, match=r"not enough memory for OpenVINO to load tiny\.dovit/stage0\.onnx"):
        OpenVinoBackend(threads=1).load(Bundle.open(tiny_bundle_path), "stage0")


def test_large_weights_outlive_their_file(tmp_path) -> None:
    """OpenVINO leaves tensors of a megabyte and more in the file; a stage is compiled for a size long after that."""
    ir = packages.load("onnx_ir")
    folder = tmp_path / "copy"
    folder.mkdir()
    tokens = ir.Value(name="tokens", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["kept", 512]))
    weight = ir.Value(name="weight", const_value=ir.tensor(np.eye(512, dtype=np.float32), name="weight"))
    product = ir.node("MatMul", [tokens, weight])
    product.outputs[0].name = "answer"
    graph = ir.Graph(
        [tokens], product.outputs, nodes=[product], initializers=[weight], opset_imports={"": 20}, name="g"
    )
    ir.save(ir.Model(graph, ir_version=10), folder / "large.onnx", external_data="large.data")
    backend = OpenVinoBackend(precision="fp32", threads=1)
    model = backend._read(folder / "large.onnx", "large.onnx")
    shutil.rmtree(folder)
    sized = model.clone()
    sized.reshape({"tokens": [3, 512]})
    given = np.arange(3 * 512, dtype=np.float32).reshape(3, 512)
    assert np.array_equal(backend.compiled(sized, "large.onnx").run({"tokens": given})["answer"], given)
