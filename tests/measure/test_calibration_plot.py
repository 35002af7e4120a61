"""The picture of the trade-off is written, with and without labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dovit_deploy.errors import InputError
from dovit_deploy.measure.calibration_plot import save_plot
from tests.bundle.test_rewrite import made


@pytest.mark.parametrize("miou", [None, 60.0])
def test_a_png(tmp_path: Path, miou: float | None) -> None:
    plain = made()
    point = plain.chosen.model_copy(update={"miou": miou})
    part = plain.parts[0].model_copy(update={"dense_miou": miou})
    labelled = plain.model_copy(update={"measured": (point,), "chosen": point, "parts": (part,)})
    save_plot(labelled, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors()) > 10


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        save_plot(made(), tmp_path / "no" / "x.png")
