"""Initial weights: drawn from a seed, or those of a trained checkpoint with gates added where it has none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dovit_deploy.bundle.spec import GateSpec, SetrHead, VisionTransformerSpec
from dovit_deploy.errors import ConfigError
from dovit_deploy.models.architecture import invalid_as_config_error
from dovit_deploy.models.batch_norm import unfolded
from dovit_deploy.models.build import spec_at_size, state_at_size
from dovit_deploy.models.checkpoint import Checkpoint, checkpoint_from_path
from dovit_deploy.models.heads import MaskTransformerHead
from dovit_deploy.models.vision_transformer import VisionTransformer
from dovit_deploy.train.masked import masked_forward
from dovit_deploy.train.network import OPEN_WITH_INIT, NetworkChoice, added_layers, gate_specs


@dataclass(frozen=True)
class Start:
    """What a run starts from: the network, and trained weights for it (in deployment form), gates perhaps missing."""

    spec: VisionTransformerSpec
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
    if checkpoint.spec.classes != classes:
        raise ConfigError(
            f"--init {path}: a network of {checkpoint.spec.classes} classes, the data set has {classes}; "
            "give a checkpoint of these classes, or train from scratch"
        )
    stated = sorted(choice.model_fields_set - OPEN_WITH_INIT)
    if stated:
        raise ConfigError(f"network.{stated[0]} is the checkpoint's affair when --init is given; take it out")
    size = choice.size or size
    spec, state = spec_at_size(checkpoint.spec, size), state_at_size(checkpoint.state, checkpoint.spec, size)
    depth = choice.depth if "depth" in choice.model_fields_set else spec.depth
    if depth > spec.depth:
        raise ConfigError(f"network.depth = {depth}: --init {path} has {spec.depth} layers; at most so many")
    gates = tuple(gate for gate in spec.gates if gate.layer < depth)
    if choice.gates is not None or not gates:
        layers = added_layers(depth) if choice.gates is None else choice.gates
        gates = gate_specs(layers, choice.gate_channels)
    chosen = _changed(spec, depth, gates, str(path))
    return Start(chosen, _state_of(chosen, state, spec), checkpoint)


def _changed(
    spec: VisionTransformerSpec, depth: int, gates: tuple[GateSpec, ...], source: str
) -> VisionTransformerSpec:
    """`spec` with its first `depth` layers and other gates; raises ConfigError where they do not fit."""
    change = {
        "depth": depth,
        "gates": [gate.model_dump() for gate in gates],
        "family": "dovit" if gates else "segmenter",
    }
    try:
        return VisionTransformerSpec.model_validate({**spec.model_dump(), **change})
    except ValidationError as error:
        raise invalid_as_config_error(error, source) from error


def _state_of(
    chosen: VisionTransformerSpec, state: dict[str, Tensor], spec: VisionTransformerSpec
) -> dict[str, Tensor]:
    """What of `state`, weights of `spec`, the network `chosen` has: its layers, and the heads of gates in both."""
    places = {str(spec.gates.index(gate)): place for place, gate in enumerate(chosen.gates) if gate in spec.gates}
    taken: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part, _, inner = name.partition(".")
        number = inner.partition(".")[0]
        if part == "blocks" and int(number) >= chosen.depth:
            continue
        if part == "gates":
            if number not in places:
                continue
            name = f"gates.{places[number]}.{inner.removeprefix(f'{number}.')}"
        taken[name] = tensor
    return taken


def trainable_model(spec: VisionTransformerSpec) -> VisionTransformer:
    """The network of `spec` with its batch norms apart; ConfigError for gates that cannot be trained here."""
    if any(isinstance(gate.head, SetrHead) for gate in spec.gates):
        raise ConfigError(
            "gates with up-sampling (setr) heads are not trained; network.gates in the configuration replaces them "
            "by per-token ones"
        )
    return VisionTransformer(spec, trainable=True)


def initialise(model: VisionTransformer, seed: int) -> None:
    """Truncated normal (0.02) for linear layers and embeddings, He for convolutions, zero biases; norms stay."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    embeddings = [model.positions, *([model.extra_tokens] if model.spec.extra_tokens else [])]
    if isinstance(model.head, MaskTransformerHead):
        # Equal class tokens would stay equal for ever.
        embeddings.append(model.head.class_tokens)
    for embedding in embeddings:
        nn.init.trunc_normal_(embedding, std=0.02, generator=generator)


def load_start(model: VisionTransformer, state: dict[str, Tensor]) -> None:
    """Load weights in deployment form into a model in training form; gates that they lack keep theirs."""
    names = model.state_dict().keys()
    fitting = unfolded(state, names)
    lacking = [name for name in names if name not in fitting and not name.startswith("gates.")]
    if lacking or fitting.keys() - names:
        raise ValueError(f"weights of another network: {lacking[:3]}, {sorted(fitting.keys() - names)[:3]}")
    model.load_state_dict(fitting, strict=False)


@torch.no_grad()
def settle_norms(model: VisionTransformer, state: dict[str, Tensor], pixels: Tensor) -> None:
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
    # Each norm sees the same whether or not those before it are settled, so one pass serves all.
    hooks = [norm.register_forward_pre_hook(lambda norm, inputs: seen.update({norm: inputs[0]})) for norm in norms]
    training = model.training
    model.eval()
    masked_forward(model, pixels)
    model.train(training)
    for hook in hooks:
        hook.remove()
    for norm, values in seen.items():
        _settle(norm, values)


def _settle(norm: nn.Module, values: Tensor) -> None:
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
