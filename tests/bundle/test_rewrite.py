"""Other thresholds in the same bundle: graphs stay byte for byte, and the folder is the old or the new one, always."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dovit_deploy.bundle.calibration import (
    BudgetEntry,
    Calibration,
    CurvePoint,
    MeasuredPoint,
    PartEntry,
    Prediction,
)
from dovit_deploy.bundle.directory import Bundle
from dovit_deploy.bundle.rewrite import CALIBRATION, refuse_installed, write_calibrated
from dovit_deploy.errors import InputError, UsageError

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
    with pytest.raises(InputError, match="No space left"):
        write_calibrated(opened, made(), bundle_copy)
    monkeypatch.undo()
    assert contents(bundle_copy) == before
    assert [path.name for path in bundle_copy.parent.iterdir()] == [bundle_copy.name]


KILLED = """
import os, signal, sys
from pathlib import Path
from dovit_deploy import output_folder
from dovit_deploy.bundle import rewrite
from dovit_deploy.bundle.directory import Bundle
from tests.bundle.test_rewrite import made
kill = lambda *rest: os.kill(os.getpid(), signal.SIGKILL)
bundle = Bundle.open(sys.argv[1])
if sys.argv[2] == "half written":
    rewrite.file_entry = kill
elif sys.argv[2] == "written":
    output_folder.put_in_place = kill
else:
    output_folder.remove = lambda path: None if not path.exists() or not bundle.manifest.defaults else (
        kill() if path.name.endswith(".partial") and (path / "manifest.json").exists() else None)
rewrite.write_calibrated(bundle, made(), bundle.path)
"""


@pytest.mark.parametrize(("moment", "new"), [("half written", False), ("written", False), ("swapped", True)])
def test_a_kill_leaves_the_old_bundle_or_the_new_one(bundle_copy: Path, moment: str, new: bool) -> None:
    before = contents(bundle_copy)
    root = Path(__file__).parents[2]
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
