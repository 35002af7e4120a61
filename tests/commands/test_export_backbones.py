"""`dovit export --backbone A --head B` on what does not fit: one or two lines, and nothing written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dovit_deploy.checkpoints.backbone import backbone_from_path
from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.cli import _application, _run
from dovit_deploy.errors import CheckpointMismatch, InputError, NetworkUnknown, UsageError
from tests.families.official_state import random_state
from tests.families.vit import official

Call = Callable[..., tuple[int, str]]
HEAD = {"weight": torch.zeros(5, 64), "bias": torch.zeros(5)}
CONFIG = {"num_heads": 1}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Runs `dovit export` in this process; gives its exit code and what it says."""

    def run(*words: object) -> tuple[int, str]:
        target = tmp_path / "made.dovit"
        code = _run(_application(), ["export", *map(str, words), "-o", str(target)])
        assert not target.exists()
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A DINOv2 under its own names, with `config.json` for what they do not show."""
    state = random_state(official.dinov2_map(), official.dinov2_spec())
    path = tmp_path / "dinov2.safetensors"
    save_file({name: tensor for name, tensor in state.items() if not name.startswith("head.")}, path)
    (tmp_path / "settings.json").write_text(json.dumps(CONFIG))
    return path


def test_two_files_must_be_given_or_one(call: Call, backbone: Path, tmp_path: Path) -> None:
    head = tmp_path / "head.safetensors"
    save_file(HEAD, head)
    for words, said in [
        ((), "no checkpoint given; give CHECKPOINT, or --backbone FILE with --head FILE"),
        (("--head", head), "no checkpoint given"),
        (("--backbone", backbone), "needs --head FILE; a file with both is given as CHECKPOINT"),
        ((backbone, "--backbone", backbone, "--head", head), "are both given; give one of them"),
        (("--backbone", backbone, "--head", head, "--positions", "cubic"), "allowed: scale, size, antialias"),
    ]:
        code, text = call(*words)
        assert code == 2
        assert said in text


def test_what_does_not_fit_is_said_with_numbers(call: Call, backbone: Path, tmp_path: Path) -> None:
    head, settings = tmp_path / "head.safetensors", tmp_path / "settings.json"
    (tmp_path / "two.txt").write_text("road\nsky\n")
    given = ("--backbone", backbone, "--config", settings, "--head", head)
    for state, words, code, said in [
        ({**HEAD, "weight": torch.zeros(5, 48)}, (), 6, r"tokens of width 48, the backbone has 64"),
        (HEAD, ("--classes", tmp_path / "two.txt"), 3, r"--classes names 2 classes; the network has 5"),
        (HEAD, ("--size", "8x8"), 2, r"at least 16 pixels"),
        (HEAD, ("--threshold", "0.9"), 2, r"a network without gates takes no thresholds; leave --threshold out"),
        # The backbone's last norm has this name.
        (
            {**HEAD, "norm.weight": torch.ones(64)},
            (),
            6,
            r"entries that are the backbone's by their names: norm\.weight",
        ),
        (
            {"0.weight": torch.zeros(64, 64), "2.weight": torch.zeros(5, 64)},
            (),
            6,
            r"the head is none that is read; its entries",
        ),
    ]:
        save_file(state, head)
        found, text = call(*given, *words)
        assert found == code
        assert re.search(said, text)
    found, text = call(*given[:4], "--head", tmp_path / "nowhere.pth")
    assert found == 3 and "no checkpoint at" in text
    found, text = call(*given[:4], "--head", tmp_path)
    assert found == 3 and "is a folder; give the file" in text
    found, text = call(backbone, "--config", settings)
    assert found == 6 and "without a decode head" in text and "dovit train DATASET --init" in text


def test_a_backbone_alone_is_inspected_all_the_same(backbone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(_application(), ["inspect", str(backbone)]) == 0
    shown = capsys.readouterr().out
    assert "blocks.0.norm1.weight" in shown
    assert "num_heads" in shown


def test_a_backbone_that_lacks_nothing_but_a_head_is_trained_next(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (folder, folder / "model.safetensors.index.json"):
        assert _run(_application(), ["inspect", str(path)]) == 0
        assert f"next: dovit train DATASET --init {path}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("SegFormer", "segformer.encoder.block.0.0.attention.self.query.weight"),
        ("SegFormer", "backbone.layers.0.1.0.attn.sr.weight"),
        ("Mask2Former", "model.pixel_level_module.encoder.x.weight"),
        ("Mask2Former", "sem_seg_head.pixel_decoder.input_proj.0.0.weight"),
        ("Swin with UPerNet", "backbone.stages.0.blocks.0.attn.w_msa.qkv.weight"),
        ("ViTDet", "backbone.net.blocks.0.attn.qkv.weight"),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path: Path, name: str, entry: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({entry: torch.zeros(3), "backbone.layers.0.1.x.weight": torch.zeros(3)}, path)
    for read in (checkpoint_from_path, backbone_from_path):
        with pytest.raises(NetworkUnknown, match=rf"is a {name}, which is not read(.|\n)*Supported: .*DINOv2"):
            read(path)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (("backbone.swin.encoder.layers.0.blocks.0.mlp.fc1.weight",), r"is a Swin with UPerNet"),
        (("embeddings.projection.weight", "encoder.layer.0.attention.qkv.weight"), r"is a ViTDet"),
        (
            ("model.queries.weight", "model.upscale.0.conv1.weight"),
            r"is an EoMT of LightlyTrain, whose weights do not say which layers(.|\n)*Supported: .*EoMT",
        ),
        # A plain one, in memory: layers called as EoMT on DINOv3 calls them.
        (("embeddings.cls_token", "layers.0.attention.o_proj.weight"), r"of no supported family"),
    ],
)
def test_names_that_transformers_has_in_memory_are_refused(
    tmp_path: Path, entries: tuple[str, ...], words: str
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({entry: torch.zeros(3) for entry in entries}, path)
    with pytest.raises(NetworkUnknown, match=words):
        checkpoint_from_path(path)


@pytest.mark.parametrize("head", ["head", "decoder"])
def test_a_backbone_called_encoder_is_not_taken_for_segmenter(backbone: Path, tmp_path: Path, head: str) -> None:
    state = {f"encoder.{name}": tensor for name, tensor in load_file(backbone).items()}
    state |= {f"{head}.weight": torch.zeros(5, 64, 1, 1), f"{head}.bias": torch.zeros(5)}
    save_file(state, tmp_path / "whole.safetensors")
    assert (
        checkpoint_from_path(tmp_path / "whole.safetensors", config=tmp_path / "settings.json").spec.family == "dinov2"
    )


# Folders of transformers, in parts.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A DINOv2 of transformers in two parts."""
    state = random_state(official.dinov2_transformers_map(), official.dinov2_spec())
    state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    names, path = sorted(state), tmp_path / "model"
    path.mkdir()
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, path / file)
    places = {name: file for file, part in parts.items() for name in part}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (path / "config.json").write_text(json.dumps({"model_type": "dinov2", "num_attention_heads": 1}))
    return path


