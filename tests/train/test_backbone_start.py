"""Training from a pretrained backbone without a head: DINOv2's own names, a few layers of random weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from dovit_deploy.checkpoints.backbone import Backbone
from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.cli import _application, _run
from dovit_deploy.errors import ConfigError, UsageError
from dovit_deploy.families.parts import LightHead, LinearHead, MaskHead, SetrHead
from dovit_deploy.families.registry import model_from_spec, spec_at_size
from dovit_deploy.train.initialise import initialise, load_start, trainable_model
from dovit_deploy.train.job import TrainingRequest, train
from dovit_deploy.train.masked import embed, run_layers
from dovit_deploy.train.network import NetworkChoice
from dovit_deploy.train.recipe import Recipe
from dovit_deploy.train.start import start_from_path
from tests.train.tiny_folder import write_folder

WIDTH, DEPTH, SIDE = 32, 3, 3
"""Three layers, a grid of 3 x 3 positions; of so small a width the number of heads must be stated."""


def backbone_state(seed=0):
    draw = torch.Generator().manual_seed(seed)

    def made(*shape, spread=0.05):
        return torch.randn(*shape, generator=draw) * spread

    state = {
        "cls_token": made(1, 1, WIDTH),
        "mask_token": torch.zeros(1, WIDTH),
        "pos_embed": made(1, 1 + SIDE**2, WIDTH, spread=0.5),
        "patch_embed.proj.weight": made(WIDTH, 3, 14, 14),
        "patch_embed.proj.bias": made(WIDTH),
        "norm.weight": 1 + made(WIDTH),
        "norm.bias": made(WIDTH),
    }
    shapes = {
        "norm1": (WIDTH,),
        "attn.qkv": (3 * WIDTH, WIDTH),
        "attn.proj": (WIDTH, WIDTH),
        "norm2": (WIDTH,),
        "mlp.fc1": (4 * WIDTH, WIDTH),
        "mlp.fc2": (WIDTH, 4 * WIDTH),
    }
    for layer in range(DEPTH):
        for name, shape in shapes.items():
            state[f"blocks.{layer}.{name}.weight"] = made(*shape) + (1 if "norm" in name else 0)
            state[f"blocks.{layer}.{name}.bias"] = made(shape[0])
        for number in (1, 2):
            state[f"blocks.{layer}.ls{number}.gamma"] = made(WIDTH, spread=1.0)
    return state


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "tiny_dinov2.safetensors"
    save_file(backbone_state(), path)
    path.with_suffix(".json").write_text('{"num_heads": 2}')
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "set", images=3, splits=("train", "val"))


def started(path, **choice):
    config = str(path.with_suffix(".json"))
    return start_from_path(path, NetworkChoice(**choice), config=config, size=(40, 56), classes=4)


def test_it_gets_a_head_gates_and_the_size_of_the_run(backbone):
    start = started(backbone, size=(42, 56), gates=(1, 2), answer="lens", aggregate_rate=1.0)
    spec = start.spec
    assert isinstance(start.given, Backbone)
    assert (spec.family, spec.size, spec.patch) == ("dovit", (42, 56), 14)
    assert (spec.width, spec.depth, spec.heads) == (WIDTH, DEPTH, 2)
    assert spec.head == LightHead(channels=96)
    assert ([gate.layer for gate in spec.gates], spec.answer, spec.aggregate_rate) == ([1, 2], "lens", 1.0)
    assert started(backbone, head="linear").spec.head == LinearHead()
    assert started(backbone, head="mask").spec.head == MaskHead(width=WIDTH, layers=2, heads=2)
    assert started(backbone, gates=(), depth=2).spec.depth == 2
    assert started(backbone, taps=(1, 2)).spec.taps == (1, 2)
    # Evo-ViT has no light head.
    assert isinstance(started(backbone, family="evovit").spec.head, SetrHead)
    for taps, depth in (((3,), 3), ((2,), 2)):
        with pytest.raises(ConfigError, match=f"must rise and stay below the depth {depth}"):
            started(backbone, taps=taps, depth=depth)


@torch.no_grad()
def test_its_layers_compute_what_they_did_and_the_head_is_drawn(backbone):
    start = started(backbone, size=(42, 42), gates=(1,))
    model = trainable_model(start.spec)
    initialise(model, 3)
    drawn = model.head.expand.weight.clone()
    load_start(model, start.state)
    assert torch.equal(model.head.expand.weight, drawn)
    pixels = torch.randn(1, 3, 42, 42, generator=torch.Generator().manual_seed(1))
    found = model.norm(run_layers(model, (0, DEPTH), embed(model, pixels).tokens))
    # The same backbone as it is deployed, at its own size: 3 x 3 patches.
    given = start.given.spec(classes=4, head=LinearHead())
    assert given.size == (42, 42)
    head = {"head.head.classifier.weight": torch.zeros(4, WIDTH), "head.head.classifier.bias": torch.zeros(4)}
    plain = model_from_spec(given, {**start.given.state, **head})
    tokens = plain.embed(pixels)
    for block in plain.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(found[0], plain.norm(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("key", [{"width": 192}, {"heads": 3}, {"stem": "patch"}])
def test_what_the_backbone_decides_is_refused(backbone, key):
    with pytest.raises(ConfigError, match=f"network.{next(iter(key))} is the backbone's affair"):
        started(backbone, **key)


def requested(folder, output, recipe, init, **more):
    return TrainingRequest(str(folder), output, recipe, recipe_given=True, init=init, **more)


def quietly(request):
    lines = []
    return train(request, progress=lambda now: None, remark=lines.append), lines


def test_a_run_from_it_ends_in_a_checkpoint_with_its_licence(backbone, folder, tmp_path):
    network = {"size": (42, 56), "gates": (1, 2), "answer": "lens", "taps": (1, 2)}
    recipe = Recipe.model_validate(
        {
            "steps": 2,
            "network": network,
            "passing": {"mode": "quota", "share": 1.0, "start": 0.0},
            "phases": [{"until": 1.0, "crop": [28, 42], "batch": 2}],
            "precision": "fp32",
            "fitted": 1,
            "frozen_layers": 1,
            "layer_decay": 0.8,
            "validations": 0,
            "license": "for tests",
            "init_config": str(backbone.with_suffix(".json")),
        }
    )
    result, lines = quietly(requested(folder, tmp_path / "run", recipe, backbone))
    assert not any("padded" in line for line in lines)
    made = checkpoint_from_path(result.checkpoint)
    assert made.license == "for tests; backbone: DINOv2 (Meta), Apache-2.0"
    assert made.spec == spec_at_size(started(backbone, **network).spec, (42, 56))
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert record["init"]["source"] == "tiny_dinov2.safetensors"
    given = started(backbone).given
    kept = [name for name in given.state if name.startswith(("blocks.0.", "stem", "extra"))]
    assert kept
    for name in kept:
        torch.testing.assert_close(made.state[name], given.state[name], atol=0, rtol=0)
    assert not torch.equal(made.state["blocks.2.norm1.weight"], given.state["blocks.2.norm1.weight"])
    # It is gone on with from the same file, and from no other.
    other = tmp_path / "other.safetensors"
    save_file(backbone_state(1), other)
    with pytest.raises(UsageError, match="the run began from --init with the checkpoint tiny_dinov2"):
        quietly(requested(folder, tmp_path / "run", recipe, other, resume=True))
    assert quietly(requested(folder, tmp_path / "run", recipe, backbone, resume=True))[0].steps == 2


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"distillation": {"teacher": "init"}}, "no teacher in a backbone without a head"),
        ({"trained": "gates"}, "no network around them in a backbone without a head"),
    ],
)
def test_what_needs_a_trained_network_is_refused(backbone, folder, tmp_path, recipe, words):
    recipe = {"steps": 1, "init_config": str(backbone.with_suffix(".json")), **recipe}
    with pytest.raises(ConfigError, match=words):
        quietly(requested(folder, tmp_path / "run", Recipe.model_validate(recipe), backbone))
    assert not (tmp_path / "run").exists()


def test_layers_that_were_drawn_are_not_frozen(folder, tmp_path):
    recipe = Recipe.model_validate({"steps": 1, "frozen_layers": 1})
    with pytest.raises(ConfigError, match="frozen_layers = 1: without --init they would stay as they are drawn"):
        quietly(requested(folder, tmp_path / "run", recipe, None))
    assert not (tmp_path / "run").exists()


def test_the_command_line_takes_a_backbone(backbone, folder, tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""steps = 1
precision = "fp32"
init_config = "{backbone.with_suffix(".json")}"
fitted = 1
[network]
size = [42, 56]
head = "linear"
gates = [1]
[passing]
mode = "quota"
share = 1.0
start = 0.0
[[phases]]
until = 1
crop = [28, 28]
batch = 2
"""
    )

    def called(*words):
        given = ("train", folder, "--config", recipe, "--init", backbone, "--quiet", *words)
        return _run(_application(), list(map(str, given)))

    assert called("-o", tmp_path / "run", "--json", tmp_path / "report.json") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["steps"] == 1
    assert report["curve"][0]["threshold"] is None
    made = checkpoint_from_path(tmp_path / "run" / "checkpoint")
    assert (made.spec.patch, made.spec.head, len(made.spec.gates)) == (14, LinearHead(), 1)
    assert called("-o", tmp_path / "run", "--resume") == 0
    capsys.readouterr()
    recipe.write_text(recipe.read_text().replace('head = "linear"', "width = 16"))
    assert called("-o", tmp_path / "other") == 3
    assert "network.width is the backbone's affair" in capsys.readouterr().err
    recipe.write_text(recipe.read_text().replace("gates = [1]", "gates = [0]"))
    assert called("-o", tmp_path / "other") == 3
    assert "network.gates.0: Input should be greater than or equal to 1" in capsys.readouterr().err


def test_padding_is_said(backbone, folder, tmp_path):
    recipe = Recipe.model_validate(
        {
            "steps": 1,
            "network": {"gates": [1], "head": "linear"},
            "phases": [{"until": 1.0, "crop": [28, 28], "batch": 1}],
            "precision": "fp32",
            "init_config": str(backbone.with_suffix(".json")),
        }
    )
    _, lines = quietly(requested(folder, tmp_path / "run", recipe, backbone))
    assert "inputs of 40x56 are padded to 42x56, whole patches of 14" in "\n".join(lines)
