"""The public face is written out, and is all there is."""

from __future__ import annotations

import subprocess
import sys

import dovit_deploy
from dovit_deploy import errors

FACE = {
    "Bundle",
    "ClassificationResult",
    "Classifier",
    "Frame",
    "Predictor",
    "SegmentationResult",
    "Session",
    "TokenReport",
    "predictor_for",
}


def test_all_is_the_face_and_the_errors() -> None:
    assert set(dovit_deploy.__all__) == FACE | set(errors.__all__) | {"__version__"}


def test_every_name_can_be_had() -> None:
    for name in dovit_deploy.__all__:
        assert getattr(dovit_deploy, name) is not None
    assert set(dovit_deploy.__all__) <= set(dir(dovit_deploy))


def test_errors_face_is_the_whole_tree() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert classes == set(errors.__all__)


def test_every_error_has_an_exit_code_of_the_contract() -> None:
    codes = {getattr(errors, name).exit_code for name in errors.__all__}
    assert codes == {1, 2, 3, 4, 5, 6, 7, 130}


def test_importing_the_package_imports_no_engine_and_no_numpy() -> None:
    heavy = "{'numpy', 'torch', 'onnxruntime', 'cv2', 'pydantic'}"
    code = f"import sys, dovit_deploy; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
