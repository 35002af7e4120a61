"""The golden cases of STViT-R and STViT, reproduced by what is deployed: four ways, counts exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.onnxruntime import OnnxRuntimeBackend
from dovit_deploy.errors import UsageError
from dovit_deploy.runtime.session import Session
from tests.bundles import export_case
from tests.golden import Case, case_parameters, compare, load
from tests.graphs.derived import DerivedBackend

CASES = [p for p in case_parameters("stvit") if not p.id.startswith("stvit_r_modules")]
COUNTS = {
    "stvit_r_swin_t_w16": {"": (3136, 784, 36, 49)},
    "stvit_r_swin_s_w8_opts": {"": (3136, 784, 36, 49)},
    # 160 x 208 pixels make grids of 40x52, 20x26, 10x13 and 5x7.
    "stvit_r_det_w16": {"0": (2080, 520, 36, 35), "1": (3136, 784, 36, 49)},
    "stvit_deit_composed_w48": {"": (196, 16)},
}


@pytest.mark.parametrize("case", CASES)
def test_stvit_four_ways(case: Case, tmp_path: Path) -> None:
    io = load(case)
    for suffix, counts in COUNTS[case.name].items():
        pixels = io[f"input{suffix}"]
        bundle = export_case(case, tmp_path / f"case{suffix}.dovit", size=tuple(pixels.shape[-2:]))
        assert not (bundle.path / "dense.onnx").exists()
        sessions = (
            Session(bundle, engine="torch"),
            Session(bundle, backend=OnnxRuntimeBackend(threads=1, fast=False)),
            Session(bundle, threads=1),
        )
        for session in sessions:
            # All images of the fixture at once: each as if alone.
            answer, report = session.run(pixels.numpy())
            check(answer, io, suffix)
            for one in report if isinstance(report, list) else [report]:
                assert one.kept == counts
                assert one.keep == ()
                assert 0 < one.gmacs_actual < one.gmacs_dense
            with pytest.raises(UsageError):
                session.run(pixels.numpy(), dense=True)
        one = {**io, **first_image(io)}
        check(run_merged(bundle, pixels[:1].numpy(), counts), one, suffix)
        # What TensorRT would read, in ONNX Runtime.
        for precision in ("fp32", "fp16"):
            folder = tmp_path / f"derived{suffix}{precision}"
            derived = Session(bundle, backend=DerivedBackend(bundle, folder, precision=precision, plugins=False))
            answer, _ = derived.run(pixels[:1].numpy())
            if precision == "fp32":
                check(answer, one, suffix)
            else:
                check_half(answer, one, suffix)


def check(answer: Any, io: dict[str, torch.Tensor], suffix: str) -> None:
    if not isinstance(answer, dict):
        assert compare(io, "logits", torch.from_numpy(answer))
        return
    assert sorted(answer) == ["out0", "out1", "out2", "out3"]
    assert [compare(io, f"{name}_{suffix}", torch.from_numpy(answer[name])) for name in sorted(answer)].count(True) == 3


def check_half(answer: Any, io: dict[str, torch.Tensor], suffix: str) -> None:
    """Half precision: the same class, and within a twentieth of the largest value."""
    found = answer if isinstance(answer, dict) else {"logits": answer}
    for name, values in found.items():
        reference = io.get(f"{name}_{suffix}" if suffix else name)
        if reference is not None:
            assert np.abs(values - reference.numpy()).max() <= 0.05 * float(reference.abs().max())
    if "logits" in found:
        assert found["logits"].argmax() == int(io["logits"].argmax())


def first_image(io: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"logits": io["logits"][:1]} if "logits" in io else {}


def run_merged(bundle: Bundle, pixels: np.ndarray, counts: tuple[int, ...]) -> Any:
    """`merged.onnx` in plain onnxruntime, with nothing of ours but the file."""
    session = onnxruntime.InferenceSession(str(bundle.path / "merged.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"pixels": pixels}), strict=True))
    assert tuple(outputs.pop("kept")) == counts
    return outputs.get("logits", outputs)
