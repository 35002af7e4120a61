"""A rule of docs/bundle-format.md, an error class, a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dovit_deploy.bundle.directory import Bundle
from dovit_deploy.bundle.manifest import Manifest, digest_of
from dovit_deploy.errors import (
    BundleError,
    DigestMismatch,
    FileMissing,
    FileUnlisted,
    InputError,
    ManifestInvalid,
    PathEscapes,
    VersionUnknown,
)


def rewritten(path: Path, **changes: object) -> None:
    """The manifest with other fields, its own digest made right again."""
    body = {**json.loads((path / "manifest.json").read_text()), **changes}
    body.pop("digest")
    (path / "manifest.json").write_text(json.dumps({**body, "digest": digest_of(body)}))


def test_a_whole_bundle_opens(tiny_bundle_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle_path)
    assert bundle.stages == 3
    assert bundle.path.is_absolute()


def test_manifests_round_trip(tiny_bundle_path: Path) -> None:
    manifest = Bundle.open(tiny_bundle_path).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_no_such_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle"):
        Bundle.open(tmp_path / "absent.dovit")


def test_a_file_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "x.dovit").write_text("x")
    with pytest.raises(ManifestInvalid):
        Bundle.open(tmp_path / "x.dovit")


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("name", ["stage0.onnx", "weights.safetensors", "parity.json", "merged.ort.onnx"])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_a_flipped_byte(bundle_copy: Path, name: str, place: float) -> None:
    file = bundle_copy / name
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    file.write_bytes(data)
    with pytest.raises(DigestMismatch, match=name):
        Bundle.open(bundle_copy)


def test_a_flipped_bit_anywhere_in_the_manifest(bundle_copy: Path) -> None:
    original = (bundle_copy / "manifest.json").read_bytes()
    for position in range(0, len(original), max(1, len(original) // 150)):
        data = bytearray(original)
        data[position] ^= 1
        (bundle_copy / "manifest.json").write_bytes(data)
        if data.split() == original.split():
            continue
        try:
            Bundle.open(bundle_copy)
        except BundleError:
            continue
        # Only white space may change without harm.
        assert json.loads(data) == json.loads(original)


def test_a_missing_file(bundle_copy: Path) -> None:
    (bundle_copy / "stage1.onnx").unlink()
    with pytest.raises(FileMissing, match=r"stage1\.onnx"):
        Bundle.open(bundle_copy)


def test_an_unlisted_file(bundle_copy: Path) -> None:
    (bundle_copy / "notes.txt").write_text("x")
    with pytest.raises(FileUnlisted, match=r"notes\.txt"):
        Bundle.open(bundle_copy)


def test_engines_may_lie_beside(bundle_copy: Path) -> None:
    (bundle_copy / "engines" / "key").mkdir(parents=True)
    (bundle_copy / "engines" / "key" / "stage0.engine").write_bytes(b"x")
    Bundle.open(bundle_copy)


def test_an_unknown_version(bundle_copy: Path) -> None:
    rewritten(bundle_copy, version=99)
    with pytest.raises(VersionUnknown, match="99"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("name", ["../escape.onnx", "/etc/passwd", "sub/inner.onnx", "..\\escape.onnx", ".."])
def test_a_path_that_leaves(bundle_copy: Path, name: str) -> None:
    files = json.loads((bundle_copy / "manifest.json").read_text())["files"]
    rewritten(bundle_copy, files={**files, name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(PathEscapes):
        Bundle.open(bundle_copy)


def test_a_link_that_leaves(bundle_copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "weights.safetensors"
    (bundle_copy / "weights.safetensors").rename(outside)
    (bundle_copy / "weights.safetensors").symlink_to(outside)
    with pytest.raises(PathEscapes):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "other"}', "\x00\xff"])
def test_a_manifest_that_is_none(bundle_copy: Path, text: str) -> None:
    (bundle_copy / "manifest.json").write_text(text)
    with pytest.raises(ManifestInvalid):
        Bundle.open(bundle_copy)


def test_an_unknown_field(bundle_copy: Path) -> None:
    rewritten(bundle_copy, surprise=1)
    with pytest.raises(ManifestInvalid, match="surprise"):
        Bundle.open(bundle_copy)
