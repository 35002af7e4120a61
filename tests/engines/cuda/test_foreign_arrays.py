"""Arrays of other packages, stood for by objects that show what those show."""

from __future__ import annotations

import ctypes
import gc
import weakref

import numpy as np
import pytest

from dovit_deploy.engines.cuda.foreign_arrays import _DLTensor, device_array_of, is_on_a_device
from dovit_deploy.engines.cuda.memory import DeviceArray
from dovit_deploy.errors import InputError


class Shown:
    """What PyCUDA's and CuPy's arrays show."""

    def __init__(self, values: np.ndarray, *, strides=None, stream=None) -> None:
        self.values = values
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (values.ctypes.data, False),
            "strides": strides,
            "stream": stream,
            "version": 3,
        }


class Managed(ctypes.Structure):
    """DLManagedTensor of dlpack.h."""

    _fields_ = (("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Packed:
    """What exchanges by DLPack alone; `device` 2 is CUDA, 1 the CPU."""

    def __init__(self, values: np.ndarray, *, code=2, device=2, strides=None, offset=0) -> None:
        self.values, self.device, self.streams = values, device, []
        self.shape = (ctypes.c_int64 * values.ndim)(*values.shape)
        self.strides = None if strides is None else (ctypes.c_int64 * values.ndim)(*strides)
        fields = values.ctypes.data - offset, device, 0, values.ndim, code, 8 * values.itemsize, 1, self.shape
        steps = ctypes.POINTER(ctypes.c_int64)() if self.strides is None else self.strides
        self.managed = Managed(_DLTensor(*fields, steps, offset))

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.managed), b"dltensor", None)


VALUES = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize("foreign", [Shown(VALUES), Packed(VALUES), Packed(VALUES, offset=64)])
def test_the_same_memory(foreign) -> None:
    assert is_on_a_device(foreign)
    taken = device_array_of(foreign)
    assert (taken.address, taken.shape, taken.dtype) == (VALUES.ctypes.data, (2, 3, 4), np.float32)
    assert taken.room == 2


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.uint8])
def test_types(dtype) -> None:
    values = np.zeros(3, dtype)
    code = {"f": 2, "i": 0, "u": 1}[values.dtype.kind]
    assert device_array_of(Shown(values)).dtype == device_array_of(Packed(values, code=code)).dtype == dtype


def test_strides_of_whole_rows_are_contiguous() -> None:
    assert device_array_of(Shown(VALUES, strides=VALUES.strides)).shape == (2, 3, 4)
    assert device_array_of(Packed(VALUES, strides=(12, 4, 1))).shape == (2, 3, 4)
    one = np.zeros((1, 3), np.float32)
    assert device_array_of(Shown(one, strides=(999, 4))).shape == (1, 3), "nobody steps along one entry"


@pytest.mark.parametrize(
    "foreign",
    [Shown(VALUES, strides=(4, 8, 24)), Packed(VALUES, strides=(1, 2, 6)), Packed(VALUES, strides=(24, 4, 1))],
)
def test_others_are_refused(foreign) -> None:
    with pytest.raises(InputError, match=r"of shape \(2, 3, 4\) is not contiguous"):
        device_array_of(foreign)


def test_numbers_without_a_name_in_numpy() -> None:
    with pytest.raises(InputError, match="DLPack kind 4"):
        device_array_of(Packed(VALUES, code=4))


def test_who_wrote_last_is_told() -> None:
    assert device_array_of(Shown(VALUES, stream=77)).stream == 77
    assert device_array_of(Shown(VALUES)).stream is None
    packed = Packed(VALUES)
    device_array_of(packed)
    assert packed.streams == [1], "the producer lets the default stream wait"


def test_the_owner_lives_as_long() -> None:
    foreign = Shown(VALUES.copy())
    alive = weakref.ref(foreign)
    taken = device_array_of(foreign)
    del foreign
    gc.collect()
    assert alive() is not None
    del taken
    gc.collect()
    assert alive() is None


def test_our_own_are_seen_by_others_and_taken_back() -> None:
    own = DeviceArray.of(VALUES.ctypes.data, (2, 3, 4), np.float32, stream=5)
    back = device_array_of(own)
    assert (back.address, back.shape, back.dtype, back.stream) == (own.address, own.shape, own.dtype, 5)


@pytest.mark.parametrize("array", [VALUES, [1, 2], Packed(VALUES, device=1)])
def test_what_lies_on_the_host(array) -> None:
    assert not is_on_a_device(array)
