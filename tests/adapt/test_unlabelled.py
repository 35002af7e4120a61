"""Images without labels as training sees them: whole, or the windows that the network would see."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dovit_deploy.adapt.images import UnlabelledImages, alike
from dovit_deploy.adapt.unlabelled import UnlabelledSet
from dovit_deploy.calibrate.units import Recorded
from dovit_deploy.export.plan import ExportPlan
from tests.bundles import tiny_checkpoint
from tests.tiny import tiny_spec

SPEC = tiny_spec(gates=(), head="linear", size=(32, 48))


def images_of(*arrays: np.ndarray) -> UnlabelledImages:
    names = tuple(map(str, range(len(arrays))))
    reads = tuple(lambda rgb=rgb: rgb for rgb in arrays)
    return UnlabelledImages("x", names, alike(len(names)), reads, Recorded.of_files(names))


def noise(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def manifest(stride: tuple[int, int] | None = None):
    return ExportPlan.resolve(tiny_checkpoint(SPEC, stride=stride), Path("x.dovit")).manifest


def test_every_pixel_is_void_and_the_images_are_what_they_are() -> None:
    given = [noise(40, 60), noise(20, 30, seed=1), noise(33, 70, seed=2)]
    data = UnlabelledSet(images_of(*given), [2, 0], manifest())
    assert len(data) == 2 and data.stems == ("2", "0") and len(data.classes.names) == SPEC.classes
    sample = data.sample(0)
    np.testing.assert_array_equal(sample.rgb, given[2])
    assert sample.label.shape == (33, 70) and (sample.label == 255).all()
    assert data.named == "2 images"
    # Bound to what is seen, whatever it is called.
    assert data.digest == UnlabelledSet(images_of(given[2], given[0]), [0, 1], manifest()).digest
    given[0][3, 3, 1] ^= 1
    assert data.digest != UnlabelledSet(images_of(*given), [2, 0], manifest()).digest


def test_a_sliding_network_learns_from_its_windows() -> None:
    large, small = noise(64, 72), noise(16, 48, seed=1)
    data = UnlabelledSet(images_of(large, small), [0, 1], manifest(stride=(32, 24)))
    assert [piece.corner for piece in data.pieces[:4]] == [(0, 0), (0, 24), (32, 0), (32, 24)]
    assert data.named == f"{len(data)} windows"
    np.testing.assert_array_equal(data.sample(3).rgb, large[32:64, 24:72])
    # An image that is smaller than the window is enlarged, as when it is run.
    assert {data.sample(number).rgb.shape for number in range(len(data))} == {(32, 48, 3)}
    assert data.stems[4:] and set(data.stems[4:]) == {"1"}
