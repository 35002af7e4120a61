"""Pickles: what training tools store beside the weights is passed over, and nothing is imported, called or changed."""

from __future__ import annotations

import argparse
import collections
import copyreg
import io
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dovit_deploy.checkpoints import pickles
from dovit_deploy.checkpoints.pickles import Placeholder
from dovit_deploy.checkpoints.weights_file import contents_of_pickle, weights_from_file
from dovit_deploy.errors import InputError, PickleRefused


class _Settings(dict[str, Any]):
    """As yacs and mmengine make them."""


class _History(list[int]):
    pass


class _Buffer:
    def __init__(self) -> None:
        self.history = np.zeros(3)


BESIDE: dict[str, object] = {
    "args": argparse.Namespace(lr=1, path=Path("x")),
    "cfg": _Settings(model=_Settings(width=2)),
    "history": {"loss": _Buffer(), "list": _History([1])},
    "counts": collections.defaultdict(list, {1: [2]}),
    "seen": {1, 2},
    "frozen": frozenset({1}),
    "device": torch.device("cpu"),
    "dtype": torch.float16,
    "shape": torch.Size([2]),
    "method": _Buffer.__init__,
    "random": np.random.default_rng(0).bit_generator.state,
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_tools_store_beside_the_weights_is_passed_over(tmp_path: Path, protocol: int, legacy: bool) -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3).T, "p": nn.Parameter(torch.ones(2)), "h": torch.ones(1).half()}
    path = tmp_path / "m.pth"
    torch.save(
        {**BESIDE, "state_dict": weights},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not legacy,
    )
    state = weights_from_file(path, allow_pickle=False).state
    assert state.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(state[name], tensor.detach())


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_by_accident.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "m.pth"
    path.write_bytes(_archive(b"cimported_by_accident\nThing\n."))
    assert isinstance(contents_of_pickle(path, allow_pickle=False), Placeholder)
    assert "imported_by_accident" not in sys.modules


def _archive(stream: bytes) -> bytes:
    """A file of torch.save with `stream` in place of its pickle."""
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as archive:
        archive.writestr("archive/data.pkl", stream)
        archive.writestr("archive/version", b"3\n")
    return result.getvalue()


def test_the_archive_is_one(tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(_archive(pickle.dumps({"model": {}}, 2)))
    assert contents_of_pickle(tmp_path / "m.pth", allow_pickle=False) == {"model": {}}


OWNED: list[object] = []


def owned(*arguments: object) -> None:
    """What an attack would like to call."""
    OWNED.append(arguments)


NAME = f"c{__name__}\nowned\n".encode()
CALLS = {
    "REDUCE": NAME + b"(I1\ntR.",
    "INST": b"(I1\ni" + NAME[1:] + b".",
    "OBJ": b"(" + NAME + b"I1\no.",
    "NEWOBJ": NAME + b"(I1\nt\x81.",
    "NEWOBJ_EX": NAME + b"(I1\nt}\x92.",
    "STACK_GLOBAL": b"\x80\x04\x8c%c%s\x8c\x05owned\x93)R." % (len(__name__), __name__.encode()),
    "BUILD": b"ccollections\nOrderedDict\n(tR}U\x0c__setstate__" + NAME + b"sb.",
    "BUILD on a class": b"ctorch._utils\n_rebuild_tensor_v2\n}U\x08__call__" + NAME + b"sb.",
    "BUILD with slots": b"ctorch._utils\n_rebuild_tensor_v2\nN}U\x0c__defaults__I1\ns\x86b.",
    "reconstructor": b"ccopyreg\n_reconstructor\n(" + NAME + NAME + b"NtR.",
    "by a tensor's class": b"ctorch._tensor\n_rebuild_from_type_v2\n(" + NAME + NAME + b"(I1\ntNtR.",
    "by a factory": b"ccollections\ndefaultdict\n(" + NAME + b"tR.",
    "persistent": b"P0\n.",
    "a number": b"I1\n)R.",
    "a type": b"ctorch\nfloat32\n)R.",
    "storage": b"ctorch.storage\nUntypedStorage\n(I99999999999999\ntR.",
}


@pytest.mark.parametrize("stream", CALLS.values(), ids=CALLS)
def test_no_instruction_calls_anything(tmp_path: Path, stream: bytes) -> None:
    path = tmp_path / "evil.pth"
    path.write_bytes(_archive(stream))
    OWNED.clear()
    with pytest.raises((PickleRefused, InputError)):
        weights_from_file(path, allow_pickle=False)
    assert not OWNED
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)  # type: ignore[attr-defined]


def test_names_that_packages_registered_are_not_looked_up() -> None:
    copyreg.add_extension(__name__, "owned", 0x7777)
    try:
        with pytest.raises(pickle.UnpicklingError):
            pickles.load(io.BytesIO(b"\x83\x77\x77)R."))
    finally:
        copyreg.remove_extension(__name__, "owned", 0x7777)


class _Call:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.called = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.called


@pytest.mark.parametrize("function", [os.system, eval, exec, print, __import__])
def test_a_file_that_is_meant_to_do_harm_is_refused_wherever_it_says_so(
    tmp_path: Path, function: Callable[..., object]
) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": _Call(function, "1")}, tmp_path / "m.pth")
    with pytest.raises(PickleRefused, match="nothing was run"):
        weights_from_file(tmp_path / "m.pth", allow_pickle=False)


