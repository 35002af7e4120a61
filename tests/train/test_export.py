"""What is trained can be exported: every stem with every head, straight from a run's first steps."""

from __future__ import annotations

import pytest
import torch

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.train.config import Phase, Scaling, TrainConfig
from dovit_deploy.train.data import TrainingData
from dovit_deploy.train.loop import Trainer
from dovit_deploy.train.network import NetworkChoice, spec_from_choice
from dovit_deploy.train.result import save_result
from dovit_deploy.train.state import RunFolder
from dovit_deploy.train.target import Labels
from tests.bundles import export
from tests.train.runs import record_of
from tests.train.tiny_folder import write_folder


# Each takes ten seconds, so the other pairs run with `make test-all`.
@pytest.mark.parametrize(
    ("stem", "head"),
    [
        ("patch", "mask"),
        ("conv", "setr"),
        pytest.param("conv", "linear", marks=pytest.mark.exhaustive),
        pytest.param("conv", "mask", marks=pytest.mark.exhaustive),
        pytest.param("patch", "linear", marks=pytest.mark.exhaustive),
        pytest.param("patch", "setr", marks=pytest.mark.exhaustive),
    ],
)
def test_what_is_trained_can_be_exported(tmp_path, stem, head):
    data = dataset_from_path(write_folder(tmp_path / "set", images=2, size=(48, 64)), "train")
    choice = NetworkChoice(
        stem=stem, head=head, width=16, depth=3, heads=2, head_channels=8, gate_channels=8 if stem == "conv" else 0
    )
    config = TrainConfig(
        spec=spec_from_choice(choice, (48, 64), 4),
        steps=2,
        phases=(Phase(until=1, crop=(48, 64), batch=2),),
        precision="fp32",
        validations=0,
        learning_rate=0.01,
    )
    record = record_of(config)
    folder = RunFolder.create(tmp_path / "run", record)
    trainer = Trainer(
        config, TrainingData(data, None), None, folder, target=Labels.of(data.class_frequencies(), config)
    )
    trainer.run()
    with torch.no_grad():
        # So fresh a model is sure of nothing and stops nothing; parity wants some of each.
        for gate in trainer.average.gates:
            gate.head.classifier.weight.mul_(60)
    save_result(
        tmp_path / "made",
        trainer.average,
        record.data.classes,
        threshold=0.6,
        scaling=Scaling(),
        license_note="",
        documents={},
    )
    bundle, report = export(checkpoint_from_path(tmp_path / "made"), tmp_path / "made.dovit")
    assert report.failures == ()
    assert bundle.manifest.spec == config.spec
