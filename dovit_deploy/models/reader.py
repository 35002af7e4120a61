"""Reader: how the checkpoints of one project are recognised and understood."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dovit_deploy.models.architecture import Architecture
from dovit_deploy.models.key_facts import KeyFacts

OfficialState = Mapping[str, Tensor]


class Understand(Protocol):
    """From settings and keys to the network."""

    def __call__(
        self,
        settings: Mapping[str, object],
        facts: KeyFacts,
        source: str,
        *,
        thresholds: Sequence[float] | None,
    ) -> Architecture:
        """The architecture; `source` is the file's name for messages, `thresholds` the caller's, who has the say.

        Raises:
            ConfigError: values unknown, unsupported, or contradicting the keys.
            CheckpointMismatch: the keys are those of another network.
        """


def _as_it_is(state: OfficialState, source: str) -> OfficialState:
    del source
    return state


@dataclass(frozen=True)
class Reader:
    """Each module that `readers` names defines one, called `READER`."""

    recognises: Callable[[KeyFacts], bool]
    """Whether the names of a state dict are this project's."""
    settings: frozenset[str]
    """What its configurations may say."""
    architecture: Understand
    prepared: Callable[[OfficialState, str], OfficialState] = _as_it_is
    """The state dict with what the project stores twice or derives taken out; `(state, source)`.

    Raises CheckpointMismatch where the copies differ.
    """
