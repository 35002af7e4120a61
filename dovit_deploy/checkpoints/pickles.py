"""How is a pickle read without running anything that it names?

`torch.load` takes a module to unpickle with; this file is one. Nothing is ever imported or called by name: a name is
looked up in two literal tables, of values and of functions, and every other one becomes a `Placeholder`, which takes
whatever is done to it and does nothing. So what training tools store beside the weights (mmengine's history, argparse
and yacs settings, an optimiser's own classes) does no harm; a weight that turns out to be a placeholder is its
caller's to refuse.
"""

from __future__ import annotations

import os
import pickle
import re
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch import Tensor


class Placeholder:
    """What stands for a class, a function or an object that is not on the lists."""

    def __init__(self, name: str) -> None:
        self.name = name
        """As the pickle spells it: "mmengine.logging.history_buffer.HistoryBuffer"."""
        self.is_module = False
        """It is an object with the attributes of a PyTorch module."""

    def __repr__(self) -> str:
        return f"<{self.name}>"


# What may be called. Every function here takes what a stranger wrote.


def _ordered(*pairs: Any) -> OrderedDict[Any, Any]:  # noqa: ANN401  whatever the file holds
    return OrderedDict(*pairs)


def _plain_dict(*factory: object) -> dict[object, object]:
    """A defaultdict without its factory."""
    del factory
    return {}


def _plain_tuple(items: Any = ()) -> tuple[Any, ...]:  # noqa: ANN401  whatever the file holds
    return tuple(items)


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Bytes, as protocol 2 spells them; other encodings name modules of Python's own that would be imported."""
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise pickle.UnpicklingError(f"bytes in the unknown encoding {encoding[:40]!r}")
    return text.encode(encoding)


def _tensor_with_attributes(function: Any, kind: object, arguments: Any, state: object) -> object:  # noqa: ANN401
    """A tensor of a class of its own, or with attributes: the tensor alone."""
    del kind, state
    if isinstance(function, Placeholder):
        return Placeholder(function.name)
    if not any(function is known for known in _TENSORS.values()):
        raise pickle.UnpicklingError("a tensor that no function of PyTorch's makes")
    return function(*arguments)


def _parameter(data: object, *rest: object) -> object:
    """A parameter is here the tensor in it."""
    del rest
    return data


_NUMBER_TYPE = re.compile(r"[<>=|]?[biufc]\d{1,2}")


def _number_type(spelled: object, *rest: object) -> object:
    """A NumPy type of numbers; one of objects could hold anything."""
    del rest
    if isinstance(spelled, str) and _NUMBER_TYPE.fullmatch(spelled):
        # A copy, because its state is set below, and the original is shared by all of NumPy.
        return np.dtype(spelled, copy=True)
    return Placeholder("numpy.dtype")


def _scalar(kind: object, content: object = b"") -> object:
    if not isinstance(kind, np.dtype) or not isinstance(content, bytes):
        return Placeholder("numpy scalar")
    return np.frombuffer(content, kind, count=1)[0]


def _empty_array(*rest: object) -> np.ndarray[Any, Any]:
    """An array whose content comes with its state."""
    del rest
    return np.zeros(0)


def _within_storage(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One of torch's functions that make a tensor of a storage; torch itself would enlarge a storage that is short."""

    def made(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:  # noqa: ANN401
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise ValueError("a tensor's sizes and strides are no whole numbers that can be")
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        width = storage.dtype.itemsize
        if 0 not in size and (last + 1) * width > storage._untyped_storage.nbytes():
            raise ValueError("a tensor reaches beyond the bytes stored for it")
        return function(storage, offset, size, stride, *rest)

    return made


_TENSORS: dict[str, Callable[..., object]] = {
    f"torch._utils.{function.__name__}": _within_storage(function)
    for function in (
        torch._utils._rebuild_tensor,
        torch._utils._rebuild_tensor_v2,
        torch._utils._rebuild_tensor_v3,
    )
}
_FUNCTIONS: dict[str, Callable[..., object]] = {
    **_TENSORS,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "torch.Size": _plain_tuple,
    "collections.OrderedDict": _ordered,
    "collections.Counter": Counter,
    "collections.defaultdict": _plain_dict,
    "_codecs.encode": _encoded,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.list": list,
    "builtins.tuple": _plain_tuple,
    "builtins.dict": _plain_dict,
    "builtins.complex": complex,
    "numpy.dtype": _number_type,
    # NumPy 2 renamed `core` to `_core`; a file names whichever wrote it.
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _empty_array for core in ("core", "_core")},
}
_VALUES: dict[str, object] = {
    "torch.storage.UntypedStorage": torch.UntypedStorage,
    **{str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)},
}
"""What may be named and is never called."""


