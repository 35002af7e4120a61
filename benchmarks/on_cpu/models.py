"""What a cell runs on: a bundle, frames with their labels where there are any, and the decisions to replay.

Made once for a case, in its folder: of the default model frames and answers in fp32, as arrays; the bench model as a
bundle with random weights, exported like any other, and as the plain ONNX file that everybody makes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from dovit_deploy.bundle.bundle import MANIFEST, Bundle
from dovit_deploy.datasets.scenes import street_images
from dovit_deploy.errors import UsageError
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.machine import package_versions
from dovit_deploy.runtime.results import Pixels
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import Keep, RunSettings
from dovit_deploy.runtime.transforms import to_input
from on_cpu.accuracy import Answers
from on_cpu.cells import MODELS
from on_cpu.frames import FrameChoice, NamedFrame, save_frames, saved_frames, spread
from on_cpu.result import DEFAULT, OWN, CpuCase

READY = "made-of.json"
"""What the files of a case were made of; empty until all of them are there."""
NNCF_MODEL = "nncf.xml"
"""The dense graph as NNCF quantises it, where it does."""
CLASSES = 19
RANGED = 1
"""Images of which the bench model's ranges are taken: of random weights any will do."""
DEPTH, GATES = 12, (3, 6, 9)
"""Of the bench model: stages of three layers each."""


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

    def is_ready(self, choice: FrameChoice) -> bool:
        """Whether they have been made, of the same things."""
        ready = self.folder / READY
        return ready.exists() and ready.read_text(encoding="utf-8") == self._made_of(choice)

    def prepare(self, choice: FrameChoice) -> None:
        """Make them.

        Raises:
            UsageError: their folder is there and holds something else.
        """
        ready = self.folder / READY
        if self.folder.exists() and not ready.exists():
            raise UsageError(f"{self.folder} is not a folder of this benchmark; give another --work")
        # What another model or other versions left is of no use.
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        ready.touch()
        if self.case.model == DEFAULT:
            self._save_frames(choice)
        else:
            self._export()
        ready.write_text(self._made_of(choice), encoding="utf-8")

    def _made_of(self, choice: FrameChoice) -> str:
        """What they depend on."""
        if self.case.model != DEFAULT:
            versions = package_versions()
            return json.dumps([versions.get(name) for name in ("dovit-deploy", "torch", "onnxruntime")])
        manifest = (self.bundle_path / MANIFEST).read_bytes()
        where = [choice.frames, str(choice.dataset), choice.split, choice.count]
        return json.dumps([*where, hashlib.sha256(manifest).hexdigest()])

    def plain_graph(self) -> Path:
        """The dense graph in standard operators: of the default model its own, else what everybody exports."""
        if self.case.model == DEFAULT:
            return Bundle.open(self.bundle_path).graph("dense")
        return self.folder / "plain.onnx"

    def samples(self) -> list[NamedFrame]:
        """Frames of the default model."""
        return saved_frames(self.folder)

    def answers(self, *, dense: bool) -> Answers:
        """Those of the default model in ONNX Runtime fp32, of all frames."""
        kind = "dense" if dense else "tokens"
        return Answers(tuple(np.load(self.folder / f"{number}-{kind}.npy") for number in range(len(self.samples()))))

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
        bundle = Bundle.open(self.bundle_path)
        samples = choice.samples([entry.name for entry in bundle.manifest.classes])
        save_frames(samples, self.folder)
        # With one thread, as all are compared: with more the sums differ in their last bits.
        with Session(bundle, threads=1) as session:
            for kind in ("dense", "tokens") if bundle.manifest.spec.gates else ("dense",):
                answers = Answers.of(session, samples, dense=kind == "dense")
                for number, answer in enumerate(answers.maps):
                    np.save(self.folder / f"{number}-{kind}.npy", answer)

    def _export(self) -> None:
        # Not at the top: the default model needs no PyTorch.
        from graphs import bundle_of, plain_session

        from dovit_deploy.export.quantise import QuantisePlan

        spec = bench_spec(self.case)
        # Of random weights every loss is allowed: their time is all that counts.
        bundle_of(spec, self.bundle_path, QuantisePlan(street_images(RANGED, seed=0), allowed=100.0))
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
