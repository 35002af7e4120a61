"""EoMT against transformers: the semantic answer, at other sizes, and with tokens stopped before the queries join."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from dovit_deploy.checkpoints.checkpoint import Checkpoint, checkpoint_from_path
from dovit_deploy.engines.onnxruntime import OnnxRuntimeBackend
from dovit_deploy.errors import CheckpointMismatch, ConfigError, NetworkUnknown
from dovit_deploy.families.parts import GateSpec, LinearHead, QueryHead
from dovit_deploy.families.registry import model_from_spec, spec_at_size, state_at_size
from dovit_deploy.families.stages import DenseNetwork
from dovit_deploy.runtime.session import Session
from tests.bundles import export
from tests.oracles.vits import EOMT_CLASSES as CLASSES
from tests.oracles.vits import EOMT_SIDE as SIDE
from tests.oracles.vits import EOMT_WIDTH as WIDTH
from tests.oracles.vits import eomt
from tests.tiny import tiny_pixels

transformers = pytest.importorskip("transformers", reason="the oracle of EoMT is transformers")


@pytest.fixture
def oracle():
    """Makes a small model whose every weight is random."""
    return eomt


def read(model, folder: Path, config: str = '{"num_attention_heads": 2}') -> Checkpoint:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "eomt.safetensors")
    (folder / "config.json").write_text(config)
    return checkpoint_from_path(folder / "eomt.safetensors", config=folder / "config.json")


def answer(masks: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """As its source makes the semantic answer of masks (1, Q, h, w) and classes (1, Q, K + 1)."""
    return torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks.sigmoid())


@torch.no_grad()
def answer_of(model, pixels: torch.Tensor) -> torch.Tensor:
    output = model(pixels)
    return answer(output.masks_queries_logits, output.class_queries_logits)


@pytest.mark.parametrize("gated", [False, True], ids=["gelu", "swiglu"])
def test_the_network_answers_as_transformers_does(oracle, tmp_path: Path, gated: bool) -> None:
    model = oracle(gated=gated)
    checkpoint = read(model, tmp_path)
    spec = checkpoint.spec
    assert spec.head == QueryHead(queries=9, joined=2, doublings=2)
    assert (spec.size, spec.extra_tokens, spec.classes, spec.logits_grid) == ((SIDE, SIDE), 5, CLASSES, (16, 16))
    assert (checkpoint.slide_size, checkpoint.preprocessing.stride) == ((SIDE, SIDE), (SIDE, SIDE))
    pixels = tiny_pixels((SIDE, SIDE), 1)
    wanted = answer_of(model, pixels)
    with torch.no_grad():
        found = DenseNetwork(model_from_spec(spec, checkpoint.state))(pixels)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_a_folder_of_transformers_needs_no_configuration(oracle, tmp_path: Path) -> None:
    model = oracle(gated=True)
    model.config.id2label = dict(enumerate(["road", "sky", "car", "tree"]))
    model.save_pretrained(tmp_path / "folder")
    checkpoint, given = checkpoint_from_path(tmp_path / "folder"), read(model, tmp_path)
    assert [entry.name for entry in checkpoint.classes] == ["road", "sky", "car", "tree"]
    assert checkpoint.spec == given.spec
    assert all(torch.equal(checkpoint.state[name], tensor) for name, tensor in given.state.items())


def in_own_names(model, *, gated: bool) -> dict[str, torch.Tensor]:
    """The weights of a model of transformers as EoMT's own code stores them, within its training module."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer = r"^layers\.(\d+)\."
    renamings = {
        r"^embeddings\.position_embeddings\.weight": "encoder.backbone.pos_embed",
        r"^embeddings\.patch_embeddings\.projection": "encoder.backbone.patch_embed.proj",
        r"^embeddings\.register_tokens": "encoder.backbone.reg_token",
        r"^embeddings\.cls_token": "encoder.backbone.cls_token",
        layer + "attention.out_proj": r"encoder.backbone.blocks.\1.attn.proj",
        layer + "layer_scale([12]).lambda1": r"encoder.backbone.blocks.\1.ls\2.gamma",
        layer: r"encoder.backbone.blocks.\1.",
        r"^layernorm\.": "encoder.backbone.norm.",
        r"^query\.": "q.",
        r"^upscale_block\.block\.(\d+)\.layernorm2d": r"upscale.\1.norm",
        r"^upscale_block\.block\.": "upscale.",
        r"^mask_head\.fc1": "mask_head.0",
        r"^mask_head\.fc2": "mask_head.2",
        r"^mask_head\.fc3": "mask_head.4",
        r"^class_predictor": "class_head",
    }
    for number in range(len(model.layers)):
        for entry in ("weight", "bias"):
            names = [f"layers.{number}.attention.{part}_proj.{entry}" for part in "qkv"]
            state[f"encoder.backbone.blocks.{number}.attn.qkv.{entry}"] = torch.cat([state.pop(one) for one in names])
            if gated:
                names = [f"layers.{number}.mlp.{part}_proj.{entry}" for part in ("gate", "up")]
                state[f"layers.{number}.mlp.fc1.{entry}"] = torch.cat([state.pop(one) for one in names])
                state[f"layers.{number}.mlp.fc2.{entry}"] = state.pop(f"layers.{number}.mlp.down_proj.{entry}")
    own = {}
    for name, tensor in state.items():
        found = (re.sub(pattern, text, name) for pattern, text in renamings.items() if re.search(pattern, name))
        own[next(found, name)] = tensor
    own["encoder.backbone.pos_embed"] = own["encoder.backbone.pos_embed"][None]
    own["encoder.pixel_mean"] = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    return {name if name.startswith("criterion") else f"network.{name}": one for name, one in own.items()}


