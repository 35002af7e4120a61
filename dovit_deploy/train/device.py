"""Where a run computes and in which precision: chosen by name, or by what is there and what is faster."""

from __future__ import annotations

import copy
import time

import torch

from dovit_deploy.errors import ProviderMissing
from dovit_deploy.train.config import TrainConfig
from dovit_deploy.train.forward import Network, training_forward

TRIAL_BATCH = 4
TRIAL_STEPS = 3
"""Timed steps of each precision, after one that is not; the fastest of each counts."""


def device_from_name(name: str) -> torch.device:
    """The device called auto, cpu or cuda; ProviderMissing for a GPU that PyTorch does not see."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ProviderMissing("device = 'cuda': PyTorch sees no CUDA device; use 'auto' or 'cpu'")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def with_settled_precision(config: TrainConfig, model: Network) -> TrainConfig:
    """`config` with the precision "auto" replaced by the faster one, measured on a copy of `model` where it runs."""
    if config.precision != "auto":
        return config
    bf16, fp32 = (_fastest_step(config, copy.deepcopy(model), bfloat16=on) for on in (True, False))
    return config.model_copy(update={"precision": "bf16" if bf16 < fp32 else "fp32"})


def _fastest_step(config: TrainConfig, model: Network, *, bfloat16: bool) -> float:
    """Seconds of forward and backward on crops of the first phase."""
    device = next(model.parameters()).device
    pixels = torch.zeros(min(TRIAL_BATCH, config.phases[0].batch), 3, *config.phases[0].crop, device=device)
    # Zeros would be fast where denormal or special numbers are not; any other pattern will do.
    pixels += torch.linspace(-2, 2, pixels.shape[-1], device=device)
    pixels = pixels.to(memory_format=torch.channels_last)
    model.train()
    seconds = [_step_seconds(model, pixels, bfloat16=bfloat16) for _ in range(1 + TRIAL_STEPS)]
    return min(seconds[1:])


def _step_seconds(model: Network, pixels: torch.Tensor, *, bfloat16: bool) -> float:
    # On a CPU that others use too, the time of this process alone.
    clock = time.perf_counter if pixels.is_cuda else time.process_time
    started = clock()
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bfloat16):
        output = training_forward(model, pixels)
        total = output.logits.float().mean() + sum(gate.logits.float().mean() for gate in output.gates)
    torch.autograd.backward(total)
    if pixels.is_cuda:
        torch.cuda.synchronize()
    return clock() - started
