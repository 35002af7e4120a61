"""What a Python caller may give, and what is said of everything else."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dovit_deploy import Bundle, Classifier, InputError, Predictor, Session, UsageError, errors, predictor_for
from dovit_deploy.runtime.given import described, image_from, number_within
from tests.fakes import FakeClassifierSession, FakeSession

RGB = np.random.default_rng(2).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    """A file that must be turned to stand upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(RGB).save(path, exif=exif)
    return path


def test_an_array_a_path_and_a_pillow_image_are_the_same_image(turned: Path) -> None:
    upright = np.rot90(RGB, -1)
    for form in (turned, str(turned), Image.open(turned), np.ascontiguousarray(upright)):
        assert np.array_equal(image_from(form)[0], upright)
    assert image_from(turned)[1] > 0
    assert image_from(RGB) == (RGB, 0.0)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_pillow_images_of_any_mode(mode: str) -> None:
    image = (
        Image.fromarray(np.full((4, 6), 40_000, np.uint16)) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    )
    rgb, _ = image_from(image)
    assert rgb.dtype == np.uint8 and rgb.shape == (*image.size[::-1], 3)


@pytest.mark.parametrize(
    ("predictor", "answer"),
    [(Predictor(FakeSession()), "class_map"), (Classifier(FakeClassifierSession()), "probabilities")],
)
def test_a_list_gives_a_list(predictor: Predictor, answer: str, turned: Path) -> None:
    several = predictor.predict([RGB, turned, Image.open(turned)])
    assert [result.rgb.shape for result in several] == [(40, 60, 3), (60, 40, 3), (60, 40, 3)]
    assert np.array_equal(getattr(several[1], answer), getattr(several[2], answer))
    assert predictor.predict(()) == []
    alone = predictor.predict(turned, decode_ms=5)
    assert alone.timing.decode > 5
    assert np.array_equal(getattr(alone, answer), getattr(several[1], answer))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (torch.zeros(3, 4, 6), r"torch tensor of shape \(3, 4, 6\).*tensor\.permute\(1, 2, 0\)\.cpu\(\)\.numpy\(\)"),
        (torch.zeros(4, 6, 3), r"give tensor\.cpu\(\)\.numpy\(\)"),
        (RGB / 255, r"values 0 to 1 given.*\(image \* 255\)\.round\(\)\.astype"),
        (RGB.astype(np.float32), r"values 0 to 255 given.*\(image\)\.round\(\)"),
        (np.full((4, 4, 3), np.nan), "with NaN or infinite values given"),
        (RGB.transpose(2, 0, 1), r"give image\.transpose\(1, 2, 0\)"),
        (RGB[None], "several images are given as a list"),
        (RGB[:, :, 0], r"uint8 of shape \(40, 60\) given.*numpy\.stack\(\[image\] \* 3, axis=-1\)"),
        (np.zeros((4, 6, 4), np.uint8), r"give image\[:, :, :3\]"),
        (b"\xff\xd8", "bytes given.*open it with Pillow"),
        (io.BytesIO(), "BytesIO given.*open it with Pillow"),
        ("rtsp://user:word@host/a", r"rtsp://\*\*\*@host/a is an address"),
        (RGB[:0], r"shape \(0, 60, 3\)"),
        (None, "NoneType given"),
        ({"a": 1}, "dict given"),
    ],
)
def test_what_is_no_image_is_refused_with_the_line_that_makes_one(wrong: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Predictor(FakeSession()).predict(wrong)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(errors.SourceError, match="no such file"):
        Predictor(FakeSession()).predict("absent.png")
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(errors.SourceError):
        Predictor(FakeSession()).predict([tmp_path / "a.png"])


def test_pixels_must_be_finite_float32(tiny_bundle_path: Path) -> None:
    with Session(str(tiny_bundle_path), threads=1) as session:
        size = session.bundle.manifest.spec.size
        pixels = np.zeros((1, 3, *size), np.float32)
        assert session.run(pixels)[0].shape[0] == 1
        for wrong, words in (
            (torch.zeros(1, 3, *size), r"give tensor\.detach\(\)\.cpu\(\)\.numpy\(\)"),
            (pixels.astype(np.float64), r"float64 of shape.*give pixels\.astype\(numpy\.float32\)"),
            (pixels[0], "float32 of shape"),
            (np.where(np.arange(pixels.size).reshape(pixels.shape) == 7, np.float32(np.nan), pixels), "NaN"),
            (pixels + np.float32(np.inf), "infinite"),
            ([[1.0]], "list given"),
        ):
            with pytest.raises(InputError, match=words):
                session.run(wrong)  # type: ignore[arg-type]
            with pytest.raises(InputError):
                Predictor(session).logits(wrong)  # type: ignore[arg-type]


def test_a_notebook_shows_the_painted_image(tmp_path: Path) -> None:
    for predictor in (Predictor(FakeSession()), Classifier(FakeClassifierSession())):
        result = predictor.predict(RGB)
        (tmp_path / "shown.png").write_bytes(result._repr_png_())
        assert np.array_equal(np.asarray(Image.open(tmp_path / "shown.png")), result.plot())


def test_numbers() -> None:
    assert number_within(np.float32(0.5), "x", 0, 1) == 0.5
    for wrong in (True, "0.5", None, float("nan"), 2, 1j, [0.5]):
        with pytest.raises(UsageError, match="x"):
            number_within(wrong, "x", 0, 1)
    assert described("a" * 500) == repr("a" * 80)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=20),
    st.binary(max_size=5),
    st.lists(st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2), max_size=4),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.just(object()),
    st.just(np.zeros((2, 3))),
    st.just(np.array("text")),
    st.just(np.zeros((2, 0), bool)),
    st.just(torch.zeros(2)),
    st.just(torch.zeros(2, 3, requires_grad=True)),
    st.just(Path("absent")),
    st.just(Image.new("RGB", (3, 2))),
)
"""Anything that a caller may hold in hand."""


