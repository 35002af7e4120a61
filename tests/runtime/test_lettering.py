"""Letters on images: sizes, borders, names in any script, and that a text is drawn once."""

from __future__ import annotations

import types

import numpy as np
import pytest

from dovit_deploy import packages
from dovit_deploy.runtime import lettering
from dovit_deploy.runtime.lettering import drawable, fitting_text, in_ascii, letter_height, text_width, write


def black(height, width):
    return np.zeros((height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "height"), [((64, 64), 9), ((120, 90), 12), ((540, 960), 18), ((2160, 3840), 72), ((4320, 7680), 72)]
)
def test_letters_follow_the_size_of_the_image(shape, height):
    assert letter_height(black(*shape)) == height


def test_letters_stand_on_their_baseline():
    image = black(60, 200)
    write(image, "HHH", left=10, baseline=40, height=20)
    rows, columns = np.nonzero(image.max(axis=2) > 128)
    assert abs(int(rows.max()) - 40) <= 1 and 24 <= rows.min() <= 30
    assert columns.min() >= 10 and columns.max() <= 10 + text_width("HHH", 20) + 1


def test_letters_are_white_and_mix_with_what_is_behind_them():
    image = np.full((60, 200, 3), (0, 90, 250), dtype=np.uint8)
    write(image, "HHH", left=10, baseline=40, height=20)
    assert (image == 255).all(axis=2).any()
    assert (image >= (0, 90, 250)).all()


@pytest.mark.parametrize("start", [(-15, 40), (180, 40), (10, 4), (10, 70), (500, 40), (10, -50), (-900, 40)])
def test_what_reaches_beyond_the_border_is_cut(start):
    large = black(260, 1500)
    write(large, "HHHH", left=start[0] + 1000, baseline=start[1] + 100, height=20)
    image = black(60, 200)
    write(image, "HHHH", left=start[0], baseline=start[1], height=20)
    np.testing.assert_array_equal(image, large[100:160, 1000:1200])


def test_a_text_is_drawn_once(monkeypatch):
    lettering._letters.cache_clear()
    drawn = []
    real = packages.opencv()

    class Counting(types.ModuleType):
        def __getattr__(self, name):
            return getattr(real, name)

        def putText(self, image, text, *rest):
            drawn.append(text)
            return real.putText(image, text, *rest)

    monkeypatch.setattr(packages, "opencv", lambda: Counting("cv2"))
    for _ in range(3):
        write(black(60, 200), "road", left=0, baseline=40, height=20)
    write(black(60, 200), "road", left=0, baseline=40, height=21)
    assert drawn == ["road", "road"]


def test_a_long_text_loses_its_end_and_keeps_what_belongs_behind_it():
    assert fitting_text("road", 20, 500, end=" 5%") == "road 5%"
    short = fitting_text("a" * 100, 20, 150, end=" 5%")
    assert short.startswith("aaa") and short.endswith("... 5%") and text_width(short, 20) <= 150
    assert fitting_text("aaaa", 20, 1) == "..."


def with_version(monkeypatch, version):
    monkeypatch.setattr(packages, "opencv", lambda: types.SimpleNamespace(__version__=version))


def test_names_in_any_script_where_opencv_has_the_letters(monkeypatch):
    with_version(monkeypatch, "5.0.0")
    for name in ("Straße", "дорога", "道路", "road"):
        assert drawable(name, otherwise="class 3") == name


def test_names_in_ascii_where_it_has_no_others(monkeypatch):
    with_version(monkeypatch, "4.11.0-dev")
    assert drawable("Straße", otherwise="class 3") == "Strasse"
    assert drawable("Gehweg (süd)", otherwise="class 3") == "Gehweg (sud)"
    assert drawable("道路", otherwise="class 3") == "class 3"
    assert in_ascii("Épagneul ß 犬") == "Epagneul ss ?"


@pytest.mark.parametrize("name", ["", " ", "\n", "\x1b", "\ud800", "\u202e"])
def test_a_name_without_a_visible_letter_is_replaced(name):
    assert drawable(name, otherwise="class 3") == "class 3"
    assert drawable(f"a{name}b", otherwise="class 3") in ("ab", "a b")
