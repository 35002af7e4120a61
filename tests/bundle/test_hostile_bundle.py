"""A signed manifest is still an input: what is in it is refused at once (6), however well its digest fits."""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
import safetensors.numpy

from dovit_deploy.bundle.bundle import Bundle, file_entry
from dovit_deploy.bundle.manifest import digest_of
from dovit_deploy.cli import _application, _run
from dovit_deploy.errors import BundleError, GraphMismatch, ManifestInvalid, PathEscapes, WeightsInvalid
from dovit_deploy.graphs.forms import derive_graphs
from dovit_deploy.runtime.session import Session

Change = Callable[[dict[str, Any]], object]
WEIGHTS = "weights.safetensors"


def signed(folder: Path, change: Change) -> None:
    """Change the manifest of the bundle and sign it again; text, since some of it no JSON writer would write."""
    body = json.loads((folder / "manifest.json").read_text())
    body.pop("digest")
    change(body)
    (folder / "manifest.json").write_text(json.dumps({**body, "digest": digest_of(body)}))


def listed_again(folder: Path) -> None:
    """Digests and sizes of the files as they are now."""
    signed(folder, lambda body: body["files"].update({name: vars_of(folder / name) for name in body["files"]}))


def vars_of(path: Path) -> dict[str, object]:
    return file_entry(path).model_dump()


def setting(path: str, value: object) -> Change:
    """Set the field at the dotted `path`."""

    def change(body: dict[str, Any]) -> None:
        *above, last = path.split(".")
        section: Any = body
        for part in above:
            section = section[int(part) if part.isdigit() else part]
        section[int(last) if last.isdigit() else last] = value

    return change


NAN, INF = float("nan"), float("inf")
HOSTILE: dict[str, Change] = {
    # The three of the attack list: colours, a head and a size beyond all bounds.
    "colour": setting("classes.0.color", [999, -1, 5]),
    "convs": setting("spec.head", {"kind": "setr", "channels": 8, "convs": 100_000_000, "up_scale": 9}),
    "size": setting("spec.size", [10**9, 10**9]),
    "size 0": setting("spec.size", [0, 64]),
    "negative size": setting("spec.size", [-64, 64]),
    "depth": setting("spec.depth", 10**9),
    "width": setting("spec.width", 2**40),
    "digits": setting("spec.width", 10**5000),
    "hidden": setting("spec.hidden", 10**12),
    "classes": setting("spec.classes", 10**9),
    "patch 0": setting("spec.patch", 0),
    "layer": setting("spec.gates.0.layer", -1),
    "layer beyond the depth": setting("spec.gates.1.layer", 99),
    "one gate twice": lambda body: body["spec"]["gates"].append(copy.deepcopy(body["spec"]["gates"][-1])),
    "thousands of gates": lambda body: body["spec"].update(gates=body["spec"]["gates"] * 10_000),
    "megabytes of gates": lambda body: body["spec"].update(gates=body["spec"]["gates"] * 100_000),
    "epsilon": setting("spec.norm_eps", NAN),
    "rate": setting("spec.aggregate_rate", INF),
    "stride 0": setting("preprocessing.stride", [0, 0]),
    "negative stride": setting("preprocessing.stride", [-1, 8]),
    "stride beyond the window": setting("preprocessing.stride", [999, 999]),
    "std 0": setting("preprocessing.std", [0, 1, 1]),
    "std NaN": setting("preprocessing.std", [NAN, 1, 1]),
    "mean infinite": setting("preprocessing.mean", [INF, 1, 1]),
    "mean of digits": setting("preprocessing.mean", [10**400, 1, 1]),
    "threshold NaN": setting("defaults.thresholds.0.0", NAN),
    "threshold infinite": setting("defaults.thresholds.0.0", INF),
    "floor": setting("defaults.floor", -0.5),
    "count 0": setting("counts.0.minimum", 0),
    "counts that fall": setting("counts.1.typical", 10**6),
    "count beyond the tokens": setting("counts.1.maximum", 10**6),
    "a stage too many": lambda body: body["counts"].append(body["counts"][-1]),
    "a class too few": lambda body: body["classes"].pop(),
    "surrogate": setting("classes.0.name", "\ud800"),
    "surrogate in the file list": lambda body: body["files"].update({"\udfff": body["files"][WEIGHTS]}),
    "a name of a megabyte": setting("name", "x" * 10**6),
    "opset": setting("opset", 10**9),
    "bytes": setting("files.parity", {"sha256": "0" * 64, "bytes": -1}),
    "a number for a text": setting("name", 5),
    "a text for a number": setting("spec.width", "x" * 10_000),
    "a list for a section": setting("spec", [[[]]]),
    "an unknown architecture": setting("spec.architecture", "x" * 10_000),
    "a huge network of allowed numbers": lambda body: body["spec"].update(
        width=65_536, hidden=65_536, depth=1_024, heads=1
    ),
    "padded on all sides, and the logits cover the padding": lambda body: (
        body["spec"].update(size=[57, 72], padding="centre"),
        body["preprocessing"].update(logits_cover="padded"),
    ),
    "far too many patches": lambda body: body["spec"].update(size=[16_384, 16_384], patch=1),
    "another version": setting("version", 10**300),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_manifest_is_refused_at_once(bundle_copy: Path, change: Change) -> None:
    import sys

    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        signed(bundle_copy, change)
    finally:
        sys.set_int_max_str_digits(limit)
    begin = time.monotonic()
    with pytest.raises(BundleError) as refused:
        Bundle.open(bundle_copy)
    assert time.monotonic() - begin < 1
    assert len(str(refused.value)) < 700
    assert str(refused.value).count("\n") <= 1


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format":' * 2_000, '{"format": 1' + "0" * 10_000 + "}", '"\xff'])
def test_a_text_that_is_no_manifest(bundle_copy: Path, text: str) -> None:
    (bundle_copy / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ManifestInvalid) as refused:
        Bundle.open(bundle_copy)
    assert len(str(refused.value)) < 400