def test_parts_are_read_as_one(folder: Path) -> None:
    whole = backbone_from_path(folder)
    assert whole.values["depth"] == 2
    # The list of the parts stands for the folder, too.
    assert backbone_from_path(folder / "model.safetensors.index.json").source_sha256 == whole.source_sha256


def test_a_folder_brings_class_names_and_normalisation(folder: Path, tmp_path: Path) -> None:
    save_file(HEAD, tmp_path / "head.safetensors")
    config = json.loads((folder / "config.json").read_text())
    names = {str(number): name for number, name in enumerate(("road", "sky", "car", "tree", "sign"))}
    (folder / "config.json").write_text(json.dumps({**config, "id2label": names}))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.485, 0, 0.5], "image_std": [0.5] * 3})
    )
    checkpoint = checkpoint_from_path(folder, head=tmp_path / "head.safetensors")
    assert [entry.name for entry in checkpoint.classes] == list(names.values())
    assert checkpoint.preprocessing.mean == (123.675, 0.0, 127.5)
    assert not checkpoint.preprocessing.assumed
    # Names of the folder's own classifier, and the placeholders of transformers.
    for others in ({"0": "cat", "1": "dog"}, {"0": "LABEL_0", "1": "LABEL_1"}):
        (folder / "config.json").write_text(json.dumps({**config, "id2label": others}))
        found = checkpoint_from_path(folder, head=tmp_path / "head.safetensors").classes
        assert [entry.name for entry in found] == [f"class_{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("license:\n- mit\n- cc-by-nc-4.0\ntags: [a]", "; model card: mit, cc-by-nc-4.0"),
        ("license: other\nlicense_name: 'own'\nlicense_link:\ntags: [a]", "; model card: own"),
        ("license:\ntags: [a]", ""),
    ],
)
def test_a_model_card_says_the_licences(folder: Path, head: str, said: str) -> None:
    (folder / "README.md").write_text(f"---\n{head}\n---\n# a\n")
    assert backbone_from_path(folder).license == f"backbone: DINOv2 (Meta), Apache-2.0{said}"


def test_a_folder_of_a_backbone_alone_is_inspected(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (folder, folder / "model.safetensors.index.json"):
        assert _run(_application(), ["inspect", str(path)]) == 0
        assert "backbone without a decode head" in capsys.readouterr().out
    # Parts alone: the number of attention heads is in no key.
    (folder / "config.json").unlink()
    assert _run(_application(), ["inspect", str(folder)]) == 0
    assert "num_attention_heads" in capsys.readouterr().out


def test_a_part_that_is_not_there_or_another_is_said(folder: Path) -> None:
    part = folder / "model-00002-of-00002.safetensors"
    save_file({"embeddings.cls_token": torch.zeros(1, 1, 64), "odd": torch.zeros(1)}, part)
    with pytest.raises(CheckpointMismatch, match=r"is not the part that model\S+ lists; not in it"):
        backbone_from_path(folder)
    part.unlink()
    with pytest.raises(InputError, match=r"1 of 2 parts are not beside it: model-00002"):
        backbone_from_path(folder)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{}", "has no 'weight_map'"),
        ('{"weight_map": {"a": "../outside.safetensors"}}', "is no name of a file beside it"),
        ('{"weight_map": {"a": 5}}', "is no name of a file beside it"),
        ("[1]", "an object with names is needed"),
        ("{", "cannot be read"),
    ],
)
def test_an_index_that_is_none_is_refused(folder: Path, index: str, words: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=words):
        checkpoint_from_path(folder)


def test_a_folder_without_weights_is_called_that(folder: Path, call: Call) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    code, text = call(folder)
    assert code == 3
    assert "a transformers model (dinov2) without weights" in text
    assert "model.safetensors, pytorch_model.bin" in text


def test_a_folder_of_ours_takes_no_head(tiny_bundle_path: Path, tmp_path: Path) -> None:
    save_file(HEAD, tmp_path / "head.safetensors")
    with pytest.raises(UsageError, match=r"has a head; leave --head out"):
        checkpoint_from_path(tiny_bundle_path, head=tmp_path / "head.safetensors")
    assert checkpoint_from_path(tiny_bundle_path, positions="size").spec.position_mode == "size"  # type: ignore[union-attr]
