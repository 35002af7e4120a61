"""Where fuzzing begins: small inputs of every reader, made in code."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from dovit_deploy.bundle.manifest import FileEntry, GateDefaults, Manifest, Provenance, TokenCount
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.bundles import naming_checkpoint, tiny_checkpoint
from tests.families.vit import official
from tests.sources.clips import make_clip
from tests.tiny import tiny_spec
from tests.tiny_evovit import tiny_deit_spec
from tests.tiny_stvit import tiny_deit

Seeds = list[tuple[str, bytes]]
BETWEEN = b"\n\0\n"
"""Between the two files of an earlier run."""


def spec() -> VisionTransformerSpec:
    """The network that recipes are read for."""
    return tiny_spec(depth=2, gates=(1,), head="linear")


def manifests() -> Seeds:
    """Of a network with gates, one without, and two classifiers."""
    gated = tiny_checkpoint(tiny_spec())
    plain = tiny_checkpoint(tiny_spec(gates=(), head="setr", depth=2), stride=(40, 48))
    named = [naming_checkpoint(each, {}) for each in (tiny_deit_spec(size=(64, 64)), tiny_deit())]
    texts = [_manifest(each.spec, each).encode() for each in (gated, plain, *named)]
    return [("as it is", texts[0]), *(("signed", text) for text in texts)]


def _manifest(network: AnySpec, checkpoint) -> str:
    return Manifest(
        name="tiny",
        task=network.task,
        spec=network,
        preprocessing=checkpoint.preprocessing.for_spec(network),
        classes=checkpoint.classes,
        defaults=GateDefaults(thresholds=tuple((0.7,) * network.classes for _ in network.gates)),
        counts=tuple(TokenCount(minimum=1, typical=2, maximum=3) for _ in range(len(network.gates) + 1)),
        provenance=Provenance(tool="dovit-deploy", source="tiny.safetensors", source_sha256="0" * 64),
        files={"stage0.onnx": FileEntry(sha256="0" * 64, bytes=5)},
    ).to_json()


def checkpoints() -> Seeds:
    """What torch.save and safetensors write, and a graph."""
    import onnx

    state = {"backbone.cls_token": torch.zeros(1, 1, 4), "backbone.x": torch.zeros(2, dtype=torch.bfloat16)}
    wrapped = {"state_dict": state, "meta": {"CLASSES": ("a", "b"), "config": "model = dict(type='DoViT')"}}
    meta = {"config": official.config_text(official.DOVIT), "CLASSES": tuple("abcde")}
    strange = {"model": {"module.x": torch.zeros(1)}, "epoch": np.float64(3.0), "args": {"a": (None, True)}}
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    port = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, "n"])
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    graph = onnx.helper.make_graph([node], "g", [port], [port], [weight])
    tensors = save(state, metadata={"format": "pt"})
    return [
        ("pth", _saved(wrapped, zipped=True)),
        ("pth", _saved(wrapped, zipped=False)),
        ("pth", _saved(strange, zipped=False)),
        ("pth", _saved({"state_dict": official.dovit_state(), "meta": meta}, zipped=True)),
        ("safetensors", tensors),
        ("safetensors header", tensors),
        ("onnx", onnx.helper.make_model(graph).SerializeToString()),
    ]


def _saved(contents: object, *, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(contents, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def configurations() -> Seeds:
    """mmsegmentation's text, the same as JSON, Segmenter's variant.yml, our own config.json."""
    text = official.config_text(official.DOVIT).encode()
    variant = b"net_kwargs:\n  backbone: vit_tiny\n  image_size: !!python/tuple\n  - 32\n  - 48\n  n_cls: 5\n"
    network = spec()
    checkpoint = tiny_checkpoint(network)
    own = {
        "format": "dovit-checkpoint",
        "version": 1,
        "spec": network.model_dump(mode="json"),
        "preprocessing": checkpoint.preprocessing.model_dump(mode="json"),
        "classes": [entry.model_dump(mode="json") for entry in checkpoint.classes],
        "thresholds": [0.7],
    }
    return [
        ("py", text),
        ("py", b"a = -1\nb = [a, (1, 'x')]\nmodel = dict(type='mmseg.DoViT', backbone=dict(depth=a, out=b))\n"),
        ("meta", text),
        ("json", json.dumps({"model": official.DOVIT}).encode()),
        ("yaml", variant),
        ("yaml", b"a: &x [1, 2]\nb: *x\nmodel: {<<: {depth: 2}, type: DoViT}\n"),
        ("own", json.dumps(own).encode()),
    ]


def recipes() -> Seeds:
    """Recipes that use most keys."""
    toml = (
        b'steps = 10\nseed = 3\nsplit = "train"\nfullness = [0.1, 1.0]\nlearning_rate = 1e-3\nbetas = [0.9, 0.99]\n'
        b'[network]\nfamily = "dovit"\nwidth = 16\ndepth = 2\nheads = 2\ngates = [1]\n'
        b'[passing]\nmode = "random"\nthresholds = [0.8, 0.9]\n[augmentation]\nscale = [0.7, 2.0]\n'
        b"[[phases]]\nuntil = 0.5\ncrop = [32, 32]\nbatch = 2\n[[phases]]\nuntil = 1.0\n"
    )
    yaml = b"minutes: 3\nrendered: 0.5\npretrain: 0.2\npassing: {mode: annealed, final: 0.9}\ndevice: cpu\nscenes: 4\n"
    as_json = json.dumps({"minutes": 5, "network": {"family": "vit"}, "phases": [{"until": 1.0, "batch": 4}]}).encode()
    return [("toml", toml), ("yaml", yaml), ("yaml", as_json)]


def class_lists() -> Seeds:
    """Every form that `--classes` and a data set's classes.json may have."""
    index = {"0": ["n01440764", "tench"], "1": "goldfish"}
    own = {
        "classes": [{"id": 0, "name": "road", "color": [1, 2, 3]}, {"id": 7, "name": "car", "color": [4, 5, 6]}],
        "ignore": 255,
    }
    return [
        ("lines", "road\r\ncar\nbüro\n".encode()),
        ("lines", b"\xef\xbb\xbfn01440764 tench\nn01443537 goldfish, Carassius auratus\n"),
        ("json", json.dumps({"classes": ["road", "car"], "palette": [[1, 2, 3], [4, 5, 6]]}).encode()),
        ("json", json.dumps(["road", "car"]).encode()),
        ("json", json.dumps(index).encode()),
        ("data set", json.dumps(own).encode()),
    ]


