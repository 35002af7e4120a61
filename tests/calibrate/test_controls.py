"""The controls of a calibration are those of an evaluation of the held-back images."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.calibration import Calibration, ChoiceControls, ControlPoint, Interval, SmallerPoint
from dovit_deploy.calibrate.calibrate import halves
from dovit_deploy.calibrate.controls import controls_of_choice, draw_plot, save_plot
from dovit_deploy.calibrate.trial import FolderPictures, LabelledPictures
from dovit_deploy.datasets.dataset import DatasetPart
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import DatasetError, InputError
from dovit_deploy.measure.evaluate import measure_set
from dovit_deploy.runtime.session import Session
from tests.bundle.test_bundle import VALUES, made
from tests.datasets.labelled_folder import write_labelled

IMAGES = 10


@pytest.mark.parametrize("fixture", ["tiny_bundle_path", "setr_bundle_path"])
def test_they_are_those_of_an_evaluation(request, fixture, tmp_path):
    data = dataset_from_path(write_labelled(tmp_path / "set", images=IMAGES), "val")
    bundle = Bundle.open(request.getfixturevalue(fixture))
    values = VALUES[: len(bundle.manifest.spec.gates)]
    chosen = made().chosen.model_copy(update={"thresholds": values})
    calibration = made().model_copy(update={"chosen": chosen})
    pictures, seen = LabelledPictures(data, name="set", split="val"), []
    held_back = halves(data.stems, seed=calibration.seed).check
    with Session(bundle, threads=1) as session:
        controls = controls_of_choice(
            session,
            pictures,
            calibration,
            # A session of another size is one like any other; the same one is at hand.
            smaller=(session,),
            left_out="a reason",
            advance=lambda: seen.append(None),
        )
        measured = measure_set(
            session, DatasetPart(data, held_back), thresholds=values, controls=True, advance=lambda saved: None
        )
    assert len(seen) == len(held_back) >= 4
    dense, rule = measured.dense, measured.dynamic
    for point, tally in ((controls.random, measured.random), (controls.oracle, measured.oracle)):
        assert point.miou == pytest.approx(tally.counts.miou)
        assert point.drop == pytest.approx(dense.counts.miou - tally.counts.miou)
        assert point.gmacs == pytest.approx(sum(rule.gmacs) / len(held_back))
        assert point.flops_saved == pytest.approx(1 - sum(rule.gmacs) / sum(dense.gmacs))
        assert point.drop_interval.low <= point.drop_interval.high
    (small,) = controls.smaller_input
    assert (small.miou, small.drop, small.flops_saved) == (pytest.approx(dense.counts.miou), 0, 0)
    assert (small.size, small.engine) == (session.bundle.manifest.spec.size, "onnxruntime")
    assert controls.left_out == "a reason"


def test_without_labels_there_are_none(tiny_bundle_path, tmp_path):
    root = write_labelled(tmp_path / "set", images=IMAGES)
    with (
        Session(Bundle.open(tiny_bundle_path), threads=1) as session,
        pytest.raises(DatasetError, match="no labels"),
    ):
        controls_of_choice(
            session,
            FolderPictures(root / "images" / "val"),
            made(),
            smaller=(),
            left_out=None,
            advance=lambda: None,
        )


def test_a_file_from_before_there_were_controls_is_read():
    content = made().model_dump()
    del content["controls"]
    assert Calibration.model_validate(content) == made()


# The picture of the trade-off: what stands where, and that it is written, with and without labels.


def control(gmacs: float, miou: float) -> ControlPoint:
    interval = Interval(low=0.5, high=2.5)
    return ControlPoint(flops_saved=0.3, gmacs=gmacs, miou=miou, drop=1.0, drop_interval=interval)


def labelled(*, left_out: str | None = None) -> Calibration:
    """Dense 61, chosen 60 with a drop between 0.5 and 2.5, random 58, oracle 60.5, smaller 57."""
    plain = made()
    drop = {"miou": 60.0, "drop": 1.0, "drop_interval": Interval(low=0.5, high=2.5)}
    point = plain.chosen.model_copy(update=drop)
    part = plain.parts[0].model_copy(update={"dense_miou": 61.0})
    small = SmallerPoint(**dict(control(0.7, 57.0)), size=(48, 64), engine="torch")
    controls = ChoiceControls(
        random=control(1.0, 58.0),
        oracle=control(1.0, 60.5),
        smaller_input=() if left_out else (small,),
        left_out=left_out,
        seed=0,
    )
    new = {"measured": (point,), "chosen": point, "parts": (part,), "controls": controls}
    return plain.model_copy(update=new)


def drawn(calibration: Calibration) -> tuple[dict[str, list[tuple[float, float]]], object]:
    """Points by their names in the legend, and the axes."""
    axes = Figure().subplots()
    draw_plot(axes, calibration)
    handles, labels = axes.get_legend_handles_labels()
    lines = [getattr(handle, "lines", (handle,))[0] for handle in handles]
    assert len(set(labels)) == len(labels)
    points = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in lines]
    return dict(zip(labels, points, strict=True)), axes


def test_everything_stands_where_it_was_measured() -> None:
    points, axes = drawn(labelled())
    assert points == {
        "thresholds, held-back images": [(1.0, 60.0)],
        "dense, held-back images": [(1.4, 61.0)],
        "random, same counts": [(1.0, 58.0)],
        "oracle, same counts": [(1.0, 60.5)],
        "dense at smaller inputs": [(0.7, 57.0)],
        "chosen, 95 % interval of its drop": [(1.0, 60.0)],
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("GMACs per image, whole model", "mIoU (%)")
    assert [text.get_text() for text in axes.texts] == ["48x64"]
    ((low, high),) = [line.get_segments()[0][:, 1] for line in axes.collections]
    # The drop lies between 0.5 and 2.5, dense is 61.
    assert (low, high) == pytest.approx((58.5, 60.5))


def test_what_is_left_out_is_said() -> None:
    points, _ = drawn(labelled(left_out="torch is not installed"))
    assert "dense at smaller inputs: left out" in points


def test_without_labels_there_is_agreement_and_no_control() -> None:
    points, axes = drawn(made())
    assert points["chosen"] == [(1.0, pytest.approx(98.0))]
    assert set(points) == {"chosen", "thresholds, held-back images", "dense, held-back images"}
    assert axes.get_ylabel() == "pixels as in the dense answer (%)"


@pytest.mark.parametrize("calibration", [made(), labelled()], ids=["unlabelled", "labelled"])
def test_a_png(tmp_path: Path, calibration: Calibration) -> None:
    save_plot(calibration, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors()) > 10


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        save_plot(made(), tmp_path / "no" / "x.png")
