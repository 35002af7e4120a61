"""--config: the file read, the settings in it found, and which of two sources takes precedence.

A configuration is JSON, YAML (Segmenter's variant.yml) or Python text: mmsegmentation's own file, or what its
checkpoints carry in their meta. Python text is parsed and read as data, never executed.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dovit_deploy.documents import NotData, check_extent, data_from_json, data_from_yaml, read_text
from dovit_deploy.errors import ConfigError, InputError

CONTAINERS = ("config", "model", "kwargs", "model_kwargs", "net_kwargs")
"""Keys under which projects nest the settings of a model."""

TRAINING_ONLY = frozenset(
    {
        *("drop_rate", "attn_drop_rate", "drop_path_rate", "dropout_ratio", "dropout", "attn_dropout", "droppath"),
        *("init_cfg", "init_std", "init_values", "weight_init", "pretrained", "pretrained_path", "checkpoint"),
        *("train_cfg", "with_cp", "norm_eval", "frozen_stages", "frozen_exclude", "requires_grad", "momentum"),
        *("_scope_", "sampler", "ignore_index", "max_iters", "detach_aux", "distillation", "use_checkpoint", "seed"),
    }
)
"""Settings that change nothing at inference: ignored wherever they stand."""


def training_only(name: str) -> bool:
    """The setting changes nothing at inference."""
    return name in TRAINING_ONLY or name.startswith("loss")


@dataclass(frozen=True)
class Configuration:
    """A configuration as it was written."""

    contents: Mapping[str, object]
    source: str
    """Where it comes from, for messages."""

    def settings(self, known: frozenset[str]) -> dict[str, object]:
        """The settings called `known`, inner containers before outer ones.

        Raises:
            ConfigError: an innermost container holds a name that is neither known nor training-only.
        """
        found: dict[str, object] = {}
        for path, level in levels(self.contents, ""):
            # Only in a model's own section is an unknown name a mistake: the top of a file holds much else.
            innermost = bool(path) and not any(isinstance(level.get(name), Mapping) for name in CONTAINERS)
            if innermost:
                refuse_unknown(level, known, path, self.source)
            for name in known & level.keys():
                found.setdefault(name, _type_name(level[name]) if name == "type" else _without_scopes(level[name]))
        return found


_DEEPEST = 50
"""Sections inside each other; no project's go deeper than ten."""


def _without_scopes(value: object, depth: int = 0) -> object:
    """The value with `type='mmseg.DoViT'` as `type='DoViT'` throughout: which registry it comes from says nothing."""
    if depth > _DEEPEST:
        raise ConfigError(f"the configuration nests more than {_DEEPEST} sections; such a file is not read")
    if isinstance(value, Mapping):
        return {
            name: _type_name(item) if name == "type" else _without_scopes(item, depth + 1)
            for name, item in value.items()
            if name != "_scope_"
        }
    if isinstance(value, list | tuple):
        return [_without_scopes(item, depth + 1) for item in value]
    return value


def _type_name(value: object) -> object:
    return value.rsplit(".", 1)[-1] if isinstance(value, str) else value


def levels(contents: Mapping[str, object], path: str) -> list[tuple[str, Mapping[str, object]]]:
    """`contents`, found at the dotted `path`, and every container in it, innermost first (see `CONTAINERS`)."""
    inner: list[tuple[str, Mapping[str, object]]] = []
    for name in CONTAINERS:
        value = contents.get(name)
        if isinstance(value, Mapping):
            inner += levels(value, f"{path}.{name}" if path else name)
    return [*inner, (path, contents)]


def refuse_unknown(section: Mapping[str, object], known: frozenset[str], path: str, source: str) -> None:
    """Raise ConfigError if `section` holds names that are neither in `known` nor training-only."""
    unknown = sorted(str(n) for n in section if n not in known and not training_only(str(n)))
    if unknown:
        names = ", ".join(f"'{path}.{name}'" if path else f"'{name}'" for name in unknown)
        raise ConfigError(
            f"{source}: {names} not known here; correct the name, or take it out if only training reads it"
        )


def merged(lower: Mapping[str, object], higher: Mapping[str, object]) -> dict[str, object]:
    """Both settings, `higher` taking precedence; sections of one type are merged, lists are replaced whole."""
    result = dict(lower)
    for name, value in higher.items():
        below = result.get(name)
        # Settings of another type of head or backbone would be unknown names beside those of the new one.
        if isinstance(value, Mapping) and isinstance(below, Mapping) and _same_type(value, below):
            result[name] = merged(below, value)
        else:
            result[name] = value
    return result


def _same_type(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    return "type" not in one or "type" not in other or one["type"] == other["type"]


def configuration_from_file(path: Path) -> Configuration:
    """Read JSON, YAML (Segmenter's variant.yml) or a flat mmsegmentation .py, by the file's suffix.

    Raises:
        InputError: there is no such file, or it is not text.
        ConfigError: it cannot be parsed, or is not a mapping.
    """
    if not path.is_file():
        raise InputError(f"no configuration at {path}")
    try:
        text = read_text(path)
    except (ValueError, PermissionError) as error:
        raise InputError(f"the configuration {path} cannot be read: {error}") from error
    contents = _parsed(text, path)
    if not isinstance(contents, dict):
        raise ConfigError(
            f"the configuration {path.name} is a {type(contents).__name__}; an object with names is needed"
        )
    return Configuration(contents, path.name)


def _parsed(text: str, path: Path) -> object:
    if path.suffix == ".py":
        return settings_from_text(text, path.name)
    try:
        if path.suffix in (".yml", ".yaml"):
            return data_from_yaml(text)
        return data_from_json(text)
    except NotData as error:
        kind = "YAML" if path.suffix in (".yml", ".yaml") else "JSON"
        raise ConfigError(f"the configuration {path.name} is not {kind} that is read here: {error}") from error


def configuration_from_meta(meta: Mapping[str, object]) -> Configuration | None:
    """The text of its own configuration that an mmsegmentation checkpoint carries, parsed; None if there is none."""
    # `config` until mmsegmentation 0.x, `cfg` since mmengine.
    for key in ("config", "cfg"):
        text = meta.get(key)
        if isinstance(text, str) and text.strip():
            return Configuration(settings_from_text(text, f"meta['{key}']"), f"meta['{key}']")
    return None


def settings_over_meta(
    meta: Mapping[str, object], given: Configuration | None, known: frozenset[str]
) -> dict[str, object]:
    """Settings called `known`: of the given file over those that the checkpoint's meta carries."""
    try:
        own = configuration_from_meta(meta)
        below = {} if own is None else own.settings(known)
    except ConfigError:
        # A file given with --config is the remedy for a meta that cannot be read.
        if given is None:
            raise
        below = {}
    return merged(below, {} if given is None else given.settings(known))


# The Python text of an mmsegmentation configuration, read as data: parsed, never executed.


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
        # Null bytes are a ValueError; deep nesting is one of the last two.
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
            # Its earlier value is no longer what the following lines would see.
            names.pop(target.id, None)
    try:
        # A name may stand for a list of other names, and so on.
        check_extent(names)
    except NotData as error:
        raise ConfigError(f"the configuration text of {source} is not read: {error}") from error
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
    # A negative number is no constant in Python's grammar.
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