def test_the_command_line_says_it_in_a_line(bundle_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signed(bundle_copy, setting("spec.head", {"kind": "setr", "channels": 8, "convs": 10**8, "up_scale": 9}))
    assert _run(_application(), ["inspect", str(bundle_copy)]) == 6
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "convs" in shown


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_weights_that_are_no_numbers(bundle_copy: Path, value: float) -> None:
    path = bundle_copy / WEIGHTS
    tensors = safetensors.numpy.load_file(path)
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].copy()
    tensors[name].flat[-1] = value
    path.write_bytes(safetensors.numpy.save(tensors, metadata={"format": "dovit-weights"}))
    listed_again(bundle_copy)
    with pytest.raises(WeightsInvalid, match=name):
        Bundle.open(bundle_copy)


def header(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def tensor(shape: object, offsets: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BROKEN = {
    "empty": b"",
    "length": struct.pack("<Q", 2**63) + b"{}",
    "length beyond the file": struct.pack("<Q", 3) + b"{}",
    "no JSON": struct.pack("<Q", 2) + b"{[",
    "a list": struct.pack("<Q", 2) + b"[]",
    "depth": struct.pack("<Q", 20_000) + b"[" * 20_000,
    "beyond the file": header(a=tensor([4], [0, 16])) + bytes(8),
    "more than the file": header(a=tensor([2], [0, 8])) + bytes(16),
    "overlap": header(a=tensor([2], [0, 8]), b=tensor([2], [4, 12])) + bytes(12),
    "gap": header(a=tensor([1], [0, 4]), b=tensor([1], [8, 12])) + bytes(12),
    "size": header(a=tensor([3], [0, 8])) + bytes(8),
    "a negative side": header(a=tensor([-2, -1], [0, 8])) + bytes(8),
    "a huge side": header(a=tensor([2**62, 2**62, 0], [0, 8])) + bytes(8),
    "falling offsets": header(a=tensor([2], [8, 0])) + bytes(8),
    "three offsets": header(a=tensor([2], [0, 8, 8])) + bytes(8),
    "type": header(a=tensor([2], [0, 8], "X9")) + bytes(8),
    "true for one": header(a=tensor([True, 2], [0, 8])) + bytes(8),
    "no table": header(a=5),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_weights_file_that_contradicts_itself(bundle_copy: Path, content: bytes) -> None:
    (bundle_copy / WEIGHTS).write_bytes(content)
    listed_again(bundle_copy)
    with pytest.raises(WeightsInvalid):
        Bundle.open(bundle_copy)


def test_stages_that_were_swapped(bundle_copy: Path) -> None:
    """Both take and give the same tensors, so only the name within tells them apart."""
    for end in (".onnx", ".ort.onnx"):
        first, second = bundle_copy / f"stage0{end}", bundle_copy / f"stage1{end}"
        first.rename(bundle_copy / "x")
        second.rename(first)
        (bundle_copy / "x").rename(second)
    listed_again(bundle_copy)
    with pytest.raises(GraphMismatch, match="stage0"):
        Session(Bundle.open(bundle_copy))


@pytest.mark.parametrize(
    "change",
    [
        setting("spec.size", [64, 72]),
        lambda body: body["spec"].update(width=body["spec"]["width"] * 2),
        lambda body: body["spec"].update(extra_tokens=2),
    ],
    ids=["size", "width", "tokens"],
)
def test_graphs_that_do_not_fit_the_spec(bundle_copy: Path, change: Change) -> None:
    def changed(body: dict[str, Any]) -> None:
        change(body)
        body["counts"] = [{"minimum": 1, "typical": 1, "maximum": 1}] * len(body["counts"])

    signed(bundle_copy, changed)
    with pytest.raises(GraphMismatch, match="promises"):
        Session(Bundle.open(bundle_copy))
    # What TensorRT's engines are made of.
    with pytest.raises(GraphMismatch, match="promises"):
        derive_graphs(Bundle.open(bundle_copy), ["stage0"], bundle_copy.parent, precision="fp32", plugins=False)


def test_a_graph_that_asks_for_more_memory_than_there_is(bundle_copy: Path) -> None:
    path = bundle_copy / "stage0.ort.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2**50], np.int64), "side"))
    model.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["side"], ["much"]))
    path.write_bytes(model.SerializeToString())
    listed_again(bundle_copy)
    bundle = Bundle.open(bundle_copy)
    with Session(bundle) as session, pytest.raises(GraphMismatch, match="cannot run"):
        session.run(np.zeros((1, 3, *bundle.manifest.spec.size), np.float32))


GRAPHS = ("stage0.onnx", "stage0.ort.onnx")
"""What other forms are made of, and what ONNX Runtime reads itself."""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("offset", value) for value in (str(10**15), "-1", "x", "100", str(10**30))),
        *(("length", value) for value in (str(10**15), "4")),
        *(("location", value) for value in ("/etc/passwd", "../x", "nothing", "", "stage0.onnx")),
    ],
)
def test_weights_that_a_graph_looks_for_elsewhere(bundle_copy: Path, key: str, value: str) -> None:
    for name in GRAPHS:
        model = onnx.load(bundle_copy / name, load_external_data=False)
        first = next(tensor for tensor in model.graph.initializer if tensor.external_data)
        next(entry for entry in first.external_data if entry.key == key).value = value
        (bundle_copy / name).write_bytes(model.SerializeToString())
    listed_again(bundle_copy)
    with pytest.raises(GraphMismatch, match=r"stage0\.onnx (looks for the weight|is no ONNX graph)"):
        derive_graphs(Bundle.open(bundle_copy), ["stage0"], bundle_copy.parent, precision="fp32", plugins=False)
    with pytest.raises(GraphMismatch, match=r"stage0\.ort\.onnx looks for the weight '.*' where it is not"):
        Session(Bundle.open(bundle_copy))


