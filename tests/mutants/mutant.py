"""A mutant: one plausible misreading of the method, put in place of a function of the package while a check runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

Patch = pytest.MonkeyPatch
Mutation = Callable[[Patch], None]


@dataclass(frozen=True)
class Mutant:
    """What is wrong, how the package is made to do it, and the check of `checks.CHECKS` that must notice."""

    name: str
    apply: Mutation
    caught_by: str


class Overlay:
    """A module with some of its functions replaced, for one importer of it only."""

    def __init__(self, module: ModuleType, **replaced: Callable[..., Any]) -> None:
        self._module = module
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced.get(name) or getattr(self._module, name)


class Catalogue:
    """Mutants collected from the functions that make them."""

    def __init__(self) -> None:
        self.mutants: list[Mutant] = []

    def add(self, *, caught_by: str) -> Callable[[Mutation], Mutation]:
        """Take the decorated function as a mutant under its own name."""

        def take(mutation: Mutation) -> Mutation:
            self.mutants.append(Mutant(mutation.__name__, mutation, caught_by))
            return mutation

        return take
