"""What the real Python bindings of TensorRT have, version by version, and fakes that can have no more and no less.

bindings.json is read from the wheels by read_bindings.py. A fake whose class has an attribute that no version has, or
other parameters than the real method, cannot even be defined (`FakeOf`); and each fake object shows only what the
version has that it stands for, so that code which asks for more fails as it would with the real package.
"""

from __future__ import annotations

import enum
import functools
import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

DATA = Path(__file__).with_name("bindings.json")
ENTRY = re.compile(r"(?P<name>\w+)(?:=(?P<value>\d+)|\((?P<parameters>.*)\))?")
RTX, PLAIN = "tensorrt_rtx 1.7.1.116", "tensorrt 11.4.0.106"
"""The newest of each package."""


@dataclass(frozen=True)
class Attribute:
    """An attribute of a class: a member of an enumeration, a method with its overloads, or neither."""

    value: int | None
    overloads: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Bindings:
    """The classes of one version by name, each with its attributes; "" is the module itself."""

    version: str
    classes: dict[str, dict[str, Attribute]]

    @property
    def number(self) -> str:
        """The version's number alone."""
        return self.version.split()[1]


@functools.cache
def all_bindings() -> dict[str, Bindings]:
    """Every version in bindings.json, by "tensorrt 10.0.1" or "tensorrt_rtx 1.7.1.116"."""
    read = json.loads(DATA.read_text(encoding="utf-8"))
    return {
        version: Bindings(version, {name: _attributes(entries) for name, entries in classes.items()})
        for version, classes in read.items()
    }


def _attributes(entries: list[str]) -> dict[str, Attribute]:
    values: dict[str, int | None] = {}
    overloads: dict[str, list[tuple[str, ...]]] = {}
    for entry in entries:
        match = ENTRY.fullmatch(entry)
        assert match is not None, entry
        values[match["name"]] = None if match["value"] is None else int(match["value"])
        if match["parameters"] is not None:
            parameters = tuple(filter(None, match["parameters"].split(", ")))
            overloads.setdefault(match["name"], []).append(parameters)
    return {name: Attribute(value, tuple(overloads.get(name, ()))) for name, value in values.items()}


class FakeOf:
    """Base of a fake of the class `stands_for`; what begins with an underscore is the fake's own."""

    stands_for: ClassVar[str] = ""

    def __init_subclass__(cls, *, of: str) -> None:
        cls.stands_for = of
        known = [bindings.classes[of] for bindings in all_bindings().values() if of in bindings.classes]
        for name, value in vars(cls).items():
            if name.startswith("_") or name == "stands_for":
                continue
            found = [attributes[name] for attributes in known if name in attributes]
            if not found:
                raise TypeError(f"the fake {cls.__name__} has {name}, which no {of} of TensorRT has")
            overloads = {parameters for attribute in found for parameters in attribute.overloads}
            if callable(value) and not any(_accepts(value, parameters) for parameters in overloads):
                raise TypeError(f"the fake {cls.__name__}.{name} takes other arguments than the real ones: {overloads}")

    def __init__(self, bindings: Bindings) -> None:
        object.__setattr__(self, "_shown", frozenset(bindings.classes[self.stands_for]))

    def __getattribute__(self, name: str) -> Any:
        _check(self, name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        _check(self, name)
        object.__setattr__(self, name, value)


def _check(fake: FakeOf, name: str) -> None:
    if name.startswith("_") or name == "stands_for" or name in object.__getattribute__(fake, "_shown"):
        return
    raise AttributeError(f"'{type(fake).stands_for}' object has no attribute '{name}'", name=name, obj=fake)


def _accepts(method: Any, parameters: tuple[str, ...]) -> bool:
    """Whether a fake's method may be called with all of `parameters`, by position and by name."""
    signature = inspect.signature(method)
    names = [name for name in signature.parameters if name != "self"]
    # pybind11 names what was not named in C++ arg0, arg1, ...
    if any(name.startswith("arg") for name in parameters):
        return len(names) == len(parameters)
    return set(parameters) <= set(names)


def fake_module(bindings: Bindings, fakes: dict[str, Any] | None = None) -> Any:
    """A module that has what `bindings` have: `fakes` by name, real enumerations, and empty classes for the rest."""
    module = ModuleType(bindings.version.replace(" ", "-"))
    fakes = fakes or {}
    unknown = set(fakes) - set(bindings.classes[""])
    assert not unknown, f"{bindings.version} has no {', '.join(unknown)}"
    for name in bindings.classes[""]:
        attributes = bindings.classes.get(name)
        if name in fakes:
            setattr(module, name, fakes[name])
        elif attributes is None:
            setattr(module, name, name)
        elif any(attribute.value is not None for attribute in attributes.values()):
            members = {key: attribute.value for key, attribute in attributes.items() if attribute.value is not None}
            setattr(module, name, enum.IntEnum(name, members))
        else:
            setattr(module, name, type(name, (), dict.fromkeys(attributes)))
    # Of the package around the bindings.
    module.__version__ = bindings.number  # type: ignore[attr-defined]
    return module
