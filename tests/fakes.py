"""Fakes: a session whose model is a formula, so that the code around a model can be tested without one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.manifest import (
    CentreCrop,
    ClassEntry,
    GateDefaults,
    Manifest,
    Preprocessing,
    Provenance,
    TokenCount,
)
from dovit_deploy.families.parts import GateSpec, LinearHead, SetrHead
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.runtime.results import RunTiming, TokenReport
from dovit_deploy.runtime.settings import RunSettings

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def fake_manifest(
    *,
    size=(64, 96),
    stride=None,
    cover="image",
    classes=5,
    patch=16,
    gates=(1, 2),
    logits_scale=1,
    mean=MEAN,
    std=STD,
) -> Manifest:
    """A manifest that is consistent in itself and lists no files."""
    head = LinearHead() if logits_scale == 1 else SetrHead(channels=8, up_scale=logits_scale)
    spec = VisionTransformerSpec(
        family="fake",
        size=size,
        patch=patch,
        width=16,
        depth=4,
        heads=2,
        hidden=32,
        classes=classes,
        gates=tuple(GateSpec(layer=layer, head=LinearHead()) for layer in gates),
        head=head,
    )
    count = TokenCount(minimum=1, typical=spec.tokens, maximum=spec.tokens)
    return Manifest(
        name="fake",
        spec=spec,
        preprocessing=Preprocessing(mean=mean, std=std, assumed=False, stride=stride, logits_cover=cover),
        classes=tuple(
            ClassEntry(name=f"class {number}", color=(number * 40 % 256, 255 - number % 256, number * 97 % 256))
            for number in range(classes)
        ),
        defaults=GateDefaults(thresholds=((0.9,) * classes,) * len(gates)),
        counts=(count,) * (len(gates) + 1),
        provenance=Provenance(tool="fake", source="formula", source_sha256="0" * 64),
        files={},
    )


class FakeSession:
    """Logits are a fixed linear function of the mean colour of each block of pixels, padded with 0 to whole patches.

    Blocks are as large as a cell of the spec's logits grid. A token stops at gate g when the absolute mean of its
    patch is below (g + 1) * `stop_below`. `calls` holds pixels and settings of every run.
    """

    backend = SimpleNamespace(name="fake", precision="fp32")

    def __init__(self, manifest: Manifest | None = None, *, stop_below=0.1, seed=0) -> None:
        self.bundle = Bundle(Path("fake.dovit"), manifest or fake_manifest())
        self.stop_below = stop_below
        self.weights = np.random.default_rng(seed).normal(size=(self.bundle.manifest.spec.classes, 3))
        self.calls: list[tuple[np.ndarray, RunSettings]] = []

    def run(self, pixels, **given):
        return self.run_one(pixels, RunSettings.resolve(self.bundle.manifest, **given))

    def run_one(self, pixels, settings):
        spec = self.bundle.manifest.spec
        assert pixels.shape == (1, 3, *spec.size) and pixels.dtype == np.float32 and pixels.flags.c_contiguous
        self.calls.append((pixels, settings))
        means = block_means(pixels[0], spec.grid, spec.patch)
        cells = spec.logits_grid[0] // spec.grid[0]
        fine = block_means(pixels[0], spec.logits_grid, spec.patch // cells)
        logits = np.einsum("kc,chw->khw", self.weights, fine).astype(np.float32)
        keep = () if settings.dense else self._keep(np.abs(means.mean(axis=0)))
        kept = (spec.tokens, *(int(grid.sum()) + spec.extra_tokens for grid in keep))
        if settings.dense:
            kept = (spec.tokens,) * (len(spec.gates) + 1)
        cost = 10.0 * sum(kept) / (len(kept) * spec.tokens)
        return logits[None], TokenReport(kept, 10.0, cost, keep, (), RunTiming(1.0, (1.0,) * len(kept)))

    def _keep(self, level):
        gates = len(self.bundle.manifest.spec.gates)
        return tuple(level >= (number + 1) * self.stop_below for number in range(gates))

    def close(self) -> None:
        """Nothing is held."""


def block_means(image, grid, side):
    """(C, H, W) padded right and bottom with 0 to `grid` blocks of `side` pixels -> (C, *grid) means."""
    channels, height, width = image.shape
    padded = np.zeros((channels, grid[0] * side, grid[1] * side), dtype=np.float64)
    padded[:, :height, :width] = image
    return padded.reshape(channels, grid[0], side, grid[1], side).mean(axis=(2, 4))


def report_from_keep(*keep, saved=0.4) -> TokenReport:
    """A report of one image whose gates decided `keep`, boolean grids (h, w); one extra token."""
    grids = tuple(np.asarray(grid, dtype=bool) for grid in keep)
    tokens = grids[0].size + 1
    kept = (tokens, *(int(grid.sum()) + 1 for grid in grids))
    confidence = tuple(np.full(grid.shape, 0.5, dtype=np.float32) for grid in grids)
    return TokenReport(kept, 10.0, 10.0 * (1 - saved), grids, confidence, RunTiming(1.0, (0.5,) * len(kept)))


def fake_classifier_manifest(*, size=(64, 64), classes=7, shorter=72) -> Manifest:
    """As `fake_manifest`, of a classifier without gates that sees the centre of an image."""
    plain = fake_manifest(size=size, classes=classes, gates=())
    crop = None if shorter is None else CentreCrop(shorter=shorter)
    preprocessing = plain.preprocessing.model_copy(update={"crop": crop})
    return plain.model_copy(update={"task": "classification", "preprocessing": preprocessing})


class FakeClassifierSession:
    """Class k is the more probable, the nearer a fixed colour of its own is to the mean colour of the pixels.

    Selection s takes the patches whose mean is above s. `calls` holds pixels and settings of every run.
    """

    def __init__(self, manifest: Manifest | None = None, *, selections=2, seed=0) -> None:
        self.bundle = Bundle(Path("fake.dovit"), manifest or fake_classifier_manifest())
        self.selections = selections
        self.weights = np.random.default_rng(seed).normal(size=(self.bundle.manifest.spec.classes, 3))
        self.calls: list[tuple[np.ndarray, RunSettings]] = []

    def run_one(self, pixels, settings):
        spec = self.bundle.manifest.spec
        assert pixels.shape == (1, 3, *spec.size) and pixels.dtype == np.float32 and pixels.flags.c_contiguous
        self.calls.append((pixels, settings))
        distance = ((self.weights - pixels[0].mean(axis=(1, 2))) ** 2).sum(axis=1)
        level = block_means(pixels[0], spec.grid, spec.patch).mean(axis=0)
        grids = () if settings.dense else tuple(level > number for number in range(self.selections))
        kept = (spec.tokens, *(int(grid.sum()) for grid in grids))
        if settings.dense:
            kept = (spec.tokens,) * (1 + self.selections)
        cost = 10.0 * sum(kept) / (len(kept) * spec.tokens)
        report = TokenReport(kept, 10.0, cost, grids, (), RunTiming(1.0, (1.0,)))
        return -distance[None].astype(np.float32), report
