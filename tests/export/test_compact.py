"""Large weights in float16: rounded before anything else, judged by classes, and no reader is any the wiser."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from PIL import Image

from dovit_deploy import Session
from dovit_deploy.bundle.bundle import PARITY, WEIGHTS, Bundle
from dovit_deploy.bundle.parity import ParityReport
from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.cli import _application, _run
from dovit_deploy.commands.export import _left_behind, _summary
from dovit_deploy.commands.precisions import PrecisionRequest
from dovit_deploy.engines.onnxruntime import PROVIDER, session_options
from dovit_deploy.errors import UsageError
from dovit_deploy.export.compact import compacted, stored_state
from dovit_deploy.export.plan import ExportPlan
from dovit_deploy.families.registry import state_from_bundle
from dovit_deploy.graphs import forms
from dovit_deploy.graphs.weights import INLINE_LIMIT
from dovit_deploy.measure.inspect import bundle_contents
from tests.bundles import COMPACT, COMPACT_SEED, export, int8_copy, saved_tiny, tiny_checkpoint
from tests.datasets.labelled_folder import noise
from tests.tiny import tiny_pixels, tiny_spec

CLASSIFIER = "head.head.classifier.weight"


@pytest.fixture(scope="module")
def compact(compact_bundle_path: Path) -> Bundle:
    return Bundle.open(compact_bundle_path)


@pytest.fixture(scope="module")
def wide(compact_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same rounded network, all of it stored in float32: an export of the compact bundle without the flag."""
    folder = tmp_path_factory.mktemp("wide")
    return export(checkpoint_from_path(compact_bundle_path), folder / "compact.dovit")[0]


@pytest.fixture(scope="module")
def int8(compact: Bundle, wide: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """Both with forms in 8 bits."""
    folder = tmp_path_factory.mktemp("int8")
    return int8_copy(compact.path, folder / "c.dovit"), int8_copy(wide.path, folder / "w.dovit")


def pixels_of(bundle: Bundle) -> np.ndarray:
    return np.ascontiguousarray(tiny_pixels(bundle.manifest.spec.size, seed=3).numpy())


def in_order(path: Path) -> bytes:
    """A file; of a graph its weights in the order of their names: int8 leaves some out, and others come last."""
    if path.suffix != ".onnx":
        return path.read_bytes()
    model = onnx.load(path, load_external_data=False)
    for listed in (model.graph.initializer, model.graph.value_info):
        entries = sorted(listed, key=lambda entry: entry.name)
        del listed[:]
        listed.extend(entries)
    return model.SerializeToString()


def test_large_matrices_that_float16_holds_are_rounded_and_nothing_else() -> None:
    ones = torch.ones(64, 64)
    state = {
        "matrix": ones * 1.0001,
        "kernel": torch.full((8, 8, 5, 5), 0.1),
        "too large for float16": ones * 65520,
        "small": torch.ones(32, 32),
        "vector": torch.ones(5000),
        "whole numbers": torch.ones(64, 64, dtype=torch.int64),
    }
    stored = stored_state(state)
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.float16} == {"matrix", "kernel"}
    assert torch.equal(stored["kernel"], state["kernel"].half())
    assert all(stored[name] is state[name] for name in ("too large for float16", "small", "vector", "whole numbers"))


def test_tables_that_follow_from_other_entries_are_not_rounded() -> None:
    checkpoint = tiny_checkpoint(tiny_spec(head="linear", gates=(), size=(160, 320), width=32, rotary=True))
    manifest = ExportPlan.resolve(checkpoint, Path("x.dovit")).manifest
    images = [("pixels", tiny_pixels(checkpoint.spec.size, 1).numpy())]
    assert checkpoint.state["rotary.cosines"].nbytes > INLINE_LIMIT
    stored = compacted(manifest, checkpoint.state, images).stored
    rounded = {name for name, tensor in stored.items() if tensor.dtype == torch.float16}
    assert "stem.projection.weight" in rounded and not {name for name in rounded if name.startswith("rotary.")}


