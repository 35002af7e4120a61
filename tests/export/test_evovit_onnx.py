"""The golden cases of Evo-ViT, reproduced by what is deployed: PyTorch, both ONNX forms, merged, and as a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dovit_deploy.engines.onnxruntime import OnnxRuntimeBackend
from dovit_deploy.errors import UsageError
from dovit_deploy.runtime.session import Session
from tests.bundles import export, export_case
from tests.evovit_cases import agrees
from tests.golden import Case, case_parameters, load
from tests.naive_evovit import naive_deit
from tests.tiny import tiny_pixels
from tests.tiny_evovit import tiny_deit_spec, tiny_evo_checkpoint, tiny_levit_spec


@pytest.mark.parametrize("case", case_parameters("evovit"))
def test_evovit_three_ways(case: Case, tmp_path: Path) -> None:
    io = load(case)
    bundle = export_case(case, tmp_path / "case.dovit", size=None)
    assert bundle.manifest.task == "classification"
    pixels = io["input"].numpy()
    for session in (
        Session(bundle, engine="torch"),
        Session(bundle, backend=OnnxRuntimeBackend(threads=1, fast=False)),
        Session(bundle, threads=1),
    ):
        logits, reports = session.run(pixels)
        assert isinstance(logits, np.ndarray)
        assert isinstance(reports, list)
        for image, report in enumerate(reports):
            agrees(report, logits[image : image + 1], case, io, image)
            assert 0 < report.flops_saved < 1
        dense, report = session.run(pixels[:1], dense=True)
        assert report.flops_saved == 0
        grids = bundle.manifest.spec.keep_grids
        assert report.kept == (reports[0].kept[0], *(1 + rows * columns for rows, columns in grids))
        assert np.abs(np.asarray(dense) - logits[:1]).max() > 1e-3, "nothing would show that tokens are selected"
    for form in ("merged.onnx", "stage0.onnx"):
        plain = onnxruntime.InferenceSession(str(bundle.path / form), providers=["CPUExecutionProvider"])
        merged, kept = plain.run(["logits", "kept"], {"pixels": pixels[:1]})
        assert tuple(kept) == reports[0].kept
        assert np.abs(merged - logits[:1]).max() <= 1e-4 * max(1.0, np.abs(merged).max())


def test_what_selects_by_ratio_takes_no_thresholds(tmp_path: Path) -> None:
    spec = tiny_levit_spec(size=32, depths=(2, 1), selections=((1, 2, 0.5),))
    bundle, report = export(tiny_evo_checkpoint(spec), tmp_path / "x.dovit")
    assert not report.failures
    with Session(bundle, threads=1) as session:
        pixels = tiny_pixels(spec.size).numpy()
        with pytest.raises(UsageError, match="takes no thresholds"):
            session.run(pixels, thresholds=0.5)
        _, found = session.run(pixels)
        assert found.kept == (5, 4)
        assert [grid.sum() for grid in found.keep] == [2]


@pytest.mark.parametrize(
    "head", ["setr", *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("linear", "mask"))]
)
def test_segmentation_on_evo_deit(head: str, tmp_path: Path) -> None:
    """Placeholders are back at their positions: the logits are those of the naive reference, on a ragged size."""
    spec = tiny_deit_spec(size=(50, 90), head=head, stem="conv" if head == "setr" else "patch")
    checkpoint = tiny_evo_checkpoint(spec, seed=3)
    bundle, _ = export(checkpoint, tmp_path / "x.dovit")
    assert bundle.manifest.task == "segmentation"
    pixels = tiny_pixels(spec.size, 8).numpy()
    weights = {name: value.double().numpy() for name, value in checkpoint.state.items()}
    expected = naive_deit(spec, weights, pixels[0].astype(np.float64))
    assert min(expected.margins) > 1e-4
    for engine in ("torch", "onnxruntime"):
        with Session(bundle, engine=engine, threads=1) as session:
            logits, report = session.run(pixels)
        assert isinstance(logits, np.ndarray)
        assert logits.shape == (1, *expected.logits.shape)
        assert list(report.kept) == expected.kept
        assert [np.flatnonzero(grid).tolist() for grid in report.keep] == expected.chosen
        assert np.abs(logits[0] - expected.logits).max() <= 1e-4 * max(1.0, np.abs(expected.logits).max())