@pytest.mark.parametrize("change", ["another export's", "another shape"])
def test_weights_that_are_not_those_of_the_graph(bundle_copy: Path, change: str) -> None:
    """Whole and finite, but other numbers would be read as weights."""
    if change == "another shape":
        for name in GRAPHS:
            model = onnx.load(bundle_copy / name, load_external_data=False)
            next(tensor for tensor in model.graph.initializer if tensor.external_data).dims[0] += 1
            (bundle_copy / name).write_bytes(model.SerializeToString())
    else:
        state = safetensors.numpy.load_file(bundle_copy / WEIGHTS)
        (bundle_copy / WEIGHTS).write_bytes(safetensors.numpy.save({"a": np.zeros(3, np.float32), **state}))
    listed_again(bundle_copy)
    with pytest.raises(GraphMismatch, match=r"stage0\.onnx looks for the weight '.*' where it is not; export again"):
        derive_graphs(Bundle.open(bundle_copy), ["stage0"], bundle_copy.parent, precision="fp32", plugins=False)
    with pytest.raises(GraphMismatch, match=r"stage0\.ort\.onnx looks for the weight '.*' where it is not"):
        Session(Bundle.open(bundle_copy))


@pytest.mark.parametrize("attack", ["called float32", "called bfloat16", "cast to float64", "not cast"])
def test_float16_that_is_read_as_something_else(compact_bundle_path: Path, tmp_path: Path, attack: str) -> None:
    folder = tmp_path / "copy.dovit"
    shutil.copytree(compact_bundle_path, folder)
    for path in (folder / "stage0.onnx", folder / "stage0.ort.onnx"):
        model = onnx.load(path, load_external_data=False)
        half = next(tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16)
        cast = next(node for node in model.graph.node if half.name in node.input)
        if attack.startswith("called"):
            half.data_type = onnx.TensorProto.FLOAT if attack.endswith("float32") else onnx.TensorProto.BFLOAT16
        elif attack == "cast to float64":
            cast.attribute[0].i = onnx.TensorProto.DOUBLE
        else:
            cast.op_type = "Identity"
            del cast.attribute[:]
        path.write_bytes(model.SerializeToString())
    listed_again(folder)
    bundle = Bundle.open(folder)
    with pytest.raises(GraphMismatch, match=r"(stage0\.onnx looks for|'stage0' reads) the weight"):
        derive_graphs(bundle, ["stage0"], tmp_path, precision="fp32", plugins=False)
    # ONNX Runtime itself does not mix types, but would read bfloat16, which has as many bytes.
    with pytest.raises(GraphMismatch, match=r"stage0\.ort\.onnx(: .* Type Error| looks for the weight)"):
        Session(bundle)


