"""Everything but networks, checkpoints, export and training works where PyTorch is not even importable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_floors import FILES, file_name, room

ROOMS = ("bundle", "graphs", "engines", "sources", "runtime", "datasets", "measure", "calibrate", "cli")
SPECS = [
    f"dovit_deploy.{file_name(path).replace('/', '.')}" for path in FILES if room(file_name(path)) == "families/spec"
]
TORCH_FREE = (*(f"dovit_deploy.{name}" for name in ROOMS), *SPECS, "dovit_scenes")

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnx", "onnxscript", "onnx_ir", "yaml"}:
            raise ModuleNotFoundError(f"No module named '{name}' (blocked)", name=name)
sys.meta_path.insert(0, Blocker())
"""


def in_child(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKED + code], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("wing", TORCH_FREE)
def test_the_wing_imports_without_torch(wing: str, tmp_path: Path) -> None:
    code = f"""
import importlib, pkgutil
package = importlib.import_module("{wing}")
for entry in pkgutil.walk_packages(getattr(package, "__path__", []), package.__name__ + "."):
    if not entry.name.endswith("__main__"):
        importlib.import_module(entry.name)
assert "torch" not in sys.modules
"""
    result = in_child(code, tmp_path)
    assert result.returncode == 0, result.stderr


def test_a_whole_video_runs_without_torch(tiny_bundle_path: Path, tmp_path: Path) -> None:
    code = f"""
import subprocess
from dovit_scenes.__main__ import main as render
from dovit_deploy.cli import _application, _run
sys.argv = ["scenes", "clip.mp4", "--frames", "4", "--size", "96x64"]
render()
code = _run(_application(), ["run", "clip.mp4", "--bundle", {str(tiny_bundle_path)!r}, "-o", "out", "--quiet"])
assert "torch" not in sys.modules
sys.exit(code)
"""
    result = in_child(code, tmp_path)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["frames"] == 4
    assert (tmp_path / "out" / "overlay.mp4").stat().st_size > 0


def test_export_without_torch_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"x")
    code = "from dovit_deploy.cli import _application, _run\nsys.exit(_run(_application(), ['export', 'model.pth']))"
    result = in_child(code, tmp_path)
    assert result.returncode == 5
    assert "pip install 'dovit-deploy[export]'" in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
