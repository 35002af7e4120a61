"""Every mutant of the catalogue is caught by the check that it names, which passes on the package as it is."""

from __future__ import annotations

import pytest

from tests.mutants import (
    backbone_mutants,
    context_mutants,
    cost_mutants,
    evovit_mutants,
    gate_mutants,
    network_mutants,
    query_mutants,
    rotary_mutants,
    stvit_mutants,
    token_mutants,
)
from tests.mutants.cases import CASES, case
from tests.mutants.checks import CHECKS
from tests.mutants.mutant import Mutant

ROOMS = (
    token_mutants,
    gate_mutants,
    network_mutants,
    rotary_mutants,
    backbone_mutants,
    query_mutants,
    context_mutants,
    cost_mutants,
    evovit_mutants,
    stvit_mutants,
)
MUTANTS = [mutant for room in ROOMS for mutant in room.CATALOGUE.mutants]


@pytest.mark.parametrize("name", CHECKS)
def test_the_package_passes_every_check(name: str) -> None:
    CHECKS[name]()


@pytest.mark.mutants
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Mutant) -> None:
    # What the reference says is computed before anything is broken.
    for name in CASES:
        case(name)
    check = CHECKS[mutant.caught_by]
    check()
    with pytest.MonkeyPatch.context() as patch:
        mutant.apply(patch)
        with pytest.raises(AssertionError):
            check()
    check()


def test_the_catalogue_names_every_mutant_once_and_uses_every_check() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    assert {mutant.caught_by for mutant in MUTANTS} == set(CHECKS)
