"""A rule of docs/bundle-format.md, an error class, a test."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dovit_deploy.bundle.bundle import CALIBRATION, Bundle, refuse_installed, write_calibrated
from dovit_deploy.bundle.calibration import (
    BudgetEntry,
    Calibration,
    CurvePoint,
    MeasuredPoint,
    PartEntry,
    Prediction,
)
from dovit_deploy.bundle.manifest import Manifest, digest_of
from dovit_deploy.errors import (
    BundleError,
    DigestMismatch,
    FileMissing,
    FileUnlisted,
    InputError,
    ManifestInvalid,
    OutputFailed,
    PathEscapes,
    UsageError,
    VersionUnknown,
)
from tests.paths import ROOT


def rewritten(path: Path, **changes: object) -> None:
    """The manifest with other fields, and a digest that fits them."""
    body = {**json.loads((path / "manifest.json").read_text()), **changes}
    body.pop("digest")
    (path / "manifest.json").write_text(json.dumps({**body, "digest": digest_of(body)}))


def test_a_whole_bundle_opens(tiny_bundle_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle_path)
    assert bundle.stages == 3
    assert bundle.path.is_absolute()


def test_manifests_round_trip(tiny_bundle_path: Path) -> None:
    manifest = Bundle.open(tiny_bundle_path).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_no_such_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle"):
        Bundle.open(tmp_path / "absent.dovit")


def test_a_file_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "x.dovit").write_text("x")
    with pytest.raises(ManifestInvalid):
        Bundle.open(tmp_path / "x.dovit")


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("name", ["stage0.onnx", "weights.safetensors", "parity.json", "merged.ort.onnx"])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.999])
def test_a_flipped_byte(bundle_copy: Path, name: str, fraction: float) -> None:
    file = bundle_copy / name
    data = bytearray(file.read_bytes())
    data[int(fraction * (len(data) - 1))] ^= 1
    file.write_bytes(data)
    with pytest.raises(DigestMismatch, match=name):
        Bundle.open(bundle_copy)


def test_a_flipped_bit_anywhere_in_the_manifest(bundle_copy: Path) -> None:
    original = (bundle_copy / "manifest.json").read_bytes()
    for position in range(0, len(original), max(1, len(original) // 150)):
        data = bytearray(original)
        data[position] ^= 1
        (bundle_copy / "manifest.json").write_bytes(data)
        if data.split() == original.split():
            continue
        try:
            Bundle.open(bundle_copy)
        except BundleError:
            continue
        # Only white space may change without harm.
        assert json.loads(data) == json.loads(original)


def test_a_missing_file(bundle_copy: Path) -> None:
    (bundle_copy / "stage1.onnx").unlink()
    with pytest.raises(FileMissing, match=r"stage1\.onnx"):
        Bundle.open(bundle_copy)


def test_an_unlisted_file(bundle_copy: Path) -> None:
    (bundle_copy / "notes.txt").write_text("x")
    with pytest.raises(FileUnlisted, match=r"notes\.txt"):
        Bundle.open(bundle_copy)


def test_engines_may_lie_beside(bundle_copy: Path) -> None:
    (bundle_copy / "engines" / "key").mkdir(parents=True)
    (bundle_copy / "engines" / "key" / "stage0.engine").write_bytes(b"x")
    Bundle.open(bundle_copy)


def test_an_unknown_version(bundle_copy: Path) -> None:
    rewritten(bundle_copy, version=99)
    with pytest.raises(VersionUnknown, match="99"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("name", ["../escape.onnx", "/etc/passwd", "sub/inner.onnx", "..\\escape.onnx", ".."])
def test_a_path_that_leaves(bundle_copy: Path, name: str) -> None:
    files = json.loads((bundle_copy / "manifest.json").read_text())["files"]
    rewritten(bundle_copy, files={**files, name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(PathEscapes):
        Bundle.open(bundle_copy)


def test_a_link_that_leaves(bundle_copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "weights.safetensors"
    (bundle_copy / "weights.safetensors").rename(outside)
    (bundle_copy / "weights.safetensors").symlink_to(outside)
    with pytest.raises(PathEscapes):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "other"}', "\x00\xff"])
def test_a_manifest_that_is_none(bundle_copy: Path, text: str) -> None:
    (bundle_copy / "manifest.json").write_text(text)
    with pytest.raises(ManifestInvalid):
        Bundle.open(bundle_copy)


def test_an_unknown_field(bundle_copy: Path) -> None:
    rewritten(bundle_copy, surprise=1)
    with pytest.raises(ManifestInvalid, match="surprise"):
        Bundle.open(bundle_copy)


# Other thresholds in the same bundle: graphs stay byte for byte, and the folder is the old or the new one, always.

VALUES = (0.6, 0.8)


def made(classes: int = 5, values: tuple[float, float] = VALUES) -> Calibration:
    predicted = Prediction(flops_saved=0.3, risk=0.01)
    point = MeasuredPoint(
        part="check",
        thresholds=values,
        images=4,
        predicted=predicted,
        flops_saved=0.31,
        gmacs=1.0,
        kept=(21.0, 12.4, 8.6),
        differing=0.02,
        miou=None,
        drop=None,
        drop_interval=None,
        model_ms=1.0,
        judged=0.31,
        met=True,
    )
    return Calibration(
        tool="test",
        dataset="set",
        split=None,
        seed=0,
        engine="onnxruntime",
        precision="fp32",
        budget=BudgetEntry(kind="flops", limit=0.3, text="at least 30 % saved"),
        thresholds=tuple((value,) * classes for value in values),
        floor=0.0,
        parts=(PartEntry(part="check", images=("a",), blocks=1, dense_miou=None, dense_gmacs=1.4),),
        curve=(CurvePoint(thresholds=values, predicted=predicted),),
        measured=(point,),
        chosen=point,
        chosen_on_all=point,
        passes=3,
    )


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check(bundle: Bundle, before: dict[str, str]) -> None:
    assert bundle.manifest.defaults.thresholds == made().thresholds
    assert bundle.manifest.defaults.origin == "calibration"
    assert [count.typical for count in bundle.manifest.counts] == [21, 12, 9]
    after = contents(bundle.path)
    assert {name for name in after if after[name] != before.get(name)} == {CALIBRATION, "manifest.json"}
    assert set(before) <= set(after)
    assert Calibration.model_validate_json((bundle.path / CALIBRATION).read_bytes()) == made()


def test_in_place(bundle_copy: Path) -> None:
    (bundle_copy / "engines" / "key").mkdir(parents=True)
    (bundle_copy / "engines" / "key" / "manifest.json").write_text("an engine's own")
    before = contents(bundle_copy)
    check(write_calibrated(Bundle.open(bundle_copy), made(), bundle_copy), before)
    check(write_calibrated(Bundle.open(bundle_copy), made(), bundle_copy), before)
    assert [path.name for path in bundle_copy.parent.iterdir()] == [bundle_copy.name]


def test_beside(bundle_copy: Path, tmp_path: Path) -> None:
    before = contents(bundle_copy)
    check(write_calibrated(Bundle.open(bundle_copy), made(), tmp_path / "new.dovit"), before)
    assert contents(bundle_copy) == before
    assert not (bundle_copy / "weights.safetensors").samefile(tmp_path / "new.dovit" / "weights.safetensors")


def test_through_a_link(bundle_copy: Path, tmp_path: Path) -> None:
    before = contents(bundle_copy)
    (tmp_path / "link.dovit").symlink_to(bundle_copy)
    check(write_calibrated(Bundle.open(tmp_path / "link.dovit"), made(), tmp_path / "link.dovit"), before)
    assert (tmp_path / "link.dovit").is_symlink()
    assert Bundle.open(bundle_copy).manifest.defaults.origin == "calibration"


def test_a_calibration_of_another_model_changes_nothing(bundle_copy: Path) -> None:
    before = contents(bundle_copy)
    with pytest.raises(Exception, match=r"defaults\.thresholds"):
        write_calibrated(Bundle.open(bundle_copy), made(classes=3), bundle_copy)
    assert contents(bundle_copy) == before
    assert [path.name for path in bundle_copy.parent.iterdir()] == [bundle_copy.name]


def test_a_full_disk_changes_nothing(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, opened = contents(bundle_copy), Bundle.open(bundle_copy)

    def full(self: Path, *arguments: object, **named: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputFailed, match="No space left"):
        write_calibrated(opened, made(), bundle_copy)
    monkeypatch.undo()
    assert contents(bundle_copy) == before
    assert [path.name for path in bundle_copy.parent.iterdir()] == [bundle_copy.name]


KILLED = """
import os, signal, sys
from pathlib import Path
from dovit_deploy import files
from dovit_deploy.bundle import bundle as rooms
from dovit_deploy.bundle.bundle import Bundle
from tests.bundle.test_bundle import made
kill = lambda *rest, **named: os.kill(os.getpid(), signal.SIGKILL)
bundle = Bundle.open(sys.argv[1])
if sys.argv[2] == "half written":
    rooms.file_entry = kill
