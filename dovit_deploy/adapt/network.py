"""Which networks can be made dynamic, and what are they then? A dense spec -> the same layers with gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from dovit_deploy.checkpoints.checkpoint import Checkpoint
from dovit_deploy.errors import UsageError
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.parts import FcnHead, LinearHead, head_text
from dovit_deploy.families.registry import family_of
from dovit_deploy.families.vit.spec import Context, VisionTransformerSpec
from dovit_deploy.train.network import added_layers, gate_specs
from dovit_deploy.train.rates import GATE_PARTS

SUPPORTED = "dense vision transformers that segment: Segmenter, SETR, DINOv2 or DINOv3 or timm's with a head, EoMT"

CONTEXTS: tuple[Context, ...] = get_args(Context)

NOTHING_STOPS = 1.0
"""Threshold at which no token is certain enough."""


def adaptable(spec: AnySpec, *, source: str) -> VisionTransformerSpec:
    """`spec`, if gates can be added to its network.

    Args:
        spec: of a checkpoint.
        source: what the user gave, for messages.

    Raises:
        UsageError: it is dynamic already, or none of `SUPPORTED`.
    """
    supported = f"supported: {SUPPORTED}"
    if spec.gates:
        layers = ", ".join(str(gate.layer) for gate in spec.gates)
        raise UsageError(
            f"{source} is dynamic already (gates before layers {layers}); dovit export takes it as it is, and "
            "dovit calibrate chooses other thresholds"
        )
    if not isinstance(spec, VisionTransformerSpec):
        kind = "segments" if spec.task == "segmentation" else "is for " + spec.task
        raise UsageError(f"{source} is a network of the family {spec.family} that {kind}", supported)
    if not spec.extra_tokens:
        raise UsageError(f"{source} has no class token, which layers behind a gate need", supported)
    return spec


def stopped_answer(spec: VisionTransformerSpec, wanted: str | None) -> Literal["gate", "lens"]:
    """What answers for a stopped token: where the decode head looks at one token at a time its gate, else a lens.

    Raises:
        UsageError: another is `wanted`, which cannot be.
    """
    alone = isinstance(spec.head, LinearHead | FcnHead)
    if wanted not in (None, "gate", "lens"):
        raise UsageError(f"--answer '{wanted}' given; there are: gate, lens")
    if wanted == "gate" and not alone:
        raise UsageError(
            f"--answer gate: the decode head ({head_text(spec.head)}) does not look at one token at a time, so that no "
            "gate can answer in its place; --answer lens is possible"
        )
    return "lens" if wanted == "lens" or not alone else "gate"


def stopped_context(wanted: str | None) -> Context:
    """What layers behind a gate see of tokens that have stopped; raises UsageError for another than there are."""
    if wanted is None:
        return "none"
    found = next((one for one in CONTEXTS if one == wanted), None)
    if found is None:
        raise UsageError(f"--context '{wanted}' given; there are: {', '.join(CONTEXTS)}")
    return found


def gated(
    spec: VisionTransformerSpec,
    layers: Sequence[int] | None,
    *,
    answer: str | None = None,
    context: str | None = None,
) -> VisionTransformerSpec:
    """The network of `spec` with a gate before each of `layers`, and what answers for tokens that stop there.

    What stops changes no other token: the class token stays its own (`aggregate_rate` of 1), since layers that never
    saw a mean in it could make nothing of it.

    Args:
        spec: of a network that is `adaptable`.
        layers: None: 2, 5, 8 of 12, 6, 12, 18 of 24, else quarters, as far as tokens can stop there.
        answer: as `stopped_answer` takes it.
        context: "none" or "pooled"; None: none.

    Raises:
        UsageError: layers that do not rise, or where no gate can stand; or an answer or a context that cannot be.
    """
    if layers is None:
        layers = [layer for layer in added_layers(spec.depth) if layer < spec.rejoin]
        if not layers:
            raise UsageError(
                f"{spec.rejoin} layers in which tokens may stop leave no room for a gate; supported: {SUPPORTED}"
            )
    elif list(layers) != sorted(set(layers)) or not layers or layers[0] < 1 or layers[-1] >= spec.rejoin:
        joined = "" if spec.rejoin == spec.depth else f" (queries join at layer {spec.rejoin}, where all tokens run)"
        raise UsageError(
            f"--gates {','.join(map(str, layers))}: layers from 1 to {spec.rejoin - 1} that rise are needed{joined}"
        )
    chosen = stopped_answer(spec, answer)
    change = {
        "family": "dovit",
        "gates": [gate.model_dump() for gate in gate_specs(tuple(layers), channels=0)],
        "answer": chosen,
        "context": stopped_context(context),
        "tap_answer": "lens" if chosen == "lens" and spec.taps and spec.taps[-1] > layers[0] else "feature",
        "aggregate_rate": 1.0,
    }
    return VisionTransformerSpec.model_validate({**spec.model_dump(), **change})


def empty_parts(spec: VisionTransformerSpec) -> dict[str, Tensor]:
    """The gates, lenses and maps of pooled keys of `spec` by parameter name, zeros, to be fitted."""
    with torch.device("meta"):
        expected = family_of(spec).build(spec).state_dict()
    return {name: torch.zeros(one.shape) for name, one in expected.items() if name.partition(".")[0] in GATE_PARTS}


def adapted_checkpoint(dense: Checkpoint, spec: VisionTransformerSpec, parts: Mapping[str, Tensor]) -> Checkpoint:
    """`dense` as the network of `spec`, at whose thresholds nothing stops; `parts`: its gates and lenses."""
    return replace(
        dense,
        spec=spec,
        state={**dense.state, **parts},
        thresholds=(NOTHING_STOPS,) * len(spec.gates),
        floor=0.0,
    )
