"""A repository of the tiny bundle, made once by the real command's own code."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.triton.config import ServingPlan
from dovit_deploy.triton.repository import write_repository
from tests.conftest import made_once


def plan_of(bundle: Path, **changed) -> ServingPlan:
    given = {
        "name": "tiny",
        "engine": "onnxruntime",
        "precision": "fp32",
        "threads": 1,
        "max_batch": 8,
        "merged": False,
    }
    return ServingPlan(Bundle.open(bundle), **{**given, **changed})


@pytest.fixture(scope="session")
def tiny_repository(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle as `tiny` and `tiny-merged`; read it, do not change it."""
    plan = plan_of(tiny_bundle_path, merged=True)
    return made_once(tmp_path_factory, "tiny-repository", lambda path: write_repository(plan, path))