@pytest.mark.parametrize("gated", [False, True], ids=["gelu", "swiglu"])
def test_its_own_names_are_read_as_those_of_transformers(oracle, tmp_path: Path, gated: bool) -> None:
    model = oracle(gated=gated)
    wanted = read(model, tmp_path)
    own = in_own_names(model, gated=gated)
    torch.save({"state_dict": own}, tmp_path / "own.ckpt")
    found = checkpoint_from_path(tmp_path / "own.ckpt", config=tmp_path / "config.json")
    assert found.spec == wanted.spec and found.state.keys() == wanted.state.keys()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in wanted.state.items())


def test_what_of_its_own_names_is_not_read_is_said(oracle, tmp_path: Path) -> None:
    own, path = in_own_names(oracle(), gated=False), tmp_path / "own.ckpt"
    for change, words in [
        ({"network.encoder.backbone.reg_token": None}, "another backbone than DINOv2 with registers"),
        ({"network.encoder.pixel_mean": torch.full((3,), 0.5)}, r"pixel_mean is \[0\.5"),
        ({"network.attn_mask_probs": torch.ones(2)}, "is not a finished EoMT"),
        ({"network.class_head.bias": None}, r"missing: class_predictor\.bias"),
        ({"network.encoder.backbone.fc_norm.weight": torch.ones(WIDTH)}, r"unexpected: encoder\.backbone\.fc_norm"),
    ]:
        torch.save({"state_dict": {k: v for k, v in {**own, **change}.items() if v is not None}}, path)
        with pytest.raises((CheckpointMismatch, NetworkUnknown), match=words):
            checkpoint_from_path(path, config=read_config(tmp_path))


def read_config(folder: Path) -> Path:
    (folder / "config.json").write_text('{"num_attention_heads": 2}')
    return folder / "config.json"


def test_another_size_has_its_positions_resized(oracle, tmp_path: Path) -> None:
    """transformers knows one size only: it is given the resized embeddings, and pixels padded to whole patches."""
    model = oracle()
    checkpoint = read(model, tmp_path)
    size, grid = (50, 100), (4, 7)
    network = model_from_spec(
        spec_at_size(checkpoint.spec, size), state_at_size(checkpoint.state, checkpoint.spec, size)
    )
    trained = model.embeddings.position_embeddings.weight.detach().T.reshape(1, WIDTH, 4, 4)
    resized = torch.nn.functional.interpolate(trained, size=grid, mode="bicubic", align_corners=False)
    model.embeddings.position_embeddings = torch.nn.Embedding.from_pretrained(resized.flatten(2)[0].T)
    model.embeddings.position_ids = torch.arange(28)[None]
    model.grid_size = grid
    pixels = tiny_pixels(size, 2)
    wanted = answer_of(model, torch.nn.functional.pad(pixels, (0, 12, 0, 14)))
    with torch.no_grad():
        torch.testing.assert_close(DenseNetwork(network)(pixels), wanted, rtol=0, atol=1e-4)


def gated_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """With gates before layers 1 and 2, a lens each, and a class token that takes nothing in."""
    gates = [GateSpec(layer=layer, head=LinearHead()).model_dump() for layer in (1, 2)]
    values = {**checkpoint.spec.model_dump(), "gates": gates, "aggregate_rate": 1.0, "answer": "lens"}
    draw = torch.Generator().manual_seed(4)
    state = dict(checkpoint.state)
    for number in range(2):
        state[f"gates.{number}.head.classifier.weight"] = 0.1 * torch.randn(CLASSES, WIDTH, generator=draw)
        state[f"gates.{number}.head.classifier.bias"] = torch.zeros(CLASSES)
        state[f"lenses.{number}.linear.weight"] = 0.2 * torch.randn(WIDTH, WIDTH, generator=draw)
        state[f"lenses.{number}.linear.bias"] = 0.2 * torch.randn(WIDTH, generator=draw)
    spec = type(checkpoint.spec).model_validate(values)
    return dataclasses.replace(checkpoint, spec=spec, state=state, thresholds=(0.5, 0.5))


