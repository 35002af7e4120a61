"""A bundle is whole, checked, plain ONNX over one weights file, and never half there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import graph_interfaces
from dovit_deploy.errors import ParityError, UsageError
from dovit_deploy.export import pipeline
from dovit_deploy.export.pipeline import reference_bundle_at_size
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.runtime.session import Session
from tests.bundles import export, export_tiny, tiny_checkpoint
from tests.paths import ROOT
from tests.tiny import tiny_pixels, tiny_spec

FORBIDDEN = {"NonZero", "Compress", "Unique"}


def graphs(path: Path, *, fast: bool | None = None) -> list[Path]:
    found = sorted(path.glob("*.onnx"))
    return [file for file in found if fast is None or file.name.endswith(".ort.onnx") == fast]


def test_a_bundle_holds_what_the_format_says(tiny_bundle_path: Path) -> None:
    names = {file.name for file in tiny_bundle_path.iterdir()}
    stems = ("stage0", "stage1", "stage2", "merged", "dense")
    expected = {f"{stem}{ending}" for stem in stems for ending in (".onnx", ".ort.onnx")}
    assert names == expected | {"manifest.json", "weights.safetensors", "parity.json"}


def test_every_portable_graph_is_standard_onnx_of_opset_20(tiny_bundle_path: Path) -> None:
    for file in graphs(tiny_bundle_path, fast=False):
        onnx.checker.check_model(str(file), full_check=True)
        model = onnx.load(str(file), load_external_data=False)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
        assert {node.domain for node in model.graph.node} == {""}


def test_graphs_hold_no_operator_with_a_data_dependent_shape(tiny_bundle_path: Path) -> None:
    for file in graphs(tiny_bundle_path):
        model = onnx.load(str(file), load_external_data=False)
        inline = [entry for entry in model.graph.initializer if entry.raw_data]
        constants = {entry.name: onnx.numpy_helper.to_array(entry) for entry in inline}
        for node in model.graph.node:
            assert node.op_type not in FORBIDDEN, f"{file.name}: {node.op_type}"
            if node.op_type == "TopK":
                assert constants[node.input[1]].tolist() == [1]


def test_the_mean_of_stopped_tokens_copies_no_matrix(tiny_bundle_path: Path) -> None:
    for name in ("stage1.onnx", "stage2.ort.onnx", "merged.onnx"):
        model = onnx.load(str(tiny_bundle_path / name), load_external_data=False)
        producers = {output: node for node in model.graph.node for output in node.output}
        products = [node for node in model.graph.node if node.op_type == "MatMul"]
        masked = [node for node in products if producers[node.input[0]].op_type == "Cast"]
        assert masked, f"{name}: no product with the mask of stopped tokens"
        before = {producers[value].op_type for node in masked for value in node.input if value in producers}
        assert "Transpose" not in before


def test_weights_are_stored_once_and_graphs_only_point_at_them(tiny_bundle_path: Path) -> None:
    for file in graphs(tiny_bundle_path):
        model = onnx.load(str(file), load_external_data=False)
        external = [entry for entry in model.graph.initializer if entry.data_location == onnx.TensorProto.EXTERNAL]
        locations = {part.value for entry in external for part in entry.external_data if part.key == "location"}
        assert locations == {"weights.safetensors"}
        inline = [entry for entry in model.graph.initializer if entry.raw_data]
        assert all(len(entry.raw_data) <= 4096 for entry in inline)


def test_interfaces_are_those_of_the_specification(tiny_bundle_path: Path, dense_bundle_path: Path) -> None:
    for path in (tiny_bundle_path, dense_bundle_path):
        interfaces = graph_interfaces(Bundle.open(path).manifest.spec)
        for file in graphs(path):
            session = onnxruntime.InferenceSession(str(file))
            interface = interfaces[file.name.split(".")[0]]
            for ports, values in ((interface.takes, session.get_inputs()), (interface.gives, session.get_outputs())):
                assert [port.name for port in ports] == [value.name for value in values]
                assert [tuple(port.shape) for port in ports] == [tuple(value.shape) for value in values]
                types = {"float32": "tensor(float)", "int64": "tensor(int64)"}
                assert [types[port.dtype] for port in ports] == [value.type for value in values]


def test_graphs_carry_metadata_and_no_path_of_the_machine(tiny_bundle_path: Path) -> None:
    here = str(ROOT).encode()
    for file in graphs(tiny_bundle_path):
        meta = onnxruntime.InferenceSession(str(file)).get_modelmeta().custom_metadata_map
        assert meta["dovit.format"] == "dovit-bundle"
        assert meta["dovit.classes"].split(",")[0] == "class 0"
        assert here not in file.read_bytes()


def test_the_parity_report_says_what_was_compared(tiny_bundle_path: Path) -> None:
    report = json.loads((tiny_bundle_path / "parity.json").read_text())
    assert [form["form"] for form in report["forms"]] == ["portable", "fast"]
    shares = [run["kept"][1] / run["kept"][0] for form in report["forms"] for run in form["runs"]]
    assert any(0.1 <= share <= 0.9 for share in shares)


def test_an_existing_bundle_is_refused_and_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "x.dovit"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="--overwrite"):
        export_tiny(tiny_spec(gates=(), depth=1, head="linear"), target)
    assert (target / "mine.txt").read_text() == "keep"


def test_a_wrong_graph_fails_the_export_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that the graphs use are disturbed after the reference was built: parity must notice."""
    write = pipeline.write_graphs

    def with_another_epsilon(folder: Path, spec: ModelSpec, model: torch.nn.Module, **rest: object) -> None:
        write(folder, spec, model, **rest)  # type: ignore[arg-type]
        for file in folder.glob("stage0*.onnx"):
            loaded = onnx.load(str(file), load_external_data=False)
            for node in loaded.graph.node:
                for attribute in node.attribute:
                    if node.op_type == "LayerNormalization" and attribute.name == "epsilon":
                        attribute.f = 0.5
            onnx.save(loaded, str(file))

    monkeypatch.setattr(pipeline, "write_graphs", with_another_epsilon)
    with pytest.raises(ParityError, match="parity failures"):
        export_tiny(tiny_spec(gates=(1,), depth=2), tmp_path / "wrong.dovit")
    assert list(tmp_path.iterdir()) == []


