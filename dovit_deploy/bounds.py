"""How large may a number, a text or a list be that a manifest, a checkpoint's configuration or a recipe states?

The bounds are far beyond every network that is used, and close enough that what is computed of them (token counts,
MACs, shapes) stays a small number: a file from outside must not decide how much memory is taken or how long a loop
runs. docs/bundle-format.md lists the range of each field of a manifest; a test compares the two.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

PixelSide = Annotated[int, Field(ge=1, le=16_384)]
"""A side of an image, a window or a step."""
PatchSide = Annotated[int, Field(ge=1, le=1_024)]
"""In pixels."""
Channels = Annotated[int, Field(ge=1, le=65_536)]
"""The width of a token or of a layer."""
Layers = Annotated[int, Field(ge=1, le=1_024)]
LayerNumber = Annotated[int, Field(ge=0, le=1_024)]
Heads = Annotated[int, Field(ge=1, le=1_024)]
GridSide = Annotated[int, Field(ge=1, le=1_024)]
"""Of a window, a neighbourhood or a grid, in tokens."""
ClassCount = Annotated[int, Field(ge=1, le=65_536)]
ExtraTokens = Annotated[int, Field(ge=0, le=16)]
"""Before the patches: class, distillation, registers."""
Tokens = Annotated[int, Field(ge=1, le=2**28)]
Bytes = Annotated[int, Field(ge=0, le=2**44)]
Share = Annotated[float, Field(ge=0, le=1)]
Epsilon = Annotated[float, Field(ge=0, le=1)]
"""What a norm adds to a variance."""
Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
"""Of pixels, on the scale 0..255."""
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
"""Of pixels, on the scale 0..255; they are divided by it."""
ColourPart = Annotated[int, Field(ge=0, le=255)]


def _encodable(text: str) -> str:
    """`text`, unless it holds half of a surrogate pair, which no file, terminal or report can show."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair, which is no character") from error
    return text


Name = Annotated[str, Field(max_length=1_000), AfterValidator(_encodable)]
"""In one line: of a class, a file, a family."""
Note = Annotated[str, Field(max_length=10_000), AfterValidator(_encodable)]
"""Text for people, such as a licence."""

MOST_STAGES = 1_025
"""One more than there are layers."""
MOST_CLASSES = 65_536
MOST_FILES = 10_000
