"""The CUDA kernels, as far as they can be tried without a GPU: their very source run on the CPU, and compiled."""

from __future__ import annotations

import ctypes
import importlib.util
import inspect
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovit_deploy.engines.plugins.kernels import (
    COMPACT_TILE,
    KERNELS,
    TokenKernels,
    compiled_kernels,
    kernel_source,
    row_grid,
    unit_bytes,
)
from dovit_deploy.errors import EnvironmentProblem, ProviderMissing
from tests.csrc.host_kernels import CSRC, HostDriver, host_library
from tests.csrc.host_kernels import KERNELS as KERNEL_FOLDER
from tests.engines.plugins.reference import compacted, gathered, scattered
from tests.paths import ROOT

ARCHITECTURES = (80, 86, 89, 90, 120)
STREAM = 77
GUARD = 64
QUICK = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
needs_nvrtc = pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None,
    reason="needs cuda-bindings and nvidia-cuda-nvrtc",
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return host_library(tmp_path_factory.mktemp("host"))


@pytest.fixture
def driver(library):
    return HostDriver(library)


@pytest.fixture
def kernels(driver):
    return TokenKernels(driver, {name: name for name in KERNELS})


class Guarded:
    """An array between guards, at an address that is a multiple of 16 plus `shift`."""

    def __init__(self, values: np.ndarray, shift: int = 0) -> None:
        self._bytes = np.full(values.nbytes + 2 * GUARD + 32, 0xA5, np.uint8)
        start = GUARD + (-self._bytes.ctypes.data - GUARD) % 16 + shift
        self._place = slice(start, start + values.nbytes)
        self.array = self._bytes[self._place].view(values.dtype).reshape(values.shape)
        self.array[...] = values
        self.address = self._bytes.ctypes.data + start

    def intact(self) -> bool:
        outside = np.delete(self._bytes, np.arange(self._place.start, self._place.stop))
        return bool((outside == 0xA5).all())


def rows(draw: np.random.Generator, shape: tuple[int, int], dtype: type) -> np.ndarray:
    return draw.integers(0, 250, shape).astype(dtype)


sizes = st.integers(0, 70)
widths = st.sampled_from([1, 2, 3, 5, 8, 12, 16, 24, 96, 130])
types = st.sampled_from([np.float16, np.float32, np.uint8])
shifts = st.sampled_from([0, 2, 4])


