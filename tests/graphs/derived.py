"""Derived graphs of a bundle in ONNX Runtime: a backend that runs what TensorRT would read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.base import HostMemory
from dovit_deploy.engines.tensorrt.record import graph_names
from dovit_deploy.graphs.forms import derive_graphs


class DerivedEngine:
    """A derived graph. With `bucket`, every index is padded to a multiple of it, as a runtime of buckets does."""

    def __init__(self, path: Path, *, total: int, bucket: int | None) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.types = {port.name: port.type for port in self.session.get_inputs()}
        self.outputs = [port.name for port in self.session.get_outputs()]
        self.total, self.bucket = total, bucket
        self.buckets: tuple[int, ...] = ()
        """Sizes to round up to, where one is large enough; else `bucket`."""

    def run(self, inputs):
        feed = dict(inputs)
        if "index" in feed:
            feed["valid"] = np.asarray(len(feed["index"]), np.int64)
            size = next((size for size in self.buckets if size >= len(feed["index"])), self.bucket)
            feed["index"] = padded_index(feed["index"], self.total, size)
        for name, kind in self.types.items():
            wanted = np.float16 if kind == "tensor(float16)" else None
            assert wanted is None or feed[name].dtype == wanted, name
        return dict(zip(self.outputs, self.session.run(self.outputs, feed), strict=True))

    def close(self) -> None:
        pass


def padded_index(index, total: int, bucket: int | None):
    """`index` rounded up to a multiple of `bucket`, at most `total`, with positions that it does not have."""
    if bucket is None:
        return index
    size = min(total, -(-len(index) // bucket) * bucket)
    others = np.setdiff1d(np.arange(total), index)
    return np.concatenate([index, others[: size - len(index)]])


class DerivedBackend(HostMemory):
    """Loads the derived graphs of one bundle, written to `folder`."""

    name = "derived"

    def __init__(
        self, bundle: Bundle, folder: Path, *, precision: str, plugins: bool, bucket: int | None = None
    ) -> None:
        folder.mkdir()
        self.precision, self.bucket, self.total = precision, bucket, bundle.manifest.spec.tokens
        graphs, _ = derive_graphs(bundle, graph_names(bundle), folder, precision=precision, plugins=plugins)
        self.graphs = {graph.name: graph for graph in graphs}

    def load(self, bundle: Bundle, graph: str) -> DerivedEngine:
        return DerivedEngine(self.graphs[graph].path, total=self.total, bucket=self.bucket)