def test_the_file_holds_half_and_the_report_what_that_cost(compact: Bundle, wide: Bundle) -> None:
    state = safetensors.torch.load(compact.content(WEIGHTS))
    large = {name for name, tensor in state.items() if tensor.ndim > 1 and tensor.numel() * 4 > INLINE_LIMIT}
    assert {name for name, tensor in state.items() if tensor.dtype == torch.float16} == large
    saved = sum(2 * state[name].numel() for name in large)
    assert saved * 3 > wide.weights.stat().st_size
    # The headers differ by some digits.
    assert wide.weights.stat().st_size - compact.weights.stat().st_size == pytest.approx(saved, abs=200)
    record = json.loads((compact.path / PARITY).read_text())["compact"]
    assert record == {"agreement": 1.0, "images": 2, "rounded": len(large)}
    assert "compact" not in json.loads((wide.path / PARITY).read_text())


def test_a_bundle_that_is_exported_again_in_full_says_so(compact: Bundle, wide: Bundle) -> None:
    request = PrecisionRequest.from_flags("fp32", None, None)
    (line,) = _left_behind(compact.path, request, compact=False)
    assert line.startswith(f"{compact.path.name} has large weights in fp16") and "--compact" in line
    assert _left_behind(compact.path, request, compact=True) == []
    assert _left_behind(wide.path, request, compact=False) == []


