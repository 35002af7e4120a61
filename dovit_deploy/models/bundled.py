"""A bundle as a checkpoint: its weights and manifest are all that an export at another size or a fine-tuning needs."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from torch import Tensor

from dovit_deploy.bundle.directory import Bundle
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.errors import UsageError
from dovit_deploy.models.own_format import OwnConfig


def load_bundled(folder: Path) -> tuple[OwnConfig, dict[str, Tensor]]:
    """What `own_format.load_own_format` gives, of a bundle: configuration, and weights in deployment form, fp32.

    Raises:
        BundleError: the folder is no bundle, or something in it was altered.
        UsageError: its thresholds differ from class to class, which a checkpoint cannot say.
    """
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    config = OwnConfig(
        spec=manifest.spec,
        preprocessing=manifest.preprocessing,
        classes=manifest.classes,
        thresholds=_per_gate(manifest, folder.name),
        floor=manifest.defaults.floor,
        slide_size=manifest.spec.size if manifest.preprocessing.stride else None,
        license=manifest.provenance.license,
    )
    return config, safetensors.torch.load_file(bundle.weights)


def _per_gate(manifest: Manifest, source: str) -> tuple[float, ...]:
    rows = manifest.defaults.thresholds
    if any(len(set(row)) > 1 for row in rows):
        raise UsageError(f"{source} has thresholds per class, a checkpoint has one per gate; calibrate with one each")
    return tuple(row[0] for row in rows)
