"""The pages for users say what the code does: every key of a run's files, every message, every way to install."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dovit_deploy.commands.export import export
from dovit_deploy.measure.bench_records import BenchReport, BenchResult, FrameResult
from dovit_deploy.measure.eval_records import ClassificationReport, SegmentationReport
from tests.conftest import Run
from tests.paths import ROOT
from tests.test_docs import PAGES, flags_of

DOCS = ROOT / "docs"
INDEX = DOCS / "README.md"
USER_PAGES = (ROOT / "README.md", INDEX, DOCS / "run.md", DOCS / "troubleshooting.md")
DISTRIBUTION = {"mean", "p50", "p90", "p99"}
FREE_FORM = ("machine", "versions")
"""Keys whose own keys differ from machine to machine."""


def documented(heading: str, page: str = "run.md") -> set[str]:
    """The keys in the first column of the table under `heading` of a page."""
    _, _, rest = (DOCS / page).read_text().partition(f"\n## {heading}\n")
    rows = re.findall(r"^\| (`[^|]+) \|", rest.partition("\n## ")[0], flags=re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def keys(value: object, path: str = "") -> Iterator[str]:
    """ "a.b" of {"a": {"b": 1}}; a list counts as what it holds, a distribution as a number."""
    if isinstance(value, dict) and not value.keys() >= DISTRIBUTION and path not in FREE_FORM:
        for name, part in value.items():
            yield from keys(part, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict) and not value[0].keys() >= DISTRIBUTION:
        yield path
        yield from keys(value[0], path)
    else:
        yield path


@pytest.fixture
def reports(
    dovit: Run, tiny_bundle_path: Path, classifier_bundle_path: Path, tmp_path: Path
) -> tuple[set[str], set[str]]:
    """The keys of rows and of summaries, of a segmenter and a classifier, with an input that fails."""
    (tmp_path / "in").mkdir()
    Image.new("RGB", (80, 60), (90, 90, 90)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"nonsense")
    rows, summary = set(), set()
    for number, bundle in enumerate((tiny_bundle_path, classifier_bundle_path)):
        done = dovit("run", "in", "--bundle", bundle, "-o", f"out{number}", "--save", "overlay")
        assert done.returncode == 7, done.stderr
        folder = tmp_path / f"out{number}"
        rows |= set(keys(json.loads((folder / "frames.jsonl").read_text().splitlines()[0])))
        summary |= set(keys(json.loads((folder / "summary.json").read_text())))
    return rows, summary


def test_every_key_of_a_run_is_documented_and_written(reports: tuple[set[str], set[str]]) -> None:
    rows, summary = reports
    assert documented("A row of frames.jsonl") == rows
    numbers = {key for key in rows if key not in ("index", "source", "time_s") and not key.startswith("top")}
    assert documented("summary.json") == summary - numbers
    assert numbers <= summary, "every numeric field of the rows has its distribution"


def test_the_report_of_an_evaluation_is_documented() -> None:
    assert documented("The report", "measuring.md") == SegmentationReport.model_fields.keys()
    block = (DOCS / "classification.md").read_text().partition("```text\n{images,")[2].partition("```")[0]
    assert set(re.findall(r"\w+", block)) >= ClassificationReport.model_fields.keys() - {"images"}


def test_the_report_of_a_benchmark_is_documented() -> None:
    assert documented("The report of `--json`", "bench.md") == BenchReport.model_fields.keys()
    assert documented("A result", "bench.md") == BenchResult.model_fields.keys()
    assert documented("A frame", "bench.md") == FrameResult.model_fields.keys()


def test_every_flag_of_export_is_documented() -> None:
    flags = {flag for flag in flags_of(export) if flag.startswith("--")} - {"--help", "--output"}
    assert documented("Making one", "bundle-format.md") == {"-o", *flags}


def test_the_index_names_every_page() -> None:
    linked = {(INDEX.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", INDEX.read_text())}
    pages = {path.resolve() for path in DOCS.rglob("*.md")} - {INDEX.resolve()}
    assert pages <= linked
    assert "(docs/README.md)" in (ROOT / "README.md").read_text()


def literals() -> list[str]:
    """Every text in the code; what is filled in is "..."."""
    found = []
    for path in (ROOT / "dovit_deploy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "..." for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def messages() -> list[str]:
    return re.findall(r"^\*\*`(.+?)`\*\*", (DOCS / "troubleshooting.md").read_text(), flags=re.MULTILINE | re.DOTALL)


def test_every_message_is_one_of_the_codes() -> None:
    assert len(messages()) >= 15
    texts = literals()
    for message in messages():
        parts = [re.escape(part.strip()) for part in " ".join(message.split()).split("...") if part.strip(" ,;:")]
        pattern = re.compile(".*".join(parts), flags=re.DOTALL)
        assert any(pattern.search(text) for text in texts), message


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_nothing_is_installed_from_a_registry_that_does_not_have_it(page: Path) -> None:
    """From a clone alone; with the package installed, its extras may be asked for by name."""
    for line in re.findall(r"pip install[^`\n]*", page.read_text()):
        if page.name != "CHANGELOG.md" and "pip uninstall -y onnxruntime" not in page.read_text():
            assert not re.search(r"['\" ](dovit-(deploy|model)[\w-]*)", line), f"{page.name}: {line}"


def test_extras_that_are_named_exist() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in PAGES:
        for group in re.findall(r"(?:'\.|dovit-deploy)\[([\w,-]+)\]", page.read_text()):
            assert set(group.split(",")) <= extras.keys(), f"{page.name}: [{group}]"
    table = (ROOT / "README.md").read_text().partition("| extra | brings |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z-]+)`(?=[^|]*\|[^|]*\|)", table)) >= extras.keys()


@pytest.mark.parametrize("page", USER_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tables_fit_eighty_columns(page: Path) -> None:
    text = page.read_text()
    # The table of a benchmark is written by its script.
    text = re.sub(r"<!-- table:.*?<!-- end of table -->", "", text, flags=re.DOTALL)
    wide = [line for line in text.splitlines() if line.startswith("|") and len(line) > 80]
    assert not wide, wide
