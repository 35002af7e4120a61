"""DINOv2's checkpoints against transformers: names of files and of modules, its own names, every way of positions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file
from torch import Tensor

from dovit_deploy.checkpoints.backbone import Backbone, backbone_from_path
from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.errors import CheckpointMismatch, ConfigError, NetworkUnknown
from dovit_deploy.families.heads import LightUpHead
from dovit_deploy.families.parts import LightHead, LinearHead, Padding, PositionMode
from dovit_deploy.families.registry import model_from_spec, state_at_size
from tests.oracles import vits
from tests.tiny import tiny_pixels

SIZES = [(56, 56), (84, 42), (112, 98)]
"""Whole patches: those of the positions, smaller and larger ones of other proportions."""
CLASSES = 5


def head_state(seed: int = 3) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(CLASSES, vits.WIDTH, generator=draw) / 7,
        "bias": torch.randn(CLASSES, generator=draw),
    }


def patches_of(backbone: Backbone, pixels: Tensor, padding: Padding = "end") -> Tensor:
    """What our network gives for the patches, behind its last norm: (N, C)."""
    spec = backbone.spec(classes=1, head=LinearHead()).model_copy(update={"padding": padding})
    size = (pixels.shape[2], pixels.shape[3])
    state = state_at_size(backbone.state, spec, size)
    head = {"head.head.classifier.weight": torch.zeros(1, spec.width), "head.head.classifier.bias": torch.zeros(1)}
    model = model_from_spec(spec.model_copy(update={"size": size}), {**state, **head})
    tokens = model.embed(pixels)
    for block in model.blocks:
        tokens = block(tokens)
    return model.norm(tokens)[spec.extra_tokens :]


def saved(model: Any, folder: Path, layout: str) -> tuple[Path, str | None]:
    """A file or folder in one of the layouts that are read, and the configuration that it needs."""
    config = folder / "config-of-it.json"
    if layout == "folder":
        model.save_pretrained(folder / "model")
        return folder / "model", None
    if layout == "parts":
        model.save_pretrained(folder / "model", max_shard_size="60KB")
        return folder / "model", None
    if layout == "memory":
        torch.save(model.state_dict(), folder / "dinov2.pth")
        config.write_text(json.dumps({"num_attention_heads": vits.HEADS}))
        return folder / "dinov2.pth", str(config)
    state = {name: tensor.contiguous() for name, tensor in vits.official_names(model.state_dict()).items()}
    save_file(state, folder / "dinov2.safetensors")
    config.write_text(json.dumps({"num_heads": vits.HEADS}))
    return folder / "dinov2.safetensors", str(config)


@pytest.mark.parametrize("layout", ["folder", "parts", "memory", "official"])
@pytest.mark.parametrize(("registers", "gated"), [(0, False), (0, True), (3, False), (4, True)])
def test_every_layout_gives_the_features_of_transformers(
    tmp_path: Path, layout: str, registers: int, gated: bool
) -> None:
    model = vits.dinov2(registers=registers, gated=gated)
    path, config = saved(model, tmp_path, layout)
    backbone = backbone_from_path(path, config=config)
    assert backbone.values["extra_tokens"] == 1 + registers
    for size in SIZES if layout != "official" or registers else SIZES[:1]:
        pixels = tiny_pixels(size, 1)
        torch.testing.assert_close(patches_of(backbone, pixels), vits.dinov2_patches(model, pixels), atol=1e-4, rtol=0)
    assert backbone.license == "backbone: DINOv2 (Meta), Apache-2.0"


def official_positions(positions: Tensor, mode: PositionMode, grid: tuple[int, int]) -> Tensor:
    """As DINOv2's own code resizes them: with a factor that is a tenth of a patch too large, or to the size."""
    side, first, rest = vits.TRAINED, positions[:, :1], positions[:, 1:]
    image = rest.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    kwargs: dict[str, Any] = {"size": grid}
    if mode == "scale":
        kwargs = {"scale_factor": ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)}
    resized = functional.interpolate(image, mode="bicubic", antialias=mode == "antialias", **kwargs)
    assert tuple(resized.shape[2:]) == grid
    return torch.cat([first, resized.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1)], 1)


