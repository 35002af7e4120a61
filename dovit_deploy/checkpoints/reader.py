"""Reader: how the checkpoints of one project are recognised and understood. Every family has its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dovit_deploy.checkpoints.keys import KeyFacts, KeyMap, KeyTable
from dovit_deploy.checkpoints.settings import Sources
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.parts import AnyHead, Padding

OfficialState = Mapping[str, Tensor]
"""Official names -> tensors, as a published file has them."""


@dataclass(frozen=True)
class Architecture:
    """A network understood, and how its official entries become ours."""

    spec: AnySpec
    """At the training size."""
    key_map: KeyMap
    thresholds: tuple[float, ...] = ()
    """One per gate."""
    floor: float = 0.0
    stride: tuple[int, int] | None = None
    """Of sliding inference, in pixels, rows then columns."""
    slide_size: tuple[int, int] | None = None
    """Window of sliding inference, in pixels."""
    logits_cover: Literal["image", "padded"] = "image"
    license: str = ""
    """Of the weights, where the format says it."""
    assumed: str = ""
    """What its entries do not show and a flag may correct, in a line."""


@dataclass(frozen=True)
class BackboneArchitecture:
    """A vision transformer without its decode head, and how its official entries become ours."""

    values: Mapping[str, object]
    """The fields of a `VisionTransformerSpec` at the training size but `classes`, `gates` and `head`."""
    key_map: KeyMap
    license: str = ""
    """Of the weights, where the format says it."""
    assumed: str = ""
    """How positions are resized, where the format does not show it, in a line."""


def _unchanged(state: OfficialState, source: str) -> OfficialState:
    del source
    return state


@dataclass(frozen=True)
class BackboneReader:
    """What one project's backbones look like, alone or beside a head in one file."""

    title: str
    """What it reads, for messages: "DINOv2"."""
    recognises: Callable[[KeyFacts], bool]
    """Whether names are this project's; beside a head the backbone's may have a prefix, which is taken off before."""
    settings: frozenset[str]
    """What its configurations may say."""
    architecture: Callable[[Sources], BackboneArchitecture]
    """From configuration and entries, without prefix, to the network; raises as `Reader.architecture`."""
    tables: tuple[KeyTable, ...]
    """All names that it knows."""
    needed: tuple[str, ...]
    """Patterns of a few names that every such backbone has, the most telling first."""
    unused: frozenset[str] = frozenset()
    """First parts of names that such a backbone may have and that are in none of the tables."""
    prepared: Callable[[OfficialState, str], OfficialState] = _unchanged
    """As `Reader.prepared`, for names with a prefix, too."""


@dataclass(frozen=True)
class FoundHead:
    """A decode head understood, and how its official entries become ours."""

    head: AnyHead
    classes: int
    key_map: KeyMap
    padding: Padding | None = None
    """Where its project pads pixels; None: it does not say."""
    window: tuple[int, int] | None = None
    """Of its project's sliding inference, in pixels."""
    stride: tuple[int, int] | None = None
    """Of these windows, in pixels."""
    layers: int = 1
    """How many of the last layers it sees, each after the last norm, their channels one after the other."""


@dataclass(frozen=True)
class Reader:
    """What one project's checkpoints look like; `readers.READERS` lists them all."""

    title: str
    """What it reads, for messages: "Segmenter"."""
    recognises: Callable[[KeyFacts], bool]
    """Whether the names of a state dict are this project's."""
    settings: frozenset[str]
    """What its configurations may say at their top."""
    architecture: Callable[[Sources], Architecture]
    """From configuration and entries to the network.

    Raises:
        ConfigError: values unknown, unsupported, or contradicting the keys.
        CheckpointMismatch: the keys are those of another network.
    """
    tables: tuple[KeyTable, ...]
    """All names that it knows, for saying how much of a file is like them."""
    needed: tuple[str, ...]
    """Patterns of a few names that every such file has, the most telling first."""
    backbone: BackboneReader | None = None
    """Reads the backbone alone, which then takes a head from another file; None: it is not read alone."""
    prepared: Callable[[OfficialState, str], OfficialState] = _unchanged
    """(state, file name for messages) -> the state without what the project stores twice or derives.

    Raises:
        CheckpointMismatch: a copy differs from its original.
    """
