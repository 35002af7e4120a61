"""`dovit view`: an address on stdout, a page behind it, the end by Ctrl-C; and in a browser what a person does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.commands.view import bundle_and_source
from dovit_deploy.view.server import serving
from tests.browser import chromium, complaints
from tests.conftest import Run
from tests.fakes import FakeSession
from tests.sources.clips import make_clip
from tests.view.test_viewer import ThreeFrames, viewer


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4", count=5)


@pytest.fixture
def viewing(tiny_bundle_path: Path, clip: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running command, and its address."""
    command = [
        sys.executable,
        "-m",
        "dovit_deploy",
        "view",
        str(tiny_bundle_path),
        str(clip),
        "--threads",
        "1",
        "--json",
        "view.json",
    ]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Not ignored, as a shell's background jobs have it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_it_serves_until_ctrl_c(
    viewing: tuple[subprocess.Popen[str], str], clip: Path, dovit: Run, tiny_bundle_path: Path
) -> None:
    process, address = viewing
    assert address.startswith("http://127.0.0.1:")
    told = json.loads((clip.parent / "view.json").read_text())
    assert told == {"address": address, "bundle": str(tiny_bundle_path), "engine": "onnxruntime", "precision": "fp32"}
    assert b"<title>dovit view" in urllib.request.urlopen(address, timeout=20).read()
    port = address.split(":")[2].split("/")[0]
    taken = dovit("view", tiny_bundle_path, "--port", port)
    assert taken.returncode == 2 and f"--port {port}: " in taken.stderr and "choose another" in taken.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_what_run_refuses_is_refused(dovit: Run, tiny_bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "empty").mkdir()
    for source in ("bad.mp4", "empty", "missing.png"):
        done = dovit("view", tiny_bundle_path, source)
        assert done.returncode == 3 and "Traceback" not in done.stderr and not done.stdout, source
    done = dovit("view", tiny_bundle_path, "--engine", "none")
    assert done.returncode == 2
    done = dovit("view", "missing.dovit")
    assert done.returncode == 3


def test_without_jinja2_it_says_how_to_get_it(dovit: Run, tiny_bundle_path: Path, without) -> None:
    done = dovit("view", tiny_bundle_path, **without("jinja2"))
    assert done.returncode == 5 and "[report]" in done.stderr


def test_one_name_alone_is_a_bundle_or_a_source(tiny_bundle_path: Path, clip: Path, tmp_path: Path) -> None:
    assert bundle_and_source(None, None) == (None, None)
    assert bundle_and_source(str(clip), None) == (None, str(clip))
    assert bundle_and_source("images/*.png", None) == (None, "images/*.png")
    assert bundle_and_source(str(tiny_bundle_path), None) == (tiny_bundle_path, None)
    # An installed model, or a path with a letter too many: the bundle's own error says what is there.
    assert bundle_and_source("road-tiny", None) == (Path("road-tiny"), None)
    assert bundle_and_source("a.dovit", "b") == (Path("a.dovit"), "b")


@pytest.mark.slow
def test_a_person_looks_moves_a_threshold_and_drops_an_image(
    viewing: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    pixels = np.random.default_rng(0).integers(0, 256, (56, 72, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "dropped.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    with chromium() as browser:
        browser.get(viewing[1])
        # A new answer may take the place of what is being read.
        wait = WebDriverWait(browser, 30, ignored_exceptions=[StaleElementReferenceException])

        def text(selector: str) -> str:
            return str(browser.find_element("css selector", selector).text)

        wait.until(lambda _: text("#name") == "0.00 s" and "%" in text("#figures"))
        assert len(browser.find_elements("css selector", "#pictures img")) == 3
        browser.find_element("id", "frame").send_keys(Keys.ARROW_RIGHT)
        wait.until(lambda _: text("#name") == "0.04 s")
        browser.find_element("id", "dense").click()
        wait.until(lambda _: text("#figures dd").startswith("0.0 %"))
        first = browser.find_element("css selector", ".threshold")
        # At 0 every token whose confidence is above 0 stops at the first gate.
        first.send_keys(Keys.HOME)
        wait.until(lambda _: text("#figures div:nth-child(3) small").split(" → ")[1] in ("0", "1"))
        browser.find_element("id", "own").click()
        wait.until(lambda _: first.get_attribute("value") != "0")
        browser.find_element("id", "dense").click()
        wait.until(lambda _: text("#figures dd").startswith("0.0 %"))
        browser.find_element("id", "own").click()
        wait.until(lambda _: not text("#figures dd").startswith("0.0 %"))
        browser.find_element("id", "file").send_keys(str(tmp_path / "dropped.png"))
        wait.until(lambda _: text("#name") == "dropped image")
        browser.find_element("id", "file").send_keys(str(tmp_path / "bad.png"))
        wait.until(lambda _: "cannot be decoded" in text("#error"))
        assert text("#name") == "dropped image"
        frame = browser.find_element("id", "frame")
        assert frame.get_attribute("aria-valuetext") == "0.04 s"
        place = frame.get_attribute("value")
        browser.execute_script("arguments[0].click()", frame)
        wait.until(lambda _: text("#name") == "0.04 s")
        assert frame.get_attribute("value") == place
        # A refused question is an answer of 400, which the browser lists; nothing else is.
        assert all("400" in line for line in complaints(browser))
        unnamed = (
            "return [...document.querySelectorAll('input, button')].filter(o => !o.labels?.length && !o.textContent)"
        )
        assert browser.execute_script(unnamed) == []


@pytest.mark.slow
def test_a_threshold_that_was_not_moved_is_exactly_the_models_own() -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    class Fine(FakeSession):
        """A model with thresholds between the slider's steps."""

        asked: ClassVar[list[object]] = []

        def run_one(self, pixels, settings):
            self.asked.append(settings.thresholds)
            return super().run_one(pixels, settings)

    shown = viewer(Fine(), ThreeFrames())
    facts = shown.facts() | {"thresholds": [0.9979, 0.5021]}
    shown.facts = lambda: facts
    with serving(shown, port=None) as address, chromium() as browser:
        browser.get(address)
        wait = WebDriverWait(browser, 30)
        wait.until(lambda _: len(Fine.asked) == 1)
        first, second = browser.find_elements("css selector", ".threshold")
        assert [one.text for one in browser.find_elements("css selector", "output")] == ["0.9979", "0.5021"]
        second.send_keys(Keys.ARROW_LEFT)
        wait.until(lambda _: len(Fine.asked) == 2)
        np.testing.assert_allclose(np.asarray(Fine.asked[1])[:, 0], [0.9979, 0.49], rtol=1e-6)
        assert first.get_attribute("value") == "1"
