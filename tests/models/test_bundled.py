"""A bundle as a checkpoint: the same network again, and a smaller one from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dovit_deploy.bundle.directory import Bundle
from dovit_deploy.bundle.manifest import Manifest, digest_of
from dovit_deploy.errors import DigestMismatch, UsageError
from dovit_deploy.models.checkpoint import checkpoint_from_path
from tests.bundles import tiny_checkpoint
from tests.tiny import tiny_spec


def test_a_bundle_gives_back_the_checkpoint_it_was_made_of(tiny_bundle_path: Path) -> None:
    ours, given = checkpoint_from_path(tiny_bundle_path), tiny_checkpoint(tiny_spec())
    assert ours.spec == given.spec
    assert ours.classes == given.classes
    assert ours.preprocessing == given.preprocessing
    assert ours.thresholds == given.thresholds
    assert ours.slide_size is None
    assert ours.state.keys() == given.state.keys()
    assert all(torch.equal(ours.state[name], tensor) for name, tensor in given.state.items())


def test_the_window_of_a_sliding_bundle_is_kept(setr_bundle_path: Path) -> None:
    bundle = Bundle.open(setr_bundle_path)
    assert checkpoint_from_path(setr_bundle_path).slide_size == bundle.manifest.spec.size


def test_an_altered_bundle_is_no_checkpoint(bundle_copy: Path) -> None:
    weights = bundle_copy / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DigestMismatch):
        checkpoint_from_path(bundle_copy)


def test_thresholds_per_class_do_not_fit_a_checkpoint(bundle_copy: Path) -> None:
    manifest = Bundle.open(bundle_copy).manifest
    body = manifest.model_dump(mode="json")
    body["defaults"]["thresholds"][0][1] = 0.125
    body["digest"] = digest_of(body)
    text = json.dumps(body)
    Manifest.from_json(text)
    (bundle_copy / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match="per class"):
        checkpoint_from_path(bundle_copy)
