"""Arrays that other packages keep on the GPU (PyTorch, CuPy, PyCUDA, JAX), taken without a copy.

Two protocols are understood: the CUDA array interface, and DLPack, whose C structure is read here so that none of those
packages is needed.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from dovit_deploy.engines.cuda.memory import DeviceArray
from dovit_deploy.errors import InputError

DLPACK_CUDA = 2
"""kDLCUDA of dlpack.h."""
DLPACK_KINDS = {0: "i", 1: "u", 2: "f"}


class _DLTensor(ctypes.Structure):
    """DLTensor of dlpack.h; DLManagedTensor begins with one."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def is_on_a_device(array: object) -> bool:
    """Whether `array` says that it lies on an NVIDIA GPU."""
    if hasattr(array, "__cuda_array_interface__"):
        return True
    told = getattr(array, "__dlpack_device__", None)
    return told is not None and int(told()[0]) == DLPACK_CUDA


def device_array_of(array: Any) -> DeviceArray:  # noqa: ANN401  of any package
    """`array` as a `DeviceArray` over the same memory; it is kept alive by it.

    Raises:
        InputError: it is not contiguous, or of a type that has no NumPy name.
    """
    if hasattr(array, "__cuda_array_interface__"):
        return _from_interface(array, array.__cuda_array_interface__)
    return _from_dlpack(array)


def _from_interface(array: object, shown: dict[str, Any]) -> DeviceArray:
    shape, dtype = tuple(map(int, shown["shape"])), np.dtype(shown["typestr"])
    strides = shown.get("strides")
    if strides is not None:
        _check_contiguous(array, shape, tuple(int(step) // dtype.itemsize for step in strides))
    return DeviceArray.of(int(shown["data"][0]), shape, dtype, owner=array, stream=shown.get("stream"))


def _from_dlpack(array: Any) -> DeviceArray:  # noqa: ANN401
    # 1: the legacy default stream; the producer makes it wait for what it has enqueued elsewhere.
    capsule = array.__dlpack__(stream=1)
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.restype, read.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DLTensor.from_address(read(capsule, b"dltensor"))
    shape = tuple(tensor.shape[place] for place in range(tensor.ndim))
    if tensor.code not in DLPACK_KINDS or tensor.lanes != 1:
        raise InputError(f"{type(array).__name__}: numbers of DLPack kind {tensor.code} cannot be taken; convert them")
    dtype = np.dtype(f"{DLPACK_KINDS[tensor.code]}{tensor.bits // 8}")
    if tensor.strides:
        _check_contiguous(array, shape, tuple(tensor.strides[place] for place in range(tensor.ndim)))
    # Never renamed to "used_dltensor", the capsule gives the memory back when nobody holds it any more.
    return DeviceArray.of(tensor.data + tensor.byte_offset, shape, dtype, owner=(array, capsule))


def _check_contiguous(array: object, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    step = 1
    for side, stride in zip(reversed(shape), reversed(strides), strict=True):
        if side > 1 and stride != step:
            raise InputError(f"{type(array).__name__} of shape {shape} is not contiguous on the GPU; make it so")
        step *= side
