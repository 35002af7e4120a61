"""What a precision loses: agreement, drop and confidence error, and images that nothing can be learned from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.parity import PrecisionParity
from dovit_deploy.calibrate.images import CalibrationImage
from dovit_deploy.datasets.dataset import IGNORE
from dovit_deploy.errors import CheckError, DatasetError
from dovit_deploy.measure import precisions
from dovit_deploy.measure.precisions import measured_precisions, points_of_miou, refuse_losses
from dovit_deploy.progress import Unseen
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from tests.datasets.labelled_folder import noise


@pytest.fixture(scope="module")
def whole(int8_bundle_path: Path) -> Bundle:
    return Bundle.open(int8_bundle_path)


@pytest.fixture
def measured(whole: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[PrecisionParity, list[str]]]:
    """Measures int8 in ONNX Runtime; returns its entry and the remarks."""

    def measure(images: list[CalibrationImage]) -> tuple[PrecisionParity, list[str]]:
        remarks: list[str] = []
        monkeypatch.setattr(precisions, "CPU_PRECISIONS", (("onnxruntime", "int8"),))
        found = measured_precisions(whole, images, progress=Unseen(), remark=remarks.append)
        (entry,) = found
        return entry, remarks

    return measure


def images(count: int) -> list[np.ndarray]:
    return [noise((60, 80), classes=5, seed=seed)[0] for seed in range(count)]


def test_without_labels_agreement_counts(measured, whole: Bundle) -> None:
    entry, remarks = measured([CalibrationImage(rgb, None) for rgb in images(3)])
    assert (entry.engine, entry.precision, entry.images, entry.drop) == ("onnxruntime", "int8", 3, None)
    with Session(whole) as full, Session(whole, precision="int8") as session:
        pairs = [(Predictor(full).predict(rgb), Predictor(session).predict(rgb)) for rgb in images(3)]
    agreement = np.mean([(one.class_map == other.class_map).mean() for one, other in pairs])
    assert entry.agreement == pytest.approx(agreement) and 0.7 < agreement < 1
    assert entry.lost == pytest.approx(100 * (1 - agreement))
    assert len(entry.confidence_error) == len(whole.manifest.spec.gates)
    assert all(0 < error < 0.2 for error in entry.confidence_error)
    (remark,) = remarks
    seen = np.bincount(np.concatenate([full.class_map.ravel() for full, _ in pairs]), minlength=5)
    share = f"class {seen.argmax()} {seen.max() / seen.sum():.1%}"
    assert remark.startswith(f"--calibration: the model finds {share}, class ") and "?" not in remark


def test_with_labels_the_drop_of_miou_counts(measured, whole: Bundle) -> None:
    with Session(whole) as full:
        # fp32 is right everywhere, so that whatever int8 changes is lost.
        right = [CalibrationImage(rgb, Predictor(full).predict(rgb).class_map) for rgb in images(3)]
    entry, remarks = measured(right)
    assert remarks == ["--calibration: the model is right on 100.0 % of the labelled pixels"]
    assert entry.drop is not None and 0 < entry.drop == entry.lost


def test_labels_that_the_model_knows_nothing_of_are_refused(measured) -> None:
    wrong = [CalibrationImage(rgb, np.full((60, 80), 4, np.uint8)) for rgb in images(2)]
    with pytest.raises(DatasetError, match=r"--calibration: the model is right on .* of the kind that it was trained"):
        measured(wrong)


def test_labels_that_say_nothing_are_refused(measured) -> None:
    """A drop of NaN would keep to every budget."""
    void = [CalibrationImage(rgb, np.full((60, 80), IGNORE, np.uint8)) for rgb in images(2)]
    with pytest.raises(DatasetError, match=r"--calibration: no pixel of the labels of 2 images has a class"):
        measured(void)


def test_images_that_show_nothing_are_remarked_on(measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "NEARLY_ALL", 0.3)
    _, remarks = measured([CalibrationImage(np.zeros((60, 80, 3), np.uint8), None)])
    assert remarks[0].endswith("; are these images of the kind that it was trained on?")


def test_answers_of_whole_images_are_judged_by_labels_where_these_say_something(whole: Bundle) -> None:
    spec, rgb = whole.manifest.spec, images(1)[0]
    right, wrong = (np.zeros((1, spec.classes, *spec.grid), np.float32) for _ in range(2))
    right[:, 2], wrong[:, 1] = 1, 1
    label = np.full((60, 80), 2, np.uint8)
    for given, points in ((label, 100.0), (np.full_like(label, IGNORE), None), (None, None)):
        assert points_of_miou(whole.manifest, [CalibrationImage(rgb, given)])([right], [wrong]) == points
    label[:30] = 1
    # Half of class 2 and none of class 1, then the other way round.
    assert points_of_miou(whole.manifest, [CalibrationImage(rgb, label)])([right], [wrong]) == pytest.approx(0)


def parity(**given: object) -> PrecisionParity:
    fields = {"engine": "openvino", "precision": "int8", "agreement": 0.98, "drop": None, "confidence_error": ()}
    return PrecisionParity.model_validate({**fields, "images": 9, **given})


def test_what_loses_too_much_is_refused_where_it_was_asked_for() -> None:
    with pytest.raises(CheckError, match=r"int8 in openvino loses 2\.00 points .*9 images, --max-drop allows 1"):
        refuse_losses([parity()], asked=("fp32", "int8"), max_drop=1)
    with pytest.raises(CheckError, match=r"loses nan points"):
        refuse_losses([parity(drop=float("nan"))], asked=("int8",), max_drop=100)
    with pytest.raises(CheckError, match="of mIoU"):
        refuse_losses([parity(drop=1.5, agreement=1)], asked=("int8",), max_drop=1)
    # With labels the drop counts, and bf16 has no form that could be left out.
    refuse_losses([parity(drop=0.5), parity(precision="bf16")], asked=("fp32", "int8"), max_drop=1)
