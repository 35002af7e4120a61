"""How does one HTML file say all of it? No network, no second file: style, script and pictures lie in it.

Whatever text comes in (names of files and classes, messages) stays text: every template escapes. Without scripts all
tables, drawings and pictures are there; the script adds the pointer of a timeline and the viewer of stills.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from dovit_deploy import packages
from dovit_deploy.pages.charts import Chart
from dovit_deploy.printing import printable

TEMPLATES = Path(__file__).with_name("templates")
MARK = '<meta name="generator" content="dovit-deploy">'
"""Stands in the first lines of every page: whose it is, so that a new one may replace it."""


@dataclass(frozen=True)
class Fact:
    """A figure that the page begins with."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class PageTable:
    """Rows of text below a head; columns named in `right` hold numbers."""

    template: ClassVar[str] = "table.html"

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()
    folded: bool = False
    """Only its title is seen until it is opened."""
    wide: bool = False
    """As wide as the page; a folded one always is."""


@dataclass(frozen=True)
class Picture:
    """An image of a still: "input", "mask", "exit depth"; `content` is a JPEG or PNG."""

    name: str
    content: bytes

    @property
    def address(self) -> str:
        """The image itself, as an address."""
        kind = "png" if self.content.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode('ascii')}"


@dataclass(frozen=True)
class Still:
    """A frame that is shown: its pictures, all of one size, and what is said of it."""

    name: str
    facts: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Stills:
    """Frames to look through, one at a time; without scripts one below the other."""

    template: ClassVar[str] = "stills.html"

    title: str
    note: str
    stills: tuple[Still, ...]


@dataclass(frozen=True)
class Gallery:
    """Frames side by side."""

    template: ClassVar[str] = "gallery.html"

    title: str
    stills: tuple[Still, ...]
    wide: bool = False
    """As wide as the page."""


@dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    template: ClassVar[str] = "paragraph.html"

    text: str


@dataclass(frozen=True)
class Lines:
    """Sentences that stand for themselves, one below the other."""

    template: ClassVar[str] = "lines.html"

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Colors:
    """What the colours of a map stand for."""

    template: ClassVar[str] = "colors.html"

    title: str
    names: tuple[tuple[str, tuple[int, int, int]], ...]
    """Each with its red, green and blue, 0 to 255."""


Part = Chart | PageTable | Stills | Gallery | Paragraph | Lines | Colors


@dataclass(frozen=True)
class PageSection:
    """A heading and what is below it."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Page:
    """Everything that is on a page, from top to bottom."""

    title: str
    subtitle: str
    headline: tuple[Fact, ...]
    sections: tuple[PageSection, ...]


def html_from_page(page: Page) -> str:
    """The whole file.

    Raises:
        PackageMissing: jinja2 is not installed.
    """
    return html_from_template("page.html", {"page": page})


def html_from_template(name: str, values: Mapping[str, object]) -> str:
    """A page of its own kind, from the template `name`.

    Raises:
        PackageMissing: jinja2 is not installed.
    """
    return str(_environment().get_template(name).render(values))


@cache
def _environment() -> Any:  # noqa: ANN401  jinja2 comes lazily
    jinja2 = packages.load("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # A name may hold what no browser can show, or turns a line around.
        finalize=_shown,
    )
    environment.globals["mark"] = MARK
    # Style and scripts lie beside the templates, and go into the page as they are.
    environment.globals["text_of"] = lambda name: (TEMPLATES / name).read_text(encoding="utf-8")
    return environment


def _shown(value: object) -> object:
    """Text as a page can show it; what is marked as HTML already stays."""
    return printable(value) if type(value) is str else value


def facts_table(title: str, facts: Sequence[tuple[str, str]]) -> PageTable:
    """Names and values below each other."""
    return PageTable(title, ("", ""), tuple(facts))


def machine_table(machine: Mapping[str, object], versions: Mapping[str, object]) -> PageTable:
    """What the figures were measured on and with."""
    return facts_table("Machine and versions", [(name, str(value)) for name, value in {**machine, **versions}.items()])
