"""DINOv3 in three layouts of names against transformers' own model: features, logits, and with tokens stopped."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from dovit_deploy.checkpoints.backbone import backbone_from_path
from dovit_deploy.checkpoints.checkpoint import Checkpoint, checkpoint_from_path
from dovit_deploy.engines.onnxruntime import OnnxRuntimeBackend
from dovit_deploy.errors import CheckpointMismatch, ConfigError
from dovit_deploy.families.parts import GateSpec, LinearHead
from dovit_deploy.families.registry import model_from_spec, spec_at_size, state_at_size
from dovit_deploy.families.stages import DenseNetwork
from dovit_deploy.runtime.session import Session
from tests.bundles import export
from tests.tiny import tiny_pixels

transformers = pytest.importorskip("transformers", reason="the oracle of DINOv3 is transformers")

WIDTH, HEADS, CLASSES = 48, 3, 5
CONFIG = '{"num_attention_heads": 3, "num_heads": 3}'
"""No key shows it. Each reader takes its own name of the two."""


def oracle(*, gated: bool, seed: int = 0):
    """A small model whose every weight is random, LayerScale and biases included."""
    config = transformers.DINOv3ViTConfig(
        hidden_size=WIDTH,
        intermediate_size=72,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_register_tokens=4,
        image_size=64,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
    )
    model = transformers.DINOv3ViTModel(config).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.dim() < 2 else 1.5 * parameter[0].numel() ** -0.5
            parameter.copy_(spread * torch.randn(parameter.shape, generator=draw) + ("norm" in name) * 1.0)
    return model


def stored(model) -> dict[str, torch.Tensor]:
    """The names that `save_pretrained` writes."""
    return {name.removeprefix("model."): tensor.clone() for name, tensor in model.state_dict().items()}


def official(model) -> dict[str, torch.Tensor]:
    """The source's own names; what its masks hide is not zero."""
    ours = stored(model)
    renamed = {"embeddings.cls_token": "cls_token", "embeddings.register_tokens": "storage_tokens"}
    renamed |= {"embeddings.mask_token": "mask_token"}
    state = {renamed[name]: ours[name] for name in renamed}
    for name, tensor in ours.items():
        new = re.sub(r"^layer\.(\d+)\.", r"blocks.\1.", name)
        new = new.replace("embeddings.patch_embeddings.", "patch_embed.proj.").replace("attention.o_proj", "attn.proj")
        new = re.sub(r"layer_scale(\d)\.lambda1", r"ls\1.gamma", new)
        gated = any("gate_proj" in one for one in ours)
        parts = (
            {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"} if gated else {"up_proj": "fc1", "down_proj": "fc2"}
        )
        for part, official_part in parts.items():
            new = new.replace(f"mlp.{part}", f"mlp.{official_part}")
        if "q_proj" not in name and "k_proj" not in name and "v_proj" not in name and name not in renamed:
            state[new] = tensor
    for layer in range(model.config.num_hidden_layers):
        before = f"layer.{layer}.attention"
        qkv = f"blocks.{layer}.attn.qkv"
        hidden = torch.full((WIDTH,), 3.0)
        state[f"{qkv}.weight"] = torch.cat(
            [ours[f"{before}.q_proj.weight"], ours[f"{before}.k_proj.weight"], ours[f"{before}.v_proj.weight"]]
        )
        state[f"{qkv}.bias"] = torch.cat([ours[f"{before}.q_proj.bias"], hidden, ours[f"{before}.v_proj.bias"]])
        state[f"{qkv}.bias_mask"] = torch.cat([torch.ones(WIDTH), torch.zeros(WIDTH), torch.ones(WIDTH)])
    state["rope_embed.periods"] = 1 / model.rope_embeddings.inv_freq
    return state


LAYOUTS = {"official": official, "stored": stored, "in memory": lambda model: dict(model.state_dict())}


def head() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(9)
    return {
        "weight": torch.randn(CLASSES, WIDTH, 1, 1, generator=draw),
        "bias": torch.randn(CLASSES, generator=draw),
    }


@pytest.fixture
def files(tmp_path: Path):
    """Writes a state, the head and the configuration; gives what `checkpoint_from_path` takes."""

    def write(state: dict[str, torch.Tensor], config: str = CONFIG) -> dict[str, Path]:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "backbone.safetensors")
        save_file(head(), tmp_path / "head.safetensors")
        (tmp_path / "config.json").write_text(config)
        return {
            "path": tmp_path / "backbone.safetensors",
            "head": tmp_path / "head.safetensors",
            "config": tmp_path / "config.json",
        }

    return write


def padded(pixels: torch.Tensor) -> torch.Tensor:
    """As the network pads; transformers would cut off what is no whole patch."""
    height, width = pixels.shape[-2:]
    return torch.nn.functional.pad(pixels, (0, -width % 16, 0, -height % 16))


