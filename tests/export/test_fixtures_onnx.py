"""The golden cases of the official code, reproduced by what is deployed: four ways, decisions exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as functional

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.onnxruntime import OnnxRuntimeBackend
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from tests.bundles import export_case
from tests.golden import Case, case_parameters, compare, load

Tensors = dict[str, torch.Tensor]


def prefixes(io: Tensors) -> list[tuple[str, str, torch.Tensor]]:
    """(prefix, suffix, input) of every image set of a case: `input`, `b.input`, `input0`, `input1`."""
    found = [("", "", io["input"])] if "input" in io else []
    found += [("b.", "", io["b.input"])] if "b.input" in io else []
    return found + [("", str(number), io[f"input{number}"]) for number in (0, 1) if f"input{number}" in io]


@pytest.mark.parametrize("case", case_parameters("dovit"))
def test_dovit_four_ways(case: Case, tmp_path: Path) -> None:
    io = load(case)
    bundle = export_case(case, tmp_path / "case.dovit", size=tuple(io["input"].shape[-2:]))
    sessions = {
        "torch": Session(bundle, engine="torch"),
        "portable": Session(bundle, backend=OnnxRuntimeBackend(threads=1, fast=False)),
        "fast": Session(bundle, threads=1),
    }
    for prefix, _, pixels in prefixes(io):
        for session in sessions.values():
            logits, report = session.run(pixels.numpy())
            check_decisions(report.keep, report.confidence, io, prefix, case)
            check_logits(logits, io, prefix, pixels, case)
            replayed, again = session.run(pixels.numpy(), keep=report.keep)
            assert np.array_equal(replayed, logits)
            assert again.kept == report.kept
        check_logits(run_merged(bundle, pixels.numpy(), report.kept), io, prefix, pixels, case)
    if len(prefixes(io)) == 2:
        check_batch(sessions["fast"], [pixels.numpy() for _, _, pixels in prefixes(io)])


def check_decisions(keep: Any, confidence: Any, io: Tensors, prefix: str, case: Case) -> None:
    result = case.facts["result_b" if prefix else "result"]
    assert [int(cells.sum()) for cells in keep] == list(result["kept_tokens_excl_cls"])
    running = np.ones(keep[0].shape, dtype=bool)
    for gate, cells in enumerate(keep):
        wanted = io.get(f"{prefix}stage{gate}.keep_mask")
        if wanted is not None:
            assert np.array_equal(cells, wanted.numpy().reshape(cells.shape).astype(bool))
        reference = io.get(f"{prefix}stage{gate}.aux_conf")
        if reference is not None:
            reference = reference.numpy().reshape(cells.shape)
            assert np.abs(confidence[gate][running] - reference[running]).max(initial=0) <= 1e-4
        running = cells


def check_logits(logits: Any, io: Tensors, prefix: str, pixels: torch.Tensor, case: Case) -> None:
    tensor = torch.from_numpy(np.asarray(logits))
    assert compare(io, f"{prefix}logits", tensor) or compare(io, f"{prefix}logits_resized", resized(tensor, pixels))
    if f"{prefix}argmax" in io:
        wanted = io[f"{prefix}argmax"].long().reshape(1, *pixels.shape[-2:])
        wrong = int((resized(tensor, pixels).argmax(1) != wanted).sum())
        result = case.facts["result_b" if prefix else "result"]
        assert wrong <= result["argmax_pixels_with_margin_below_1e_4"]


def resized(logits: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False)


def run_merged(bundle: Bundle, pixels: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """`merged.onnx` in plain onnxruntime, with nothing of ours but the file."""
    session = onnxruntime.InferenceSession(str(bundle.path / "merged.onnx"), providers=["CPUExecutionProvider"])
    feed = {"pixels": pixels}
    if bundle.manifest.spec.gates:
        feed["thresholds"] = np.asarray(bundle.manifest.defaults.thresholds, dtype=np.float32)
        feed["floor"] = np.asarray(bundle.manifest.defaults.floor, dtype=np.float32)
    logits, counts = session.run(["logits", "kept"], feed)
    assert tuple(counts) == kept
    return logits


def check_batch(session: Session, images: list[np.ndarray]) -> None:
    """An image of a batch gives bit for bit what it gives alone."""
    logits, reports = session.run(np.concatenate(images))
    assert isinstance(reports, list)
    for number, image in enumerate(images):
        alone, report = session.run(image)
        assert np.array_equal(logits[number : number + 1], alone)
        assert reports[number].kept == report.kept


@pytest.mark.parametrize("case", case_parameters("segmenter"))
def test_dense_models_four_ways(case: Case, tmp_path: Path) -> None:
    io = load(case)
    for number, (_, suffix, pixels) in enumerate(prefixes(io)):
        bundle = export_case(case, tmp_path / f"case{number}.dovit", size=tuple(pixels.shape[-2:]))
        cover, patch = bundle.manifest.preprocessing.logits_cover, bundle.manifest.spec.patch
        for image in range(len(pixels)):
            one = pixels[image : image + 1]
            for session in (
                Session(bundle, engine="torch"),
                Session(bundle, backend=OnnxRuntimeBackend(threads=1, fast=False)),
                Session(bundle, threads=1),
            ):
                logits, report = session.run(one.numpy())
                dense, _ = session.run(one.numpy(), dense=True)
                assert np.array_equal(dense, logits) or np.abs(dense - logits).max() < 1e-5
                assert report.kept == (bundle.manifest.spec.tokens,)
                check_dense(torch.from_numpy(logits), one, io, suffix, image, cover, patch)
            merged = run_merged(bundle, one.numpy(), report.kept)
            check_dense(torch.from_numpy(merged), one, io, suffix, image, cover, patch)


def check_dense(
    logits: torch.Tensor, one: torch.Tensor, io: Tensors, suffix: str, image: int, cover: str, patch: int
) -> None:
    name = f"dec_masks{suffix}" if f"dec_masks{suffix}" in io else "dec_logits"
    reference = io[name][image : image + 1]
    assert (logits - reference).abs().max() <= 1e-4 * max(1.0, float(reference.abs().max()))
    height, width = one.shape[-2:]
    over = (height, width) if cover == "image" else (-(-height // patch) * patch, -(-width // patch) * patch)
    full = functional.interpolate(logits, size=over, mode="bilinear", align_corners=False)[..., :height, :width]
    wanted = io[f"argmax{suffix}"][image].long()
    best = full[0].topk(2, dim=0).values
    # Ties within rounding may fall either way.
    clear = best[0] - best[1] > 1e-4
    assert torch.equal(full[0].argmax(0)[clear], wanted[clear])
    assert clear.float().mean() > 0.99


@pytest.mark.parametrize("case", [p for p in case_parameters("dovit") if p.id in ("seg_w48_pad_slide", "absent")])
def test_dovit_slides_as_the_official_code_does(case: Case, tmp_path: Path) -> None:
    io = load(case)
    bundle = export_case(case, tmp_path / "slide.dovit", size=None)
    assert bundle.manifest.spec.size == (128, 128)
    assert bundle.manifest.preprocessing.stride == (85, 85)
    with Session(bundle, threads=1) as session:
        logits = Predictor(session).logits(io["input"].numpy())
    assert compare(io, "slide.preds", torch.from_numpy(logits))


@pytest.mark.parametrize(
    "case", [p for p in case_parameters("segmenter") if p.id in ("segmenter_w64_mask_resize", "absent")]
)
def test_segmenter_slides_as_the_official_code_does(case: Case, tmp_path: Path) -> None:
    io, slide = load(case), case.facts["slide"]
    from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
    from tests.bundles import export

    window, stride = slide["window_size"], slide["window_stride"]
    checkpoint = checkpoint_from_path(case.weights, config=case.config)
    bundle, _ = export(checkpoint, tmp_path / "slide.dovit", size=(window, window), stride=(stride, stride))
    with Session(bundle, threads=1) as session:
        logits = torch.from_numpy(Predictor(session).logits(io["slide.im"].numpy()))
    whole = functional.interpolate(logits, size=slide["ori_shape"], mode="bilinear", align_corners=False)
    probabilities = whole.softmax(1)[0]
    reference = io["slide.probs.strided"]
    assert (probabilities[:, ::8, ::8] - reference).abs().max() <= 1e-4
    best = probabilities.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-4
    assert torch.equal(probabilities.argmax(0)[clear], io["slide.segmap_argmax"].long()[clear])
