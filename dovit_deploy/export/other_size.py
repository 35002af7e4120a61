"""A bundle's network at another input size, for the reference engine alone: weights and manifest, no graphs.

Position embeddings are resized as an export at that size would do it, so accuracy and MACs are those of such an export.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch

from dovit_deploy.bundle.directory import WEIGHTS, Bundle
from dovit_deploy.models.build import spec_at_size, state_at_size


def reference_bundle_at_size(bundle: Bundle, size: tuple[int, int], folder: Path) -> Bundle:
    """What `engine="torch"` reads of a bundle, at `size`; it cannot be opened or run by another engine.

    Args:
        bundle: the deployed one.
        size: height and width in pixels.
        folder: an existing folder that outlives the result; one weights file is written into it.
    """
    spec = bundle.manifest.spec
    place = folder / f"{size[0]}x{size[1]}"
    place.mkdir()
    state = state_at_size(safetensors.torch.load_file(bundle.weights), spec, size)
    safetensors.torch.save_file(state, place / WEIGHTS)
    small = spec_at_size(spec, size)
    changed = {"spec": small, "preprocessing": bundle.manifest.preprocessing.for_spec(small)}
    return Bundle(place, bundle.manifest.model_copy(update=changed))
