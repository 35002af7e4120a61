"""Every number, text and list of a manifest has a bound, and docs/bundle-format.md states it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dovit_deploy.bundle.manifest import Manifest
from tests.paths import ROOT

SCHEMA: dict[str, Any] = Manifest.model_json_schema()


def leaves(node: dict[str, Any], path: str, seen: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every value below `node` that a file may state, with the record and field that hold it."""
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[-1]
        assert name not in seen, "a record within itself has no bound"
        for field, inner in SCHEMA["$defs"][name]["properties"].items():
            yield from leaves(inner, f"{name}.{field}", (*seen, name))
        return
    yield path, node
    for inner in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("prefixItems", ())):
        yield from leaves(inner, path, seen)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from leaves(node[key], path, seen)


def all_leaves() -> list[tuple[str, dict[str, Any]]]:
    return [leaf for field, node in SCHEMA["properties"].items() for leaf in leaves(node, f"Manifest.{field}")]


def written(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def ranges() -> dict[str, set[str]]:
    """Range -> the names of the fields that have it."""
    found: dict[str, set[str]] = {}
    for path, node in all_leaves():
        if node.get("type") in ("integer", "number") and not {"const", "enum"} & node.keys():
            low = written(node["minimum"]) if "minimum" in node else f"above {written(node['exclusiveMinimum'])}"
            name = path.split(".")[1]
            found.setdefault(f"{low} to {written(node['maximum'])}", set()).add(name)
    return found


def test_everything_is_bounded() -> None:
    for path, node in all_leaves():
        fixed = {"const", "enum", "pattern"} & node.keys()
        kind = node.get("type")
        if kind in ("integer", "number") and not fixed:
            assert "maximum" in node and {"minimum", "exclusiveMinimum"} & node.keys(), path
        elif kind == "string" and not fixed:
            assert "maxLength" in node, path
        elif kind == "array":
            assert "maxItems" in node, path
        elif kind == "object":
            assert "maxProperties" in node, path


def test_the_specification_states_the_ranges() -> None:
    page = (ROOT / "docs" / "bundle-format.md").read_text()
    section = page.split("## Ranges")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]*\d[^|]*) \| (.+) \|$", section, flags=re.MULTILINE)
    assert {limits: set(re.findall(r"`(\w+)`", fields)) for limits, fields in rows} == ranges()
