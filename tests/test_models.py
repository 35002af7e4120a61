"""The models' distributions stand side by side in `models/`: a further one is dropped in, and one is the default."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dovit_deploy.bundle.installed import DEFAULT, GROUP, INSTALL
from tests.paths import ROOT

MODELS = sorted(path.parent for path in ROOT.glob("models/*/pyproject.toml"))
MOST_BYTES = 95_000_000
"""Of a distribution, its int8 form included: registries and clones carry it whole."""


def entry_points(model: Path) -> dict[str, str]:
    body: dict[str, Any] = tomllib.loads((model / "pyproject.toml").read_text())
    entries: dict[str, str] = body["project"]["entry-points"][GROUP]
    return entries


def default_model() -> Path:
    (default,) = (model for model in MODELS if DEFAULT in entry_points(model))
    return default


def bundle_of(model: Path) -> Path:
    return model / f"dovit_model_{model.name.replace('-', '_')}" / f"{model.name}.dovit"


def test_exactly_one_is_the_default() -> None:
    assert [model.name for model in MODELS if DEFAULT in entry_points(model)] == [default_model().name]


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_each_has_its_own_name_licence_card_and_bundle(model: Path) -> None:
    bundle = bundle_of(model)
    package = bundle.parent.name
    assert entry_points(model) == {model.name: package} | ({DEFAULT: package} if model == default_model() else {})
    assert all((model / name).is_file() for name in ("LICENSE", "MODEL_CARD.md"))
    module = ast.parse((bundle.parent / "__init__.py").read_text())
    values = {node.value for node in ast.walk(module) if isinstance(node, ast.Constant)}
    assert bundle.name in values and any(str(value).startswith(f"{model.name}: weights ") for value in values)
    assert json.loads((bundle / "manifest.json").read_text())["name"] == model.name


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_each_is_small_enough_to_be_carried(model: Path) -> None:
    files = [path for path in model.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    size = sum(path.stat().st_size for path in files)
    assert size <= MOST_BYTES, f"{model.name}: {size:,} bytes; dovit export --compact stores large weights in fp16"


def test_what_installs_a_model_installs_the_default_one() -> None:
    line = f"./models/{default_model().name}"
    assert f"pip install {line}" == INSTALL
    for path in (ROOT / "Dockerfile", ROOT / "README.md", ROOT / "docs/troubleshooting.md"):
        installed = re.findall(r"pip install [^#\n]*?(\./models/[\w-]+)", path.read_text())
        assert installed and set(installed) == {line}, path.name


def test_the_demo_installs_the_default_one() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(re.findall(r"--no-deps \./(models/[\w-]+)", done.stdout)) == {f"models/{default_model().name}"}
