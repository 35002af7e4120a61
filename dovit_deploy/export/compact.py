"""Which weights are stored in float16, and does the rounded network still find the same classes?

Weights are rounded first, before anything is exported: PyTorch, every graph and parity are those of the rounded
network, and nothing is inexact afterwards. What rounding itself costs is measured once, on the images of parity.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.bundle.parity import CompactWeights
from dovit_deploy.errors import CheckError, UsageError
from dovit_deploy.families.folding import State
from dovit_deploy.families.registry import family_of, model_from_spec, widened_state
from dovit_deploy.graphs.weights import INLINE_LIMIT
from dovit_deploy.printing import plural
from dovit_deploy.runtime.results import Logits, Pixels
from dovit_deploy.runtime.segmentation import MOST_CLASSES
from dovit_deploy.runtime.tasks import takes_images
from dovit_deploy.runtime.trace import Image
from dovit_deploy.runtime.transforms import to_class_map

LEAST_AGREEMENT = 0.9999
"""Share of the pixels that must keep their class."""


@dataclass(frozen=True)
class Compacted:
    """Weights as they are stored, and what that cost."""

    stored: State
    """Large matrices and kernels in float16; all others as they were."""
    record: CompactWeights | None = None
    """None: nothing was rounded."""


def compacted(manifest: Manifest, state: State, images: list[Image]) -> Compacted:
    """The weights `state` of the network of `manifest`, rounded.

    Args:
        manifest: of the bundle that is exported.
        state: in float32.
        images: names and normalised pixels (1, 3, H, W) that both networks are run on, with nothing stopped.

    Raises:
        UsageError: the network gives no classes that rounding could be judged by.
        CheckError: more pixels change their class than is allowed.
    """
    if not takes_images(manifest):
        raise UsageError(f"--compact: {manifest.name} is a backbone without a head: no class shows what rounding costs")
    stored = stored_state(state, exact=family_of(manifest.spec).derived)
    before, after = (_network(manifest, weights) for weights in (state, widened_state(stored)))
    pairs = [(_classes(manifest, before, pixels), _classes(manifest, after, pixels)) for _, pixels in images]
    agreement = float(np.mean([(one == other).mean() for one, other in pairs]))
    # Written so that NaN is refused.
    if not agreement >= LEAST_AGREEMENT:
        raise CheckError(
            f"--compact: rounding weights to fp16 changes the class of {1 - agreement:.3%} of the pixels of "
            f"{plural(len(images), 'image')}, {1 - LEAST_AGREEMENT:.2%} at most are allowed; give "
            "--parity-images of the kind that the model was trained on, or leave it out"
        )
    return Compacted(stored, CompactWeights(agreement=agreement, images=len(images), rounded=_count(stored)))


def stored_state(state: State, *, exact: Collection[str] = ()) -> State:
    """`state` with every large matrix and kernel in float16 that float16 can hold, but for tables called `exact`.

    Those were not trained: another size would have them made anew, unrounded.
    """
    return {
        name: _rounded(tensor) if _is_large(tensor) and name not in exact else tensor for name, tensor in state.items()
    }


def _is_large(tensor: torch.Tensor) -> bool:
    # Vectors (biases, norms) are small, and sums would suffer first.
    return tensor.dtype == torch.float32 and tensor.ndim > 1 and tensor.nbytes > INLINE_LIMIT


def _rounded(tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half()
    # Beyond 65504 there is only Inf.
    return half if bool(half.isfinite().all()) else tensor


def _count(stored: State) -> int:
    return sum(tensor.dtype == torch.float16 for tensor in stored.values())


def _network(manifest: Manifest, state: State) -> nn.Module:
    """The network with nothing stopped; of one whose choices of tokens are fixed, the whole."""
    family, model = family_of(manifest.spec), model_from_spec(manifest.spec, state)
    return family.dense(model) if manifest.spec.has_dense else family.stages(model)[0]


def _classes(manifest: Manifest, network: nn.Module, pixels: Pixels) -> npt.NDArray[np.integer]:
    """(H, W) at the model's size, of more classes than a map holds on the logits' grid; (1,) of a classifier."""
    spec = manifest.spec
    with torch.inference_mode():
        answers = network(torch.from_numpy(pixels))
    # Of a whole network, counts of tokens follow.
    logits: Logits = (answers[0] if isinstance(answers, tuple) else answers).numpy()
    if spec.task != "segmentation" or spec.classes > MOST_CLASSES:
        return np.asarray(logits.argmax(1))
    cover = manifest.preprocessing.logits_cover
    return to_class_map(logits[0], spec.size, spec.size, cover=cover, patch=spec.patch)