elif sys.argv[2] == "written":
    files.put_in_place = kill
else:
    files.remove = lambda path: None if not path.exists() or not bundle.manifest.defaults else (
        kill() if path.name.endswith(".partial") and (path / "manifest.json").exists() else None)
rooms.write_calibrated(bundle, made(), bundle.path)
"""


@pytest.mark.parametrize(("moment", "new"), [("half written", False), ("written", False), ("swapped", True)])
def test_a_kill_leaves_the_old_bundle_or_the_new_one(bundle_copy: Path, moment: str, new: bool) -> None:
    before = contents(bundle_copy)
    root = ROOT
    environment = {**os.environ, "PYTHONPATH": str(root)}
    child = subprocess.run([sys.executable, "-c", KILLED, bundle_copy, moment], env=environment, check=False)
    assert child.returncode == -signal.SIGKILL
    if new:
        check(Bundle.open(bundle_copy), before)
    else:
        assert contents(bundle_copy) == before
        Bundle.open(bundle_copy)
    check(write_calibrated(Bundle.open(bundle_copy), made(), bundle_copy), before)
    assert [path.name for path in bundle_copy.parent.iterdir()] == [bundle_copy.name]


def test_an_installed_bundle_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    refuse_installed(Bundle.open(bundle_copy))
    inside = tmp_path / "site-packages" / "model"
    inside.mkdir(parents=True)
    bundle_copy.rename(inside / "x.dovit")
    with pytest.raises(UsageError, match="-o NEW"):
        refuse_installed(Bundle.open(inside / "x.dovit"))


def test_a_precision_of_which_a_file_is_not_listed(bundle_copy: Path) -> None:
    manifest = Manifest.from_json((bundle_copy / "manifest.json").read_bytes())
    stated = manifest.model_copy(update={"precisions": ("fp32", "int8")})
    (bundle_copy / "manifest.json").write_text(stated.to_json())
    with pytest.raises(ManifestInvalid, match=r"states the precision int8 and lists no 'weights\.int8\.safetensors'"):
        Bundle.open(bundle_copy)