_HARMFUL = frozenset(
    {
        *("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "runpy", "importlib", "ctypes", "pty"),
        *(
            f"builtins.{name}"
            for name in ("eval", "exec", "compile", "open", "print", "input", "setattr", "__import__")
        ),
    }
)
"""Modules and functions that only a file meant to do harm names. It would do none here, but weights of whoever made it
are not to be trusted either."""


def looked_up(module: str, name: str) -> object:
    """What the name stands for; nothing is imported.

    Raises:
        UnpicklingError: it is there to do harm.
    """
    # Python 2 called it otherwise, and `torch.save` writes protocol 2 with the old names.
    module = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}.get(module, module)
    full = f"{module}.{name}"
    if module.split(".")[0] in _HARMFUL or full in _HARMFUL:
        raise pickle.UnpicklingError(f"it names {full[:80]}")
    return _FUNCTIONS.get(full) or _VALUES.get(full) or Placeholder(full)


def _called(function: Any, arguments: Any) -> object:  # noqa: ANN401  whatever the file holds
    """The result of a function on the list; of any other a placeholder."""
    if isinstance(function, Placeholder):
        # `copyreg._reconstructor(class, base, state)` is how protocol 0 and 1 make an object.
        made = arguments[0] if isinstance(arguments, tuple) and arguments else None
        indirect = function.name.startswith("copyreg.") and isinstance(made, Placeholder)
        return Placeholder(made.name if indirect and isinstance(made, Placeholder) else function.name)
    if not any(function is known for known in _FUNCTIONS.values()):
        raise pickle.UnpicklingError(f"a call of {type(function).__name__}, which is no function on the list")
    return function(*arguments)


def _with_state(made: Any, state: Any) -> None:  # noqa: ANN401  whatever the file holds
    """Give `made` its state, which only NumPy's types and arrays need."""
    if isinstance(made, Placeholder):
        made.is_module = isinstance(state, dict) and {"_modules", "_parameters"} <= state.keys()
    elif type(made) is np.ndarray:
        _, _, kind, _, content = state
        if isinstance(kind, np.dtype) and isinstance(content, bytes):
            made.__setstate__(state)
    elif isinstance(made, np.dtype):
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        # Only the order of bytes; types made of fields are not read.
        if order in ("<", ">", "="):
            made.__setstate__((3, order, None, None, None, -1, -1, 0))  # type: ignore[attr-defined]


MOST_REPEATS, FREE_VALUES = 16, 2**24
"""How often a file's tensors together may repeat what is stored, and how many values may at all: a step of 0 makes any
number of them of a single one. Tensors that share a storage count each time."""


