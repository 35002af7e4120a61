"""Pooled context: what do layers behind a gate see of tokens that have stopped? For each class one more key and value.

    sums      of what has stopped, by the class that a token's gate took it for: of what the gate's lens makes of each,
              and of how many they are, both as shares of all patches, so that they are small numbers in any precision
    key       a layer's own norm, key and value of what its map makes of a class's mean; the logarithm of how many
              tokens it stands for is added to its scores, so that it weighs as much as they would
    empty     a class that nothing has stopped as: a score that no softmax sees

There are as many keys as classes, whatever has stopped: no further dimension depends on the data. The lens is affine
behind its norm, so that it is asked once a class, for the mean of the tokens' norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from dovit_deploy.families.layers import Attend, Block, attention_with_bias

EMPTY = -1e4
"""Added to the scores of a class that nothing has stopped as: finite, also in float16, and e to it is 0."""


class AffineLens(Protocol):
    """A gate's lens: a norm without weights, and a linear layer."""

    @property
    def norm(self) -> nn.Module:
        """(..., C) -> (..., C)."""

    @property
    def linear(self) -> nn.Module:
        """(..., C) -> (..., C)."""


class PooledKeys(NamedTuple):
    """What has stopped before a stage, as its layers are to see it."""

    means: Tensor
    """(K, C), in the space of the lenses."""
    bias: Tensor
    """(K,), added to the scores of each class."""


def members(votes: Tensor, running: Tensor) -> Tensor:
    """(N, K): 1 / N where a patch stopped at the last gate and was taken for the class there, else 0.

    Args:
        votes: (N, K), the gate's probabilities of each patch that ran to it; zeros where one had stopped before.
        running: (kept,) int64, the patches that run on.
    """
    patches, classes = votes.shape
    stopped = torch.full((patches,), 1.0 / patches, device=votes.device).index_fill(0, running, 0.0)
    # As the gate finds its class: of equal ones the first.
    confidence, label = torch.topk(votes, 1, dim=1)
    chosen = (label == torch.arange(classes, device=votes.device)) & (confidence > 0)
    return chosen.to(votes.dtype) * stopped[:, None]


def with_stopped(lens: AffineLens, patches: Tensor, chosen: Tensor, before: Tensor | None) -> Tensor:
    """The sums (K, C + 1) with what stopped at one gate: of what its lens makes of them, and how many, in shares.

    Args:
        lens: of the gate.
        patches: (N, C) as the gate saw them.
        chosen: (N, K) as `members` gives them.
        before: (K, C + 1), of what had stopped before; None: nothing had.
    """
    share = chosen.sum(0)[:, None]
    # One patch is the least that a mean is of; the sums of an empty class are 0.
    mean = (chosen.T @ lens.norm(patches)) / share.clamp(min=1.0 / len(patches))
    added = torch.cat([lens.linear(mean) * share, share], 1)
    return added if before is None else before + added


def keys_from_sums(sums: Tensor, patches: int) -> PooledKeys:
    """Means and log-counts of the classes in `sums` (K, C + 1) over so many patches."""
    share = sums[:, -1]
    least = share.clamp(min=1.0 / patches)
    bias = torch.where(share > 0, (least * patches).log(), EMPTY)
    return PooledKeys(sums[:, :-1] / least[:, None], bias)


class ContextMaps(nn.ModuleDict):
    """For each layer in which tokens may be missing an affine map from what lenses make to what enters the layer."""

    def __init__(self, layers: range, width: int) -> None:
        super().__init__({str(layer): nn.Linear(width, width) for layer in layers})


class Beside(NamedTuple):
    """Pooled keys for a number of tokens that run, (n,), to be seen by the layers of one stage."""

    maps: Mapping[str, nn.Module]
    means: Tensor
    bias: Tensor
    """(n + K,): 0 for what runs."""

    @classmethod
    def of(cls, maps: ContextMaps, keys: PooledKeys, index: Tensor) -> Beside:
        """`keys` beside the tokens `index` (n,)."""
        nothing = torch.zeros(index.shape[0], device=index.device)
        return cls(cast("Mapping[str, nn.Module]", maps), keys.means, torch.cat([nothing, keys.bias]))

    def attend(self, layer: int, block: Block) -> Attend:
        """The attention of `block`, which is layer `layer`, to what runs and to these."""
        seen = block.norm1(self.maps[str(layer)](self.means))
        further, values = block.attention.key(seen), block.attention.value(seen)

        def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
            return attention_with_bias(query, torch.cat([key, further]), torch.cat([value, values]), self.bias, heads)

        return attend
