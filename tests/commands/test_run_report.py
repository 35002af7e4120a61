"""`dovit run` and its `report.html`: there by itself, refused before the first frame, and never the run's undoing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.errors import OutputFailed
from dovit_deploy.runtime import run as module
from dovit_deploy.runtime.run import RunPlan, run_source
from dovit_deploy.runtime.run_page import PagePlan
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.sources.open import open_source
from tests.conftest import Run

NAME = '<img src=x onerror="alert(1)">.png'


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(("a.png", NAME)):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_a_report_comes_by_itself_and_is_replaced_with_the_rest(
    dovit: Run, tiny_bundle_path: Path, images: Path, tmp_path: Path
) -> None:
    command = ("run", images, "--bundle", tiny_bundle_path, "-o", "out", "--threads", "1")
    done = dovit(*command)
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (
        f"{summary['flops_saved']['mean']:z.1%}" in html and f"{summary['latency_ms']['model']['p50']:.1f} ms" in html
    )
    assert "&lt;img src=x onerror" in html and "<img src=x" not in html
    said = re.search(r"<th scope=\"row\">command</th><td>(.*?)</td>", html)
    assert said is not None and said[1].endswith("--threads 1") and " run " in said[1]
    # Both images, each as input, mask and exit depth, and again among the hardest and the easiest.
    assert html.count('src="data:image/') == 2 * 3 * 3
    again = dovit(*command, "--overwrite")
    assert again.returncode == 0, again.stderr


def test_where_jinja2_is_missing_a_line_says_so_and_one_that_is_asked_for_is_refused(
    dovit: Run, tiny_bundle_path: Path, images: Path, tmp_path: Path, without: Callable[..., dict[str, str]]
) -> None:
    command = ("run", images, "--bundle", tiny_bundle_path, "-o", "out")
    blocked = without("jinja2")
    named = dovit(*command, "--save", "masks,report", **blocked)
    assert named.returncode == 5 and "jinja2" in named.stderr and "[report]" in named.stderr
    assert not (tmp_path / "out").exists() and "Traceback" not in named.stderr
    done = dovit(*command, **blocked)
    assert done.returncode == 0 and sum("report.html" in line for line in done.stderr.splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("frames.jsonl", "masks", "overlay", "summary.json")
    ]


def test_what_the_disk_does_not_take_of_the_page_costs_nothing_else(
    tiny_bundle_path: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dovit_deploy.bundle.bundle import Bundle

    def full(path: Path, text: str) -> None:
        raise OutputFailed(f"{path} cannot be written: no space left")

    monkeypatch.setattr(module, "write_text", full)
    folder = tmp_path / "out"
    bundle = Bundle.open(tiny_bundle_path)
    plan = RunPlan(folder, False, ("masks",), RunSettings.resolve(bundle.manifest), page=PagePlan("images", "dovit"))
    with Session(bundle) as session, open_source(str(images)) as source:
        outcome = run_source(
            session, source, plan, stop=module.threading.Event(), advance=lambda saved: None, failed=lambda line: None
        )
    assert (
        outcome.ended is not None and str(outcome.ended) == f"{folder / 'report.html'} cannot be written: no space left"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["frames.jsonl", "masks", "summary.json"]
    assert len((folder / "frames.jsonl").read_text().splitlines()) == 2
