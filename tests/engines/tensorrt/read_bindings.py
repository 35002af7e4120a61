"""Writes bindings.json: what the Python bindings of each version of TensorRT have, read from their wheels.

    pip download --no-deps -d wheels tensorrt-cu12-bindings==10.0.1 tensorrt-rtx-cu13-bindings==1.7.1.116 ...
    python -m tests.engines.tensorrt.read_bindings wheels/*.whl

The bindings are imported on stand-ins for TensorRT's libraries, which define their functions and do nothing: neither
TensorRT nor a GPU is needed, and nothing of it runs. Needs gcc, nm and readelf.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.engines.tensorrt.bindings import DATA

CLASSES = (
    *("Builder", "INetworkDefinition", "ITensor", "OnnxParser", "ParserError", "IHostMemory", "IOptimizationProfile"),
    *("IBuilderConfig", "BuilderFlag", "NetworkDefinitionCreationFlag", "ProfilingVerbosity", "ComputeCapability"),
    *("DataType", "TensorFormat", "ILogger", "Runtime", "ICudaEngine", "IExecutionContext", "IOutputAllocator"),
    *("ExecutionContextAllocationStrategy", "IRuntimeConfig", "IRuntimeCache", "CudaGraphStrategy"),
    *("DynamicShapesKernelSpecializationStrategy", "IPluginRegistry", "IPluginCreatorV3One", "PluginFieldCollection"),
    *("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime", "DimsExprs", "IExprBuilder"),
    *("DimensionOperation", "PluginTensorDesc", "DynamicPluginTensorDesc"),
)
"""Those that the project uses."""
FUNCTIONS = re.compile(r"\bU ((?:create|get|init)\w+)$", re.MULTILINE)
"""Undefined symbols that are TensorRT's: what the C library and C++ have carries a version."""
PARAMETER = re.compile(r"(?:^|, )\*{0,2}(\w+): ")


def main(wheels: list[str]) -> None:
    found = dict(read_wheel(Path(wheel)) for wheel in wheels)
    lines = [
        f' "{version}": {{\n'
        + ",\n".join(f'  "{name}": {json.dumps(entries)}' for name, entries in found[version].items())
        + "\n }"
        for version in sorted(found)
    ]
    DATA.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read_wheel(wheel: Path) -> tuple[str, dict[str, list[str]]]:
    """The version ("tensorrt 10.0.1") and the entries of each of `CLASSES` that it has; "" is the module itself."""
    # Every distribution is called after its module and CUDA: tensorrt_rtx_cu13_bindings-1.7.1.116-cp311-...
    name, version = wheel.name.split("-")[:2]
    module = re.sub(r"_cu\d+_bindings$", "", name)
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        (library,) = Path(folder).glob(f"*/{module}.so")
        make_stand_ins(library, Path(folder))
        environment = {**os.environ, "LD_LIBRARY_PATH": folder}
        command = [sys.executable, "-m", "tests.engines.tensorrt.read_bindings", "--print", module, str(library)]
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return f"{module} {version}", json.loads(printed)


def make_stand_ins(library: Path, folder: Path) -> None:
    """Libraries with the names and the functions that `library` asks TensorRT for."""
    asked = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    (folder / "stand_in.c").write_text(
        "".join(f"long {name}(void) {{ return 0; }}\n" for name in FUNCTIONS.findall(asked))
    )
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    for name in re.findall(r"\[(lib(?:nv|tensorrt)[^]]+)\]", needed):
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", folder / "stand_in.c", "-o", folder / name]
        subprocess.run(command, check=True)


def module_entries(module: object) -> dict[str, list[str]]:
    """The entries of the module, and of each of `CLASSES` that it has."""
    kinds = {name: kind for name in CLASSES if (kind := getattr(module, name, None)) is not None}
    return {"": entries(module), **{name: entries(kind) for name, kind in kinds.items()}}


def entries(owner: object) -> list[str]:
    """Each attribute as "name", a member of an enumeration as "NAME=3", each overload as "name(first, second)"."""
    members = getattr(owner, "__members__", {})
    found: list[str] = []
    for name in dir(owner):
        if name.startswith("_"):
            continue
        value = getattr(owner, name)
        if name in members:
            found.append(f"{name}={int(members[name])}")
        elif callable(value) and not isinstance(value, type):
            found += signatures(name, value.__doc__ or "") or [name]
        else:
            found.append(name)
    return found


def signatures(name: str, text: str) -> list[str]:
    """The overloads that the bindings' own documentation lists, without `self`."""
    lines = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> ", text, re.MULTILINE)
    return [f"{name}({', '.join(word for word in PARAMETER.findall(line) if word != 'self')})" for line in lines]


def imported(name: str, library: str) -> object:
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    if sys.argv[1:2] == ["--print"]:
        print(json.dumps(module_entries(imported(*sys.argv[2:]))))
    else:
        main(sys.argv[1:])