@torch.no_grad()
def oracle_with(model, state: dict[str, torch.Tensor], pixels: torch.Tensor, keep: list[np.ndarray]) -> torch.Tensor:
    """Patches of `keep` alone enter the layer behind each gate; the others go through its lens, and all rejoin."""
    hidden = model.embeddings(pixels)
    running = np.arange(16)
    for number, layer in enumerate(model.layers[:3]):
        if 0 < number < 3:
            before, running = running, np.flatnonzero(keep[number - 1])
            for at in set(before) - set(running):
                plain = torch.nn.functional.layer_norm(hidden[0, 5 + at], (WIDTH,), eps=1e-6)
                lens = f"lenses.{number - 1}.linear"
                hidden[0, 5 + at] = state[f"{lens}.weight"] @ plain + state[f"{lens}.bias"]
        index = [*range(5), *(5 + running)]
        hidden[:, index] = layer(hidden[:, index])
    joined = torch.cat([model.query.weight[None], hidden], 1)
    for layer in model.layers[3:]:
        joined = layer(joined)
    return answer(*model.predict(model.layernorm(joined)))


def test_graphs_answer_as_transformers_layers_do_with_tokens_stopped(oracle, tmp_path: Path) -> None:
    model = oracle(depth=5, seed=2)
    checkpoint = gated_checkpoint(read(model, tmp_path))
    pixels = tiny_pixels((SIDE, SIDE), 5)
    bundle = export(checkpoint, tmp_path / "x.dovit", images=[pixels])[0]
    draw = np.random.default_rng(1).random((2, 4, 4))
    patterns = [[draw[0] < share, (draw[0] < share) & (draw[1] < share)] for share in (1.0, 0.6, 0.2)]
    for backend in (OnnxRuntimeBackend(fast=True), OnnxRuntimeBackend(fast=False)):
        with Session(bundle, backend=backend) as session:
            for keep in patterns:
                wanted = oracle_with(model, checkpoint.state, pixels, keep).numpy()
                logits, _ = session.run(pixels.numpy(), keep=keep)
                np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4)
            _, report = session.run(pixels.numpy())
            dense, _ = session.run(pixels.numpy(), dense=True)
    assert 5 < report.kept[-1] < report.kept[0]
    np.testing.assert_allclose(dense, answer_of(model, pixels).numpy(), rtol=0, atol=1e-4)
    merged = onnxruntime.InferenceSession(str(bundle.path / "merged.onnx"))
    feed = {"pixels": pixels.numpy(), "thresholds": np.full((2, CLASSES), 0.5, np.float32)}
    logits, kept = merged.run(["logits", "kept"], {**feed, "floor": np.zeros((), np.float32)})
    assert tuple(kept) == report.kept
    wanted = oracle_with(model, checkpoint.state, pixels, list(report.keep)).numpy()
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4)


def test_a_network_in_training_is_refused(oracle, tmp_path: Path) -> None:
    model = oracle()
    model.attn_mask_probs[1] = 0.25
    with pytest.raises(CheckpointMismatch, match="not a finished EoMT: attn_mask_probs"):
        read(model, tmp_path)


def test_a_network_on_dinov3_is_refused_by_name(oracle, tmp_path: Path) -> None:
    state = {name.replace("out_proj", "o_proj"): tensor for name, tensor in oracle().state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "x.safetensors")
    with pytest.raises(NetworkUnknown, match=r"EoMT on DINOv3 .*difference to the gated weights"):
        checkpoint_from_path(tmp_path / "x.safetensors")


def test_the_names_of_its_own_code_are_refused_by_name(tmp_path: Path) -> None:
    names = ("encoder.backbone.layer.0.attention.q_proj.weight", "q.weight", "upscale.0.conv1.weight")
    save_file({f"network.{name}": torch.zeros(4, 4) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(NetworkUnknown, match="EoMT under the names of its own code"):
        checkpoint_from_path(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{}", "num_attention_heads"),
        ('{"num_attention_heads": 2, "image_size": 96}', "96x96 makes 6x6 patches of 16"),
        ('{"num_attention_heads": 2, "num_queries": 100}', "num_queries"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(oracle, tmp_path: Path, config: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(oracle(), tmp_path, config)
