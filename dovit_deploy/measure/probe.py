"""Try one thing for real; `probing` calls `main` in a process of its own.

It prints what was found and gives 0, or fails as the thing fails: with an exception, a signal, or never.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from dovit_deploy import packages
from dovit_deploy.engines.cuda.driver import gpu_device
from dovit_deploy.engines.cuda.memory import DeviceArray, opened_memory
from dovit_deploy.engines.onnxruntime_cuda import cuda_runtime, session_on_gpu
from dovit_deploy.engines.tensorrt.package import tensorrt_package
from dovit_deploy.errors import DovitError, EncoderMissing, ProviderMissing
from dovit_deploy.measure.protobuf import chunk, integer
from dovit_deploy.sources.video_writer import OpencvVideoWriter, VideoWriter, open_video_writer

# The smallest ONNX model that shows that a runtime computes: y = x @ x for a 2x2 matrix, written without `onnx`.
#
# Field numbers are those of onnx.proto.

IR_VERSION, OPSET = 8, 17
"""Old enough for every ONNX Runtime that this package supports."""

FLOAT, SIDE = 1, 2


def square_model() -> bytes:
    """Bytes of a model from `x` (2, 2) float32 to `y`, their matrix product x @ x."""
    node = chunk(1, "x") + chunk(1, "x") + chunk(2, "y") + chunk(4, "MatMul")
    graph = chunk(1, node) + chunk(2, "square") + chunk(11, _port("x")) + chunk(12, _port("y"))
    opset = chunk(1, "") + integer(2, OPSET)
    return integer(1, IR_VERSION) + chunk(2, "dovit-deploy") + chunk(7, graph) + chunk(8, opset)


def _port(name: str) -> bytes:
    """A ValueInfoProto: name 1; type 2 with tensor_type 1 of elem_type 1 and shape 2, whose dims are field 1."""
    side = chunk(1, integer(1, SIDE))
    tensor = integer(1, FLOAT) + chunk(2, side + side)
    return chunk(1, name) + chunk(2, chunk(1, tensor))


MATRIX = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
SQUARE = np.array([[7.0, 10.0], [15.0, 22.0]], dtype=np.float32)

CLIP_FRAMES, CLIP_SIZE, CLIP_RATE = 8, (64, 96), Fraction(25)


def onnxruntime() -> str:
    """Run a small model on the CPU provider."""
    runtime = packages.onnxruntime()
    session = runtime.InferenceSession(square_model(), providers=["CPUExecutionProvider"])
    (result,) = session.run(["y"], {"x": MATRIX})
    _check_square(result)
    return f"{runtime.__version__}, providers: {', '.join(runtime.get_available_providers())}"


def cuda() -> str:
    """Run a small model on the GPU, and nothing of it on the CPU."""
    runtime = cuda_runtime()
    session = session_on_gpu(runtime, square_model(), described="a small model")
    (result,) = session.run(["y"], {"x": MATRIX})
    _check_square(result)
    device = gpu_device()
    return f"{runtime.__version__} on {device.name}, compute capability {device.compute_capability}"


def torch() -> str:
    """Multiply two small matrices on the CPU."""
    module = packages.load("torch")
    matrix = module.from_numpy(MATRIX)
    _check_square((matrix @ matrix).numpy())
    return str(module.__version__)


def tensorrt_rtx() -> str:
    """Bring a small matrix to the GPU and back, beside TensorRT for RTX."""
    return _tensorrt("tensorrt-rtx")


def tensorrt() -> str:
    """Bring a small matrix to the GPU and back, beside TensorRT."""
    return _tensorrt("tensorrt")


def _tensorrt(engine: str) -> str:
    package = tensorrt_package(engine)
    try:
        memory = opened_memory()
    except ProviderMissing as error:
        builds = "engines can be built here, not run" if package.capabilities.compute_capabilities else "no use"
        raise ProviderMissing(f"{package.version}, {builds}: {error}") from error
    block, back = memory.allocate(MATRIX.nbytes), np.zeros_like(MATRIX)
    array = DeviceArray.of(block.address, MATRIX.shape, MATRIX.dtype)
    memory.copy(array, MATRIX)
    memory.copy(back, array)
    memory.mark().wait()
    memory.close()
    if not np.array_equal(back, MATRIX):
        raise ArithmeticError(f"{back.tolist()} came back from the GPU, {MATRIX.tolist()} went")
    return f"{package.version}, {memory.device.name} (compute capability {memory.device.compute_capability})"


def _check_square(result: object) -> None:
    if not np.allclose(np.asarray(result), SQUARE):
        raise ArithmeticError(f"computed {np.asarray(result).tolist()}, expected {SQUARE.tolist()}")


def images() -> str:
    """Encode a picture with Pillow, decode it, and resize it with OpenCV."""
    cv2, pillow = packages.opencv(), packages.pillow()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        pillow.fromarray(np.zeros((8, 12, 3), dtype=np.uint8)).save(path)
        with pillow.open(path) as picture:
            resized = cv2.resize(np.asarray(picture), (6, 4))
    if resized.shape != (4, 6, 3):
        raise ArithmeticError(f"a resize to 6x4 gave {resized.shape}")
    return f"OpenCV {cv2.__version__}, Pillow {packages.load('PIL').__version__}"


def h264() -> str:
    """Write a short clip with PyAV."""
    av = packages.load("av")
    size = _clip_bytes(lambda path: open_video_writer(path, size=CLIP_SIZE, rate=CLIP_RATE), codec="H.264")
    return f"PyAV {av.__version__}, a clip of {size} bytes"


def mp4v() -> str:
    """Write a short clip with OpenCV."""
    cv2 = packages.opencv()
    size = _clip_bytes(
        lambda path: OpencvVideoWriter(path, size=CLIP_SIZE, rate=CLIP_RATE, wants_audio=False), codec="mp4v"
    )
    return f"OpenCV {cv2.__version__}, a clip of {size} bytes"


def _clip_bytes(opened: Callable[[Path], VideoWriter], *, codec: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with opened(path) as writer:
            # The chooser of writers falls back by itself; here that would hide what is missing.
            if codec == "H.264" and isinstance(writer, OpencvVideoWriter):
                raise EncoderMissing("this PyAV has no H.264 encoder")
            for number in range(CLIP_FRAMES):
                picture = np.full((*CLIP_SIZE, 3), 20 * number, dtype=np.uint8)
                writer.write(picture, number / CLIP_RATE)
        size = path.stat().st_size if path.is_file() else 0
    if not size:
        raise EncoderMissing(f"the {codec} encoder wrote nothing")
    return size


PROBES: dict[str, Callable[[], str]] = {
    probe.__name__.replace("_", "-"): probe
    for probe in (onnxruntime, cuda, torch, tensorrt_rtx, tensorrt, images, h264, mp4v)
}
"""By name; every engine of the registry has the probe of its name."""


def main(name: str) -> int:
    """Run one probe; what it found goes to stdout, why it failed to the last line of stderr."""
    try:
        sys.stdout.write(PROBES[name]() + "\n")
    except DovitError as error:
        sys.stderr.write(str(error).replace("\n", " ") + "\n")
        return error.exit_code
    return 0
