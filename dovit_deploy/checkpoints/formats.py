"""In which format is a file of weights, by its content, and what is a file that is none?

Names are changed: a .safetensors called .pth is read as what it is. What other tools write under such names is refused
by its own name, with what makes a checkpoint of it.
"""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import Literal

import torch

from dovit_deploy.errors import InputError, PickleRefused
from dovit_deploy.signatures import head_of, placeholder_for

Format = Literal["safetensors", "torch"]

_ARCHIVE = b"PK\x03\x04"
_BINARY_PICKLE = b"\x80"
_MOST_HEADER = 100_000_000
"""Bytes that safetensors allows for its header."""
MOST_UNPACKED = 16
"""Times the file's own size. torch.save stores as it is; compressed by another tool, weights lose a tenth, and the
zeros of a state that was never trained nearly all."""
LEAST_REFUSED = 2**24
"""Bytes that may be unpacked of any file."""
_UNPACK = "unpack it, and give the checkpoint in it"
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them; give the PyTorch checkpoint"),
    (0, b"GGUF", "a GGUF file; give the PyTorch checkpoint that it was made of"),
    (4, b"TFL3", "a TensorFlow Lite model; give the PyTorch checkpoint"),
    (0, b"\x93NUMPY", "a NumPy array; give the PyTorch checkpoint"),
    (0, b"\x1f\x8b", f"compressed with gzip; {_UNPACK}"),
    (0, b"BZh", f"compressed with bzip2; {_UNPACK}"),
    (0, b"\xfd7zXZ\0", f"compressed with xz; {_UNPACK}"),
    (0, b"\x28\xb5\x2f\xfd", f"compressed with zstd; {_UNPACK}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {_UNPACK}"),
    (0, b"Rar!\x1a\x07", f"a RAR archive; {_UNPACK}"),
    (257, b"ustar", f"a tar archive; {_UNPACK}"),
)
"""Offset and bytes that show a format, and what it is called."""
_ONNX_FIELDS = (b"\x12", b"\x1a", b"\x3a", b"\x42")
"""What follows the version of the format in an ONNX file: producer, its version, graph or operator sets."""


def format_of(path: Path) -> Format:
    """The format of the file at `path`.

    Raises:
        InputError: it is empty, a pointer or page left in place of the file, or of a format that is no checkpoint.
        PickleRefused: it is a TorchScript program, or unpacks to far more than it holds.
        OSError: it cannot be read.
    """
    placeholder = placeholder_for(path)
    if placeholder is not None:
        raise InputError(f"{path}: {placeholder}")
    # Opened here, because `head_of` does not say why it gives nothing.
    with path.open("rb"):
        head, size = head_of(path), path.stat().st_size
    if size == 0:
        raise InputError(f"{path} is empty")
    if head.startswith(_ARCHIVE):
        _refuse_other_archives(path)
        return "torch"
    if _is_safetensors(head, size):
        return "safetensors"
    other = _other_format(head)
    # A tar file may begin like a pickle, and torch would unpack it.
    if other is None and head.startswith(_BINARY_PICKLE) and not tarfile.is_tarfile(path):
        return "torch"
    # Its own reader says best what is wrong with it.
    if other is None and path.suffix == ".safetensors":
        return "safetensors"
    raise InputError(f"{path} is {other or 'not a checkpoint: neither safetensors nor a file of torch.save'}")


def _is_safetensors(head: bytes, size: int) -> bool:
    """It begins with the length of a header that fits the file, and with the header's brace."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and length <= min(size - 8, _MOST_HEADER)


def _other_format(head: bytes) -> str | None:
    """What a file of another tool is called, by its first bytes."""
    for offset, signature, name in _OTHERS:
        if head[offset : offset + len(signature)] == signature:
            return name
    if head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in _ONNX_FIELDS:
        return "an ONNX graph, not a checkpoint; give the checkpoint that it was exported from"
    return None


def _refuse_other_archives(path: Path) -> None:
    """Refuse a zip archive that torch.save did not write, or that unpacks to far more than it holds."""
    # Asked of torch's own reader, because another one may see other names in a file that was made to deceive.
    try:
        with path.open("rb") as file:
            reader = torch._C.PyTorchFileReader(file)
            records = reader.get_all_records()
            unpacked = sum(map(reader.get_record_size, records))
    except (RuntimeError, UnicodeDecodeError, OSError) as error:
        # The others where the name of an entry, or where its content begins, is damaged.
        raise InputError(f"{path} {_unreadable_archive(path)}") from error
    if "constants.pkl" in records:
        raise PickleRefused(
            f"{path} is a TorchScript program, not a state dict.",
            "Give the checkpoint, or save its weights: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
        )

    stored = path.stat().st_size
    if unpacked > max(MOST_UNPACKED * stored, LEAST_REFUSED):
        raise PickleRefused(
            f"{path} unpacks from {stored:,} bytes to {unpacked:,}, as no weights do; nothing was unpacked.",
            "Where it was made, save it again with torch.save, which does not compress.",
        )


def _unreadable_archive(path: Path) -> str:
    """What an archive is that torch cannot read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        return f"cannot be read; it is cut short or damaged ({error})"
    if any(name.endswith("/data.pkl") for name in names):
        return "cannot be read; its archive is damaged"
    if names and all(name.endswith(".npy") for name in names):
        return "is an archive of NumPy arrays; give the PyTorch checkpoint"
    inside = any(name.endswith((".pth", ".pt", ".bin", ".ckpt", ".safetensors")) for name in names)
    return f"is a zip archive that torch.save did not write; {_UNPACK if inside else 'no checkpoint is in it'}"
