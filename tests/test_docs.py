"""What README and docs promise: links lead somewhere, commands parse, snippets run (test_names.py: files exist)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dovit_deploy.cli import VERBS
from dovit_deploy.packages import is_there
from tests.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("models/*/*.md")])
SHORT = {"dovit-run": "run", "dovit-export": "export", "dovit-bench": "bench"}


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    """(page, line) of every `dovit ...` and `make ...` in a shell block."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.split("  #")[0].strip()
                if re.match(r"(\.venv/bin/)?dovit|make ", line):
                    found.append((page.name, line))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 8


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_name_real_verbs_and_flags(page: str, line: str) -> None:
    words = shlex.split(line)
    program = words[0].rsplit("/", 1)[-1]
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        assert words[1] in targets
        return
    verb, rest = (SHORT[program], words[1:]) if program in SHORT else (words[1], words[2:])
    if verb == "--version":
        return
    known = {function.__name__: function for function in VERBS}
    assert verb in known, f"{page}: {line}"
    flags = flags_of(known[verb])
    for word in rest:
        if word.startswith("-"):
            assert word in flags, f"{page}: {line}: no {word}"


def flags_of(function: object) -> set[str]:
    import typer
    import typer.main

    app = typer.Typer(add_completion=False)
    app.command()(function)  # type: ignore[type-var]
    command = typer.main.get_command(app)
    return {"--help", "-h", *(option for parameter in command.params for option in parameter.opts)}


def test_python_snippets_run(tiny_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of these pages runs, with a bundle, pixels and an image at hand."""
    import numpy as np
    from PIL import Image

    from tests.tiny import tiny_pixels

    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.dovit").symlink_to(tiny_bundle_path)
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "street.jpg")
    ran = 0
    for page in (ROOT / "README.md", ROOT / "docs" / "bundle-format.md", ROOT / "docs" / "python.md"):
        for block in blocks(page, "python"):
            # The one package that results are handed to and that nothing else needs.
            if "import supervision" not in block or is_there("supervision"):
                exec(compile(block, str(page), "exec"), {"pixels": tiny_pixels((56, 72)).numpy()})
                ran += 1
    assert ran >= 6


def test_the_classifier_snippet_runs(
    classifier_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "namer.dovit").symlink_to(classifier_bundle_path)
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "street.jpg")
    page = ROOT / "docs" / "classification.md"
    (block,) = blocks(page, "python")
    exec(compile(block, str(page), "exec"), {})
    assert (tmp_path / "answer.json").is_file()


def test_nothing_names_a_machine() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(root|home|work|opt|tmp)/", page.read_text()), page


def test_the_changelog_has_a_place_for_what_comes() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
