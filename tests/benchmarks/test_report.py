"""What all benchmarks do with words that cannot be meant: they are refused before anything is measured."""

from __future__ import annotations

from pathlib import Path

import deadline
import pytest
import report
import worst_case

from tests.benchmarks.test_help import FOLDER, SCRIPTS
from tests.datasets.labelled_folder import write_labelled
from tests.fork_server import ForkServer


# scaling.py is arithmetic that prints its lines.
@pytest.mark.parametrize("script", sorted(set(SCRIPTS) - {"cpu.py", "scaling.py"}))
def test_an_output_that_cannot_be_written_is_refused_at_once(
    script: str, tmp_path: Path, fork_server: ForkServer
) -> None:
    words = ["-o", str(tmp_path / "nowhere" / "x.json")]
    result = fork_server.run(words, folder=tmp_path, timeout=120, script=FOLDER / script)
    assert result.returncode == 2
    assert "x.json cannot be written" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("main", "words", "code", "message"),
    [
        (deadline.main, ["nowhere", "--bundle", "BUNDLE"], 3, "no such data set"),
        (deadline.main, ["data", "--bundle", "nowhere.dovit"], 3, "no bundle at"),
        (deadline.main, ["data", "--bundle", "BUNDLE", "--engine", "abacus"], 2, "unknown engine 'abacus'"),
        (deadline.main, ["data", "--bundle", "BUNDLE", "--images", "0"], 2, "0 given, at least 1 is needed"),
        (deadline.main, ["data", "--bundle", "BUNDLE", "--repeat", "0"], 2, "0 given, at least 1 is needed"),
        (deadline.main, ["data", "--bundle", "DENSE"], 2, "no gates"),
        (deadline.main, ["--tables", "nowhere.json"], 3, "nowhere.json cannot be read"),
        (deadline.main, ["--tables", "other.json"], 3, "no result of this benchmark: it has no bundle, command"),
        (deadline.main, ["data", "--docs", "other.json"], 2, "cannot take the table"),
        (worst_case.main, ["--bundle", "BUNDLE", "--engine", "abacus"], 2, "unknown engine 'abacus'"),
        (worst_case.main, ["--bundle", "BUNDLE", "--pairs", "0"], 2, "0 given, at least 1 is needed"),
        (worst_case.main, ["--bundle", "BUNDLE", "--rounds", "-1"], 2, "-1 given, at least 0 is needed"),
        (worst_case.main, ["--bundle", "BUNDLE", "--image", "."], 2, "cannot be written"),
    ],
)
def test_errors_are_a_line_and_an_exit_code(
    main, words, code, message, tiny_bundle_path, dense_bundle_path, tmp_path, monkeypatch, capsys
) -> None:
    write_labelled(tmp_path / "data", images=2, classes=5)
    (tmp_path / "other.json").write_text('{"date": "2026-11-30"}')
    monkeypatch.chdir(tmp_path)
    named = {"BUNDLE": str(tiny_bundle_path), "DENSE": str(dense_bundle_path)}
    with pytest.raises(SystemExit) as ended:
        main([named.get(word, word) for word in words])
    assert ended.value.code == code
    assert message in capsys.readouterr().err


def test_figures_are_read_as_they_were_published(tmp_path: Path, capsys) -> None:
    published = report.publish({"kept": [1, 2]}, command="python x", output=tmp_path / "x.json")
    assert report.read_figures(tmp_path / "x.json", names=("kept", "date")) == published
    capsys.readouterr()
