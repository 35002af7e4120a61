"""One file that needs nothing else, in which whatever text comes in stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from dovit_deploy import packages
from dovit_deploy.errors import PackageMissing
from dovit_deploy.pages.charts import Bar, Bars, ChartPoint, Histogram, Panel, Scatter, Series, Timeline
from dovit_deploy.pages.page import (
    Colors,
    Fact,
    Gallery,
    Page,
    PageSection,
    PageTable,
    Paragraph,
    Picture,
    Still,
    Stills,
    facts_table,
    html_from_page,
)

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\u202e\x1b[31m'
PIXEL = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
VOID = {"meta", "link", "img", "input", "br"}


def page(text: str) -> Page:
    """A page of every kind of part, with `text` wherever text goes."""
    still = Still(text, text, (Picture(text, PIXEL), Picture("mask", PIXEL)))
    series = (Series(text, (1.0, 2.0)), Series("b", (2.0, float("nan"))))
    parts = (
        Paragraph(text),
        PageTable(text, (text, "b"), ((text, "1"),), right=(1,)),
        PageTable(text, ("a",), ((text,),), folded=True),
        facts_table(text, [(text, text)]),
        Stills(text, text, (still, still)),
        Gallery(text, (still,)),
        Colors(text, ((text, (1, 2, 3)),)),
        Timeline(text, text, (0.0, 1.0), (text, text), (Panel(text, series),), ((0.5, text),)),
        Bars(text, (text, "b"), (Bar(text, (1.0, 2.0), (1.0, 3.0), note=text),)),
        Bars(text, ("b",), (Bar(text, (1.0,), color="rgb(1,2,3)"),)),
        Histogram(text, text, ((text, (1, 2)),)),
        Scatter(text, text, text, ((text, (ChartPoint(1, 2, text, 1, 3),)),), line=(text, ((0, 0), (1, 1)))),
    )
    return Page(text, text, (Fact(text, text, text),), (PageSection(text, parts),))


class Reader(HTMLParser):
    """What a browser would see: elements that are opened and closed, scripts, addresses, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_every_element_is_closed_and_nothing_is_fetched():
    html = html_from_page(page("plain"))
    found = Reader(html)
    assert not found.open
    addresses = [value for _, name, value in found.attributes if name in ("src", "href")]
    assert addresses and all(value.startswith("data:") for value in addresses)
    assert "http:" not in html and "https:" not in html and "@import" not in html and "url(" not in html
    assert html.startswith(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="generator" content="dovit'
    )


def test_text_stays_text_wherever_it_goes():
    plain, hostile = Reader(html_from_page(page("plain"))), Reader(html_from_page(page(HOSTILE)))
    assert hostile.tags == plain.tags
    assert not [name for _, name, _ in hostile.attributes if name.startswith("on")]
    # What turns a line around, and what a terminal obeys, is written out.
    assert "\u202e" not in hostile.text and "\\u202e" in hostile.text and "\x1b" not in hostile.text


def test_everything_has_a_name_that_is_read_aloud():
    found = Reader(html_from_page(page("plain")))
    of = {}
    for tag, name, value in found.attributes:
        of.setdefault(tag, []).append((name, value))
    assert len([value for name, value in of["svg"] if name == "aria-label" and value]) == found.tags.count("svg")
    assert len([value for name, value in of["img"] if name == "alt" and value]) == found.tags.count("img")
    assert ("lang", "en") in of["html"]


def test_pictures_are_what_they_are():
    assert Picture("a", PIXEL).address.startswith("data:image/png;base64,")
    assert Picture("a", b"\xff\xd8\xff").address.startswith("data:image/jpeg;base64,")


def test_colours_of_both_schemes_and_of_paper_are_the_same_names():
    style = re.search(r"<style>(.*?)</style>", html_from_page(page("x")), re.S)[1]
    schemes = [set(re.findall(r"(--\w+):", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(schemes) == 3 and schemes[0] == schemes[1] == schemes[2] and len(schemes[0]) >= 10


def test_without_jinja2_it_says_how_to_get_it(monkeypatch):
    from dovit_deploy.pages import page as module

    def missing(name):
        raise PackageMissing("jinja2 is needed for pages to look at", "pip install 'dovit-deploy[report]'")

    module._environment.cache_clear()
    monkeypatch.setattr(packages, "load", missing)
    with pytest.raises(PackageMissing, match="report"):
        html_from_page(page("x"))
