"""A session whose gates are a formula: a token's brightness is its confidence, and dim tokens that stop come out wrong.

Confidence = brightness of the patch in [0, 1] at every gate; dense class 0 or 1 by the left or right half; a token
that stops at a confidence below `wrong_below` becomes class 2 instead. A run takes a tenth of a millisecond for every
token of every stage, by the clock `now`, in seconds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.calibrate.images import CalibrationImage
from dovit_deploy.families.cost import cost_model
from dovit_deploy.measure.intervals import blocks_of
from dovit_deploy.runtime.results import RunTiming, TokenReport
from tests.fakes import block_means, fake_manifest


class HostBackend:
    name, precision = "formula", "fp32"

    def download(self, buffer):
        return buffer


class GatedSession:
    def __init__(self, *, wrong_below=0.5, gates=(1, 2)) -> None:
        manifest = fake_manifest(mean=(0.0,) * 3, std=(255.0,) * 3, classes=3, gates=gates)
        self.bundle, self.backend = Bundle(Path("formula.dovit"), manifest), HostBackend()
        self.wrong_below, self.now = wrong_below, 0.0
        self.cost = cost_model(manifest.spec)

    def stages(self, pixels, settings):
        spec = self.bundle.manifest.spec
        confidence = block_means(pixels[0], spec.grid, spec.patch).mean(axis=0).reshape(-1).astype(np.float32)
        label = np.where(confidence < self.wrong_below, 2, self._classes()).astype(np.int64)
        for number in range(len(spec.gates)):
            yield {"confidence": confidence, "label": label}, settings.replay[number]
        yield {"logits": self._logits(self._classes())}, None

    def run_one(self, pixels, settings):
        spec = self.bundle.manifest.spec
        confidence = block_means(pixels[0], spec.grid, spec.patch).mean(axis=0).astype(np.float32)
        answer, running, kept = self._classes(), np.ones(spec.grid, bool), [spec.tokens]
        for gate in range(len(spec.gates)):
            if not settings.dense:
                running &= ~(confidence > settings.thresholds[gate][0])
            kept.append(int(running.sum()) + spec.extra_tokens)
        answer = np.where(~running.reshape(-1) & (confidence.reshape(-1) < self.wrong_below), 2, answer)
        macs = self.cost.dense() if settings.dense else self.cost.actual(kept)
        self.now += sum(kept) / 1e4
        timing = RunTiming(sum(kept) / 10, ())
        report = TokenReport(tuple(kept), self.cost.dense().total / 1e9, macs.total / 1e9, (), (), timing)
        return self._logits(answer), report

    def _classes(self):
        rows, columns = self.bundle.manifest.spec.grid
        return np.tile(np.arange(columns) >= columns // 2, rows).astype(np.int64)

    def _logits(self, answer):
        spec = self.bundle.manifest.spec
        return np.eye(spec.classes, dtype=np.float32)[answer].T.reshape(1, spec.classes, *spec.grid) * 10


class FormulaImages:
    """Images of patches of random brightness; the label is the dense answer."""

    name, split = "formula", None

    def __init__(self, session, *, count=20, labelled=True) -> None:
        self.session, self.labelled = session, labelled
        self.stems = tuple(f"drive_{number:03}" for number in range(count))
        self.blocks = blocks_of(count, None)

    def image(self, index):
        spec = self.session.bundle.manifest.spec
        bright = np.random.default_rng(index).integers(0, 255, spec.grid).astype(np.uint8)
        rgb = np.repeat(bright.repeat(spec.patch, 0).repeat(spec.patch, 1)[:, :, None], 3, axis=2)
        label = self.session._classes().reshape(spec.grid).repeat(spec.patch, 0).repeat(spec.patch, 1)
        return CalibrationImage(rgb[: spec.size[0], : spec.size[1]], label.astype(np.uint8) if self.labelled else None)


class Steps:
    """Notes the steps of a calibration, and how many images were done in all."""

    def __init__(self) -> None:
        self.steps, self.images = [], 0

    def begin(self, step, total=None):
        self.steps.append(step)

    def advance(self):
        self.images += 1