@torch.no_grad()
def logits_of(features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The head on normed patches (N, C)."""
    linear = head()
    return (features @ linear["weight"][:, :, 0, 0].T + linear["bias"]).T.reshape(1, CLASSES, *grid)


@pytest.mark.parametrize("size", [(64, 64), (48, 112), (50, 70)], ids=["square", "wide", "odd"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gated", [False, True], ids=["gelu", "swiglu"])
@torch.no_grad()
def test_the_network_computes_what_transformers_does(files, gated: bool, layout: str, size: tuple[int, int]) -> None:
    model = oracle(gated=gated)
    checkpoint = checkpoint_from_path(**files(LAYOUTS[layout](model)))
    spec = spec_at_size(checkpoint.spec, size)
    assert (spec.rotary, spec.extra_tokens, spec.norm_eps, spec.final_norm) == (True, 5, 1e-5, True)
    network = model_from_spec(spec, state_at_size(checkpoint.state, checkpoint.spec, size))
    pixels = tiny_pixels(size, 1)
    features = model(padded(pixels)).last_hidden_state[0, 5:]
    wanted = logits_of(features, spec.grid)
    torch.testing.assert_close(DenseNetwork(network)(pixels), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_a_folder_of_transformers_needs_no_configuration(files, tmp_path: Path) -> None:
    model = oracle(gated=True)
    model.save_pretrained(tmp_path / "folder")
    checkpoint = checkpoint_from_path(tmp_path / "folder", head=files(stored(model))["head"])
    given = checkpoint_from_path(**files(stored(model)))
    assert checkpoint.spec == given.spec.model_copy(update={"size": (64, 64)})
    for name, tensor in given.state.items():
        if not name.startswith(("rotary.cosines", "rotary.sines")):
            assert torch.equal(checkpoint.state[name], tensor), name


def test_a_backbone_alone_is_read_and_says_its_licence(files) -> None:
    model = oracle(gated=False)
    paths = files(official(model))
    backbone = backbone_from_path(paths["path"], config=paths["config"])
    spec = backbone.spec(classes=3, head=LinearHead())
    assert spec.rotary and spec.family == "dinov3"
    assert set(backbone.state) == {name for name in model_from_spec(spec).state_dict() if not name.startswith("head.")}
    for name in ("rotary.cosines", "rotary.sines"):
        torch.testing.assert_close(backbone.state[name], model_from_spec(spec).state_dict()[name], atol=1e-5, rtol=0)
    assert "DINOv3 License" in backbone.license
    assert checkpoint_from_path(**paths).license == backbone.license


def test_periods_of_the_file_are_used_as_they_are(files) -> None:
    state = official(oracle(gated=False))
    state["rope_embed.periods"] = torch.tensor([0.5, 3.0, 40.0, 7.0])
    checkpoint = checkpoint_from_path(**files(state))
    assert checkpoint.state["rotary.periods"].tolist() == [0.5, 3.0, 40.0, 7.0]
    # The first patch of 14 lies 1 / 14 of the half image from its edge.
    angle = 2 * np.pi * (1 / 14 - 1) / 0.5
    assert float(checkpoint.state["rotary.cosines"][5, 0]) == pytest.approx(np.cos(angle), abs=1e-5)


def test_a_base_of_the_configuration_makes_the_periods(files) -> None:
    state = stored(oracle(gated=False))
    checkpoint = checkpoint_from_path(**files(state, '{"num_attention_heads": 3, "rope_theta": 16.0}'))
    torch.testing.assert_close(checkpoint.state["rotary.periods"], torch.tensor([1.0, 2.0, 4.0, 8.0]))


def test_the_bias_of_keys_is_masked_and_another_mask_is_obeyed(files) -> None:
    state = official(oracle(gated=False))
    checkpoint = checkpoint_from_path(**files(state))
    assert not checkpoint.state["blocks.1.attention.key.bias"].any()
    for name in [name for name in state if name.endswith("bias_mask")]:
        state[name] = torch.ones(3 * WIDTH)
    checkpoint = checkpoint_from_path(**files(state))
    assert checkpoint.state["blocks.1.attention.key.bias"].tolist() == [3.0] * WIDTH


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_embed.periods": None}, "missing: rope_embed.periods"),
        ({"rope_embed.periods": torch.zeros(4)}, "NaN or Inf"),
        ({"rope_embed.periods": torch.ones(5)}, r"rope_embed.periods \[5\] instead of \[4\]"),
        ({"blocks.1.attn.qkv.bias_mask": torch.ones(7)}, "is no mask of blocks.1.attn.qkv.bias"),
        ({"blocks.1.attn.qkv.bias_mask": torch.full((3 * WIDTH,), torch.nan)}, "NaN or Inf: blocks.1.attn.qkv.bias"),
    ],
)
def test_a_damaged_file_is_refused(files, change, message: str) -> None:
    state = {**official(oracle(gated=False)), **change}
    with pytest.raises(CheckpointMismatch, match=message):
        checkpoint_from_path(**files({name: tensor for name, tensor in state.items() if tensor is not None}))


def test_its_own_head_is_folded_and_slides(files, tmp_path: Path) -> None:
    """As its training writes it: the second module of a model whose first is the backbone."""
    model = oracle(gated=False)
    paths = files(official(model))
    draw = torch.Generator().manual_seed(3)
    norm = torch.nn.SyncBatchNorm(WIDTH).eval()
    convolution = torch.nn.Conv2d(WIDTH, CLASSES, 1)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(torch.randn(WIDTH, generator=draw))
        norm.running_var.copy_(torch.rand(WIDTH, generator=draw) + 0.5)
    state = {f"segmentation_model.1.batchnorm_layer.{name}": value for name, value in norm.state_dict().items()}
    state |= {f"segmentation_model.1.conv.{name}": value for name, value in convolution.state_dict().items()}
    torch.save({"model": state, "iteration": 40_000}, tmp_path / "head.pth")
    checkpoint = checkpoint_from_path(**{**paths, "head": tmp_path / "head.pth"})
    assert (checkpoint.slide_size, checkpoint.preprocessing.stride) == ((512, 512), (341, 341))
    size = (48, 64)
    network = model_from_spec(
        spec_at_size(checkpoint.spec, size), state_at_size(checkpoint.state, checkpoint.spec, size)
    )
    pixels = tiny_pixels(size, 1)
    with torch.no_grad():
        features = model(pixels).last_hidden_state[:, 5:].transpose(1, 2).reshape(1, WIDTH, 3, 4)
        # In evaluation a synchronised norm is the plain one, which alone runs on a CPU.
        plain = torch.nn.BatchNorm2d(WIDTH).eval()
        plain.load_state_dict(norm.state_dict())
        wanted = convolution(plain(features))
    torch.testing.assert_close(DenseNetwork(network)(pixels), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_an_unknown_number_of_heads_is_named(files) -> None:
    paths = files(stored(oracle(gated=False)), "{}")
    with pytest.raises(ConfigError, match="num_attention_heads"):
        checkpoint_from_path(**paths)


# Deployed, with gates: what runs on is what transformers' own layers make of those tokens alone.

SIZE = (70, 100)


def gated_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """With two gates, and a class token that takes nothing in, as the oracle's does not."""
    gates = [GateSpec(layer=layer, head=LinearHead()).model_dump() for layer in (1, 2)]
    values = {**checkpoint.spec.model_dump(), "gates": gates, "aggregate_rate": 1.0}
    draw = torch.Generator().manual_seed(4)
    state = dict(checkpoint.state)
    for number in range(2):
        state[f"gates.{number}.head.classifier.weight"] = 0.3 * torch.randn(CLASSES, WIDTH, generator=draw)
        state[f"gates.{number}.head.classifier.bias"] = torch.zeros(CLASSES)
    spec = type(checkpoint.spec).model_validate(values)
    return dataclasses.replace(checkpoint, spec=spec, state=state, thresholds=(0.8, 0.8))


@torch.no_grad()
def oracle_with(model, pixels: torch.Tensor, keep: list[np.ndarray]) -> torch.Tensor:
    """Logits where the patches of `keep` alone enter each layer behind a gate."""
    hidden = model.embeddings(padded(pixels))
    tables = model.rope_embeddings(padded(pixels))
    running = torch.arange(hidden.shape[1] - 5)
    for number, layer in enumerate(model.model.layer):
        if number > 0:
            running = torch.from_numpy(np.flatnonzero(keep[number - 1]))
        index = torch.cat([torch.arange(5), running + 5])
        rows = tuple(table[running] for table in tables)
        hidden[:, index] = layer(hidden[:, index], position_embeddings=rows)
    grid = tuple(-(-side // 16) for side in pixels.shape[-2:])
    return logits_of(model.norm(hidden)[0, 5:], grid)


def test_graphs_compute_what_transformers_layers_make_of_the_kept_tokens(files, tmp_path: Path) -> None:
    model = oracle(gated=True, seed=2)
    checkpoint = gated_checkpoint(checkpoint_from_path(**files(official(model))))
    pixels = tiny_pixels(SIZE, 5)
    bundle = export(checkpoint, tmp_path / "x.dovit", size=SIZE, images=[pixels])[0]
    assert "DINOv3 License" in bundle.manifest.provenance.license
    draw = np.random.default_rng(1).random((2, *bundle.manifest.spec.grid))
    patterns = [[draw[0] < share, (draw[0] < share) & (draw[1] < share)] for share in (1.0, 0.6, 0.2)]
    for backend in (OnnxRuntimeBackend(fast=True), OnnxRuntimeBackend(fast=False)):
        with Session(bundle, backend=backend) as session:
            for keep in patterns:
                wanted = oracle_with(model, pixels, keep).numpy()
                logits, _ = session.run(pixels.numpy(), keep=keep)
                np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
            decided, report = session.run(pixels.numpy())
    wanted = oracle_with(model, pixels, list(report.keep)).numpy()
    assert 5 < report.kept[-1] < report.kept[1] < report.kept[0]
    feed = {"pixels": pixels.numpy(), "thresholds": np.full((2, CLASSES), 0.8, np.float32)}
    merged = onnxruntime.InferenceSession(str(bundle.path / "merged.onnx"))
    logits, kept = merged.run(["logits", "kept"], {**feed, "floor": np.zeros((), np.float32)})
    assert tuple(kept) == report.kept
    for found in (logits, decided):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
