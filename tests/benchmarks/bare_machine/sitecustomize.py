"""Every Python that finds this file finds nothing but what a bare machine with a GPU has, and the wheels brought along.

Python imports it at its start. A module that is not listed is not there, for `import` and for whoever asks first.
"""

import sys

# PyTorch and triton with what they need; onnx, onnxscript and onnxruntime with theirs; NVIDIA's bindings.
THERE = {
    *("torch", "torchgen", "functorch", "triton", "numpy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe"),
    *("fsspec", "filelock", "typing_extensions", "packaging", "setuptools"),
    *("onnx", "onnxscript", "onnx_ir", "onnxruntime", "ml_dtypes", "google", "flatbuffers", "cuda"),
}
# benchmarks/gpu/wheels.txt and what those three need.
BROUGHT = {"pydantic", "pydantic_core", "annotated_types", "typing_inspection", "platformdirs", "safetensors"}
OURS = {"dovit_deploy", "tests", "report", "gpu"}
LISTED = {*sys.stdlib_module_names, *THERE, *BROUGHT, *OURS}


class Listed:
    """A finder that finds only what is listed; of everything else it says what it says of what is not there."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        listed = name.partition(".")[0] in LISTED
        return self.finder.find_spec(name, path, target) if listed else None

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = [Listed(finder) for finder in sys.meta_path]
