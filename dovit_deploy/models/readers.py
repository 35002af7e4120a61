"""Whose checkpoints are read, one line each; the first that recognises the keys reads the file."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from dovit_deploy.models.reader import Reader

READERS = (
    "dovit_deploy.models.segmenter_spec",
    "dovit_deploy.models.swin_reader",
    "dovit_deploy.models.stvit_deit_reader",
    "dovit_deploy.models.mmseg_spec",
    "dovit_deploy.models.evovit_deit_config",
    "dovit_deploy.models.evovit_levit_config",
    "dovit_deploy.models.plain_deit_config",
)


def readers() -> Iterator[Reader]:
    """Every reader, in order."""
    for name in READERS:
        reader: Reader = importlib.import_module(name).READER
        yield reader
