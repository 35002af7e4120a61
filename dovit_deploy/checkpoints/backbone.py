"""Backbone: a pretrained vision transformer without a decode head, understood; and what a head from another file adds.

`train --init` starts from one; `export --backbone A --head B` makes one checkpoint of two files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from dovit_deploy.bundle.manifest import Preprocessing
from dovit_deploy.checkpoints.configuration import settings_over_meta
from dovit_deploy.checkpoints.images import mean_and_std
from dovit_deploy.checkpoints.keys import facts_from_state, listed
from dovit_deploy.checkpoints.model_folder import source_from_path
from dovit_deploy.checkpoints.official_state import ours_from_official
from dovit_deploy.checkpoints.reader import BackboneReader
from dovit_deploy.checkpoints.readers import backbone_reader_of
from dovit_deploy.checkpoints.settings import Sources, invalid_as_config_error
from dovit_deploy.checkpoints.weights_file import WeightsFile
from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.families.parts import AnyHead, GateSpec, LinearHead, PositionMode
from dovit_deploy.families.vit.backbones import beside_backbone, prefix_of
from dovit_deploy.families.vit.spec import VisionTransformerSpec


@dataclass(frozen=True)
class Backbone:
    """Pretrained weights and what is known of them."""

    values: Mapping[str, Any]
    """The fields of a `VisionTransformerSpec` at the training size but `classes`, `gates` and `head`."""
    state: dict[str, Tensor]
    """Of that network in deployment form without its head: fp32, on the CPU."""
    preprocessing: Preprocessing
    source: str
    """File name of the weights."""
    source_sha256: str
    license: str = ""
    assumed: str = ""
    """What nothing stated and a flag may correct, in a line."""
    remarks: tuple[str, ...] = ()
    """How its entries were found in the file; for the curious."""

    def spec(
        self, *, classes: int, head: AnyHead, gates: tuple[GateSpec, ...] = (), taps: tuple[int, ...] = ()
    ) -> VisionTransformerSpec:
        """The network that it becomes with a head.

        Raises:
            ConfigError: there is no such network.
        """
        fields = {
            "classes": classes,
            "head": head.model_dump(),
            "gates": [gate.model_dump() for gate in gates],
            "taps": taps,
        }
        try:
            return VisionTransformerSpec.model_validate({**self.values, **fields})
        except ValidationError as error:
            raise invalid_as_config_error(error, self.source) from error


def backbone_from_path(
    path: str | Path,
    *,
    config: str | Path | None = None,
    allow_pickle: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    positions: PositionMode | None = None,
) -> Backbone:
    """Understand the backbone in a file or folder; a head beside it is left out.

    Args:
        path: .safetensors, .pth, or a folder of transformers or timm.
        config: file with settings that the checkpoint does not carry.
        allow_pickle: read pickles that may run code.
        mean: of red, green and blue in 0..255, instead of the configuration's; with `std`.
        std: of red, green and blue in 0..255.
        positions: how position embeddings are resized, instead of the format's own way.

    Raises:
        InputError: a file is absent or unreadable.
        NetworkUnknown: no backbone that is read alone is in it.
        ConfigError: configuration values are unknown (named), unsupported, or contradict the keys.
        PickleRefused: a pickle that may run code.
        CheckpointMismatch: entries missing, unexpected, misshaped, NaN or Inf.
    """
    source = source_from_path(Path(path), allow_pickle=allow_pickle)
    weights, given = source.weights, source.configured(config)
    reader = backbone_reader_of(facts_from_state(weights.state), weights.name)
    alone = without_head(weights, reader)
    settings = settings_over_meta(alone.meta, given, reader.settings)
    facts = facts_from_state(alone.state)
    prefix = prefix_of(reader, facts) or ""
    try:
        found = reader.architecture(Sources("", settings, facts.within(prefix), alone.name))
        values = {**found.values, **({} if positions is None else {"position_mode": positions})}
        spec = VisionTransformerSpec.model_validate({**values, "classes": 1, "head": LinearHead()})
    except ValidationError as error:
        raise invalid_as_config_error(error, alone.name) from error
    key_map = replace(found.key_map.behind(prefix), without=("head.",))
    mean_of, std_of, assumed = mean_and_std(settings, mean=mean, std=std)
    return Backbone(
        values=values,
        state=ours_from_official(alone.state, key_map, spec, source=alone.name),
        preprocessing=Preprocessing(mean=mean_of, std=std_of, assumed=assumed, stride=None),
        source=alone.name,
        source_sha256=alone.sha256,
        license=both_licenses(found.license, source.license),
        assumed="" if positions else found.assumed,
        remarks=alone.remarks,
    )


def both_licenses(of_format: str, of_folder: str) -> str:
    """What a bundle says of the weights: what their format is known for, and what lies beside them."""
    return "; ".join(filter(None, (of_format, of_folder)))


def without_head(weights: WeightsFile, reader: BackboneReader) -> WeightsFile:
    """`weights`, prepared, without what is beside the backbone that `reader` recognises."""
    state = reader.prepared(weights.state, weights.name)
    beside = beside_backbone(reader, facts_from_state(state)).shapes
    alone = {name: tensor for name, tensor in state.items() if name not in beside}
    if not beside:
        return replace(weights, state=alone)
    return replace(weights, state=alone, remarks=(*weights.remarks, f"left out beside the backbone: {listed(beside)}"))


def joined_weights(weights: WeightsFile, reader: BackboneReader, head: WeightsFile) -> WeightsFile:
    """The backbone in `weights`, which `reader` recognises, and the head in another file, as if they were one file.

    Raises:
        CheckpointMismatch: the second file holds a backbone, too, or entries of one.
    """
    if prefix_of(reader, facts_from_state(head.state)) is not None:
        raise CheckpointMismatch(
            f"{head.name} is a whole network or a backbone, not a head: it has {reader.title}'s entries, too",
            "Give it alone where it has a head; else --head takes a file with the head's entries only",
        )
    alone = without_head(weights, reader)
    state = {**alone.state, **head.state}
    # A `norm` of the head's would be read as the backbone's, and take its place.
    beside = beside_backbone(reader, facts_from_state(state)).shapes
    claimed = [name for name in head.state if name not in beside]
    if claimed:
        raise CheckpointMismatch(
            f"{head.name} has entries that are the backbone's by their names: {listed(claimed)}",
            "--head takes the entries of a head alone, which starts behind the backbone's last norm",
        )
    return WeightsFile(
        name=f"{alone.name} with {head.name}",
        # Of both, so that a bundle says what it was made of.
        sha256=f"{alone.sha256} with {head.sha256}",
        state=state,
        meta={**alone.meta, **head.meta},
        remarks=(*alone.remarks, *(f"{head.name}: {remark}" for remark in head.remarks)),
    )
