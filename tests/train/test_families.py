"""Every family trains: the batched forward pass is what is deployed, image by image; runs end in bundles."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.checkpoints.own_format import OwnConfig, save_checkpoint
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import ConfigError
from dovit_deploy.families.evovit.spec import EvoDeitSpec
from dovit_deploy.families.folding import deployed
from dovit_deploy.families.registry import family_of, model_from_spec
from dovit_deploy.train.config import Phase, Scaling, TrainConfig
from dovit_deploy.train.data import TrainingData
from dovit_deploy.train.forward import training_forward
from dovit_deploy.train.initialise import initialise, trainable_model
from dovit_deploy.train.loop import Trainer
from dovit_deploy.train.network import NetworkChoice, spec_from_choice
from dovit_deploy.train.recipe import Recipe, run_config
from dovit_deploy.train.result import save_result
from dovit_deploy.train.start import start_from_path
from dovit_deploy.train.state import RunFolder
from dovit_deploy.train.target import Labels
from tests.bundles import export, tiny_checkpoint
from tests.tiny import tiny_pixels, tiny_spec
from tests.train.runs import record_of
from tests.train.tiny_folder import write_folder

SIZE = (48, 64)
CHOICES = {
    "dovit": NetworkChoice(width=16, depth=3, heads=2, head_channels=8, gate_channels=8),
    "evovit": NetworkChoice(family="evovit", width=16, depth=4, heads=2, head_channels=8, ratio=0.6),
    "stvit": NetworkChoice(family="stvit", width=32, heads=4, head_channels=8, depths=(1, 2, 6), window=4),
}


@pytest.mark.parametrize("family", CHOICES)
def test_a_batch_gives_what_its_images_give_when_deployed(family):
    spec = spec_from_choice(CHOICES[family], SIZE, 4)
    model = trainable_model(spec)
    initialise(model, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Fresh weights say the same of every token.
            if parameter.ndim > 1:
                parameter.mul_(8)
            elif name.endswith("factor"):
                parameter.fill_(0.5)
        model.eval()
        pixels = torch.cat([tiny_pixels(SIZE, seed=seed) for seed in (1, 2)])
        batch = training_forward(model, pixels)
        network = family_of(spec).dense if spec.gates else lambda model: family_of(spec).stages(model)[0]
        alone = network(model_from_spec(spec, deployed(dict(model.state_dict()))))
        answers = [alone(image[None]) for image in pixels]
    for logits, answer in zip(batch.logits, answers, strict=True):
        expected = answer if spec.gates else answer[0]
        assert torch.allclose(logits, expected[0], atol=1e-4 * float(expected.abs().max()))
        assert float(expected.std()) > 1e-3


@pytest.mark.parametrize("family", ["evovit", pytest.param("stvit", marks=pytest.mark.exhaustive)])
def test_what_is_trained_becomes_a_bundle(tmp_path, family):
    data = dataset_from_path(write_folder(tmp_path / "set", images=2, size=SIZE), "train")
    config = TrainConfig(
        spec=spec_from_choice(CHOICES[family], SIZE, 4),
        steps=2,
        phases=(Phase(until=1, crop=SIZE, batch=2),),
        precision="fp32",
        validations=0,
    )
    record = record_of(config)
    folder = RunFolder.create(tmp_path / "run", record)
    trainer = Trainer(
        config, TrainingData(data, None), data, folder, target=Labels.of(data.class_frequencies(), config)
    )
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.run()
    trainer.validate()
    still = [name for name, new in trainer.model.named_parameters() if torch.equal(before[name], new)]
    # A key's bias moves every score of a query alike, which the softmax takes out again; behind a fresh layer scale of
    # 1e-5 two steps move a norm's weight by less than its last digit.
    assert [name for name in still if not name.endswith(("key.bias", "norm1.weight", "norm2.weight"))] == []
    assert len(still) < len(before) / 6
    assert trainer.miou is not None
    save_result(
        tmp_path / "made",
        trainer.average,
        record.data.classes,
        threshold=0.9,
        scaling=Scaling(),
        license_note="",
        documents={},
    )
    checkpoint = checkpoint_from_path(tmp_path / "made")
    assert checkpoint.spec == config.spec
    bundle, report = export(checkpoint, tmp_path / "made.dovit")
    assert report.failures == ()
    assert bundle.manifest.spec == config.spec


def test_a_choice_of_another_family_is_refused():
    for family, choice in (("evovit", {"gates": (1,)}), ("stvit", {"depth": 3}), ("dovit", {"ratio": 0.4})):
        with pytest.raises(ValidationError, match=f"{next(iter(choice))} is a choice of"):
            NetworkChoice(family=family, **choice)
    with pytest.raises(ValidationError, match="head 'light' is a choice of dovit and stvit"):
        NetworkChoice(family="evovit", head="light")


def test_windows_are_laid_out_for_crops_too():
    spec = spec_from_choice(CHOICES["stvit"], SIZE, 4)
    usual = run_config(Recipe(pretrain=0.3), spec, scaling=Scaling())
    assert [(phase.crop, phase.rendered) for phase in usual.phases] == [((32, 48), 1), ((32, 48), 0), (SIZE, 0)]
    recipe = Recipe.model_validate({"phases": [{"until": 1, "crop": [32, 32]}]})
    assert run_config(recipe, spec, scaling=Scaling()).phases[0].crop == (32, 32)
    # The decode head sees tokens of 16 pixels, though those of the first stage have 4.
    recipe = Recipe.model_validate({"phases": [{"until": 1, "crop": [36, 32]}]})
    with pytest.raises(ConfigError, match="multiples of 16"):
        run_config(recipe, spec, scaling=Scaling())
    odd = run_config(Recipe(), spec_from_choice(CHOICES["stvit"], (44, 60), 4), scaling=Scaling())
    assert [phase.crop for phase in odd.phases] == [(32, 48), (44, 60)]


def saved(folder, spec):
    checkpoint = tiny_checkpoint(spec)
    config = OwnConfig(
        spec=spec,
        preprocessing=checkpoint.preprocessing,
        classes=checkpoint.classes,
        thresholds=checkpoint.thresholds,
    )
    save_checkpoint(folder, config, checkpoint.state)
    return folder


def test_evo_vit_starts_from_a_vision_transformer(tmp_path):
    spec = tiny_spec(gates=(1,), depth=3, size=SIZE)
    path = saved(tmp_path / "vit", spec)
    choice = NetworkChoice(family="evovit", ratio=0.4)
    start = start_from_path(path, choice, config=None, size=SIZE, classes=spec.classes)
    assert isinstance(start.spec, EvoDeitSpec)
    assert [selection.ratio for selection in start.spec.selections] == [0.4, 0.4]
    assert start.spec.head == spec.head
    assert not any(name.startswith("gates.") for name in start.state)
    model_from_spec(start.spec, start.state)


def test_other_layers_cannot_start_from_a_vision_transformer(tmp_path):
    spec = tiny_spec(gates=(1,), depth=3, size=SIZE)
    path = saved(tmp_path / "vit", spec)
    with pytest.raises(ConfigError, match="other layers"):
        start_from_path(path, NetworkChoice(family="stvit"), config=None, size=SIZE, classes=spec.classes)
