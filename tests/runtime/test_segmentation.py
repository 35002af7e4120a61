"""Predictor: windows, thresholds, times, and what a segmentation can do."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dovit_deploy.errors import ConfigError, InputError, PackageMissing, UsageError
from dovit_deploy.runtime import segmentation
from dovit_deploy.runtime.paint import paint_overlay
from dovit_deploy.runtime.results import FrameTiming, FrameTokens, Palette
from dovit_deploy.runtime.segmentation import Predictor, SegmentationResult, averaged_bands
from dovit_deploy.runtime.token_maps import paint_selections, paint_tokens
from dovit_deploy.runtime.transforms import windows
from tests.fakes import FakeSession, fake_manifest

from .plain_pixels import assert_is_argmax, interpolated, stretched


def predicted():
    rgb = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    return Predictor(FakeSession()).predict(rgb)


def known():
    numbers = np.zeros((6, 8), dtype=np.uint8)
    numbers[1:3, 4:7] = 2
    palette = Palette(("road", "sky", "car"), np.zeros((3, 3), dtype=np.uint8))
    rgb = np.zeros((6, 8, 3), dtype=np.uint8)
    return SegmentationResult(rgb, FrameTokens((), (16, 16)), FrameTiming(0, 0, 0, 0), numbers, palette)


def test_plots_are_the_paintings_of_its_own_image():
    result = predicted()
    expected = paint_overlay(result.rgb, result.class_map, result.palette, alpha=0.3)
    np.testing.assert_array_equal(result.plot(alpha=0.3), expected)
    np.testing.assert_array_equal(result.plot_tokens(), paint_tokens(result.rgb, result.tokens, result.gates))
    assert result.plot().shape == result.rgb.shape and (result.plot() != result.rgb).any()


def test_a_fixed_number_of_tokens_is_shown_by_its_selections():
    result = predicted()
    selected = dataclasses.replace(result, gates=())
    np.testing.assert_array_equal(selected.plot_tokens(), paint_selections(result.rgb, result.tokens))
    assert (selected.plot_tokens(legend=False) != result.plot_tokens(legend=False)).any()
    assert result.facts() == {}


def test_saved_masks_hold_class_numbers(tmp_path):
    result = predicted()
    result.save(str(tmp_path / "mask.png"))
    with Image.open(tmp_path / "mask.png") as image:
        np.testing.assert_array_equal(np.asarray(image), result.class_map)


def test_supervision_gets_one_detection_per_class_that_occurs(monkeypatch):
    fake = ModuleType("supervision")
    fake.Detections = dict
    monkeypatch.setitem(sys.modules, "supervision", fake)
    found = known().to_supervision()
    assert found["class_id"].tolist() == [0, 2]
    assert found["data"]["class_name"].tolist() == ["road", "car"]
    assert found["xyxy"].tolist() == [[0, 0, 7, 5], [4, 1, 6, 2]]
    assert found["mask"].dtype == bool and found["mask"].shape == (2, 6, 8)
    np.testing.assert_array_equal(found["mask"][1], known().class_map == 2)


def test_supervision_itself_takes_it():
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    result = known()
    found = result.to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 2
    assert found.class_id.tolist() == [0, 2] and found["class_name"].tolist() == ["road", "car"]
    # Its area is that of the masks, and what is picked is a detection again.
    areas = [int((result.class_map == number).sum()) for number in (0, 2)]
    assert found.area.tolist() == areas
    (car,) = found[found.class_id == 2]
    np.testing.assert_array_equal(car[0], [4, 1, 6, 2])
    np.testing.assert_array_equal(car[1], result.class_map == 2)


def test_without_supervision_the_line_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(PackageMissing, match="pip install supervision"):
        known().to_supervision()


RANDOM = np.random.default_rng(0)


def image(height, width):
    """Smooth blobs, so that classes form regions."""
    coarse = np.random.default_rng(height).integers(0, 256, (3, 5, 6))
    return np.ascontiguousarray(interpolated(coarse, (height, width)).transpose(1, 2, 0).astype(np.uint8))


def predictor(**manifest):
    return Predictor(FakeSession(fake_manifest(**manifest)))


def plain_logits(session, pixels, corners, size, *, canvas):
    """The mean over windows, written the plain way: (K, h, w)."""
    total = np.zeros((session.bundle.manifest.spec.classes, *pixels.shape[2:]))
    count = np.zeros(pixels.shape[2:])
    for top, left in corners:
        part = np.ascontiguousarray(pixels[:, :, top : top + size[0], left : left + size[1]])
        logits = interpolated(session.run(part)[0][0], canvas)[:, : size[0], : size[1]]
        total[:, top : top + size[0], left : left + size[1]] += logits
        count[top : top + size[0], left : left + size[1]] += 1
    return total / count


@pytest.mark.parametrize("logits_scale", [1, 4])
@pytest.mark.parametrize(("cover", "canvas"), [("image", (40, 56)), ("padded", (48, 64))])
def test_a_whole_image_is_resized_run_once_and_resized_back(cover, canvas, logits_scale):
    subject = predictor(size=(40, 56), cover=cover, logits_scale=logits_scale)
    rgb = image(90, 130)
    result = subject.predict(rgb)
    logits = subject.session.run(subject.to_input(rgb))[0][0]
    assert_is_argmax(result.class_map, stretched(logits, (40, 56), (90, 130), canvas=canvas))
    assert result.class_map.shape == (90, 130) and len(np.unique(result.class_map)) > 1
    assert result.tokens.input_size == (40, 56) and len(result.tokens.windows) == 1


CORNERS = [(0, 0), (0, 32), (0, 40), (32, 0), (32, 32), (32, 40), (50, 0), (50, 32), (50, 40)]


@pytest.mark.parametrize(("cover", "canvas"), [("image", (40, 56)), ("padded", (48, 64))])
def test_sliding_is_the_mean_of_logits_over_windows(cover, canvas):
    subject = predictor(size=(40, 56), stride=(32, 32), cover=cover)
    pixels = RANDOM.normal(size=(1, 3, 90, 96)).astype(np.float32)
    expected = plain_logits(subject.session, pixels, CORNERS, (40, 56), canvas=canvas)
    found = subject.logits(pixels)
    assert found.shape == (1, 5, 90, 96) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_predicting_by_sliding_is_the_argmax_of_those_logits():
    subject = predictor(size=(40, 56), stride=(32, 32))
    rgb = image(90, 96)
    result = subject.predict(rgb)
    expected = plain_logits(subject.session, subject.to_input(rgb), CORNERS, (40, 56), canvas=(40, 56))
    assert_is_argmax(result.class_map, expected)
    assert [(window.top, window.left) for window in result.tokens.windows] == CORNERS
    assert {(window.height, window.width) for window in result.tokens.windows} == {(40, 56)}


@pytest.mark.parametrize("cover", ["image", "padded"])
def test_a_image_smaller_than_the_window_is_enlarged_and_its_map_brought_back(cover):
    subject = predictor(size=(40, 56), stride=(32, 32), cover=cover)
    rgb = image(20, 60)
    result = subject.predict(rgb)
    pixels = subject.to_input(rgb)
    assert pixels.shape == (1, 3, 40, 120)
    merged = subject.logits(pixels)[0]
    assert_is_argmax(result.class_map, interpolated(merged, (20, 60)))


@pytest.mark.parametrize("stride", [None, (32, 32)])
def test_pixels_of_the_models_size_are_one_window(stride):
    subject = predictor(size=(40, 56), stride=stride)
    pixels = RANDOM.normal(size=(1, 3, 40, 56)).astype(np.float32)
    found = subject.logits(pixels)
    assert len(subject.session.calls) == 1
    np.testing.assert_allclose(found[0], interpolated(subject.session.run(pixels)[0][0], (40, 56)), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (200, 1), (3, 5)])
@pytest.mark.parametrize("stride", [None, (32, 32)])
def test_the_smallest_images_work(shape, stride):
    result = predictor(size=(40, 56), stride=stride).predict(image(*shape))
    assert result.class_map.shape == shape


def test_tokens_are_sums_over_windows():
    subject = predictor(size=(64, 96), stride=(64, 96))
    result = subject.predict(image(128, 192))
    reports = [subject.session.run(pixels)[1] for pixels, _ in list(subject.session.calls)]
    assert len(reports) == 4 and result.tokens.total == 4 * 25
    assert result.tokens.kept == tuple(np.sum([report.kept for report in reports], axis=0))
    assert result.tokens.gmacs_dense == pytest.approx(40.0)
    assert result.tokens.patch == 16 and result.gates == (1, 2)


def test_thresholds_floor_and_dense_reach_every_window():
    subject = predictor(size=(40, 56), stride=(32, 32))
    subject.predict(image(60, 60), thresholds=(0.5, 0.6), floor=0.1)
    subject.logits(np.zeros((1, 3, 60, 60), dtype=np.float32), dense=True)
    seen = [(*settings.thresholds[:, 0], settings.floor, settings.dense) for _, settings in subject.session.calls]
    limits = (np.float32(0.5), np.float32(0.6), np.float32(0.1))
    assert seen == [(*limits, False)] * 4 + [(1.0, 1.0, 0.0, True)] * 4


def test_a_dense_image_saves_what_its_reports_say():
    result = predictor().predict(image(64, 96), dense=True)
    assert result.tokens.flops_saved == pytest.approx(0.0)


def test_time_is_split_into_what_lies_before_in_and_after_the_model(monkeypatch):
    subject = predictor(size=(40, 56), stride=(40, 56))
    clock = [0.0]

    def lasting(function, seconds):
        def timed(*arguments, **options):
            clock[0] += seconds
            return function(*arguments, **options)

        return timed

    monkeypatch.setattr(segmentation, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(subject, "to_input", lasting(subject.to_input, 1))
    monkeypatch.setattr(subject.session, "run_one", lasting(subject.session.run_one, 5))
    monkeypatch.setattr(segmentation, "class_map", lasting(segmentation.class_map, 3))
    # Two windows above one another make two bands.
    timing = subject.predict(image(80, 56), decode_ms=7.0).timing
    assert (timing.decode, timing.preprocess, timing.model, timing.postprocess) == (7.0, 1000.0, 10000.0, 6000.0)
    assert timing.total == 17007.0


@pytest.mark.parametrize(
    "rgb",
    [
        np.zeros((20, 20), dtype=np.uint8),
        np.zeros((20, 20, 1), dtype=np.uint8),
        np.zeros((20, 20, 4), dtype=np.uint8),
        np.zeros((20, 20, 3), dtype=np.float32),
        np.zeros((0, 20, 3), dtype=np.uint8),
        np.zeros((1, 20, 20, 3), dtype=np.uint8),
        [[[0, 0, 0]]],
    ],
    ids=["grey", "one channel", "alpha", "float", "empty", "batch", "list"],
)
def test_what_is_no_rgb_image_is_refused(rgb):
    subject = predictor()
    for method in (subject.predict, subject.to_input):
        with pytest.raises(InputError, match=r"RGB as uint8 of shape \(H, W, 3\)"):
            method(rgb)
    assert subject.session.calls == []


@pytest.mark.parametrize(
    ("stride", "shape", "message"),
    [
        (None, (1, 3, 40, 57), r"\(1, 3, 40, 56\) needed"),
        (None, (1, 3, 80, 112), r"\(1, 3, 40, 56\) needed"),
        ((32, 32), (1, 3, 39, 112), r"\(1, 3, 40, 56\) or larger needed"),
        ((32, 32), (1, 3, 80, 55), r"\(1, 3, 40, 56\) or larger needed"),
        ((32, 32), (2, 3, 40, 56), r"\(1, 3, 40, 56\) or larger needed"),
        (None, (1, 1, 40, 56), r"\(1, 3, 40, 56\) needed"),
        (None, (3, 40, 56), r"shape \(1, 3, h, w\) needed"),
    ],
)
def test_pixels_of_another_shape_are_refused_and_the_right_one_named(stride, shape, message):
    subject = predictor(size=(40, 56), stride=stride)
    with pytest.raises(InputError, match=message):
        subject.logits(np.zeros(shape, dtype=np.float32))
    assert subject.session.calls == []


def test_pixels_of_another_type_are_refused():
    with pytest.raises(InputError, match=r"float64 .* float32"):
        predictor(size=(40, 56)).logits(np.zeros((1, 3, 40, 56)))


def test_windows_at_once_change_nothing_but_who_computes_them():
    one, several = (
        Predictor(FakeSession(fake_manifest(size=(40, 56), stride=(32, 32))), windows_at_once=count) for count in (1, 4)
    )
    rgb = image(90, 96)
    first, second = one.predict(rgb), several.predict(rgb)
    np.testing.assert_array_equal(first.class_map, second.class_map)
    assert [(window.top, window.left) for window in second.tokens.windows] == CORNERS
    assert first.tokens.kept == second.tokens.kept and first.tokens.gmacs_actual == second.tokens.gmacs_actual
    pixels = several.to_input(rgb)
    np.testing.assert_array_equal(one.logits(pixels), several.logits(pixels))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2"])
def test_a_number_of_windows_that_is_none_is_refused(wrong):
    with pytest.raises(UsageError, match="windows_at_once"):
        Predictor(FakeSession(), windows_at_once=wrong)


def test_a_stride_that_leaves_gaps_is_refused():
    with pytest.raises(ConfigError, match="stride 41x32"):
        predictor(size=(40, 56), stride=(41, 32)).predict(image(90, 90))


def test_more_classes_than_a_class_map_holds_are_refused():
    with pytest.raises(InputError, match="257 classes"):
        predictor(classes=257)
    assert predictor(classes=256).palette.colors.shape == (256, 3)


def test_the_palette_is_the_manifests():
    subject = predictor(classes=3)
    assert subject.palette.names == ("class 0", "class 1", "class 2")
    assert subject.palette.colors.tolist() == [[0, 255, 0], [40, 254, 97], [80, 253, 194]]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 40), st.integers(0, 40), st.data())
@settings(max_examples=60, derandomize=True, deadline=None)
def test_bands_are_the_mean_of_all_windows(high, wide, extra_height, extra_width, data):
    stride = data.draw(st.tuples(st.integers(1, high), st.integers(1, wide)))
    height, width = high + extra_height, wide + extra_width
    corners = windows(height, width, (high, wide), stride)
    random = np.random.default_rng(height + width)
    placed = [(*corner, random.normal(size=(2, high, wide)).astype(np.float32)) for corner in corners]
    total, count = np.zeros((2, height, width)), np.zeros((height, width))
    for top, left, logits in placed:
        total[:, top : top + high, left : left + wide] += logits
        count[top : top + high, left : left + wide] += 1
    bands = list(averaged_bands(iter(placed), width))
    ends = [top + band.shape[1] for top, band in bands]
    assert [top for top, _ in bands] == [0, *ends[:-1]] and ends[-1] == height
    np.testing.assert_allclose(np.concatenate([band for _, band in bands], axis=1), total / count, atol=1e-5)


def test_a_band_comes_as_soon_as_no_window_reaches_it():
    taken = []

    def placed():
        for top in (0, 4, 8):
            taken.append(top)
            yield top, 0, np.ones((1, 6, 3), dtype=np.float32)

    bands = averaged_bands(placed(), 3)
    assert next(bands)[1].shape == (1, 4, 3)
    assert taken == [0, 4]