@pytest.mark.parametrize("mode", ["scale", "size", "antialias"])
@pytest.mark.parametrize("size", [*SIZES[1:], (28, 112)])
def test_every_way_of_resizing_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: PositionMode, size: tuple[int, int]
) -> None:
    model = vits.dinov2()
    path, config = saved(model, tmp_path, "official")
    positions = model.embeddings.position_embeddings
    grid = (size[0] // 14, size[1] // 14)
    resized = official_positions(positions, mode, grid)
    monkeypatch.setattr(model.embeddings, "interpolate_pos_encoding", lambda *_: resized)
    pixels = tiny_pixels(size, 2)
    backbone = backbone_from_path(path, config=config, positions=mode)
    torch.testing.assert_close(patches_of(backbone, pixels), vits.dinov2_patches(model, pixels), atol=1e-4, rtol=0)
    others = {other: official_positions(positions, other, grid) for other in ("scale", "size", "antialias")}
    # Another way gives other features: the test would notice.
    assert all((others[other] - resized).abs().max() > 1e-2 for other in others if other != mode)


def test_the_format_chooses_the_way(tmp_path: Path) -> None:
    for registers, layout, mode in [
        *((0, "official", "scale"), (2, "official", "antialias")),
        *((0, "folder", "size"), (2, "folder", "antialias"), (0, "memory", "size")),
    ]:
        folder = tmp_path / f"{registers}{layout}"
        folder.mkdir()
        path, config = saved(vits.dinov2(registers=registers), folder, layout)
        assert backbone_from_path(path, config=config).values["position_mode"] == mode


@pytest.mark.parametrize("padding", ["end", "centre"])
def test_sizes_that_are_no_whole_patches_are_padded(tmp_path: Path, padding: Padding) -> None:
    model = vits.dinov2()
    path, config = saved(model, tmp_path, "folder")
    pixels = tiny_pixels((61, 90), 4)
    # 61 -> 70 and 90 -> 98 rows and columns.
    before = (4, 4) if padding == "centre" else (0, 0)
    around = (before[1], 8 - before[1], before[0], 9 - before[0])
    wanted = vits.dinov2_patches(model, functional.pad(pixels, around))
    backbone = backbone_from_path(path, config=config)
    torch.testing.assert_close(patches_of(backbone, pixels, padding), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "kind", ["bare", "convolution", "no bias", "bare without bias", "bn", "ours", "named", "one file"]
)
def test_every_head_gives_the_logits_of_its_parts(tmp_path: Path, kind: str) -> None:
    model, head = vits.dinov2(), head_state()
    pixels = tiny_pixels((84, 42), 5)
    patches = vits.dinov2_patches(model, pixels)
    wanted = patches @ head["weight"].T + head["bias"]
    folder, _ = saved(model, tmp_path, "folder")
    kernel = head["weight"][:, :, None, None].contiguous()
    files: dict[str, dict[str, Tensor]] = {
        "bare": head,
        "convolution": {**head, "weight": kernel},
        "no bias": {"conv_seg.weight": kernel},
        "bare without bias": {"weight": head["weight"]},
        "ours": {f"head.head.classifier.{name}": tensor for name, tensor in head.items()},
        "named": {f"classifier.{name}": tensor for name, tensor in head.items()},
    }
    if "bias" in kind:
        wanted = patches @ head["weight"].T
    if kind == "bn":
        draw = torch.Generator().manual_seed(9)
        norm = {name: torch.randn(vits.WIDTH, generator=draw) for name in ("weight", "bias", "running_mean")}
        norm["running_var"] = torch.rand(vits.WIDTH, generator=draw) + 0.1
        wanted = functional.batch_norm(patches, norm["running_mean"], norm["running_var"], norm["weight"], norm["bias"])
        wanted = wanted @ head["weight"].T + head["bias"]
        files["bn"] = {f"decode_head.bn.{name}": tensor for name, tensor in norm.items()}
        files["bn"] |= {"decode_head.bn.num_batches_tracked": torch.tensor(7), "decode_head.conv_seg.weight": kernel}
        files["bn"] |= {"decode_head.conv_seg.bias": head["bias"]}
    if kind == "one file":
        named = {f"dinov2.{name}": tensor for name, tensor in model.state_dict().items()}
        state = {**named, "classifier.weight": kernel, "classifier.bias": head["bias"]}
        save_file(state, tmp_path / "whole.safetensors")
        config = tmp_path / "whole.json"
        config.write_text(json.dumps({"num_attention_heads": vits.HEADS}))
        checkpoint = checkpoint_from_path(tmp_path / "whole.safetensors", config=config)
    else:
        save_file(files[kind], tmp_path / "head.safetensors")
        checkpoint = checkpoint_from_path(folder, head=tmp_path / "head.safetensors")
    assert checkpoint.spec.classes == CLASSES
    state = state_at_size(checkpoint.state, checkpoint.spec, (84, 42))
    model_of = model_from_spec(checkpoint.spec.model_copy(update={"size": (84, 42)}), state)
    logits = model_of.one_image(pixels, dense=True).results[0]
    torch.testing.assert_close(logits[0].flatten(1).T, wanted, atol=1e-4, rtol=0)
    # DINOv2's own heads were trained with padding on all sides.
    assert checkpoint.spec.padding == ("centre" if kind == "bn" else "end")


def test_a_light_head_of_ours_is_taken_as_it_is(tmp_path: Path) -> None:
    path, config = saved(vits.dinov2(), tmp_path, "official")
    head = LightUpHead(LightHead(channels=6), vits.WIDTH, CLASSES)
    state = {f"head.{name}": tensor.detach().clone() for name, tensor in head.state_dict().items()}
    save_file(state, tmp_path / "head.safetensors")
    checkpoint = checkpoint_from_path(path, config=config, head=tmp_path / "head.safetensors")
    assert checkpoint.spec.head == LightHead(channels=6)  # type: ignore[union-attr]
    assert all(torch.equal(checkpoint.state[name], tensor) for name, tensor in state.items())


def test_a_head_of_mmsegmentation_gives_the_logits_of_its_layers(tmp_path: Path) -> None:
    model, draw = vits.dinov2(), torch.Generator().manual_seed(4)
    path, config = saved(model, tmp_path, "memory")
    hidden, final = (torch.randn(*shape, 1, 1, generator=draw) / 4 for shape in ((12, vits.WIDTH), (CLASSES, 12)))
    norm = {name: torch.rand(12, generator=draw) + 0.2 for name in ("weight", "bias", "running_mean", "running_var")}
    bias = torch.randn(CLASSES, generator=draw)
    state = {f"decode_head.convs.0.bn.{name}": tensor for name, tensor in norm.items()}
    state |= {"decode_head.convs.0.conv.weight": hidden, "decode_head.conv_seg.weight": final}
    torch.save({"state_dict": {**state, "decode_head.conv_seg.bias": bias}}, tmp_path / "head.pth")
    checkpoint = checkpoint_from_path(path, config=config, head=tmp_path / "head.pth")
    pixels = tiny_pixels((56, 56), 5)
    image = vits.dinov2_patches(model, pixels).T.reshape(1, vits.WIDTH, 4, 4)
    entries = norm["running_mean"], norm["running_var"], norm["weight"], norm["bias"]
    inner = functional.relu(functional.batch_norm(functional.conv2d(image, hidden), *entries))
    logits = model_from_spec(checkpoint.spec, checkpoint.state).one_image(pixels, dense=True).results[0]
    torch.testing.assert_close(logits, functional.conv2d(inner, final, bias), atol=1e-4, rtol=0)


def in_chunks(state: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Names of a training in shards: so many blocks in a chunk, each with its number in the whole network."""

    def name_of(name: str) -> str:
        first, *parts = name.split(".")
        return name if first != "blocks" else ".".join(("blocks", str(int(parts[0]) // blocks), *parts))

    return {name_of(name): tensor for name, tensor in state.items()}


def test_blocks_in_chunks_are_those_of_the_whole(tmp_path: Path) -> None:
    path, config = saved(vits.dinov2(), tmp_path, "official")
    flat = backbone_from_path(path, config=config)
    names = in_chunks(load_file(path), 2)
    assert "blocks.1.2.norm1.weight" in names
    save_file({f"teacher.backbone.{name}": one for name, one in names.items()}, path)
    chunked = backbone_from_path(path, config=config)
    assert chunked.values == flat.values and chunked.license == flat.license
    assert all(torch.equal(chunked.state[name], tensor) for name, tensor in flat.state.items())
    names["blocks.0.2.norm1.weight"] = names["blocks.1.2.norm1.weight"].clone()
    save_file(names, path)
    with pytest.raises(CheckpointMismatch, match=r"two of its chunks of blocks have blocks\.2\.norm1\.weight"):
        backbone_from_path(path, config=config)


@pytest.mark.parametrize(("registers", "gated"), [(0, False), (0, True), (4, False), (4, True)])
def test_chunks_alone_are_known_to_be_its_own(tmp_path: Path, registers: int, gated: bool) -> None:
    """Without the token that hides patches, as tools leave it out."""
    model = vits.dinov2(registers=registers, gated=gated)
    path, config = saved(model, tmp_path, "official")
    state = load_file(path)
    del state["mask_token"]
    save_file(in_chunks(state, 2), path)
    backbone = backbone_from_path(path, config=config)
    assert backbone.values["mlp"] == ("swiglu" if gated else "gelu")
    assert backbone.values["extra_tokens"] == 1 + registers
    pixels = tiny_pixels((14 * vits.TRAINED,) * 2, 6)
    torch.testing.assert_close(patches_of(backbone, pixels), vits.dinov2_patches(model, pixels), atol=1e-4, rtol=0)


def test_weights_of_other_types_are_widened(tmp_path: Path) -> None:
    model = vits.dinov2().bfloat16()
    path, config = saved(model, tmp_path, "official")
    backbone = backbone_from_path(path, config=config)
    assert {tensor.dtype for tensor in backbone.state.values()} == {torch.float32}
    assert any("bfloat16" in remark for remark in backbone.remarks)
    fine = patches_of(backbone, tiny_pixels((56, 56), 1))
    torch.testing.assert_close(fine, vits.dinov2_patches(model.float(), tiny_pixels((56, 56), 1)), atol=1e-4, rtol=0)


def test_what_a_backbone_lacks_is_named(tmp_path: Path) -> None:
    path, config = saved(vits.dinov2(), tmp_path, "official")
    with pytest.raises(NetworkUnknown, match=r"a backbone without a decode head: DINOv2, width 48, 3 layers") as caught:
        checkpoint_from_path(path, config=config)
    # The path as it was given, so that the line can be run.
    assert f"--head FILE, or train one: dovit train DATASET --init {path}" in str(caught.value)
    with pytest.raises(ConfigError, match=r"cannot be determined.*num_heads"):
        backbone_from_path(path)
    with pytest.raises(ConfigError, match=r"'depth' is 4 in the configuration and 3 in the keys"):
        (tmp_path / "deep.json").write_text(json.dumps({"num_heads": 3, "depth": 4}))
        backbone_from_path(path, config=tmp_path / "deep.json")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda state: state.pop("blocks.1.ls2.gamma"), r"missing: blocks\.1\.ls2\.gamma"),
        (lambda state: state.update({"blocks.1.ls2.gamma": torch.full((48,), float("nan"))}), r"NaN or Inf: .*ls2"),
        (lambda state: state.update({"register_tokens": torch.zeros(1, 3, 47)}), r"register_tokens \[1, 3, 47\]"),
        (lambda state: state.update({"blocks.1.attn.proj.weight": torch.zeros(48, 47)}), r"wrong shape: blocks\.1"),
        (lambda state: state.update({"blocks.1.extra": torch.zeros(3)}), r"unexpected: blocks\.1\.extra"),
    ],
)
def test_damaged_entries_are_listed(tmp_path: Path, damage: Any, words: str) -> None:
    path, config = saved(vits.dinov2(registers=3), tmp_path, "official")
    state = load_file(path)
    damage(state)
    save_file(state, path)
    with pytest.raises(CheckpointMismatch, match=words):
        backbone_from_path(path, config=config)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"weight": torch.zeros(5, 64), "bias": torch.zeros(5)}, r"tokens of width 64, the backbone has 48"),
        ({"weight": torch.zeros(5, 192), "bias": torch.zeros(5)}, r"4 times as wide: it reads several layers"),
        ({"weight": torch.zeros(5, 48, 3, 3), "bias": torch.zeros(5)}, r"a convolution of 3x3"),
        (
            {"a.weight": torch.zeros(5, 48), "b.weight": torch.zeros(5, 48)},
            r"the head is none that is read.*a\.weight, b",
        ),
        ({"weight": torch.zeros(5, 48), "bias": torch.full((5,), float("inf"))}, r"NaN or Inf: bias"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(tmp_path: Path, state: dict[str, Tensor], words: str) -> None:
    path, config = saved(vits.dinov2(), tmp_path, "official")
    save_file(state, tmp_path / "head.safetensors")
    with pytest.raises(CheckpointMismatch, match=words):
        checkpoint_from_path(path, config=config, head=tmp_path / "head.safetensors")


def test_a_whole_network_is_no_head(tmp_path: Path) -> None:
    path, config = saved(vits.dinov2(), tmp_path, "official")
    with pytest.raises(CheckpointMismatch, match=r"is a whole network or a backbone, not a head"):
        checkpoint_from_path(path, config=config, head=path)


def test_classes_of_another_number_are_refused_with_both(tmp_path: Path) -> None:
    path, config = saved(vits.dinov2(), tmp_path, "official")
    save_file(head_state(), tmp_path / "head.safetensors")
    (tmp_path / "names.txt").write_text("road\nsky\n")
    with pytest.raises(Exception, match=r"2 .*5|5 .*2"):
        checkpoint_from_path(
            path, config=config, head=tmp_path / "head.safetensors", classes=str(tmp_path / "names.txt")
        )
