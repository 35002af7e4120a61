from __future__ import annotations

import pytest

from dovit_deploy import packages
from dovit_deploy.errors import PackageMissing
from dovit_deploy.measure.doctor import package_states
from dovit_deploy.packages import OptionalPackage

INNER = "absent_altogether.inner"


@pytest.fixture
def inner(monkeypatch):
    monkeypatch.setitem(packages.OPTIONAL, INNER, OptionalPackage(INNER, "a test", "pip install nothing"))


def test_a_module_inside_a_missing_package_is_missing_and_not_broken(inner):
    with pytest.raises(PackageMissing) as caught:
        packages.load(INNER)
    assert "cannot be imported; install it with: pip install nothing" in str(caught.value)


def test_the_state_of_a_module_inside_a_missing_package(inner):
    (state,) = package_states([INNER])
    assert not state.installed
    assert state.version is None
