"""The tables that `benchmarks/cpu.py` makes of its results, and the pages that they stand in."""

from __future__ import annotations

import json

import cpu
import pytest
from on_cpu.result import UndoneCell
from on_cpu.tables import TABLES, best_dense, check_pages, factors, machines_table, mark, readme_table, write_tables
from report import END, between_marks

from dovit_deploy.errors import InputError
from tests.benchmarks.cpu_cells import ROWS, report_of, row_of
from tests.paths import ROOT


def test_the_best_dense_way_is_as_accurate() -> None:
    report = report_of(*ROWS)
    found = best_dense(report, ROWS[3])
    assert found is not None and (found.cell.way.runs, found.ratio) == ("dense", 1.9)
    better = report_of(*ROWS[:4], row_of("nncf", "openvino", "int8", 2.5, 0.985))
    found = best_dense(better, ROWS[3])
    assert found is not None and found.cell.way.runs == "nncf"
    # By labels a way may be as good that agrees less.
    labelled = [
        row_of("dense", "onnxruntime", "fp32", 1.0, 1.0, 62.0),
        row_of("nncf", "openvino", "int8", 2.5, 0.9, 61.9),
    ]
    own = row_of("tokens", "openvino", "bf16", 3.0, 0.972, 61.8)
    found = best_dense(report_of(*labelled, own), own)
    assert found is not None and found.cell.way.runs == "nncf"


def test_factors_multiply_to_the_ratio() -> None:
    found = factors(report_of(*ROWS), ROWS[3])
    assert found is not None and found[0] * found[1] == pytest.approx(3.0) and found[1] == 1.9
    assert factors(report_of(*ROWS), ROWS[2]) is None


def test_tables_show_speed_beside_accuracy() -> None:
    report = report_of(*ROWS)
    for table in (readme_table(report), TABLES["default"](report)):
        line = next(text for text in table.splitlines() if "token passing | OpenVINO | bf16" in text)
        assert "0.9720" in line and "3.00x" in line and "1.58x (OpenVINO bf16)" in line and "1.58 * 1.90" in line
    (line,) = machines_table([report]).splitlines()[2:]
    assert "avx2" in line and "OpenVINO bf16 3.00x" in line and "0.9720" in line


def test_what_a_precision_loses_stands_apart_from_what_tokens_lose() -> None:
    accuracy = ROWS[3].accuracy
    assert accuracy is not None
    alike = {"same_agreement": 0.997, "same_drop": 0.04, "same_drop_interval": (-0.1, 0.2)}
    row = ROWS[3].model_copy(update={"accuracy": accuracy.model_copy(update=alike)})
    lines = TABLES["precisions"](report_of(*ROWS[:3], row)).splitlines()
    (line,) = [text for text in lines if "| bf16 |" in text]
    assert "3.00x | 0.9970 | 0.04 (-0.10 to 0.20)" in line and "1.90x" in line


def test_what_was_measured_last_stands_where_it_belongs() -> None:
    rows = TABLES["default"](report_of(*ROWS[::-1])).splitlines()
    assert rows == TABLES["default"](report_of(*ROWS)).splitlines()


def test_two_cores_are_compared_with_one_and_say_how_right_they_are() -> None:
    cell = ROWS[3].cell.model_copy(update={"streams": 2})
    row = ROWS[3].model_copy(update={"cell": cell, "accuracy": None, "p50": 2.5, "ratio": 2.9})
    lines = TABLES["cores"](report_of(*ROWS, row)).splitlines()
    assert "| 1 | 2 | token passing | OpenVINO | bf16 | 2.5 / 6.0 | 50 | 2.00x | 2.90x | 0.9720 |" in lines


def recorded_on_arm() -> str:
    """What somebody hands in: a processor without AVX, only ONNX Runtime, nothing labelled."""
    rows = [row.model_dump(mode="json") for row in ROWS[:2]]
    rows[1] |= {"ratio": 1.6}
    undone = [{"cell": ROWS[2].cell.model_dump(mode="json"), "why": "this CPU does not compute in bf16"}]
    effort = {"seconds": 2.0, "fewest": 8, "timed_frames": 4, "limit_s": 300.0}
    report = {
        "command": "python benchmarks/cpu.py --quick -o quick.json",
        "date": "2026-10-01",
        "machine": {"cpu": "Neoverse-N1", "cores": 4, "architecture": "aarch64", "system": "Linux", "python": "3.12.1"},
        "features": ["asimd", "asimddp"],
        "versions": {"dovit-deploy": "0.1.0", "onnxruntime": "1.30.0"},
        "settings": {"bundle": "road-tiny.dovit", "frames": "rendered streets", "count": 6, "effort": effort},
        "rows": rows,
        "undone": undone,
    }
    return json.dumps(report)


def test_results_of_other_processors_get_a_line_and_change_no_other_table(tmp_path) -> None:
    ours, theirs = tmp_path / "cpu.json", tmp_path / "arm.json"
    ours.write_text(report_of(*ROWS).model_dump_json())
    theirs.write_text(recorded_on_arm())
    docs, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    docs.write_text(page_with_marks([*TABLES, "machines"]))
    readme.write_text(page_with_marks([""]))
    words = ["--tables", str(ours), str(theirs), "--docs", str(docs), "--readme", str(readme)]
    assert cpu.main(words) == 0
    lines = [line for line in docs.read_text().splitlines() if "Neoverse-N1" in line]
    assert len(lines) == 1 and "asimd, asimddp" in lines[0] and "1.60x | ONNX Runtime fp32 1.60x" in lines[0]
    assert "Neoverse" not in readme.read_text()
    # Its own tables say what its processor lacks.
    assert cpu.main(["--tables", str(theirs), "--docs", str(docs)]) == 0
    assert "this CPU does not compute in bf16: default-32x48 dense openvino bf16" in docs.read_text()


def page_with_marks(names) -> str:
    return "\n".join(f"about {name}\n{mark(name)}\nof yesterday\n{END}" for name in names)


def test_tables_go_between_their_marks_or_nowhere(tmp_path) -> None:
    readme, docs = tmp_path / "README.md", tmp_path / "benchmarks.md"
    readme.write_text(page_with_marks([""]))
    docs.write_text(page_with_marks([*TABLES]))
    report = report_of(*ROWS).model_copy(update={"undone": (UndoneCell(cell=ROWS[0].cell, why="it broke"),)})
    with pytest.raises(InputError, match="machines"):
        check_pages(readme=readme, docs=docs)
    with pytest.raises(InputError, match="cannot take the tables"):
        check_pages(readme=tmp_path / "gone.md", docs=None)
    assert "of yesterday" in readme.read_text()
    docs.write_text(page_with_marks([*TABLES, "machines"]))
    write_tables([report, report], readme=readme, docs=docs)
    assert "of yesterday" not in readme.read_text() + docs.read_text() and "it broke" in docs.read_text()


def test_the_pages_of_the_project_have_the_marks() -> None:
    assert between_marks((ROOT / "README.md").read_text(), mark(), "table")
    for name in (*TABLES, "machines"):
        assert between_marks((ROOT / "docs" / "benchmarks.md").read_text(), mark(name), "table")