@QUICK
@given(total=sizes, share=st.sampled_from([0.0, 0.3, 1.0]), width=widths, dtype=types, shift=shifts, seed=sizes)
def test_rows_are_gathered_and_put_back_as_the_reference_does(kernels, total, share, width, dtype, shift, seed):
    shift = 0 if dtype is np.float32 and shift == 2 else shift
    draw = np.random.default_rng(seed)
    index = draw.permutation(total)[: round(share * total)].astype(np.int64)
    tokens, changed = rows(draw, (total, width), dtype), rows(draw, (len(index), width), dtype)
    numbers = {"total": total, "kept": len(index), "row_bytes": tokens.itemsize * width, "stream": STREAM}
    source, positions, update = Guarded(tokens, shift), Guarded(index), Guarded(changed, shift)
    taken, output = Guarded(np.zeros_like(changed), shift), Guarded(np.zeros_like(tokens), shift)

    kernels.gather(source.address, positions.address, taken.address, **numbers)
    kernels.scatter(source.address, positions.address, update.address, output.address, **numbers)
    np.testing.assert_array_equal(taken.array, gathered(tokens, index))
    np.testing.assert_array_equal(output.array, scattered(tokens, index, changed))
    assert taken.intact() and output.intact()

    # Only the first entries of the index: what is behind them is padding.
    for valid in {0, len(index) // 2, len(index), len(index) + 3}:
        front, number = Guarded(np.zeros_like(tokens), shift), Guarded(np.asarray([valid], np.int64))
        places = (source.address, positions.address, update.address, front.address)
        kernels.scatter(*places, **numbers, valid=number.address)
        np.testing.assert_array_equal(front.array, scattered(tokens, index, changed, valid))
        assert front.intact()

    # In place: the other rows stay as they are.
    kernels.scatter(source.address, positions.address, update.address, source.address, **numbers)
    np.testing.assert_array_equal(source.array, output.array)
    assert source.intact()


def test_rows_outside_are_zeros_and_are_not_written(kernels):
    draw = np.random.default_rng(3)
    index = np.array([4, -1, 2**40, 0, 5], np.int64)
    tokens, changed = rows(draw, (5, 12), np.float16), rows(draw, (5, 12), np.float16)
    source, taken, output = Guarded(tokens), Guarded(np.ones_like(changed)), Guarded(np.ones_like(tokens))
    numbers = {"total": 5, "kept": 5, "row_bytes": 24, "stream": STREAM}
    kernels.gather(source.address, index.ctypes.data, taken.address, **numbers)
    kernels.scatter(source.address, index.ctypes.data, changed.ctypes.data, output.address, **numbers)
    np.testing.assert_array_equal(taken.array, gathered(tokens, index))
    assert not taken.array[[1, 2, 4]].any()
    np.testing.assert_array_equal(output.array, scattered(tokens, index, changed))
    assert taken.intact() and output.intact()


@pytest.mark.parametrize("total", [0, 1, 31, 33, 1025, COMPACT_TILE, COMPACT_TILE + 1, 2 * COMPACT_TILE + 77])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("dtype", [np.bool_, np.int64])
def test_a_mask_is_compacted_as_the_reference_does(kernels, total, share, dtype):
    keep = (np.random.default_rng(total).random(total) < share).astype(dtype)
    expected, expected_count = compacted(keep)
    order, count = Guarded(np.full(total, -1, np.int64)), Guarded(np.full(1, -1, np.int64))
    index, size = Guarded(np.full(total, -1, np.int64)), Guarded(np.full(1, -1, np.int32))
    shape = {"mask_bytes": keep.itemsize, "total": total, "stream": STREAM}
    kernels.compact(keep.ctypes.data, order.address, count.address, **shape)
    kernels.compact_index(keep.ctypes.data, index.address, size.address, **shape)
    np.testing.assert_array_equal(order.array, expected)
    assert count.array[0] == size.array[0] == expected_count
    np.testing.assert_array_equal(index.array[:expected_count], expected[:expected_count])
    assert (index.array[expected_count:] == -1).all(), "only the kept positions are written"
    assert order.intact() and index.intact() and count.intact() and size.intact()


@pytest.mark.parametrize("total", [65536, 70001])
def test_many_tokens_are_compacted(kernels, total):
    keep = np.random.default_rng(1).random(total) < 0.5
    order, count = np.full(total, -1, np.int64), np.full(1, -1, np.int64)
    kernels.compact(keep.ctypes.data, order.ctypes.data, count.ctypes.data, mask_bytes=1, total=total, stream=STREAM)
    expected, expected_count = compacted(keep)
    np.testing.assert_array_equal(order, expected)
    assert count[0] == expected_count


def test_all_work_goes_to_the_stream_that_was_named(kernels, driver):
    tokens, index = np.ones((4, 8), np.float32), np.arange(2)
    output, count = np.empty_like(tokens), np.zeros(4, np.int64)
    numbers = {"total": 4, "kept": 2, "row_bytes": 32, "stream": STREAM}
    kernels.gather(tokens.ctypes.data, index.ctypes.data, output.ctypes.data, **numbers)
    kernels.scatter(tokens.ctypes.data, index.ctypes.data, tokens.ctypes.data, output.ctypes.data, **numbers)
    kernels.compact(count.ctypes.data, count.ctypes.data, index.ctypes.data, mask_bytes=8, total=1, stream=STREAM)
    assert driver.streams == [STREAM] * 4


def test_a_refusal_of_the_driver_is_an_error(kernels, driver):
    driver.fails = True
    with pytest.raises(ProviderMissing, match="CUDA_ERROR_INVALID_CONTEXT"):
        kernels.compact(0, 0, 0, mask_bytes=8, total=1, stream=0)


@QUICK
@given(units=st.integers(1, 600), count=st.integers(1, 100_000))
def test_python_and_c_cut_rows_alike(library, units, count):
    shape = (ctypes.c_uint * 3)()
    library.host_grid(ctypes.c_longlong(units), ctypes.c_longlong(count), shape)
    grid, block = row_grid(units, count)
    assert (grid, *block) == tuple(shape)
    assert block[0] * block[1] <= 256 and (grid - 1) * block[1] < count <= grid * block[1]


@QUICK
@given(first=st.integers(0, 64), second=st.integers(0, 64), row_bytes=st.integers(0, 4096))
def test_python_and_c_choose_the_same_unit(library, first, second, row_bytes):
    unit = library.host_unit(ctypes.c_size_t(first), ctypes.c_size_t(second), ctypes.c_longlong(row_bytes))
    assert unit_bytes(first, second, row_bytes) == unit
    assert first % unit == second % unit == row_bytes % unit == 0


@QUICK
@given(total=st.integers(0, 100_000))
def test_python_and_c_cut_masks_alike(library, total):
    assert library.host_compact_blocks(ctypes.c_longlong(total)) == max(1, -(-total // COMPACT_TILE))


def test_usual_widths_move_sixteen_bytes_and_idle_few_threads():
    for width in (192, 384, 768, 1024):
        for size in (2, 4):
            units = width * size // 16
            assert unit_bytes(0, 0, width * size) == 16
            across = row_grid(units, 1000)[1][0]
            assert -(-units // across) * across <= units * 9 / 8


@needs_nvcc
def test_kernels_compile_for_every_architecture_and_uncompiled_glue_is_said_to_be(tmp_path):
    made = subprocess.run(
        ["make", "-C", str(CSRC), "plugins", "harness", f"BUILD={tmp_path / 'built'}"],
        env={**os.environ, "TENSORRT_INCLUDE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert "warning" not in made.stderr, made.stderr
    assert "token_plugins.cpp is UNCOMPILED" in made.stdout
    assert not (tmp_path / "built" / "libdovit_plugins.so").exists()
    for architecture in ARCHITECTURES:
        assert f"code=sm_{architecture}" in made.stdout
    _the_library_checks_what_it_is_given(ctypes.CDLL(str(tmp_path / "built" / "libdovit_kernels.so")))
    ran = subprocess.run(
        [tmp_path / "built" / "harness", tmp_path / "built" / "libdovit_kernels.so"],
        capture_output=True,
        text=True,
        check=False,
    )
    # 0 with a GPU, 2 and a reason without one; a wrong result is 1.
    assert ran.returncode == 0 or (ran.returncode == 2 and "no GPU" in ran.stderr), ran.stdout + ran.stderr


class DovitTensor(ctypes.Structure):
    """`dovit_tensor` of csrc/token_enqueue.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dims", ctypes.c_int64 * 2),
        ("rank", ctypes.c_int32),
        ("element_bytes", ctypes.c_int32),
    )


def _tensor(element_bytes: int, *dims: int) -> DovitTensor:
    return DovitTensor(None, (ctypes.c_int64 * 2)(*dims), len(dims), element_bytes)


def _the_library_checks_what_it_is_given(library: ctypes.CDLL) -> None:
    success, invalid = 0, 1

    def enqueue(name: str, inputs: list[DovitTensor], outputs: list[DovitTensor]) -> int:
        ins, outs = (DovitTensor * len(inputs))(*inputs), (DovitTensor * len(outputs))(*outputs)
        return library.dovit_enqueue(name.encode(), ins, len(inputs), outs, len(outputs), None)

    tokens, nothing, some = _tensor(2, 5, 8), _tensor(8, 0), _tensor(8, 3)
    # With nothing to take no kernel is launched, so this needs no GPU.
    assert enqueue("TokenGather", [tokens, nothing], [_tensor(2, 0, 8)]) == success
    for inputs, outputs in (
        ([tokens, some], [_tensor(2, 4, 8)]),
        ([tokens, some], [_tensor(2, 3, 7)]),
        ([tokens, some], [_tensor(4, 3, 8)]),
        ([tokens, _tensor(4, 3)], [_tensor(2, 3, 8)]),
        ([_tensor(8, 5, 8), some], [_tensor(8, 3, 8)]),
        ([tokens], [_tensor(2, 3, 8)]),
    ):
        assert enqueue("TokenGather", inputs, outputs) == invalid
    assert enqueue("TokenScatter", [tokens, some, _tensor(2, 2, 8)], [tokens]) == invalid
    rows, valid = _tensor(2, 0, 8), _tensor(8)
    # No row at all: nothing is launched but the copy of the tokens, which are none.
    empty = _tensor(2, 0, 8)
    assert enqueue("TokenScatterValid", [empty, nothing, rows, valid], [empty]) == success
    assert enqueue("TokenScatterValid", [empty, nothing, rows], [empty]) == invalid
    assert enqueue("TokenScatterValid", [empty, nothing, rows, some], [empty]) == invalid
    assert enqueue("TokenScatterValid", [empty, nothing, rows, _tensor(4)], [empty]) == invalid
    assert enqueue("TokenScatter", [empty, nothing, rows, valid], [empty]) == invalid
    assert enqueue("TokenPartition", [some], [_tensor(8, 4), _tensor(8)]) == invalid
    assert enqueue("TokenPartition", [some], [some, _tensor(4)]) == invalid
    assert enqueue("TokenIndex", [some], [some, _tensor(8)]) == invalid
    assert enqueue("TokenSort", [some], [some, _tensor(8)]) == invalid


@needs_nvrtc
def test_the_host_driver_has_the_calls_of_cuda_bindings(driver):
    """The fake takes what the real module takes, and nothing that it does not have."""
    import cuda.bindings.driver as real

    own = {"library", "streams", "fails"}
    for name in {name for name in dir(driver) if not name.startswith("_")} - own:
        value = getattr(driver, name)
        if name.startswith("cu"):
            parameters = inspect.signature(value).parameters.values()
            taken = len(inspect.signature(getattr(real, name)).parameters)
            anything = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
            assert len(parameters) == taken or (anything and len(parameters) <= taken), name
        else:
            names = [member for member in dir(value) if member.startswith("CU")]
            assert names and all(hasattr(getattr(real, name), member) for member in names), name


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("header", ["token_shapes.h"])
def test_a_header_needs_no_other_before_it(header, tmp_path):
    (tmp_path / "alone.cpp").write_text(f'#include "{header}"\nint main() {{ return 0; }}\n')
    command = ["g++", "-std=c++17", "-fsyntax-only", f"-I{CSRC}", str(tmp_path / "alone.cpp")]
    subprocess.run(command, check=True)
    assert "<initializer_list>" in (CSRC / header).read_text(), "a list of units is one; other headers may bring it"


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def planned(folder: Path, *variables: str) -> subprocess.CompletedProcess[str]:
    """What `make plugins` would do, from the checkout's root."""
    return subprocess.run(
        ["make", "-n", "-C", str(folder), "plugins", *variables], capture_output=True, text=True, check=False
    )


@needs_make
def test_headers_by_a_relative_path_are_meant_from_where_make_was_started(tmp_path):
    for name in ("Makefile", "csrc/Makefile"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("token_plugins.cpp", "token_enqueue.cpp", "token_kernels.cu", "token_kernels.h", "token_enqueue.h"):
        (tmp_path / "csrc" / name).touch()
    refused = planned(tmp_path, "TENSORRT_INCLUDE=headers")
    assert refused.returncode != 0
    assert f"no NvInferRuntime.h in TENSORRT_INCLUDE={tmp_path / 'headers'}" in refused.stderr
    (tmp_path / "headers").mkdir()
    (tmp_path / "headers" / "NvInferRuntime.h").touch()
    for folder, path in ((tmp_path, "headers"), (tmp_path / "csrc", "../headers")):
        done = planned(folder, f"TENSORRT_INCLUDE={path}", f"SHARED={KERNEL_FOLDER}", "HEADERS=")
        assert "built build/libdovit_plugins.so with the headers in" in done.stdout, done.stderr
        assert f"-isystem {tmp_path / 'headers' if path == 'headers' else path}" in done.stdout


@needs_make
def test_without_headers_that_were_asked_for_the_kernels_alone_are_compiled():
    if Path("/usr/include/x86_64-linux-gnu/NvInferRuntime.h").exists():
        pytest.skip("TensorRT's headers are installed")
    done = planned(ROOT)
    assert done.returncode == 0 and "UNCOMPILED" in done.stdout


@needs_nvrtc
def test_nvrtc_compiles_the_same_source():
    cubin = compiled_kernels("sm_90")
    assert cubin.startswith(b"\x7fELF")
    for name in KERNELS:
        assert name.encode() in cubin
    assert compiled_kernels("sm_90") is cubin, "compiled once"


@needs_nvrtc
def test_an_architecture_that_nvrtc_does_not_know_is_an_error():
    with pytest.raises(EnvironmentProblem, match="sm_12345"):
        compiled_kernels("sm_12345")


@needs_nvrtc
def test_without_a_driver_the_kernels_are_refused():
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("there is a driver")
    with pytest.raises(ProviderMissing, match="driver"):
        TokenKernels.on_current_device()


def test_the_source_stands_alone():
    assert "#include" not in kernel_source()
    assert "atomic" not in kernel_source().replace("no atomics", "")
