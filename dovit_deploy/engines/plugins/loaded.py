"""Which kernels are loaded where? Those of the Python plugins, once in each CUDA context of this process.

TensorRT makes a plugin object for every call in every execution context, hundreds in a session, and prints their
errors instead of raising them. So whoever runs engines loads the kernels first, where an error still has its class
(`HeldKernels`), and all plugin objects share them (`current_kernels`).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from dovit_deploy.engines.plugins.kernels import TokenKernels, current_context


@dataclass
class _Loaded:
    kernels: TokenKernels
    holders: int = 0


_loaded: dict[int, _Loaded] = {}
"""By context. Its kernels go with their last holder; where nobody holds them, as while engines are built, they stay."""
_lock = threading.Lock()


def current_kernels() -> TokenKernels:
    """The kernels in the calling thread's CUDA context, loaded now if they are not.

    Raises:
        PackageMissing, ProviderMissing, EnvironmentProblem: see `TokenKernels.on_current_device`.
    """
    with _lock:
        return _entry(current_context()).kernels


class HeldKernels:
    """Keeps the kernels of the calling thread's CUDA context loaded until `release`.

    Raises:
        PackageMissing, ProviderMissing, EnvironmentProblem: see `TokenKernels.on_current_device`.
    """

    def __init__(self) -> None:
        self._context = current_context()
        with _lock:
            _entry(self._context).holders += 1

    def release(self) -> None:
        """To be called once, in the same context, when no engine that uses them is left."""
        with _lock:
            loaded = _loaded[self._context]
            loaded.holders -= 1
            if not loaded.holders:
                del _loaded[self._context]
                loaded.kernels.unload()


def _entry(context: int) -> _Loaded:
    if context not in _loaded:
        _loaded[context] = _Loaded(TokenKernels.on_current_device())
    return _loaded[context]
