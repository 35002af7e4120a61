"""Initial weights: drawn from a seed, or those that a run starts from, with drawn ones where they lack some."""

from __future__ import annotations

import copy
import time
from typing import Literal, cast

import torch
from torch import Tensor, nn

from dovit_deploy.errors import ConfigError, ProviderMissing
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.folding import trainable
from dovit_deploy.families.parts import SetrHead
from dovit_deploy.families.registry import family_of
from dovit_deploy.train.config import TrainConfig
from dovit_deploy.train.forward import TrainableNetwork, training_forward
from dovit_deploy.train.rates import GATE_PARTS, is_embedding


def trainable_model(spec: AnySpec) -> TrainableNetwork:
    """The network of `spec` with its batch norms apart; ConfigError for gates that cannot be trained here."""
    if any(isinstance(gate.head, SetrHead) for gate in spec.gates):
        raise ConfigError(
            "gates with up-sampling (setr) heads are not trained; network.gates in the configuration replaces them "
            "by per-token ones"
        )
    return cast("TrainableNetwork", family_of(spec).build(spec, trainable=True))


def initialise(model: TrainableNetwork, seed: int) -> None:
    """Truncated normal (0.02) for linear layers and embeddings, He for convolutions, zero biases; norms stay."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
        # Convolutions stand before ReLUs; linear layers before GELU or attention, where ViTs start from 0.02.
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        # Class tokens that are equal would stay equal for ever.
        if is_embedding(name):
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)


def load_start(model: TrainableNetwork, state: dict[str, Tensor]) -> None:
    """Load weights in deployment form into a model in training form; gates, lenses and a head that they lack keep
    theirs."""
    names = model.state_dict().keys()
    fitting = trainable(state, names)
    new = GATE_PARTS if any(name.startswith("head.") for name in fitting) else (*GATE_PARTS, "head")
    lacking = [name for name in names if name not in fitting and name.partition(".")[0] not in new]
    if lacking or fitting.keys() - names:
        raise ValueError(f"weights of another network: {lacking[:3]}, {sorted(fitting.keys() - names)[:3]}")
    model.load_state_dict(fitting, strict=False)


@torch.no_grad()
def adapt_norms(model: TrainableNetwork, state: dict[str, Tensor], pixels: Tensor) -> None:
    """Give the batch norms that `load_start` made of `state` the statistics of what they see on `pixels`.

    Scale and bias make up for them, so that in evaluation mode nothing changes. In training mode, where a norm uses
    the statistics of its batch, the network then starts as what it was instead of as another one.
    """
    seen: dict[nn.Module, Tensor] = {}
    norms = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and f"{name.removesuffix('.norm')}.weight" in state
    ]
    if not norms:
        return
    # Each norm sees the same whether or not those before it are adapted, so one pass serves all.
    hooks = [norm.register_forward_pre_hook(lambda norm, inputs: seen.update({norm: inputs[0]})) for norm in norms]
    training = model.training
    model.eval()
    training_forward(model, pixels)
    model.train(training)
    for hook in hooks:
        hook.remove()
    for norm, values in seen.items():
        _adapt_norm(norm, values)


def _adapt_norm(norm: nn.Module, values: Tensor) -> None:
    """Statistics of `values` (M, C, ...) into `norm`, what it computes in evaluation mode unchanged."""
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise TypeError("a batch norm with running statistics is needed")
    channels = values.float().transpose(0, 1).flatten(1)
    mean, variance = channels.mean(1), channels.var(1, unbiased=False)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    norm.bias.add_((mean - norm.running_mean) * scale)
    norm.weight.copy_(torch.sqrt(variance + norm.eps) * scale)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


# Where a run computes and in which precision: chosen by name, or by what is there and what is faster.

TRIAL_BATCH = 4
TRIAL_STEPS = 3
"""Timed steps of each precision, after one that is not; the fastest of each counts."""


def device_from_name(name: str) -> torch.device:
    """The device called auto, cpu or cuda; ProviderMissing for a GPU that PyTorch does not see."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ProviderMissing("device = 'cuda': PyTorch sees no CUDA device; use 'auto' or 'cpu'")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def with_resolved_precision(config: TrainConfig, model: TrainableNetwork) -> TrainConfig:
    """`config` with the precision "auto" replaced by the faster one, measured on a copy of `model` where it runs."""
    return config if config.precision != "auto" else with_step_seconds(config, model)[0]


def with_step_seconds(config: TrainConfig, model: TrainableNetwork) -> tuple[TrainConfig, float]:
    """`config` with its precision resolved, and about how many seconds a step of its first phase takes then.

    Forward and backward of a copy of `model` are timed, on a CPU by this process's time.
    """
    tried: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    if config.precision != "auto":
        tried = (config.precision,)
    taken = [(_fastest_step(config, copy.deepcopy(model), bfloat16=name == "bf16"), name) for name in tried]
    seconds, name = min(taken, key=lambda one: one[0])
    batch = config.phases[0].batch
    return config.model_copy(update={"precision": name}), seconds * batch / min(TRIAL_BATCH, batch)


def _fastest_step(config: TrainConfig, model: TrainableNetwork, *, bfloat16: bool) -> float:
    """Seconds of forward and backward on crops of the first phase."""
    device = next(model.parameters()).device
    pixels = torch.zeros(min(TRIAL_BATCH, config.phases[0].batch), 3, *config.phases[0].crop, device=device)
    # Zeros would be fast where denormal or special numbers are not; any other pattern will do.
    pixels += torch.linspace(-2, 2, pixels.shape[-1], device=device)
    pixels = pixels.to(memory_format=torch.channels_last)
    model.train()
    seconds = [_step_seconds(model, pixels, bfloat16=bfloat16) for _ in range(1 + TRIAL_STEPS)]
    return min(seconds[1:])


def _step_seconds(model: TrainableNetwork, pixels: torch.Tensor, *, bfloat16: bool) -> float:
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
