"""Text of an option -> value, with one-line errors."""

from __future__ import annotations

from dovit_deploy.errors import UsageError


def numbers(text: str, *, option: str) -> tuple[float, ...]:
    """ "0.9,0.95" -> (0.9, 0.95)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option}: '{text}' given; numbers separated by commas are needed, as 0.9,0.95") from error


def thresholds(text: str | None) -> tuple[float, ...] | None:
    """The values of `--threshold`, each within [0, 1]."""
    if text is None:
        return None
    values = numbers(text, option="--threshold")
    for value in values:
        if not 0 <= value <= 1:
            raise UsageError(f"--threshold: {value:g} is outside [0, 1]")
    return values


def size(text: str | None, *, option: str) -> tuple[int, int] | None:
    """ "512x1024" -> (512, 1024): height x width in pixels."""
    if text is None:
        return None
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise UsageError(f"{option}: '{text}' given; HEIGHTxWIDTH in pixels is needed, as 512x1024")
    return int(height), int(width)


def triple(text: str | None, *, option: str) -> tuple[float, float, float] | None:
    """ "123.7,116.3,103.5" -> three numbers: red, green, blue."""
    if text is None:
        return None
    values = numbers(text, option=option)
    if len(values) != 3:
        raise UsageError(f"{option}: {len(values)} numbers given, 3 are needed: red,green,blue")
    return values[0], values[1], values[2]


def names(text: str, *, option: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """ "overlay,masks" -> ("overlay", "masks"), each one of `allowed`."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [part for part in parts if part not in allowed]
    if unknown or not parts:
        raise UsageError(f"{option}: '{text}' given; allowed: {', '.join(allowed)}, separated by commas")
    return parts
