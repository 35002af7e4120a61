"""`dovit triton` as it is used: what it writes, what it adds, and what it refuses without touching anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dovit_deploy import Bundle, Session
from dovit_deploy.bundle.bundle import MANIFEST
from dovit_deploy.bundle.manifest import Manifest
from tests.attacks.test_exit_codes import refused
from tests.conftest import Run
from tests.tiny import tiny_pixels


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_repository_is_whole_and_stands_alone(dovit: Run, tiny_bundle_path: Path, tmp_path: Path) -> None:
    done = dovit("triton", tiny_bundle_path, "-o", "models", "--merged", "--json", "report.json")
    assert done.returncode == 0, done.stderr
    assert "next: tritonserver --model-repository=models" in done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(row["name"], row["version"]) for row in report["models"]] == [("tiny", 1), ("tiny-merged", 1)]
    assert (report["engine"], report["precision"]) == ("onnxruntime", "fp32")
    names = {
        path.split("/")[0] + "/" + "/".join(path.split("/")[1:3]) for path in tree(tmp_path / "models") if "/" in path
    }
    assert {"tiny/config.pbtxt", "tiny/1/model.py", "tiny/1/settings.json", "tiny-merged/1/merged.onnx"} <= names
    assert not [path for path in (tmp_path / "models").rglob("*") if path.is_symlink()]
    Bundle.open(tmp_path / "models" / "tiny" / "1" / "bundle.dovit")
    assert entries(tmp_path) == ["models", "report.json"]


def test_the_merged_graph_runs_from_its_folder(dovit: Run, tiny_bundle_path: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert dovit("triton", tiny_bundle_path, "-o", "models", "--merged").returncode == 0
    graph = onnxruntime.InferenceSession(str(tmp_path / "models" / "tiny-merged" / "1" / "merged.onnx"))
    pixels = tiny_pixels((56, 72)).numpy()
    limits = {"thresholds": np.full((2, 5), 0.6, np.float32), "floor": np.zeros((), np.float32)}
    logits, kept = graph.run(["logits", "kept"], {"pixels": pixels, **limits})
    with Session(tiny_bundle_path, threads=1) as session:
        expected, report = session.run(pixels, 0.6)
    assert tuple(kept) == report.kept
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_an_existing_repository_is_only_added_to_when_asked(dovit: Run, tiny_bundle_path: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert dovit("triton", tiny_bundle_path, "-o", "models").returncode == 0
    (models / "tiny" / "config.pbtxt").write_text("# changed by hand\n")
    (models / "foreign").mkdir()
    (models / "foreign" / "config.pbtxt").write_text('name: "foreign"')
    before = tree(models)
    refused(dovit("triton", tiny_bundle_path, "-o", "models"), 2, "models exists", "--add")
    refused(dovit("triton", tiny_bundle_path, "-o", "models", "--add", "--name", "foreign"), 2, "no model that dovit")
    assert tree(models) == before
    done = dovit("triton", tiny_bundle_path, "-o", "models", "--add", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    assert "tiny, version 2: models/tiny/2" in done.stdout
    done = dovit(
        "triton", models / "tiny" / "1" / "bundle.dovit", "-o", "models", "--add", "--name", "other", "--merged"
    )
    assert done.returncode == 0, done.stderr
    after = tree(models)
    assert before.items() <= after.items(), "nothing that was there has changed"
    assert {path.split("/")[0] for path in after} == {"tiny", "foreign", "other", "other-merged"}
    assert entries(models / "tiny") == ["1", "2", "config.pbtxt"]


def test_a_version_with_another_interface_is_refused(
    dovit: Run, tiny_bundle_path: Path, dense_bundle_path: Path, tmp_path: Path
) -> None:
    assert dovit("triton", tiny_bundle_path, "-o", "models").returncode == 0
    before = tree(tmp_path / "models")
    done = dovit("triton", dense_bundle_path, "-o", "models", "--add", "--name", "tiny")
    refused(done, 2, "other sizes than version 1 of tiny", "--name")
    assert tree(tmp_path / "models") == before


def test_what_a_shared_config_cannot_say_is_refused(dovit: Run, bundle_copy: Path, tmp_path: Path) -> None:
    name = ("--name", "tiny")
    assert dovit("triton", bundle_copy, "-o", "models", *name).returncode == 0
    before = tree(tmp_path / "models")
    refused(dovit("triton", bundle_copy, "-o", "models", "--add", *name, "--max-batch", "4"), 2, "max_batch_size")
    refused(dovit("triton", bundle_copy, "-o", "models", "--add", *name, "--engine", "cuda"), 2, "other hardware")
    manifest = Manifest.from_json((bundle_copy / MANIFEST).read_bytes())
    darker = manifest.preprocessing.model_copy(update={"mean": (1.0, 2.0, 3.0)})
    (bundle_copy / MANIFEST).write_text(manifest.model_copy(update={"preprocessing": darker}).to_json())
    refused(dovit("triton", bundle_copy, "-o", "models", "--add", *name), 2, "mean or std", "--name")
    assert tree(tmp_path / "models") == before


def test_names_that_are_taken_by_something_else(dovit: Run, tiny_bundle_path: Path, tmp_path: Path) -> None:
    for name in ("a", "a-merged"):
        add = ("--add",) if name != "a" else ()
        assert dovit("triton", tiny_bundle_path, "-o", "models", "--name", name, *add).returncode == 0
    (tmp_path / "models" / "file").write_text("")
    (tmp_path / "models" / "link").symlink_to("nowhere")
    before = tree(tmp_path / "models")
    add = ("triton", tiny_bundle_path, "-o", "models", "--add")
    refused(dovit(*add, "--name", "a", "--merged"), 2, "holds no merged.onnx")
    refused(dovit(*add, "--name", "file"), 2, "file is no model that dovit wrote")
    refused(dovit(*add, "--name", "link"), 2, "link is no model that dovit wrote")
    refused(dovit("triton", tiny_bundle_path, "-o", "models/a", "--add"), 2, "this is a model")
    assert tree(tmp_path / "models") == before


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--name", "a/b"), 2, ("--name: 'a/b'",)),
        (("--name", ".."), 2, ("--name: '..'",)),
        (("--engine", "abacus"), 2, ("unknown engine 'abacus'",)),
        (("--precision", "fp16"), 2, ("onnxruntime", "fp32, int8")),
        (("--precision", "int8"), 2, ("int8", "dovit export")),
        (("--engine", "openvino", "--precision", "bf16", "--merged"), 2, ("--merged", "bf16")),
        (("--add",), 2, ("is no folder",)),
    ],
)
def test_bad_flags_leave_nothing(dovit: Run, tiny_bundle_path: Path, tmp_path: Path, flags, code: int, words) -> None:
    refused(dovit("triton", tiny_bundle_path, "-o", "models", *flags), code, *words)
    assert entries(tmp_path) == []


def test_bad_bundles_and_targets(dovit: Run, bundle_copy: Path, tmp_path: Path) -> None:
    refused(dovit("triton", "absent.dovit", "-o", "models"), 3, "no bundle at absent.dovit")
    refused(dovit("triton", bundle_copy, "-o", bundle_copy / "models"), 2, "lies in the bundle")
    refused(dovit("triton", bundle_copy, "-o", bundle_copy, "--add"), 2, "this is a bundle")
    (bundle_copy / MANIFEST).write_text("{}")
    refused(dovit("triton", bundle_copy, "-o", "models"), 6, MANIFEST)
    assert entries(tmp_path) == [bundle_copy.name]