class Unpickler(pickle._Unpickler):
    """Python's own machine for pickles, with every instruction replaced that could run or change something.

    A storage is asked for through `persistent_load`, which `torch.load` sets.
    """

    stack: list[Any]
    _values = _stored = 0
    """In all tensors so far, and in all storages."""

    def __init__(self, file: IO[bytes], *, encoding: str = "utf-8") -> None:
        super().__init__(file, encoding=encoding)
        self._bytes_left = _bytes_of(file)
        self._sized: set[object] = set()

    def find_class(self, module: str, name: str) -> object:
        """Named by GLOBAL, STACK_GLOBAL and INST."""
        return looked_up(module, name)

    def _instantiate(self, made: object, arguments: list[Any]) -> None:
        """INST and OBJ, of protocol 0 and 1."""
        self.stack.append(_called(made, tuple(arguments)))

    def _items(self) -> list[Any]:
        """What was pushed since the last mark."""
        items: list[Any] = self.pop_mark()  # type: ignore[attr-defined]
        return items

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = made = _called(self.stack[-1], arguments)
        if isinstance(made, Tensor):
            self._values += made.numel()
            if self._values > MOST_REPEATS * self._stored + FREE_VALUES:
                raise ValueError("its tensors repeat what is stored until no memory holds them")

    def _new_object_with_keywords(self) -> None:
        self.stack.pop()
        self._reduce()

    def _build(self) -> None:
        state = self.stack.pop()
        _with_state(self.stack[-1], state)

    def _extend(self, target: object, items: list[Any]) -> None:
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(items)
        elif not isinstance(target, Placeholder):
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")

    def _append(self) -> None:
        item = self.stack.pop()
        self._extend(self.stack[-1], [item])

    def _appends(self) -> None:
        items = self._items()
        self._extend(self.stack[-1], items)

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) in (dict, OrderedDict, Counter):
            target.update(zip(items[::2], items[1::2], strict=True))
        elif not isinstance(target, Placeholder):
            raise pickle.UnpicklingError(f"entries for a {type(target).__name__}")

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _set_items(self) -> None:
        self._update(self._items())

    def _storage(self) -> None:
        identity = self.stack.pop()
        kind = identity[0] if isinstance(identity, tuple) and identity else identity
        # Old files put a module's class and its source into the same list.
        if kind in ("module", b"module"):
            self.stack.append(identity[1])
        elif kind in ("storage", b"storage") or isinstance(kind, int):
            self._check_size(identity)
            self.stack.append(self.persistent_load(identity))
        else:
            raise pickle.UnpicklingError("a persistent object that is no storage")

    def _check_size(self, identity: object) -> None:
        """Count what is stored; refuse an older file that states more than it has, before memory is taken for it."""
        if not isinstance(identity, tuple) or len(identity) < 5:
            return
        kind, key, values = identity[1], identity[2], identity[4]
        if isinstance(values, int) and isinstance(key, str) and key not in self._sized:
            self._sized.add(key)
            self._stored += values
            if values < 0:
                raise EOFError("it states a negative number of values")
            if self._bytes_left is not None:
                self._bytes_left -= values * getattr(kind, "dtype", torch.uint8).itemsize
                if self._bytes_left < 0:
                    raise EOFError("it states more values than it has bytes")

    def _byte_array(self) -> None:
        # Read first: Python's own fills an array of the stated size with zeros before it looks whether the file has it.
        content = self.read(struct.unpack("<Q", self.read(8))[0])  # type: ignore[attr-defined]
        self.append(bytearray(content))  # type: ignore[attr-defined]

    def _refused(self) -> None:
        raise pickle.UnpicklingError("an instruction that no checkpoint needs")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _reduce,
        pickle.NEWOBJ_EX[0]: _new_object_with_keywords,
        pickle.BUILD[0]: _build,
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _appends,
        pickle.ADDITEMS[0]: _appends,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.BINPERSID[0]: _storage,
        pickle.PERSID[0]: _refused,
        # Names that some package registered: they would be imported behind our back.
        pickle.EXT1[0]: _refused,
        pickle.EXT2[0]: _refused,
        pickle.EXT4[0]: _refused,
        pickle.BYTEARRAY8[0]: _byte_array,
    }


def _bytes_of(file: IO[bytes]) -> int | None:
    """The size of a file on the disk; None for a part of an archive, of which torch checks the sizes."""
    try:
        return os.fstat(file.fileno()).st_size
    except OSError:
        return None


def load(file: IO[bytes], *, encoding: str = "utf-8") -> object:
    """One pickle, as `torch.load` asks for the small ones at the beginning of its older files."""
    return Unpickler(file, encoding=encoding).load()


_QUANTISED, _SPARSE = "a quantised tensor", "a sparse tensor"
_META = "a tensor of the meta device, which has no values"
_REBUILT_BY = {
    "torch._utils._rebuild_qtensor": _QUANTISED,
    "torch._utils._rebuild_sparse_tensor": _SPARSE,
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": _META,
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
}
SPECIAL_TENSORS = frozenset(_REBUILT_BY.values())
"""What `kind_of` calls tensors whose values cannot be taken as they are."""


def kind_of(value: object) -> str:
    """What a value of a checkpoint is, for messages."""
    if isinstance(value, Placeholder):
        return _REBUILT_BY.get(value.name, f"a pickled {value.name[:100]}")
    if isinstance(value, Tensor):
        return _kind_of_tensor(value)
    return type(value).__name__


def _kind_of_tensor(tensor: Tensor) -> str:
    if tensor.is_quantized:
        return _QUANTISED
    if tensor.is_meta:
        return _META
    return "tensor" if tensor.layout == torch.strided else _SPARSE