def test_the_network_is_the_rounded_one_everywhere(compact: Bundle, wide: Bundle) -> None:
    ours, theirs = (state_from_bundle(bundle) for bundle in (compact, wide))
    assert all(tensor.dtype == torch.float32 and torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    given = tiny_checkpoint(COMPACT, seed=COMPACT_SEED).state
    assert any(not torch.equal(tensor, given[name]) for name, tensor in ours.items())
    with Session(compact, engine="torch") as reference:
        want, expected = reference.run(pixels_of(compact))
    assert expected.kept[0] > expected.kept[-1]
    for bundle in (compact, wide):
        with Session(bundle, threads=1) as session:
            got, report = session.run(pixels_of(bundle))
            assert report.kept == expected.kept
            np.testing.assert_allclose(got, want, atol=1e-4)
    with Session(compact, threads=1) as one, Session(wide, threads=1) as other:
        assert np.array_equal(one.run(pixels_of(compact))[0], other.run(pixels_of(wide))[0])


@pytest.mark.parametrize("fast", [False, True])
def test_onnx_runtime_is_done_with_it_when_it_has_loaded(
    compact: Bundle, wide: Bundle, tmp_path: Path, *, fast: bool
) -> None:
    """What then runs is, operator for operator, what runs of weights in float32: it cannot be slower."""
    runs = []
    for number, bundle in enumerate((compact, wide)):
        options = session_options(onnxruntime, threads=1)
        options.optimized_model_filepath = str(tmp_path / f"{number}.onnx")
        onnxruntime.InferenceSession(str(bundle.graph("merged", fast=fast)), options, providers=[PROVIDER])
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
        runs.append(Counter((node.domain, node.op_type) for node in graph.node))
        assert onnx.TensorProto.FLOAT16 not in {tensor.data_type for tensor in graph.initializer}
    assert runs[0] == runs[1]


@pytest.mark.parametrize("passes", ["openvino", "tensorrt fp32", "tensorrt fp16", "cuda fp16", "int8 openvino"])
def test_what_is_derived_is_the_same_byte_for_byte(
    compact: Bundle, wide: Bundle, int8: tuple[Bundle, Bundle], tmp_path: Path, passes: str
) -> None:
    chosen = {
        "openvino": forms.padded_passes(),
        "tensorrt fp32": forms.engine_passes(precision="fp32", plugins=True),
        "tensorrt fp16": forms.engine_passes(precision="fp16", plugins=False),
        "cuda fp16": forms.half_passes(),
        "int8 openvino": forms.padded_passes(),
    }[passes]
    form = {"precision": "int8" if "int8" in passes else "fp32", "fast": passes == "cuda fp16"}
    made = []
    for number, bundle in enumerate(int8 if "int8" in passes else (compact, wide)):
        source, folder = tmp_path / f"from {number}", tmp_path / f"to {number}"
        source.mkdir()
        folder.mkdir()
        names = ("stage0", "stage1", "dense") if "openvino" in passes else ("stage0", "stage1", "merged")
        paths = [bundle.copied_graph(name, source, **form) for name in names]
        weights = [source / name for name in bundle.weights_files(form["precision"])]
        forms.write_derived(paths, folder, weights=weights, passes=chosen)
        read = in_order if "int8" in passes else Path.read_bytes
        made.append({path.name: read(path) for path in folder.iterdir()})
    assert made[0].keys() == made[1].keys()
    assert [name for name, content in made[0].items() if content != made[1][name]] == []


@pytest.mark.parametrize(("engine", "precision"), [("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "int8")])
def test_other_engines_answer_as_they_do_for_float32(
    compact: Bundle, wide: Bundle, int8: tuple[Bundle, Bundle], engine: str, precision: str
) -> None:
    pytest.importorskip(engine)
    answers = []
    for bundle in int8 if precision == "int8" else (compact, wide):
        with Session(bundle, engine=engine, precision=precision, threads=1) as session:
            logits, report = session.run(pixels_of(bundle))
            answers.append((logits, report.kept, session.run(pixels_of(bundle), dense=True)[0]))
    assert answers[0][1] == answers[1][1]
    assert np.array_equal(answers[0][0], answers[1][0]) and np.array_equal(answers[0][2], answers[1][2])


@pytest.mark.parametrize(
    ("engine", "precision"), [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "int8"), ("torch", "fp32")]
)
def test_run_gives_the_same_masks(
    int8: tuple[Bundle, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, precision: str
) -> None:
    pytest.importorskip(engine)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(noise((90, 120), classes=5, seed=1)[0]).save("image.png")
    for number, bundle in enumerate(int8):
        words = ["--engine", engine, "--precision", precision, "--save", "masks", "-o", f"out{number}", "--quiet"]
        assert _run(_application(), ["run", "image.png", "--bundle", str(bundle.path), *words]) == 0
    ours, theirs = (Path(f"out{number}/masks/image.png").read_bytes() for number in range(2))
    assert ours == theirs


def test_int8_of_it_has_the_same_scales_and_leaves_the_fp32_weights(
    compact: Bundle, int8: tuple[Bundle, Bundle]
) -> None:
    ours, theirs = int8
    assert ours.content("weights.int8.safetensors") == theirs.content("weights.int8.safetensors")
    assert ours.weights.read_bytes() == compact.weights.read_bytes()


def test_a_second_time_nothing_changes(compact: Bundle) -> None:
    checkpoint = checkpoint_from_path(compact.path)
    stored = stored_state(checkpoint.state)
    again = safetensors.torch.load(compact.content(WEIGHTS))
    assert all(
        torch.equal(tensor, again[name]) and tensor.dtype == again[name].dtype for name, tensor in stored.items()
    )


def test_what_changes_classes_is_refused_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tiny_spec(width=32, head="linear", gates=(1,), depth=2, classes=48)
    weight = tiny_checkpoint(spec).state[CLASSIFIER]
    # All classes look for nearly the same, and what distinguishes them is below float16's steps.
    given = saved_tiny(spec, tmp_path / "given", changed={CLASSIFIER: weight[:1] + 1e-4 * weight})
    output = tmp_path / "x.dovit"
    assert _run(_application(), ["export", str(given), "--compact", "-o", str(output), "--quiet"]) == 4
    printed = " ".join(capsys.readouterr().err.split())
    assert re.search(r"--compact: .* changes the class of [\d.]+% of the pixels of 2 images, 0\.01% at most", printed)
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_the_line_of_an_export_says_what_rounding_cost(compact: Bundle, wide: Bundle) -> None:
    reports = [ParityReport.model_validate_json(bundle.content(PARITY)) for bundle in (compact, wide)]
    assert "weights in fp16: 100.000% of the pixels agree" in _summary(reports[0], 1.0)
    assert "fp16" not in _summary(reports[1], 1.0)
    assert bundle_contents(compact).parity.compact == reports[0].compact
    assert any("weights in fp16: 100.000%" in text for _, text in bundle_contents(compact).facts)


def test_a_backbone_without_classes_is_refused(compact: Bundle) -> None:
    manifest = compact.manifest.model_copy(update={"task": "features"})
    with pytest.raises(UsageError, match="--compact: compact is a backbone without a head"):
        compacted(manifest, {}, [])
