"""--config: where settings are looked up, what is refused, what contradicts the keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dovit_deploy.bundle.manifest import ClassEntry
from dovit_deploy.bundle.palette import generated_palette
from dovit_deploy.checkpoints.checkpoint import Checkpoint, checkpoint_from_path
from dovit_deploy.checkpoints.configuration import Configuration, configuration_from_file, merged, settings_from_text
from dovit_deploy.errors import ConfigError, InputError, UsageError
from tests.families.vit import official

DOVIT, SETR_PUP, SEGMENTER = official.DOVIT, official.SETR_PUP, official.SEGMENTER


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    states = {
        "dovit": official.dovit_state(),
        "setr": official.setr_state(),
        "segmenter": official.segmenter_state(),
    }
    for name, state in states.items():
        save_file(state, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in states}


def understood(path: Path, tmp_path: Path, contents: object, **flags: Any) -> Checkpoint:
    config = tmp_path / "given.json"
    config.write_text(json.dumps(contents))
    return checkpoint_from_path(path, config=config, **flags)


@pytest.mark.parametrize("container", ["config", "model", None])
def test_model_dicts_are_found(weights: dict[str, Path], tmp_path: Path, container: str | None) -> None:
    around = {"name": "x", "seed": 3, "state_dict": {"a": [1]}, "optimizer": {"lr": 1}}
    contents = {**around, **DOVIT} if container is None else {**around, container: DOVIT}
    assert understood(weights["dovit"], tmp_path, contents).spec == official.dovit_spec()


@pytest.mark.parametrize("container", ["kwargs", "model_kwargs", "net_kwargs", None])
def test_constructor_arguments_are_found(weights: dict[str, Path], tmp_path: Path, container: str | None) -> None:
    contents = {"family": "x", **SEGMENTER} if container is None else {"family": "x", container: SEGMENTER}
    assert understood(weights["segmenter"], tmp_path, contents).spec == official.segmenter_spec()


def test_inner_settings_come_first(weights: dict[str, Path], tmp_path: Path) -> None:
    outer = official.changed(DOVIT, "backbone.exit_conf", 0.1)
    assert understood(weights["dovit"], tmp_path, {**outer, "config": DOVIT}).thresholds == (0.9, 0.9)
    nested = {"config": {"model": DOVIT, "unknown_here": 1, "img_norm_cfg": {"mean": [1, 2, 3], "std": [4, 5, 6]}}}
    checkpoint = understood(weights["dovit"], tmp_path, nested)
    assert checkpoint.preprocessing.mean == (1.0, 2.0, 3.0) and not checkpoint.preprocessing.assumed


def test_what_the_inner_lacks_is_taken_from_the_top(weights: dict[str, Path], tmp_path: Path) -> None:
    inner = official.changed(DOVIT, "decode_head", ...)
    contents = {"model": inner, "decode_head": official.MASK, "test_cfg": None}
    assert understood(weights["dovit"], tmp_path, contents).spec == official.dovit_spec()


@pytest.mark.parametrize(
    "key",
    ["typo", "backbone.typo", "decode_head.typo", "auxiliary_head.1.typo", "backbone.norm_cfg.typo", "test_cfg.typo"],
)
def test_unknown_names_inside_are_errors(weights: dict[str, Path], tmp_path: Path, key: str) -> None:
    contents = {"config": official.changed(DOVIT, key, 1)}
    with pytest.raises(ConfigError, match="typo"):
        understood(weights["dovit"], tmp_path, contents)


def test_unknown_names_in_segmenters_arguments_are_errors(weights: dict[str, Path], tmp_path: Path) -> None:
    for key in ("typo", "decoder.typo"):
        arguments = {**SEGMENTER, "decoder": {"name": "mask_transformer"}}
        with pytest.raises(ConfigError, match="typo"):
            understood(weights["segmenter"], tmp_path, {"net_kwargs": official.changed(arguments, key, 1)})


@pytest.mark.parametrize(
    "key",
    [
        *("pretrained", "train_cfg", "init_cfg", "loss_weights", "backbone.drop_path_rate", "backbone.with_cp"),
        *("backbone.pretrained", "backbone.detach_aux", "decode_head.loss_decode", "decode_head.dropout_ratio"),
        *("auxiliary_head.0.sampler", "decode_head.ignore_index"),
    ],
)
def test_training_only_names_are_ignored(weights: dict[str, Path], tmp_path: Path, key: str) -> None:
    contents = {"config": official.changed(DOVIT, key, {"type": "anything"})}
    assert understood(weights["dovit"], tmp_path, contents).spec == official.dovit_spec()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone.embed_dims", 24),
        ("backbone.num_layers", 5),
        ("backbone.num_layers", 3),
        ("backbone.img_size", [48, 48]),
        ("backbone.patch_size", 8),
        ("backbone.mlp_ratio", 3),
        ("backbone.final_norm", False),
        ("backbone.qkv_bias", False),
        ("backbone.out_indices", [1, 3]),
        ("backbone.type", "VisionTransformer"),
        ("decode_head.num_classes", 6),
        ("decode_head.type", "SETRUPHead"),
        ("decode_head.num_layers", 3),
        ("decode_head.embed_dims", 24),
        ("decode_head.in_channels", 24),
        ("auxiliary_head.0.channels", 9),
        ("auxiliary_head.1.num_classes", 6),
        ("auxiliary_head.1.num_convs", 2),
    ],
)
def test_contradictions_with_the_keys_are_errors(
    weights: dict[str, Path], tmp_path: Path, key: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=key.split(".")[-1]):
        understood(weights["dovit"], tmp_path, {"config": official.changed(DOVIT, key, value)})


@pytest.mark.parametrize(
    ("key", "value"),
    [("d_model", 32), ("n_layers", 3), ("n_cls", 6), ("image_size", 48), ("distilled", True), ("decoder", "linear")],
)
def test_segmenter_contradictions(weights: dict[str, Path], tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match="image_size" if key == "distilled" else key):
        understood(weights["segmenter"], tmp_path, {"kwargs": {**SEGMENTER, key: value}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone.patch_norm", True),
        ("backbone.output_cls_token", True),
        ("backbone.with_cls_token", False),
        ("backbone.interpolate_mode", "nearest"),
        ("backbone.type", "SwinTransformer"),
        ("backbone.norm_cfg", {"type": "BN"}),
        ("backbone.act_cfg", {"type": "ReLU"}),
        ("backbone.num_heads", 3),
        ("backbone.num_heads", "two"),
        ("backbone.num_heads", 0),
        ("backbone.num_heads", True),
        ("backbone.exit_conf", 1.5),
        ("backbone.exit_conf", [0.5, 0.5, 0.5]),
        ("backbone.exit_conf", "high"),
        ("backbone.out_indices", [2, 1, 3]),
        ("backbone.out_indices", [0, 1, 3]),
        ("backbone.out_indices", [1, 2, 9]),
        ("backbone", 3),
        ("decode_head.type", "UPerHead"),
        ("decode_head.align_corners", True),
        ("decode_head.input_transform", "multiple_select"),
        ("decode_head.in_index", 7),
        ("decode_head.num_heads", 3),
        ("decode_head", [{}, {}]),
        ("auxiliary_head.0.concat_input", True),
        ("auxiliary_head.0.norm_cfg", {"type": "GN"}),
        ("auxiliary_head.0.dilation", 2),
        ("auxiliary_head.0.dilation", True),
        ("backbone.patch_norm", 0),
        ("auxiliary_head", [{}]),
        ("neck", {"type": "FPN"}),
        ("test_cfg", {"mode": "slide"}),
        ("test_cfg", {"mode": "tiles"}),
        ("data_preprocessor", {"mean": [1, 2], "std": [1, 2, 3]}),
        ("data_preprocessor", {"mean": [1, 2, 3], "std": [1, 2, 0]}),
        ("img_norm_cfg", {"mean": [1, 2, 3], "std": [1, 2, 3], "to_rgb": False}),
        ("classes", ["one", "two"]),
        ("palette", [[0, 0, 999]] * 5),
    ],
)
def test_unsupported_values_are_named(weights: dict[str, Path], tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        understood(weights["dovit"], tmp_path, {"config": official.changed(DOVIT, key, value)})
    assert len(str(error.value).splitlines()) <= 2


def test_a_gate_whose_keys_show_a_mask_head_is_refused(tmp_path: Path) -> None:
    """Nothing states its class, so the message has nothing to quote."""
    state = official.dovit_state() | {"backbone.auxiliary_head.0.cls_emb": torch.zeros(1, 5, 16)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"'auxiliary_head\.0\.type' is None; a gate needs an FCNHead"):
        understood(tmp_path / "w.safetensors", tmp_path, official.changed(DOVIT, "auxiliary_head", ...))


@pytest.mark.parametrize(
    "key",
    [
        "backbone.num_heads",
        "backbone.interpolate_mode",
        "backbone.out_indices",
        "backbone.exit_conf",
        "decode_head.num_heads",
    ],
)
def test_values_that_stay_unknown_are_named(weights: dict[str, Path], tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")) as error:
        understood(weights["dovit"], tmp_path, {"config": official.changed(DOVIT, key, ...)})
    assert "--config" in str(error.value)


def test_the_scale_of_a_setr_head_must_be_stated(weights: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"decode_head\.up_scale"):
        understood(weights["setr"], tmp_path, official.changed(SETR_PUP, "decode_head.up_scale", ...))


def test_what_the_keys_show_need_not_be_stated(weights: dict[str, Path], tmp_path: Path) -> None:
    contents = DOVIT
    for key in (
        *("backbone.embed_dims", "backbone.num_layers", "backbone.patch_size", "backbone.mlp_ratio", "backbone.type"),
        *("backbone.final_norm", "backbone.with_cls_token", "backbone.agg_rate", "decode_head.type", "test_cfg"),
        *("decode_head.num_classes", "decode_head.embed_dims", "decode_head.num_layers", "auxiliary_head"),
    ):
        contents = official.changed(contents, key, ...)
    assert understood(weights["dovit"], tmp_path, contents).spec == official.dovit_spec()


def test_a_square_grid_shows_the_training_size(weights: dict[str, Path], tmp_path: Path) -> None:
    spec = understood(weights["setr"], tmp_path, official.changed(SETR_PUP, "backbone.img_size", ...)).spec
    assert spec == official.setr_spec()
    with pytest.raises(ConfigError, match=r"backbone\.img_size"):
        understood(weights["dovit"], tmp_path, official.changed(DOVIT, "backbone.img_size", ...))


@pytest.mark.parametrize(
    ("norm", "eps"), [({"type": "LN", "eps": 1e-6}, 1e-6), ({"type": "LN", "requires_grad": True}, 1e-5), (..., 1e-5)]
)
def test_a_bare_layer_norm_means_torchs_epsilon(
    weights: dict[str, Path], tmp_path: Path, norm: object, eps: float
) -> None:
    contents = official.changed(DOVIT, "backbone.norm_cfg", norm)
    assert understood(weights["dovit"], tmp_path, contents).spec.norm_eps == eps


@pytest.mark.parametrize(("value", "floor"), [(-1, 0.0), (0.0, 0.0), (0.02, 0.02), (..., 0.0)])
def test_the_floor(weights: dict[str, Path], tmp_path: Path, value: object, floor: float) -> None:
    contents = official.changed(DOVIT, "backbone.diff_conf", value)
    assert understood(weights["dovit"], tmp_path, contents).floor == floor


def test_mean_std_and_classes_from_every_source(weights: dict[str, Path], tmp_path: Path) -> None:
    norm = {"mean": [10.0, 20.0, 30.0], "std": [1.0, 2.0, 3.0]}
    contents = {**DOVIT, "data_preprocessor": {"type": "SegDataPreProcessor", "bgr_to_rgb": True, **norm}}
    contents |= {"classes": list("abcde"), "palette": [[1, 1, 1]] * 5}
    checkpoint = understood(weights["dovit"], tmp_path, contents)
    assert checkpoint.preprocessing.mean == (10.0, 20.0, 30.0) and not checkpoint.preprocessing.assumed
    assert checkpoint.classes[4] == ClassEntry(name="e", color=(1, 1, 1))
    names = tmp_path / "names.txt"
    names.write_text("\n".join("vwxyz") + "\n\n")
    flags: dict[str, Any] = {"mean": (0, 0, 0), "std": (1, 1, 1), "classes": names}
    checkpoint = understood(weights["dovit"], tmp_path, contents, **flags)
    assert checkpoint.preprocessing.std == (1.0, 1.0, 1.0)
    assert [entry.name for entry in checkpoint.classes] == list("vwxyz")
    assert checkpoint.classes[0].color == generated_palette(5)[0]


def test_flags_that_do_not_fit(weights: dict[str, Path], tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [{"mean": (1, 2, 3)}, {"std": (1, 2, 3)}, {"mean": (1, 2), "std": (1, 2, 3)}]
    bad += [{"mean": (1, 2, 3), "std": (1, -2, 3)}, {"mean": (float("nan"), 2, 3), "std": (1, 2, 3)}]
    for flags in bad:
        with pytest.raises(UsageError):
            understood(weights["dovit"], tmp_path, DOVIT, **flags)
    alone = (ClassEntry(name="a", color=(0, 0, 0)),)
    with pytest.raises(InputError, match="--classes names 1 class; the network has 5"):
        understood(weights["dovit"], tmp_path, DOVIT, classes=alone)


@pytest.mark.parametrize("normalization", ["deit", "vit", "other"])
def test_segmenters_normalization(weights: dict[str, Path], tmp_path: Path, normalization: str) -> None:
    contents = {"net_kwargs": SEGMENTER, "dataset_kwargs": {"normalization": normalization, "anything": 1}}
    if normalization == "other":
        with pytest.raises(ConfigError, match="normalization"):
            understood(weights["segmenter"], tmp_path, contents)
        return
    preprocessing = understood(weights["segmenter"], tmp_path, contents).preprocessing
    assert preprocessing.std[0] == {"deit": 58.395, "vit": 127.5}[normalization]
    assert not preprocessing.assumed


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.json", "{", ConfigError),
        ("a.json", "[1]", ConfigError),
        ("a.yml", "a: [", ConfigError),
        ("a.yml", "just text", ConfigError),
        ("a.py", "model = dict(", ConfigError),
    ],
)
def test_unreadable_configurations(tmp_path: Path, name: str, text: str, kind: type[Exception]) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(kind, match=name):
        configuration_from_file(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=name):
        configuration_from_file(tmp_path / name)


def test_yaml_cannot_construct_objects(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    (tmp_path / "variant.yml").write_text(f"net_kwargs: !!python/object/apply:os.mkdir ['{target}']\n")
    with pytest.raises(ConfigError):
        configuration_from_file(tmp_path / "variant.yml")
    assert not target.exists()


def test_configuration_text_is_read_as_data() -> None:
    text = """
