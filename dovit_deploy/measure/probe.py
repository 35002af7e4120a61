"""Does one engine, encoder or library work here? Each is tried for real; `doctor` runs `main` in a process of its own.

It prints what was found and returns 0, or fails as the thing fails: with an exception, a signal, or by hanging.
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
from dovit_deploy.sources.images import read_image
from dovit_deploy.sources.video_writer import OpencvVideoWriter, VideoWriter, open_video_writer

SQUARE_MODEL = (
    b'\x08\x08\x12\x0cdovit-deploy:E\n\x11\n\x01x\n\x01x\x12\x01y"\x06MatMul\x12\x06square'
    b"Z\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x02"
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x02"
    b"B\x04\n\x00\x10\x11"
)
"""The smallest ONNX model that shows that a runtime computes: `x` (2, 2) float32 to `y` = x @ x.

As bytes, since ONNX Runtime works without the package `onnx`, which could make them (the tests compare the two).
IR version 8 and opset 17 are old enough for every ONNX Runtime that this package supports.
"""

MATRIX = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
SQUARE = np.array([[7.0, 10.0], [15.0, 22.0]], dtype=np.float32)

CLIP_FRAMES, CLIP_SIZE, CLIP_RATE = 8, (64, 96), Fraction(25)


def onnxruntime() -> str:
    """Run a small model on the CPU provider."""
    runtime = packages.onnxruntime()
    session = runtime.InferenceSession(SQUARE_MODEL, providers=["CPUExecutionProvider"])
    (result,) = session.run(["y"], {"x": MATRIX})
    _check_square(result)
    return f"{runtime.__version__}, providers: {', '.join(runtime.get_available_providers())}"


def cuda() -> str:
    """Run a small model on the GPU, and nothing of it on the CPU."""
    # `session_on_gpu` refuses the silent fallback to the CPU that ONNX Runtime makes.
    runtime = cuda_runtime()
    session = session_on_gpu(runtime, SQUARE_MODEL, described="a small model")
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
    """Copy a small matrix to the GPU and back, with TensorRT for RTX loaded."""
    return _tensorrt("tensorrt-rtx")


def tensorrt() -> str:
    """Copy a small matrix to the GPU and back, with TensorRT loaded."""
    return _tensorrt("tensorrt")


def _tensorrt(engine: str) -> str:
    package = tensorrt_package(engine)
    try:
        memory = opened_memory()
    except ProviderMissing as error:
        builds = "engines can be built here, not run" if package.capabilities.compute_capabilities else "no use"
        raise ProviderMissing(f"{package.version}, {builds}: {error}") from error
    # No engine is built, which takes minutes; what fails on real machines is the driver, and a copy shows that.
    block, back = memory.allocate(MATRIX.nbytes), np.zeros_like(MATRIX)
    array = DeviceArray.of(block.address, MATRIX.shape, MATRIX.dtype)
    memory.copy(array, MATRIX)
    memory.copy(back, array)
    memory.mark().wait()
    memory.close()
    if not np.array_equal(back, MATRIX):
        raise ArithmeticError(f"the GPU returned {back.tolist()} for {MATRIX.tolist()}")
    return f"{package.version}, {memory.device.name} (compute capability {memory.device.compute_capability})"


def _check_square(result: object) -> None:
    if not np.allclose(np.asarray(result), SQUARE):
        raise ArithmeticError(f"computed {np.asarray(result).tolist()}, expected {SQUARE.tolist()}")


def images() -> str:
    """Encode an image with Pillow, decode it, and resize it with OpenCV."""
    cv2, pillow = packages.opencv(), packages.pillow()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.png"
        pillow.fromarray(np.zeros((8, 12, 3), dtype=np.uint8)).save(path)
        resized = cv2.resize(read_image(path), (6, 4))
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
            # `open_video_writer` falls back to OpenCV by itself; here that would hide what is missing.
            if codec == "H.264" and isinstance(writer, OpencvVideoWriter):
                raise EncoderMissing("this PyAV has no H.264 encoder")
            for number in range(CLIP_FRAMES):
                frame = np.full((*CLIP_SIZE, 3), 20 * number, dtype=np.uint8)
                writer.write(frame, number / CLIP_RATE)
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
    """Run the probe called `name`; what it found goes to stdout, why it failed to the last line of stderr."""
    try:
        sys.stdout.write(PROBES[name]() + "\n")
    # Other exceptions end the process with a traceback, whose last line says as much.
    except DovitError as error:
        sys.stderr.write(str(error).replace("\n", " ") + "\n")
        return error.exit_code
    return 0
