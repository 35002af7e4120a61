"""Values and their sources: precedence, contradictions, and the list of what no source knows."""

from __future__ import annotations

import pytest

from dovit_deploy.checkpoints.keys import KeyFacts
from dovit_deploy.checkpoints.settings import Section, Sources, SpecValue, count, has, size, training_size
from dovit_deploy.errors import ConfigError

WIDTH = SpecValue("width", Section.integer, 1, shown=size(("norm.*", 0)))
HEADS = SpecValue("heads", Section.integer, 1, default=lambda sources: {8: 2}.get(sources[WIDTH]))
SIZE = training_size("size", positions="positions", extra=lambda _: 1, patch=lambda _: 16)


def sources(shapes: dict[str, tuple[int, ...]], **values: object) -> Sources:
    return Sources("", values, KeyFacts(shapes), "x.pth")


def test_what_is_stated_comes_before_the_default_and_agrees_with_the_entries() -> None:
    assert sources({}, width=6)[WIDTH] == 6
    assert sources({"norm.bias": (8,)})[WIDTH] == 8
    assert sources({"norm.bias": (8,)})[HEADS] == 2
    assert sources({"norm.bias": (8,)}, heads=4)[HEADS] == 4
    message = "'width' is 6 in the configuration and 8 in the keys of x.pth; give the configuration this checkpoint was"
    with pytest.raises(ConfigError, match=message):
        sources({"norm.bias": (8,)}, width=6)[WIDTH]


def test_everything_unknown_is_named_at_once_and_once() -> None:
    network = sources({}, part={})
    part = network.part("part", "part.")
    assert (network[WIDTH], part[HEADS], part[HEADS]) == (1, 1, 1)
    with pytest.raises(
        ConfigError,
        match=r"cannot be determined from x\.pth: width, part\.width, part\.heads; state them in",
    ) as error:
        network.finish()
    assert str(error.value).count("part.heads") == 1


def test_a_part_sees_its_own_section_and_its_own_entries() -> None:
    network = sources({"part.norm.bias": (3,), "norm.bias": (8,)}, part={"width": 3}, width=8)
    assert (network[WIDTH], network.part("part", "part.")[WIDTH]) == (8, 3)
    with pytest.raises(ConfigError, match="'part' is a list of 2; only one is supported"):
        sources({}, part=[{}, {}]).part("part", "part.")


def test_an_optional_part_is_stated_or_shown_or_the_default() -> None:
    assert sources({"bias": (1,)}).present("biased", "bias")
    assert not sources({}).present("biased", "bias")
    assert sources({}).present("biased", "bias", default=True)
    assert sources({}, biased=True).present("biased", "bias")
    with pytest.raises(ConfigError, match="'biased' is false in the configuration, and the checkpoint has its entries"):
        sources({"bias": (1,)}, biased=False).present("biased", "bias")


def test_a_stated_size_need_not_be_the_square_that_the_embeddings_could_make() -> None:
    embeddings: dict[str, tuple[int, ...]] = {"positions": (1, 5, 8)}
    assert sources(embeddings)[SIZE] == (32, 32)
    assert sources(embeddings, size=[16, 64])[SIZE] == (16, 64)
    assert sources(embeddings, size=[17, 79])[SIZE] == (16, 64)
    with pytest.raises(
        ConfigError, match=r"'size' 48x48 makes 3x3 patches of 16, and x\.pth has position embeddings for 4"
    ):
        sources(embeddings, size=48)[SIZE]


def test_what_entries_show() -> None:
    part = sources({"blocks.0.a": (1,), "blocks.1.a": (1,)})
    assert count("blocks")(part) == 2
    assert has("blocks.**")(part) and not has("layers.**")(part)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("width", True, "'width' is True; a whole number is needed"),
        ("width", 2.5, "'width' is 2.5; a whole number is needed"),
        ("size", [1, 2, 3], r"'size' is \[1, 2, 3\]; one or two whole numbers above 0 are needed"),
        ("size", 0, "'size' is 0; one or two whole numbers above 0 are needed"),
    ],
)
def test_values_of_the_wrong_kind_are_quoted(key: str, value: object, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        sources({}, **{key: value})[WIDTH if key == "width" else SIZE]


def test_a_number_is_not_a_flag() -> None:
    section = Section("part", {"one": 1, "true": True})
    section.must_be("one", 1)
    section.must_be("absent", 1)
    with pytest.raises(ConfigError, match=r"'part\.one' is 1; only True is supported"):
        section.must_be("one", True)
