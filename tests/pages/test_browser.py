"""Pages in a real browser: no complaint, both colour schemes, by keyboard, and without scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovit_deploy.pages.page import html_from_page
from tests.browser import chromium, complaints
from tests.pages.test_page import HOSTILE, page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = Path(tmp_path_factory.mktemp("pages")) / "report.html"
    path.write_text(html_from_page(page("a name")), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser(address):
    with chromium() as driven:
        driven.get(address)
        yield driven


def one(browser, selector):
    return browser.find_element("css selector", selector)


def test_nothing_is_complained_about_and_nothing_is_wider_than_the_window(browser):
    assert complaints(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_stills_are_looked_through_by_keyboard(browser):
    viewer = one(browser, ".viewer")
    frame, border = (viewer.find_element("css selector", f"label:nth-of-type({n}) input") for n in (1, 3))
    name = viewer.find_element("css selector", "h4")
    assert name.text == "a name" and frame.get_attribute("aria-valuetext") == "a name"
    frame.send_keys("\ue014")  # the right arrow
    assert frame.get_attribute("value") == "1"
    over = viewer.find_element("css selector", ".over")
    before = over.get_attribute("style")
    border.send_keys("\ue012")  # the left arrow
    assert border.get_attribute("value") == "49" and over.get_attribute("style") != before
    assert over.get_attribute("alt") == "mask of a name"


def test_every_control_has_a_name(browser):
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('input, select')].filter(one => !one.labels.length).length"
    )
    assert unnamed == 0 and len(browser.find_elements("css selector", "input, select")) == 3


def test_a_pointer_reads_the_timeline_and_so_do_the_arrow_keys(browser):
    figure = one(browser, ".timeline")
    region = figure.find_element("css selector", ".scroll")
    readout = figure.find_element("css selector", ".readout")
    region.send_keys("\ue014")
    assert readout.text == "a name: a name 1, b 2"
    region.send_keys("\ue014")
    assert readout.text == "a name: a name 2, b -"
    webdriver = pytest.importorskip("selenium.webdriver")
    drawing = figure.find_element("css selector", "svg")
    webdriver.ActionChains(browser).move_to_element_with_offset(drawing, -drawing.size["width"] // 3, 0).perform()
    assert readout.text == "a name: a name 1, b 2"
    assert figure.find_element("css selector", ".pointer").get_attribute("visibility") == "visible"


def test_dark_and_light_differ_and_both_can_be_read(browser, address):
    light = one(browser, "body").value_of_css_property("background-color")
    with chromium(dark=True, size=(500, 900)) as dark:
        dark.get(address)
        assert complaints(dark) == []
        assert dark.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        body = one(dark, "body")
        assert body.value_of_css_property("background-color") != light == "rgba(255, 255, 255, 1)"
        assert contrast(body.value_of_css_property("color"), body.value_of_css_property("background-color")) > 7


def contrast(first: str, second: str) -> float:
    """Ratio of luminances of two colours "rgba(r, g, b, a)" (WCAG 2.1)."""

    def luminance(text: str) -> float:
        channels = [float(value) / 255 for value in text.partition("(")[2].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_lines_that_lie_on_each_other_are_both_seen(browser):
    # The first is wider than the second, the third has gaps.
    widths, dashes = (
        browser.execute_script(
            f"""const drawing = document.querySelector(".timeline svg");
            return [1, 2, 3].map((number) => {{
                const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
                line.setAttribute("class", `line series${{number}}`);
                drawing.append(line);
                const found = getComputedStyle(line).{style};
                line.remove();
                return found;
            }})"""
        )
        for style in ("strokeWidth", "strokeDasharray")
    )
    assert float(widths[0][:-2]) > float(widths[1][:-2]) and dashes[:2] == ["none", "none"] != dashes[2]


def test_on_paper_keys_have_their_colours(browser):
    # Browsers print no backgrounds unless a style asks for it.
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        swatches = browser.find_elements("css selector", ".key i")
        assert swatches
        for swatch in swatches:
            assert swatch.value_of_css_property("print-color-adjust") == "exact"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_hostile_names_do_nothing_and_without_scripts_everything_is_there(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(html_from_page(page(HOSTILE)), encoding="utf-8")
    with chromium() as driven:
        driven.get(path.as_uri())
        # An alert would end this call with an error.
        assert driven.title.startswith("</script>") and complaints(driven) == []
    with chromium(scripts=False) as driven:
        driven.get(path.as_uri())
        assert 'class="viewer"' not in driven.page_source
        assert len(driven.find_elements("css selector", ".stills img")) == 4
        assert all(image.is_displayed() for image in driven.find_elements("css selector", ".stills img"))
        assert len(driven.find_elements("css selector", "table")) == 3
