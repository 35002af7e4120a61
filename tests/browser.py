"""Chromium without a window, as Debian packages it; where it is not installed the tests that need it are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


def _programs() -> tuple[str, str]:
    """Paths of the browser and of what drives it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium and its driver (Debian: apt-get install chromium chromium-driver)")
    return browser, driver


@contextmanager
def chromium(*, dark: bool = False, scripts: bool = True, size: tuple[int, int] = (1000, 1400)) -> Iterator[Any]:
    """A driven browser; nothing outside this machine is resolved."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    browser, driver = _programs()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
        *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--window-size={size[0]},{size[1]}"),
        # 0 is dark, 1 light.
        f"--blink-settings=preferredColorScheme={0 if dark else 1}{'' if scripts else ',scriptEnabled=false'}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driven = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    driven.set_page_load_timeout(60)
    driven.implicitly_wait(20)
    try:
        yield driven
    finally:
        driven.quit()


def complaints(browser: Any) -> list[str]:
    """What the browser's console holds: errors of scripts, and what was refused or not found."""
    return [entry["message"] for entry in browser.get_log("browser")]
