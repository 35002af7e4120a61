"""`config.pbtxt` as Triton's own definition of it reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dovit_deploy.triton.config import merged_config, staged_config
from tests.triton.conftest import plan_of


def parsed(text: str) -> Any:
    """The text as the message that a server makes of it; unknown fields are errors."""
    pytest.importorskip("tritonclient.grpc", reason="Triton's definitions come with tritonclient[grpc]")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def shapes(tensors: Any) -> dict[str, tuple[str, list[int]]]:
    from tritonclient.grpc import model_config_pb2

    names = model_config_pb2.DataType.Name
    return {tensor.name: (names(tensor.data_type), list(tensor.dims)) for tensor in tensors}


def test_the_staged_model(tiny_bundle_path: Path) -> None:
    config = parsed(staged_config(plan_of(tiny_bundle_path, max_batch=4)))
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "python", 4)
    assert shapes(config.input) == {
        "pixels": ("TYPE_FP32", [3, 56, 72]),
        "thresholds": ("TYPE_FP32", [-1]),
        "floor": ("TYPE_FP32", [1]),
    }
    assert [tensor.optional for tensor in config.input] == [False, True, True]
    assert shapes(config.output) == {
        "logits": ("TYPE_FP32", [5, 4, 5]),
        "kept": ("TYPE_INT64", [3]),
        **{name: ("TYPE_FP64", [1]) for name in ("gmacs_dense", "gmacs_actual", "milliseconds")},
    }
    policy = config.dynamic_batching.default_queue_policy
    assert policy.max_queue_size == 32
    assert policy.timeout_action == policy.REJECT
    assert policy.allow_timeout_override
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, group.KIND_CPU)
    (warmup,) = config.model_warmup
    assert list(warmup.inputs["pixels"].dims) == [3, 56, 72]
    assert config.version_policy.HasField("all")


def test_models_without_gates_take_no_limits_and_gpus_are_named(
    dense_bundle_path: Path, classifier_bundle_path: Path
) -> None:
    config = parsed(staged_config(plan_of(dense_bundle_path, engine="cuda")))
    assert list(shapes(config.input)) == ["pixels"]
    assert shapes(config.output)["kept"] == ("TYPE_INT64", [1])
    (group,) = config.instance_group
    assert (group.kind, list(group.gpus)) == (group.KIND_GPU, [0])
    classifier = parsed(staged_config(plan_of(classifier_bundle_path)))
    assert shapes(classifier.output)["logits"] == ("TYPE_FP32", [5])
    assert "thresholds" not in merged_config(plan_of(dense_bundle_path), file="merged.onnx")


def test_the_merged_model(tiny_bundle_path: Path) -> None:
    config = parsed(merged_config(plan_of(tiny_bundle_path), file="merged.onnx"))
    assert (config.name, config.backend, config.max_batch_size) == ("tiny-merged", "onnxruntime", 0)
    assert config.default_model_filename == "merged.onnx"
    assert shapes(config.input) == {
        "pixels": ("TYPE_FP32", [1, 3, 56, 72]),
        "thresholds": ("TYPE_FP32", [2, 5]),
        "floor": ("TYPE_FP32", [1]),
    }
    # A scalar, for which Triton has no shape of its own.
    assert config.input[2].HasField("reshape")
    assert list(config.input[2].reshape.shape) == []
    assert shapes(config.output) == {"logits": ("TYPE_FP32", [1, 5, 4, 5]), "kept": ("TYPE_INT64", [3])}