def frames() -> Seeds:
    """Small images of the usual formats, two videos, and the files of an earlier run."""
    rgb = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(rgb)
    exif = Image.Exif()
    exif[0x0112] = 6
    images = [
        _image(picture, "PNG"),
        _image(picture.convert("P"), "PNG", transparency=3),
        _image(Image.fromarray(rgb[:, :, 0].astype(np.uint16) * 200), "PNG"),
        _image(picture, "JPEG", exif=exif),
        _image(picture.convert("CMYK"), "JPEG"),
        _image(picture.convert("LA"), "TIFF", compression="tiff_lzw"),
        _image(picture, "WEBP"),
        _image(picture, "BMP"),
        _image(picture, "PPM"),
    ]
    moving = _image(picture, "GIF", save_all=True, append_images=[picture.rotate(180)])
    with tempfile.TemporaryDirectory() as folder:
        clips = [
            make_clip(Path(folder, name), count=3, size=(32, 48), codec=codec).read_bytes()
            for name, codec in (("a.mp4", "mpeg4"), ("b.avi", "mjpeg"), ("c.mkv", "libx264"))
        ]
    summary = {"frames": 1, "interrupted": False, "engine": "onnxruntime", "precision": "fp32", "bundle": "/x.dovit"}
    summary |= {"versions": {}, "failed": [{"source": "bad.png"}]}
    rows = b"".join(json.dumps({"index": i, "source": f"in/{i}.png"}).encode() + b"\n" for i in range(2))
    return [
        *(("image", each) for each in images),
        *(("unknown", each) for each in images[:4]),
        ("gif", moving),
        *(("video", clip) for clip in clips),
        ("earlier run", json.dumps(summary).encode() + BETWEEN + rows),
    ]


def _image(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
