"""`dovit adapt` on networks as the libraries that define them write them: mechanics, and the dense answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dovit_deploy.adapt import fitting
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.cli import _application, _run
from dovit_deploy.runtime.session import Session
from tests.adapt.dense_networks import write_images
from tests.golden import ROOT, cases
from tests.oracles import vits
from tests.tiny import tiny_pixels

pytestmark = pytest.mark.slow


def segmenter(folder: Path) -> list[object]:
    """Weights and configuration of the official code."""
    golden = next((one for one in cases("segmenter") if one.name == "segmenter_w64_mask_resize"), None)
    if golden is None:
        pytest.skip(f"no golden fixtures in {ROOT / 'segmenter'}")
    return [golden.weights, "--config", golden.config]


def dinov2(folder: Path) -> list[object]:
    """A folder of transformers, and a linear head that somebody trained on it."""
    vits.dinov2().save_pretrained(folder / "dinov2")
    draw = torch.Generator().manual_seed(1)
    head = {"weight": torch.randn(5, vits.WIDTH, generator=draw), "bias": torch.randn(5, generator=draw)}
    save_file(head, folder / "head.safetensors")
    return ["--backbone", folder / "dinov2", "--head", folder / "head.safetensors", "--size", "56x70"]


def eomt(folder: Path) -> list[object]:
    """A folder of transformers."""
    vits.eomt(depth=4).save_pretrained(folder / "eomt")
    return [folder / "eomt"]


@pytest.mark.parametrize("network", [segmenter, dinov2, eomt])
def test_what_libraries_write_is_adapted_and_stays_itself(
    network, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is fitted is random anyway.
    monkeypatch.setattr(fitting, "STEPS", 20)
    words, images = network(tmp_path), write_images(tmp_path / "images", 6)
    given = [images, *words] if "--backbone" in words else [words[0], images, *words[1:]]
    for verb, name in ((["adapt", *given], "adapted"), (["export", *words], "dense")):
        code = _run(_application(), [*map(str, verb), "-o", str(tmp_path / f"{name}.dovit"), "--quiet"])
        assert code == 0, capfd.readouterr().err
    adapted, dense = (Bundle.open(tmp_path / f"{name}.dovit") for name in ("adapted", "dense"))
    assert adapted.manifest.spec.gates and not dense.manifest.spec.gates
    assert adapted.manifest.spec.answer == ("gate" if network is dinov2 else "lens")
    pixels = tiny_pixels(dense.manifest.spec.size, seed=7).numpy()
    for engine in ("onnxruntime", "torch"):
        with Session(adapted, engine=engine, threads=1) as ours, Session(dense, engine=engine, threads=1) as theirs:
            np.testing.assert_array_equal(ours.run(pixels, dense=True)[0], theirs.run(pixels, dense=True)[0])
            if engine == "onnxruntime":
                # And it is dynamic: half of the confidences are above their median.
                middle = float(np.median(ours.run(pixels, thresholds=1.0)[1].confidence[0]))
                kept = ours.run(pixels, thresholds=middle)[1].kept
                assert kept[1] < kept[0]
