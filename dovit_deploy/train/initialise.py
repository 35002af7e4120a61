"""Initial weights: drawn from a seed, or those of a trained checkpoint with gates added where it has none."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dovit_deploy.checkpoints.checkpoint import Checkpoint, checkpoint_from_path
from dovit_deploy.errors import ConfigError, ProviderMissing
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.evovit.spec import EvoDeitSpec
from dovit_deploy.families.folding import trainable
from dovit_deploy.families.parts import SetrHead
from dovit_deploy.families.registry import family_of, spec_at_size, state_at_size
from dovit_deploy.families.stvit.spec import StvitSegmenterSpec
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.train.config import TrainConfig
from dovit_deploy.train.forward import TrainableNetwork, training_forward
from dovit_deploy.train.network import OPEN_WITH_INIT, NetworkChoice, evovit_from_trained, spec_from_trained
from dovit_deploy.train.rates import GATE_PARTS, is_embedding


@dataclass(frozen=True)
class Start:
    """What a run starts from: the network, and trained weights for it (in deployment form), gates perhaps missing."""

    spec: AnySpec
    state: dict[str, Tensor]
    checkpoint: Checkpoint


def start_from_checkpoint(
    path: Path, choice: NetworkChoice, *, config: str | None, size: tuple[int, int], classes: int
) -> Start:
    """Understand the checkpoint of `--init`, at the run's input size and with the run's gates.

    Raises:
        ConfigError: it has another number of classes, the choice contradicts it, or its gates cannot be trained.
        DovitError: whatever `checkpoint_from_path` finds wrong with it.
    """
    checkpoint = checkpoint_from_path(path, config=config)
    given = checkpoint.spec
    if not isinstance(given, VisionTransformerSpec | EvoDeitSpec | StvitSegmenterSpec) or given.task != "segmentation":
        raise ConfigError(f"--init {path}: a {given.family} for {given.task}; training starts from a segmenter")
    if given.classes != classes:
        raise ConfigError(
            f"--init {path}: a network of {given.classes} classes, the data set has {classes}; "
            "give a checkpoint of these classes, or train from scratch"
        )
    is_vit = isinstance(given, VisionTransformerSpec)
    stated = sorted(choice.model_fields_set - (OPEN_WITH_INIT if is_vit else {"size"}))
    if stated:
        raise ConfigError(f"network.{stated[0]} is the checkpoint's affair when --init is given; take it out")
    size = choice.size or size
    spec, state = spec_at_size(given, size), state_at_size(checkpoint.state, given, size)
    if not isinstance(spec, VisionTransformerSpec):
        return Start(spec, state, checkpoint)
    chosen = spec_from_trained(spec, choice, source=str(path))
    kept = _state_of(chosen, state, spec)
    if choice.family == "evovit":
        return Start(evovit_from_trained(chosen, choice.ratio, source=str(path)), kept, checkpoint)
    return Start(chosen, kept, checkpoint)


def _state_of(
    chosen: VisionTransformerSpec, state: dict[str, Tensor], spec: VisionTransformerSpec
) -> dict[str, Tensor]:
    """What of `state`, weights of `spec`, the network `chosen` has: its layers, and what belongs to gates in both."""
    renumbered = {str(spec.gates.index(gate)): number for number, gate in enumerate(chosen.gates) if gate in spec.gates}
    taken: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part, _, inner = name.partition(".")
        number = inner.partition(".")[0]
        if part == "blocks" and int(number) >= chosen.depth:
            continue
        if part in GATE_PARTS:
            if number not in renumbered or (part == "lenses" and chosen.answer != "lens"):
                continue
            name = f"{part}.{renumbered[number]}.{inner.removeprefix(f'{number}.')}"
        taken[name] = tensor
    return taken


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
    """Load weights in deployment form into a model in training form; gates that they lack keep theirs."""
    names = model.state_dict().keys()
    fitting = trainable(state, names)
    lacking = [name for name in names if name not in fitting and name.partition(".")[0] not in GATE_PARTS]
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
    if config.precision != "auto":
        return config
    bf16, fp32 = (_fastest_step(config, copy.deepcopy(model), bfloat16=on) for on in (True, False))
    return config.model_copy(update={"precision": "bf16" if bf16 < fp32 else "fp32"})


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
