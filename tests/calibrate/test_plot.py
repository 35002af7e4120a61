"""The trade-off drawn: what stands where, and that it is written, with and without labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from dovit_deploy.bundle.calibration import Calibration, ChoiceControls, ControlPoint, Interval, SmallerPoint
from dovit_deploy.calibrate.plot import draw_plot, plot_path, save_plot
from dovit_deploy.errors import OutputFailed
from tests.bundle.test_bundle import made


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
        "thresholds, held-out images": [(1.0, 60.0)],
        "dense, held-out images": [(1.4, 61.0)],
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
    assert set(points) == {"chosen", "thresholds, held-out images", "dense, held-out images"}
    assert axes.get_ylabel() == "pixels as in the dense answer (%)"


@pytest.mark.parametrize("calibration", [made(), labelled()], ids=["unlabelled", "labelled"])
def test_a_png(tmp_path: Path, calibration: Calibration) -> None:
    save_plot(calibration, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors()) > 10


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputFailed, match="cannot write"):
        save_plot(made(), tmp_path / "no" / "x.png")


def test_only_a_plot_of_ours_is_replaced(tmp_path: Path) -> None:
    bundle, first, second = (tmp_path / name for name in ("x.dovit", "x-calibration.png", "x-calibration-2.png"))
    assert plot_path(bundle) == first
    save_plot(made(), first)
    assert plot_path(bundle) == first
    for make in (
        lambda: Image.new("RGB", (4, 4)).save(first),
        lambda: Figure().savefig(first),
        lambda: first.symlink_to("nowhere"),
        lambda: (save_plot(made(), tmp_path / "mine.png"), first.symlink_to("mine.png")),
        first.mkdir,
    ):
        first.unlink(missing_ok=True)
        make()
        assert plot_path(bundle) == second
