"""Whose checkpoints are read, one line each; the first that recognises the keys reads the file."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator

from dovit_deploy.models.reader import Reader

READERS = (
    "dovit_deploy.models.segmenter_spec:READER",
    "dovit_deploy.models.swin_reader:READER",
    "dovit_deploy.models.stvit_deit_reader:STVIT_DEIT",
    "dovit_deploy.models.mmseg_spec:READER",
    "dovit_deploy.models.evovit_deit_config:READER",
    "dovit_deploy.models.evovit_levit_config:READER",
    "dovit_deploy.models.plain_deit_config:PLAIN_DEIT",
    "dovit_deploy.models.levit_config:READER",
)


def readers() -> Iterator[Reader]:
    """Every reader, in order."""
    for name in READERS:
        reader: Reader = pkgutil.resolve_name(name)
        yield reader