# a comment
norm_cfg = dict(type='SyncBN', requires_grad=True)
size = (512, 512)
model = dict(backbone=dict(img_size=size, exit_conf=(.96, -1), norm_cfg=norm_cfg), heads=[{'a': None}])
computed = len('abc')
size = open('x')
"""
    values = settings_from_text(text, "test")
    expected = {
        "img_size": (512, 512),
        "exit_conf": (0.96, -1),
        "norm_cfg": {"type": "SyncBN", "requires_grad": True},
    }
    assert values["model"] == {"backbone": expected, "heads": [{"a": None}]}
    assert "computed" not in values and "size" not in values


@pytest.mark.parametrize(
    "value",
    [
        "__import__('os').mkdir('x')",
        "dict([('a', 1)])",
        "dict(**other)",
        "[x for x in (1, 2)]",
        "(lambda: 1)()",
        "f'{1}'",
        "undefined",
        "{1: 2}",
        "-'a'",
        "a.b",
        "1 if True else 2",
    ],
)
def test_expressions_in_model_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="line 1"):
        settings_from_text(f"model = {value}", "test")


def test_deep_nesting_ends_in_an_error() -> None:
    for text in ("model = " + "[" * 5000 + "]" * 5000, "model = " + "-" * 20000 + "1", "\0"):
        with pytest.raises(ConfigError):
            settings_from_text(text, "test")


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("a é'\"\\\n{", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.dictionaries(st.text("abcxyz", min_size=1, max_size=5), JSON_VALUES, max_size=4))
def test_any_data_survives_the_text(values: dict[str, Any]) -> None:
    assert settings_from_text(f"model = {values!r}", "test")["model"] == values


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.sampled_from(sorted(DOVIT["backbone"])), JSON_VALUES)
def test_no_value_makes_anything_but_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: object
) -> None:
    folder = tmp_path_factory.mktemp("any")
    save_file(official.dovit_state(), folder / "w.safetensors")
    try:
        understood(folder / "w.safetensors", folder, official.changed(DOVIT, f"backbone.{name}", value))
    except ConfigError as error:
        assert str(error)


def test_merging_keeps_sections_of_one_type_together() -> None:
    below = {"a": {"type": "x", "p": 1, "q": 2}, "b": [1, 2], "c": 3}
    assert merged(below, {"a": {"p": 5}, "b": [9]}) == {"a": {"type": "x", "p": 5, "q": 2}, "b": [9], "c": 3}
    assert merged(below, {"a": {"type": "y", "r": 1}})["a"] == {"type": "y", "r": 1}


def test_containers_in_order() -> None:
    configuration = Configuration({"model": {"a": 1}, "kwargs": {"a": 2, "b": 2}, "b": 3, "c": 4, "zzz": 5}, "test")
    assert configuration.settings(frozenset("abc")) == {"a": 1, "b": 2, "c": 4}


def test_scopes_of_types_are_left_out() -> None:
    written = {
        "type": "mmseg.EncoderDecoder",
        "backbone": {"type": "mmseg.DoViT", "_scope_": "mmseg", "norm_cfg": {"type": "mmengine.LN"}},
        "auxiliary_head": [{"type": "mmseg.models.FCNHead"}],
    }
    known = frozenset({"type", "backbone", "auxiliary_head"})
    assert Configuration(written, "x.json").settings(known) == {
        "type": "EncoderDecoder",
        "backbone": {"type": "DoViT", "norm_cfg": {"type": "LN"}},
        "auxiliary_head": [{"type": "FCNHead"}],
    }


def test_sections_without_end() -> None:
    deep: object = 1
    for _ in range(400):
        deep = [deep]
    with pytest.raises(ConfigError, match="more than 50"):
        Configuration({"backbone": deep}, "x.json").settings(frozenset({"backbone"}))