def test_links_in_a_circle(bundle_copy: Path) -> None:
    (bundle_copy / "engines").mkdir()
    (bundle_copy / "engines" / "a").symlink_to("b")
    (bundle_copy / "engines" / "b").symlink_to("a")
    with pytest.raises(PathEscapes):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("given", ["the root", "no bundle", "a bundle"])
def test_folders_that_are_no_part_of_a_bundle_are_not_searched(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    folder = {"the root": Path("/"), "no bundle": tmp_path / "project", "a bundle": bundle_copy}[given]
    if folder != Path("/"):
        (folder / "modules" / "deep").mkdir(parents=True)
    looked: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(Path(path)) or scandir(path))
    with pytest.raises(BundleError, match=r"modules|no manifest\.json"):
        Bundle.open(folder)
    assert [path for path in looked if folder in path.parents and path != folder / "engines"] == []


def test_finite_numbers_of_every_kind_pass(bundle_copy: Path) -> None:
    path = bundle_copy / WEIGHTS
    tensors = safetensors.numpy.load_file(path)
    largest = np.finfo(np.float32).max
    more = {"x.large": np.array([largest, -largest, 0.0, -0.0], np.float32), "x.none": np.zeros((0, 3), np.float32)}
    path.write_bytes(safetensors.numpy.save({**tensors, **more, "x.half": np.array([65504.0], np.float16)}))
    listed_again(bundle_copy)
    Bundle.open(bundle_copy)
