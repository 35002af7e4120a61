"""Where a verb may write: never onto an input, never into a bundle."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dovit_deploy.commands.targets import claim_report, release
from dovit_deploy.errors import OutputFailed, UsageError


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    yield
    release()


def test_a_report_that_would_replace_an_input_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claim_report(Path("report.json"), inputs=(tmp_path / "recipe.toml", "images", None))
    claim_report(None, inputs=(tmp_path / "report.json",))
    with pytest.raises(UsageError, match="this is the input"):
        claim_report(Path("recipe.toml"), inputs=(None, tmp_path / "recipe.toml"))


def test_a_report_inside_a_bundle_is_refused(bundle_copy):
    with pytest.raises(UsageError, match="lies in the bundle"):
        claim_report(bundle_copy / "manifest.json")


def test_what_is_no_report_is_not_replaced_by_one(tmp_path):
    path = tmp_path / "x.json"
    for content in ("", '{"frames": 3}', " {"):
        path.write_text(content)
        claim_report(path)
        release()
    for content in ("notes", "[1]", "\ufeffname"):
        path.write_text(content)
        with pytest.raises(UsageError, match="is no JSON"):
            claim_report(path)
        assert path.read_text() == content


def test_a_report_behind_a_link_whose_folder_is_not_there(tmp_path):
    (tmp_path / "x.json").symlink_to(tmp_path / "gone" / "x.json")
    with pytest.raises(UsageError, match="existing folder"):
        claim_report(tmp_path / "x.json")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_a_report_where_no_file_can_be_made_is_refused_before_the_work():
    """Its permissions say that root may write there."""
    with pytest.raises(OutputFailed, match=r"cannot write /proc/report\.json"):
        claim_report(Path("/proc/report.json"))


def test_trying_leaves_nothing_behind(tmp_path):
    claim_report(tmp_path / "x.json")
    assert not list(tmp_path.iterdir())
