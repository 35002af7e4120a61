"""Record: the frozen pydantic model under everything that travels as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen record that travels as JSON and refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
