"""An adapted network beside one trained with labels: what is measured of each, and the page that is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import adapted
import pytest
from report import END

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.calibration import CurvePoint, Prediction
from dovit_deploy.commands.smaller_input import SmallerInputs
from tests.bundle.test_bundle import made
from tests.datasets.labelled_folder import write_labelled

CURVE = tuple(
    CurvePoint(thresholds=values, predicted=Prediction(flops_saved=saved, risk=0.0))
    for saved, values in ((0.05, (0.6, 0.6)), (0.1, (0.4, 0.4)), (0.2, (0.0, 0.0)))
)


@pytest.fixture
def measure(tiny_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the script on the tiny bundle as if it were calibrated; returns its result and page."""
    calibration = made(5, (0.5, 0.5)).model_copy(update={"curve": CURVE})
    monkeypatch.setattr(Bundle, "calibration", lambda self: calibration)
    # At a smaller input it would run in PyTorch.
    monkeypatch.setattr(adapted, "smaller_inputs", lambda bundle, threads: _Nothing())
    data, page = write_labelled(tmp_path / "set", images=8), tmp_path / "page.md"
    page.write_text(f"{adapted.MARK}\n{END}\n")

    def run(*more: object) -> tuple[dict, str]:
        words = [tiny_bundle_path, data, "-o", tmp_path / "found.json", "--docs", page, *more]
        adapted.main([str(word) for word in words])
        return json.loads((tmp_path / "found.json").read_text()), page.read_text()

    return run


class _Nothing:
    def __enter__(self) -> SmallerInputs:
        return SmallerInputs(left_out="no")

    def __exit__(self, *raised: object) -> None:
        pass


def test_the_trained_network_is_compared_image_by_image(measure, tiny_bundle_path: Path) -> None:
    found, page = measure("--trained", tiny_bundle_path, "--given", tiny_bundle_path)
    (part,) = found["splits"]
    trained, table = part["trained"], part["table"]
    assert table["images"] == table["blocks"] == 8 and table["labelled"]
    # The same network beside itself.
    assert trained["ahead_of_adapted"]["points"] == 0 and trained["ahead_of_adapted"]["interval"] == [0, 0]
    assert trained["dense_miou"] == pytest.approx(table["dense_miou"])
    assert trained["drop"]["points"] == pytest.approx(trained["dense_miou"] - trained["miou"])
    rows = [line for line in page.splitlines() if line.startswith("| tiny |")]
    assert len(rows) == 4 and f"| {trained['miou']:.1f} |" in rows[0] and "everything at gate" in rows[-1]
    assert "`python benchmarks/adapted.py tiny.dovit set" in page


def test_a_point_of_the_curve_is_run_that_is_predicted_to_save_as_much(measure, capsys) -> None:
    found, _ = measure("--saved", "0.07")
    (part,) = found["splits"]
    rule = next(way for way in part["table"]["ways"] if way["kind"] == "rule")
    assert rule["thresholds"] == [0.4, 0.4] and "7% saved" in found["budget"]
    with pytest.raises(SystemExit) as ended:
        measure("--saved", "0.15")
    assert ended.value.code == 2 and "no thresholds of its curve" in capsys.readouterr().err


def test_tables_of_several_results_make_one_page(measure, tmp_path: Path) -> None:
    measure("--saved", "0.07")
    page = tmp_path / "page.md"
    page.write_text(f"{adapted.MARK}\n{END}\n")
    both = [str(tmp_path / "found.json")] * 2
    adapted.main(["--tables", *both, "--docs", str(page)])
    assert sum(line.startswith("| tiny | val |") for line in page.read_text().splitlines()) == 6
