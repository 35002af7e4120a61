"""Every project's reader: whatever a configuration says, the answer is a network or a clear error."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dovit_deploy.checkpoints.keys import KeyFacts
from dovit_deploy.checkpoints.reader import Reader
from dovit_deploy.checkpoints.readers import readers
from dovit_deploy.checkpoints.settings import Sources
from dovit_deploy.errors import CheckpointMismatch, ConfigError
from dovit_deploy.families.vit import eomt_own
from tests.checkpoints.test_keys import MAPS
from tests.families.official_state import official_shapes

FACTS = {name: KeyFacts(official_shapes(*MAPS[name])) for name in MAPS}
READERS = {name: next(reader for reader in readers() if reader.recognises(facts)) for name, facts in FACTS.items()}

SMALL = st.sampled_from([None, True, False, 0, 1, -1, 2, 3, 4, 5, 8, 16, 64, 0.5, -2.0, 1e9, "", "linear", "8_12_16"])
VALUES = st.recursive(SMALL, lambda inner: st.lists(inner, max_size=6), max_leaves=12)


def test_each_project_has_a_reader_of_its_own() -> None:
    # EoMT's own names become those of transformers, whose key map is the one above.
    own = {id(reader) for reader in readers() if reader is not eomt_own.READER}
    assert {id(reader) for reader in READERS.values()} == own


@pytest.mark.parametrize("name", MAPS)
@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.data())
def test_any_settings_make_a_network_or_a_clear_error(name: str, data: st.DataObject) -> None:
    reader: Reader = READERS[name]
    keys = st.sampled_from(sorted(reader.settings - {"backbone", "decode_head", "auxiliary_head", "test_cfg"}))
    stated = data.draw(st.dictionaries(keys, VALUES, max_size=5))
    try:
        architecture = reader.architecture(Sources("", stated, FACTS[name], "tiny.pth"))
    except (ConfigError, CheckpointMismatch, ValidationError) as error:
        assert str(error)
    else:
        assert architecture.spec.classes >= 0


@pytest.mark.parametrize("name", MAPS)
def test_empty_entries_make_no_bug(name: str) -> None:
    """Every entry has no element: nothing is shown, and nothing is divided by."""
    empty = KeyFacts({key: (0,) * len(shape) for key, shape in FACTS[name].shapes.items()})
    with pytest.raises((ConfigError, CheckpointMismatch, ValidationError)):
        READERS[name].architecture(Sources("", {}, empty, "tiny.pth"))
