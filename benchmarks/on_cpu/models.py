"""What a cell runs on: a bundle, frames with their labels where there are any, and the decisions to replay.

Made once for a case, in its folder: the default model's frames as arrays; the bench model as a bundle with random
weights, exported like any other, and as the plain ONNX file that everybody makes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.datasets.scenes import RenderedScenes, street_images
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.runtime.results import Pixels
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import Keep, RunSettings
from dovit_deploy.runtime.transforms import to_input
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.source import RGB, FailedFrame
from on_cpu.cells import MODELS
from on_cpu.result import DEFAULT, OWN, CpuCase

READY = "ready"
"""A file that is written when all others of a case are there."""
CLASSES = 19
RANGED = 4
"""Images of which the bench model's ranges are taken."""
DEPTH, GATES = 12, (3, 6, 9)
"""Of the bench model: stages of three layers each."""


NamedFrame = tuple[str, RGB, NDArray[np.uint8] | None]
"""Name, image and label map; None: nothing is labelled."""


@dataclass(frozen=True)
class FrameChoice:
    """Where the default model's frames come from: rendered, a source of images, or a labelled data set."""

    frames: str | None
    dataset: Path | None
    split: str
    count: int

    def described(self) -> str:
        """For the report."""
        if self.dataset is not None:
            return f"{self.dataset.name}, {self.split}"
        return "rendered streets" if self.frames is None else Path(self.frames).name

    def samples(self, classes: Sequence[str]) -> list[NamedFrame]:
        """`count` frames, evenly spread; labels only where they are of the model's `classes`."""
        if self.frames is not None:
            with open_source(self.frames, max_frames=self.count) as source:
                read = [frame for frame in source if not isinstance(frame, FailedFrame)]
            return [(f"{Path(frame.source).stem}-{frame.index}", frame.rgb, None) for frame in read]
        # Rendered from bare to full: how many tokens stop depends on how much there is to see.
        data: Dataset = RenderedScenes("cpu", count=self.count, fullness=(0.0, 1.0))
        if self.dataset is not None:
            data = dataset_from_path(self.dataset, self.split)
        labelled = data.classes.names == tuple(classes)
        samples = (data.sample(number) for number in spread(len(data), self.count))
        return [(sample.stem, sample.rgb, sample.label if labelled else None) for sample in samples]


def spread(total: int, count: int) -> list[int]:
    """At most `count` numbers below `total`, evenly spread."""
    taken = min(total, count)
    return [number * total // taken for number in range(taken)]


class CaseFiles:
    """The files of a case.

    Args:
        case: the case.
        work: folder of all cases.
        bundle: the default model's folder.
    """

    def __init__(self, case: CpuCase, *, work: Path, bundle: Path) -> None:
        self.case, self.folder = case, work / case.name
        self.bundle_path = bundle if case.model == DEFAULT else self.folder / "bench.dovit"

    @property
    def ready(self) -> bool:
        """Whether they have been made."""
        return (self.folder / READY).exists()

    def prepare(self, choice: FrameChoice) -> None:
        """Make them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.case.model == DEFAULT:
            self._save_frames(choice)
        else:
            self._export()
        (self.folder / READY).touch()

    def plain_graph(self) -> Path:
        """The dense graph in standard operators: of the default model its own, else what everybody exports."""
        if self.case.model == DEFAULT:
            return Bundle.open(self.bundle_path).graph("dense")
        return self.folder / "plain.onnx"

    def samples(self) -> list[NamedFrame]:
        """As `FrameChoice.samples`, of the default model."""
        names = json.loads((self.folder / "frames.json").read_text())
        found = []
        for number, name in enumerate(names):
            label = self.folder / f"{number}-label.npy"
            rgb = np.load(self.folder / f"{number}-rgb.npy")
            found.append((name, rgb, np.load(label) if label.exists() else None))
        return found

    def pixels(self, count: int) -> list[Pixels]:
        """Up to `count` frames as the model takes them, evenly spread; of the bench model noise."""
        manifest = Bundle.open(self.bundle_path).manifest
        if self.case.model != DEFAULT:
            from graphs import pixels_of

            return [pixels_of(manifest.spec)]
        samples = self.samples()
        whole = manifest.preprocessing.model_copy(update={"stride": None})
        chosen = (samples[number][1] for number in spread(len(samples), count))
        return [to_input(rgb, whole, manifest.spec.size) for rgb in chosen]

    def _save_frames(self, choice: FrameChoice) -> None:
        manifest = Bundle.open(self.bundle_path).manifest
        samples = choice.samples([entry.name for entry in manifest.classes])
        for number, (_, rgb, label) in enumerate(samples):
            np.save(self.folder / f"{number}-rgb.npy", rgb)
            if label is not None:
                np.save(self.folder / f"{number}-label.npy", label)
        (self.folder / "frames.json").write_text(json.dumps([name for name, _, _ in samples]))

    def _export(self) -> None:
        # Not at the top: the default model needs no PyTorch.
        from graphs import bundle_of, plain_session

        from dovit_deploy.export.quantise import QuantisePlan

        spec = bench_spec(self.case)
        # Of random weights every loss is allowed: their time is all that counts.
        bundle_of(spec, self.bundle_path, QuantisePlan(lambda: street_images(RANGED, seed=0), allowed=1.0))
        plain_session(spec.model_copy(update={"gates": ()}), self.folder)


def bench_spec(case: CpuCase) -> VisionTransformerSpec:
    """The bench model: a plain ViT with linear gates before every quarter, and a linear head."""
    from dovit_deploy.families.parts import GateSpec, LinearHead

    width, heads = MODELS[case.model]
    return VisionTransformerSpec(
        family="dovit",
        size=case.size,
        width=width,
        depth=DEPTH,
        heads=heads,
        hidden=4 * width,
        classes=CLASSES,
        gates=tuple(GateSpec(layer=layer, head=LinearHead()) for layer in GATES),
        head=LinearHead(),
    )


def decisions(profile: str, session: Session, pixels: list[Pixels]) -> list[Keep]:
    """For each frame the tokens that run after each gate: decided by the gates in fp32, or forced by the profile."""
    if profile == OWN:
        settings = RunSettings.resolve(session.bundle.manifest)
        return [session.run_one(frame, settings)[1].keep for frame in pixels]
    from graphs import PROFILES, keep_of

    return [keep_of(session.bundle.manifest.spec, PROFILES[profile])] * len(pixels)
