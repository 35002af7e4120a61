"""The application as a whole: help, versions, the short names, and what an empty machine sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dovit_deploy import __version__
from dovit_deploy.cli import VERBS
from tests.conftest import Run

SHORT = ("export", "run", "bench")


def short(verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from dovit_deploy.cli import main_{verb}; sys.argv[1:] = {list(arguments)!r}; main_{verb}()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("verb", [verb.__name__ for verb in VERBS])
def test_every_verb_has_help_and_the_common_flags(dovit: Run, verb: str) -> None:
    result = dovit(verb, "--help", COLUMNS="200", TERM="dumb")
    assert result.returncode == 0
    for flag in ("--json", "--quiet", "--verbose"):
        assert flag in result.stdout


@pytest.mark.parametrize("flag", [(), ("-v",), ("--verbose",)])
def test_the_traceback_of_an_error_is_shown_on_request(dovit: Run, flag: tuple[str, ...]) -> None:
    result = dovit("inspect", "absent.dovit", *flag)
    assert result.returncode == 3
    assert ("Traceback" in result.stderr) is bool(flag)


def test_versions(dovit: Run) -> None:
    assert dovit("--version").stdout.strip() == f"dovit-deploy {__version__}"
    for verb in SHORT:
        result = short(verb, "--version")
        assert (result.returncode, result.stdout.strip()) == (0, f"dovit-deploy {__version__}")


@pytest.mark.parametrize("verb", SHORT)
def test_short_names_are_the_same_verbs(verb: str) -> None:
    assert short(verb, "--help").returncode == 0


def test_a_short_name_works_alone(tiny_bundle_path: Path) -> None:
    result = short("run", "absent.png", "--bundle", str(tiny_bundle_path))
    assert result.returncode == 3
    assert "absent.png" in result.stderr


def test_no_arguments_show_the_help(dovit: Run) -> None:
    result = dovit()
    assert result.returncode in (0, 2)
    assert "export" in result.stdout + result.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from dovit_deploy.cli import _application, _run; _run(_application(), ['run', '--help']); "
        "heavy = {'torch', 'onnxruntime', 'cv2', 'av', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_bug_shows_a_traceback_and_code_1() -> None:
    code = (
        "import sys\nfrom dovit_deploy import cli\n"
        "def run() -> None:\n    'Broken.'\n    raise ZeroDivisionError('ours')\n"
        "cli.VERBS = (run, cli.bench)\nsys.argv = ['dovit', 'run']\ncli.main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError" in result.stderr


def test_results_go_to_stdout_and_progress_to_stderr(dovit: Run, tiny_bundle_path: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "x.png")
    loud = dovit("run", "x.png", "--bundle", tiny_bundle_path, "-o", "loud")
    quiet = dovit("run", "x.png", "--bundle", tiny_bundle_path, "-o", "quiet", "--quiet")
    assert "FLOPs saved" in loud.stdout
    assert "next: dovit bench" in loud.stderr
    assert quiet.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="entry points are looked up beside the interpreter")
def test_entry_points_are_installed() -> None:
    scripts = Path(sys.executable).parent
    for name in ("dovit", "dovit-export", "dovit-run", "dovit-bench"):
        assert (scripts / name).exists(), f"{name} is not installed"


def test_an_interrupt_within_a_verb_is_said() -> None:
    code = (
        "import sys\nfrom dovit_deploy import cli\n"
        "def run() -> None:\n    'Interrupted.'\n    raise KeyboardInterrupt\n"
        "cli.VERBS = (run, cli.bench)\nsys.argv = ['dovit', 'run']\ncli.main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")
