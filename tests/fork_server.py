"""`dovit` in a process of its own, without the seconds of importing: a server imports everything once and forks.

What runs is the real command line in a real process, with its own arguments, folder, pipes and exit code. Nothing but
imports has happened in the server, so a child starts as a new interpreter does. Where a test changes the environment,
which imported packages have already read, a new interpreter is started instead (`dovit` in conftest.py).
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.exporter import gather_operators_once

HEAVY = (
    *("torch", "onnx", "onnxscript", "onnxruntime", "cv2", "av", "PIL.Image", "safetensors.torch", "matplotlib.figure"),
)
"""Packages that verbs import; one that is not installed is left out, as the verbs then do without it."""

SET_BY_IMPORTS = {
    *("OPENBLAS_NUM_THREADS", "OPENCV_FFMPEG_LOGLEVEL", "OPENCV_FOR_THREADS_NUM", "ORT_DISABLE_TELEMETRY"),
    *("LD_LIBRARY_PATH", "TORCHINDUCTOR_CACHE_DIR", "HF_HUB_OFFLINE"),
}
"""Variables that our package, OpenCV and PyTorch set when they are imported, which the server's children have, too, and
the one that tests set for transformers and timm, which nothing of ours reads."""


def environment() -> dict[str, str]:
    """What decides whether a child of the server is as good as a new interpreter."""
    # pytest changes its own variable for every test, and nothing reads it.
    return {name: value for name, value in os.environ.items() if name not in {"PYTEST_CURRENT_TEST", *SET_BY_IMPORTS}}


class ForkServer:
    """The server, started when it is first used; usable from one thread."""

    def __init__(self) -> None:
        self._environment = environment()
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())]
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen(command, cwd=root, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()

    def suits(self) -> bool:
        """Whether the environment is still that in which the server was started."""
        return environment() == self._environment

    def run(
        self, arguments: Sequence[str], *, folder: Path, timeout: float, script: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`dovit ARGUMENTS` in `folder`, or `python SCRIPT ARGUMENTS`, as `subprocess.run` with captured text gives it.

        Raises:
            subprocess.TimeoutExpired: it took more than `timeout` seconds; it was killed.
        """
        pipes = [os.pipe(), os.pipe()]
        request = json.dumps([list(arguments), str(folder), script and str(script)]).encode(errors="surrogateescape")
        socket.send_fds(self._socket, [len(request).to_bytes(4, "big")], [write for _, write in pipes])
        self._socket.sendall(request)
        for _, write in pipes:
            os.close(write)
        child = int.from_bytes(self._socket.recv(4, socket.MSG_WAITALL), "big")
        ends = [read for read, _ in pipes]
        try:
            texts = read_all(ends, until=time.monotonic() + timeout)
        except TimeoutError as error:
            os.kill(child, signal.SIGKILL)
            self._code()
            raise subprocess.TimeoutExpired(list(arguments), timeout) from error
        finally:
            for end in ends:
                os.close(end)
        output, errors = (text.decode().replace("\r\n", "\n") for text in texts)
        return subprocess.CompletedProcess(list(arguments), self._code(), output, errors)

    def _code(self) -> int:
        return int.from_bytes(self._socket.recv(4, socket.MSG_WAITALL), "big", signed=True)

    def close(self) -> None:
        """End the server."""
        self._socket.close()
        self._process.wait(timeout=30)


def read_all(ends: Sequence[int], *, until: float) -> list[bytes]:
    """Everything that comes out of the pipes `ends`, read side by side.

    Raises:
        TimeoutError: not all of them were closed by `until` (`time.monotonic`).
    """
    found = {end: bytearray() for end in ends}
    with selectors.DefaultSelector() as selector:
        for end in ends:
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                found[key.fd] += part
                if not part:
                    selector.unregister(key.fd)
    return [bytes(found[end]) for end in ends]


# The server.


def serve(link: socket.socket) -> None:
    """Fork for every request until the other end is closed."""
    import_everything()
    while True:
        size, ends, _, _ = socket.recv_fds(link, 4, 2)
        if not size:
            return
        arguments, folder, script = json.loads(link.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
        child = os.fork()
        if not child:
            link.close()
            become(script, arguments, folder, ends)
        for end in ends:
            os.close(end)
        link.sendall(child.to_bytes(4, "big"))
        _, status = os.waitpid(child, 0)
        link.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))


def import_everything() -> None:
    """Import what the verbs import, and run nothing of it."""
    import dovit_deploy

    for module in HEAVY:
        with suppress(ImportError):
            importlib.import_module(module)
    for module in pkgutil.walk_packages(dovit_deploy.__path__, "dovit_deploy."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    # Half a second for each graph of an export but its first.
    gather_operators_once()


def become(script: str | None, arguments: list[str], folder: str, ends: list[int]) -> None:
    """Be `python SCRIPT ARGUMENTS`, or `python -m dovit_deploy ARGUMENTS`, in this process, which ends with it."""
    code = 1
    try:
        os.chdir(folder)
        for end, standard in zip(ends, (1, 2), strict=True):
            os.dup2(end, standard)
            os.close(end)
        # New ones, as an interpreter makes them: those of the server remember where its own streams led.
        sys.stdout = sys.__stdout__ = open(1, "w", encoding=sys.stdout.encoding, errors="strict", closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
            2, "w", 1, encoding=sys.stderr.encoding, errors="backslashreplace", closefd=False
        )
        sys.argv = [script or "dovit", *arguments]
        if script is None:
            runpy.run_module("dovit_deploy", run_name="__main__", alter_sys=True)
        else:
            # A script's own folder stands where this module's does.
            sys.path[0] = str(Path(script).parent)
            runpy.run_path(script, run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001  the end of a process, as the interpreter has it
        traceback.print_exc()
    finally:
        # What an interpreter does at its end; `os._exit` itself does none of it.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code & 0xFF)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
