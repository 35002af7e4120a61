"""The Python text of an mmsegmentation configuration, read as data: parsed, never executed."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from dovit_deploy.errors import ConfigError


class _Unreadable(Exception):
    """An expression that is not plain data."""


def settings_from_text(text: str, source: str) -> dict[str, object]:
    """The top-level assignments of `text` whose values are plain data; others are left out.

    Plain data: numbers, strings, True, False, None, lists, tuples, dict displays, `dict(...)` calls and names
    assigned earlier.

    Raises:
        ConfigError: the text is not Python, or its `model` is not plain data.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"the configuration text of {source} cannot be parsed: {error}") from error
    names: dict[str, object] = {}
    for statement in tree.body:
        if not (isinstance(statement, ast.Assign) and len(statement.targets) == 1):
            continue
        target = statement.targets[0]
        if not isinstance(target, ast.Name):
            continue
        try:
            names[target.id] = _value(statement.value, names)
        except (_Unreadable, RecursionError) as error:
            if target.id == "model":
                raise ConfigError(
                    f"'model' in the configuration text of {source} is not plain data "
                    f"(line {statement.lineno}: {error}); give the configuration with --config"
                ) from error
            names.pop(target.id, None)
    return names


def _value(node: ast.expr, names: Mapping[str, object]) -> object:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        values = [_value(element, names) for element in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.Dict):
        return _display(node, names)
    if isinstance(node, ast.Call):
        return _dict_call(node, names)
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = _value(node.operand, names)
        if isinstance(operand, int | float):
            return -operand
    raise _Unreadable(ast.unparse(node)[:60])


def _display(node: ast.Dict, names: Mapping[str, object]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        name = None if key is None else _value(key, names)
        if not isinstance(name, str):
            raise _Unreadable("a dict whose keys are not strings")
        result[name] = _value(value, names)
    return result


def _dict_call(node: ast.Call, names: Mapping[str, object]) -> dict[str, object]:
    if not (isinstance(node.func, ast.Name) and node.func.id == "dict") or node.args:
        raise _Unreadable(ast.unparse(node)[:60])
    result: dict[str, object] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise _Unreadable("**")
        result[keyword.arg] = _value(keyword.value, names)
    return result
