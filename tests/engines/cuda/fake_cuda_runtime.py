"""A FAKE of onnxruntime-gpu: it says that it has CUDA, and computes with the ONNX Runtime of the CPU.

Device memory is host memory here, and every OrtValue notes when it is copied to the host, so that what the engine asks
of ONNX Runtime can be tested where there is no GPU. Sessions are real, bindings are real; only the word "cuda" is not.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnxruntime

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class FakeOrtValue:
    """An OrtValue "on the GPU"; `journal` gets its shape at each copy to the host."""

    def __init__(self, value, journal: list) -> None:
        self.real, self.journal = value, journal

    def numpy(self):
        self.journal.append(tuple(self.real.shape()))
        return self.real.numpy()

    def __getattr__(self, name: str):
        return getattr(self.real, name)


class FakeBinding:
    """Binds inputs and outputs, "cuda" being the CPU; records inputs that were bound by address."""

    def __init__(self, session, runtime: FakeCudaRuntime) -> None:
        self.real, self.runtime = session.io_binding(), runtime

    def bind_ortvalue_input(self, name, value) -> None:
        assert isinstance(value, FakeOrtValue), f"{name} is not on the device"
        self.real.bind_ortvalue_input(name, value.real)

    def bind_input(self, name, device, number, element_type, shape, address) -> None:
        assert (device, number) == ("cuda", 0)
        self.runtime.narrowed.append((name, tuple(shape), address))
        self.real.bind_input(name, "cpu", 0, element_type, shape, address)

    def bind_output(self, name, device) -> None:
        assert device == "cuda", f"{name} is bound to {device}"
        self.real.bind_output(name, "cpu")

    def get_outputs(self):
        return [FakeOrtValue(value, self.runtime.copied) for value in self.real.get_outputs()]


class FakeSession:
    """A session on the CPU that claims `providers`."""

    def __init__(self, source, options, runtime: FakeCudaRuntime) -> None:
        self.real, self.runtime = onnxruntime.InferenceSession(source, providers=[CPU]), runtime
        self.options = options

    def get_providers(self):
        return list(self.runtime.session_providers)

    def io_binding(self):
        return FakeBinding(self.real, self.runtime)

    def run_with_iobinding(self, binding) -> None:
        if self.runtime.fails_to_run is not None:
            raise self.runtime.fails_to_run
        self.real.run_with_iobinding(binding.real)

    def __getattr__(self, name: str):
        return getattr(self.real, name)


class FakeOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.log_severity_level = 2

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


class FakeCudaRuntime:
    """The module `onnxruntime`, as onnxruntime-gpu would be on a machine with a GPU."""

    __version__ = "0.0-fake"
    SessionOptions = FakeOptions

    def __init__(self, *, file: str = "nowhere/__init__.py") -> None:
        self.__file__ = file
        self.capi = onnxruntime.capi
        self.available: list[str] = [CUDA, CPU]
        self.session_providers: list[str] = [CUDA, CPU]
        self.fails_to_load: Exception | None = None
        self.fails_to_run: Exception | None = None
        self.copied: list[tuple[int, ...]] = []
        """Shapes of what was copied to the host."""
        self.narrowed: list[tuple] = []
        """Name, shape and address of inputs that were bound by address."""
        self.addresses: list[int] = []
        self.sessions: list[FakeSession] = []
        self.levels: list[int] = []
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self._from_numpy)

    def get_available_providers(self):
        return list(self.available)

    def preload_dlls(self) -> None:
        print("Failed to load libcublas.so")

    def set_default_logger_severity(self, level: int) -> None:
        self.levels.append(level)

    def InferenceSession(self, source, options, *, providers, enable_fallback):
        # No TF32: fp32 is fp32.
        assert providers == [(CUDA, {"device_id": "0", "use_tf32": "0"})] and enable_fallback == 0
        assert options.entries["session.disable_cpu_ep_fallback"] == "1"
        if self.fails_to_load is not None:
            raise self.fails_to_load
        self.sessions.append(FakeSession(source, options, self))
        return self.sessions[-1]

    def _from_numpy(self, array, device, number):
        assert (device, number) == ("cuda", 0)
        # The CPU's OrtValue shares the array's memory; a device has its own.
        copy = np.array(array, order="C")
        value = FakeOrtValue(onnxruntime.OrtValue.ortvalue_from_numpy(copy), self.copied)
        value.kept = copy
        return value
