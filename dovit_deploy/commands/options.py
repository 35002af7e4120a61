"""Options that several verbs share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the report as JSON here.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no hints; results and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More detail, and the traceback of an error.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="onnxruntime (CPU), cuda (ONNX Runtime on an NVIDIA GPU), torch (the reference), "
        "or tensorrt-rtx, tensorrt (see `dovit build`).",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="Number format of weights and arithmetic: fp32; cuda: also fp16; TensorRT: fp16 (default) or fp32.",
    ),
]
CudaMemory = Annotated[
    str | None,
    typer.Option("--cuda-memory", metavar="NAME", help="GPU memory through cuda-core (default) or pycuda; TensorRT."),
]
TrustEngine = Annotated[
    bool,
    typer.Option("--trust-engine", help="Run built engines that came with the bundle: they could run anything."),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of one operator; default: all cores.")]
Threshold = Annotated[
    str | None,
    typer.Option("--threshold", metavar="T[,T...]", help="Confidence above which a token stops: one, or one per gate."),
]
MaxPixels = Annotated[
    int | None,
    typer.Option("--max-pixels", min=1, help="Refuse pictures with more pixels than this; default: 150 million."),
]
