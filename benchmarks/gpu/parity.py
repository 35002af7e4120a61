"""The packed stages against the reference by the contract's rule: decisions explained, floats with them replayed.

The reference is the model that is exported, in fp32, one image at a time (`dovit_deploy/families/vit/network.py`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dovit_deploy.bundle.parity import RunParity
from dovit_deploy.families.vit.network import VisionTransformer, stages_from_model
from dovit_deploy.runtime.trace import TOLERANCE, Setting, Trace, float_parity, gate_parity
from gpu.packed_runner import StagedRunner

HALF_TOLERANCE = 0.02
"""In half precision: absolute for confidences, times max(1, absmax) for floats."""


def parity(
    runner: StagedRunner, reference: VisionTransformer, pixels: Tensor, thresholds: list[float]
) -> list[RunParity]:
    """One comparison an image.

    Args:
        runner: at any precision.
        reference: the same weights in fp32, on the same device.
        pixels: (B, 3, H, W) float32.
        thresholds: one a gate.
    """
    spec = reference.spec
    limits = np.repeat(np.asarray(thresholds, np.float32)[:, None], spec.classes, axis=1)
    settings = [
        Setting(f"image {number}", pixels[number : number + 1].cpu().numpy(), limits, np.float32(0))
        for number in range(len(pixels))
    ]
    expected = [reference_trace(reference, pixels[number : number + 1], limits) for number in range(len(pixels))]
    replay = [[torch.from_numpy(trace.index[gate]) for trace in expected] for gate in range(len(spec.gates))]
    runner.set_thresholds(thresholds)
    # Decisions are compared as made, floats with the reference's replayed: one flip would change all that follows.
    result = runner.run(pixels, replay=replay)
    half = runner.tokens[0].dtype != torch.float32
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    return [
        _run_parity(settings[number], trace, _replayed(runner, result.own, result.logits, number, trace), tolerance)
        for number, trace in enumerate(expected)
    ]


def reference_trace(model: VisionTransformer, pixels: Tensor, limits: np.ndarray) -> Trace:
    """All outputs of the stages of `model` for one image (1, 3, H, W)."""
    trace = Trace([], [], [], [], [], np.empty(0))
    floor = torch.zeros((), device=pixels.device)
    thresholds = torch.from_numpy(limits).to(pixels.device)
    inputs: tuple[Tensor, ...] = (pixels,)
    with torch.inference_mode():
        for number, stage in enumerate(stages_from_model(model)):
            if number == len(limits):
                return Trace(*_parts(trace), _host(stage(*inputs)))
            tokens, order, count, confidence, label = stage(*inputs, thresholds[number], floor)
            index = order[: int(count)]
            keep = np.zeros(len(order), dtype=bool)
            keep[_host(index)] = True
            outputs = (_host(tokens), _host(confidence), _host(label), keep, _host(index))
            for values, value in zip(_parts(trace), outputs, strict=True):
                values.append(value)
            inputs = (tokens, index)
    raise AssertionError("the last stage gives the logits")


def _replayed(runner: StagedRunner, own: list[Tensor], logits: Tensor, image: int, expected: Trace) -> Trace:
    """The outputs of the runner's last run for one image."""
    spec = runner.model.spec
    own_tokens = slice(image * spec.tokens, (image + 1) * spec.tokens)
    patches = slice(own_tokens.start + spec.extra_tokens, own_tokens.stop)
    gates = range(len(spec.gates))
    return Trace(
        tokens=[_host(runner.tokens[gate][own_tokens]) for gate in gates],
        confidence=[_host(runner.decisions[gate].confidence[patches]) for gate in gates],
        label=[_host(runner.decisions[gate].label[patches]) for gate in gates],
        keep=[_host(own[gate][own_tokens]) for gate in gates],
        index=expected.index,
        logits=_host(logits[image : image + 1]),
    )


def _run_parity(setting: Setting, want: Trace, got: Trace, tolerance: float) -> RunParity:
    extra = len(want.keep[0]) - len(want.confidence[0])
    gates = tuple(gate_parity(want, got, gate, setting, extra, limit=tolerance) for gate in range(len(want.keep)))
    floats = [
        float_parity(f"stage{number} tokens", before, after, tolerance=tolerance)
        for number, (before, after) in enumerate(zip(want.tokens, got.tokens, strict=True))
    ]
    floats.append(float_parity("logits", want.logits, got.logits, tolerance=tolerance))
    return RunParity(
        image=setting.image,
        thresholds=tuple(float(row[0]) for row in setting.thresholds),
        kept=(len(want.keep[0]), *(len(index) for index in want.index)),
        gates=gates,
        floats=tuple(floats),
    )


def _parts(trace: Trace) -> tuple[list, ...]:
    return trace.tokens, trace.confidence, trace.label, trace.keep, trace.index


def _host(tensor: Tensor) -> np.ndarray:
    values = tensor.float() if tensor.is_floating_point() else tensor
    return values.cpu().numpy().copy()