@pytest.mark.parametrize("around", [lambda m: m, lambda m: {"model": m}, lambda m: {"ema": m, "epoch": 3}])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_module_is_called_one(tmp_path: Path, around: Callable[[nn.Module], object], legacy: bool) -> None:
    path = tmp_path / "m.pth"
    torch.save(around(nn.Sequential(nn.Linear(2, 2))), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(PickleRefused, match=r"pickled module \(torch.nn.modules.container.Sequential\)") as refused:
        weights_from_file(path, allow_pickle=False)
    assert "torch.save(model.state_dict()" in str(refused.value)


def _special() -> dict[str, tuple[Tensor, str]]:
    with warnings.catch_warnings(action="ignore"):
        quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    return {
        "quantised": (quantised, "a quantised tensor"),
        "meta": (torch.empty(2, device="meta"), "no values"),
        "sparse": (torch.eye(2).to_sparse(), "a sparse tensor"),
    }


@pytest.mark.parametrize("kind", ["quantised", "meta", "sparse"])
def test_special_tensors_are_called_what_they_are(tmp_path: Path, kind: str) -> None:
    tensor, words = _special()[kind]
    torch.save({"state_dict": {"a": tensor}}, tmp_path / "m.pth")
    with pytest.raises(PickleRefused, match=rf"entry 'a' is .*{words}"):
        weights_from_file(tmp_path / "m.pth", allow_pickle=False)


def test_numpy_numbers_and_arrays(tmp_path: Path) -> None:
    meta = {"best": np.float32(0.5), "palette": np.arange(6, dtype=">i2").reshape(2, 3), "n": np.int64(7)}
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": meta}, tmp_path / "m.pth")
    read = weights_from_file(tmp_path / "m.pth", allow_pickle=False).meta
    assert read["best"] == 0.5 and read["n"] == 7
    assert np.array_equal(read["palette"], meta["palette"])  # type: ignore[arg-type]


def test_arrays_of_objects_and_odd_encodings(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "meta": {"x": np.array([_Buffer()], dtype=object)}}, tmp_path / "m.pth")
    assert weights_from_file(tmp_path / "m.pth", allow_pickle=False).state == {}
    (tmp_path / "odd.pth").write_bytes(_archive(b"c_codecs\nencode\n(X\x01\x00\x00\x00bX\x05\x00\x00\x00zlib_tR."))
    with pytest.raises(PickleRefused, match="encoding 'zlib_'"):
        weights_from_file(tmp_path / "odd.pth", allow_pickle=False)


class _Rebuilt:
    """Pickled as a call of torch's that makes a tensor of four stored values."""

    def __init__(self, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.arguments = (torch.ones(4)._typed_storage(), offset, size, stride, False, {})

    def __reduce__(self) -> tuple[object, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
@pytest.mark.parametrize(
    ("offset", "size", "stride", "words"),
    [
        (0, (10**9,), (1,), "reaches beyond"),
        (10**12, (2,), (1,), "reaches beyond"),
        (1, (4,), (1,), "reaches beyond"),
        (0, (10**6, 10**6), (0, 0), "repeat what is stored"),
        (0, (2**31, 2**31), (2**62, 1), "reaches beyond"),
        (0, (-1,), (1,), "no whole numbers"),
        (1, (2,), (-1,), "no whole numbers"),
        (-1, (2,), (1,), "no whole numbers"),
        (0, (2, 2), (1,), "no whole numbers"),
    ],
)
def test_a_tensor_lies_within_what_is_stored(tmp_path: Path, legacy: bool, offset, size, stride, words: str) -> None:
    path = tmp_path / "m.pth"
    torch.save({"a": _Rebuilt(offset, size, stride)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=words):
        contents_of_pickle(path, allow_pickle=False)


def test_views_that_tools_store_are_read(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    views = {"a": base[3:], "b": base.reshape(3, 4).T, "c": base[:1].expand(5), "d": base[:0], "e": base[2]}
    path = tmp_path / "m.pth"
    torch.save(views, path)
    read = contents_of_pickle(path, allow_pickle=False)
    assert isinstance(read, dict)
    assert all(torch.equal(read[name], view) for name, view in views.items())


def test_an_older_file_that_states_more_bytes_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"a": torch.ones(1000, dtype=torch.float64)}, path, _use_new_zipfile_serialization=False)
    # 3,000 values are fewer than the file has bytes, but take eight bytes each.
    path.write_bytes(path.read_bytes().replace(b"M\xe8\x03", b"M\xb8\x0b"))
    with pytest.raises(InputError, match="more values than it has bytes"):
        contents_of_pickle(path, allow_pickle=False)


def _rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes], *, method: int) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def test_an_archive_that_unpacks_to_far_more_than_it_holds(tmp_path: Path) -> None:
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(2**23)}, plain)
    _rewritten(plain, bomb, lambda _, content: content, method=zipfile.ZIP_DEFLATED)
    for allowed in (False, True):
        with pytest.raises(PickleRefused, match="nothing was unpacked"):
            contents_of_pickle(bomb, allow_pickle=allowed)


def test_weights_that_another_tool_compressed_are_read(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.pth", tmp_path / "packed.pth"
    torch.save({"a": torch.arange(1000.0)}, plain)
    _rewritten(plain, packed, lambda _, content: content, method=zipfile.ZIP_DEFLATED)
    read = contents_of_pickle(packed, allow_pickle=False)
    assert isinstance(read, dict)
    assert read["a"].sum() == 499_500


def test_a_storage_larger_than_its_entry(tmp_path: Path) -> None:
    plain, short = tmp_path / "plain.pth", tmp_path / "short.pth"
    torch.save({"a": torch.arange(1000.0)}, plain)
    _rewritten(
        plain, short, lambda name, content: content[:100] if "data/0" in name else content, method=zipfile.ZIP_STORED
    )
    with pytest.raises(InputError, match="cut short or damaged"):
        contents_of_pickle(short, allow_pickle=False)