def test_thresholds_of_a_wrong_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 gates"):
        export(dataclasses.replace(tiny_checkpoint(tiny_spec()), thresholds=(0.5, 0.5, 0.5)), tmp_path / "x.dovit")
    assert list(tmp_path.iterdir()) == []


def test_a_size_below_16_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 16"):
        export(tiny_checkpoint(tiny_spec()), tmp_path / "x.dovit", size=(8, 64))


def test_merged_equals_staged_bit_for_bit(tiny_bundle_path: Path, setr_bundle_path: Path) -> None:
    for path in (tiny_bundle_path, setr_bundle_path):
        bundle = Bundle.open(path)
        pixels = tiny_pixels(bundle.manifest.spec.size, seed=3).numpy()
        thresholds = np.full((len(bundle.manifest.spec.gates), bundle.manifest.spec.classes), 0.6, np.float32)
        with Session(bundle, threads=1) as session:
            logits, report = session.run(pixels, thresholds=0.6)
            feed = {"pixels": pixels, "thresholds": thresholds, "floor": np.zeros((), np.float32)}
            outputs = session.engine("merged").run(feed)
        assert np.array_equal(outputs["logits"], logits)
        assert tuple(outputs["kept"]) == report.kept


def test_it_answers_as_an_export_at_that_size_does(tiny_bundle_path, tmp_path):
    size = (48, 32)
    exported, _ = export(tiny_checkpoint(tiny_spec()), tmp_path / "small.dovit", size=size)
    bundle = Bundle.open(tiny_bundle_path)
    before = bundle.weights.read_bytes()
    small = reference_bundle_at_size(bundle, size, tmp_path)
    pixels = np.ascontiguousarray(tiny_pixels(size, seed=3).numpy())
    with Session(small, engine="torch", threads=1) as session, Session(exported, threads=1) as deployed:
        answer, report = session.run(pixels, dense=True)
        expected, wanted = deployed.run(pixels, dense=True)
    np.testing.assert_allclose(answer, expected, atol=1e-4)
    assert report.gmacs_dense == wanted.gmacs_dense
    assert bundle.weights.read_bytes() == before