@pytest.fixture(scope="module")
def session(tiny_bundle_path: Path) -> Session:
    return Session(tiny_bundle_path, threads=1)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(odd=ODD)
def test_odd_arguments_end_in_the_packages_errors(session: Session, odd: object) -> None:
    pixels = np.zeros((1, 3, *session.bundle.manifest.spec.size), np.float32)
    predictor, namer = Predictor(FakeSession()), Classifier(FakeClassifierSession())
    result = predictor.predict(RGB[:8, :8])
    calls = [
        *(lambda name=name: session.run(pixels, **{name: odd}) for name in ("thresholds", "floor", "keep", "dense")),
        *(lambda name=name: predictor.predict(RGB, **{name: odd}) for name in ("thresholds", "floor", "dense")),
        lambda: session.run(odd),
        lambda: session.run(pixels, keep=[odd, odd]),
        lambda: session.run(pixels, thresholds=[odd, odd]),
        lambda: predictor.predict(odd),
        lambda: predictor.predict([odd]),
        lambda: predictor.to_input(odd),
        lambda: predictor.logits(odd),
        lambda: namer.predict(odd),
        lambda: namer.logits(odd),
        lambda: Predictor(odd),
        lambda: Classifier(odd),
        lambda: Classifier(FakeClassifierSession(), top=odd),
        lambda: predictor_for(odd),
        lambda: Bundle.open(odd),
        lambda: Session(odd),
        lambda: Session(session.bundle, engine=odd),
        lambda: Session(session.bundle, precision=odd),
        # An engine is only loaded with a number that is allowed, which takes long and proves nothing here.
        lambda: None if isinstance(odd, int) and 1 <= odd <= 1024 else Session(session.bundle, threads=odd),
        lambda: result.plot(alpha=odd),
        lambda: result.save(odd),
    ]
    for number, call in enumerate(calls):
        try:
            call()
        except errors.DovitError as error:
            assert str(error) and len(str(error).splitlines()) <= 2, number
            assert len(str(error)) < 500, number


def test_after_close_every_run_is_refused(tiny_bundle_path: Path) -> None:
    session = Session(tiny_bundle_path, threads=1)
    session.close()
    session.close()
    pixels = np.zeros((1, 3, *session.bundle.manifest.spec.size), np.float32)
    with pytest.raises(UsageError, match="closed"):
        session.run(pixels)
    with pytest.raises(UsageError, match="closed"):
        session.run(pixels, dense=True)
    with pytest.raises(UsageError, match="closed"):
        Predictor(session).predict(RGB)
