"""A folder of transformers or timm: its weights, whole or in parts, and what lies beside them.

`config.json` says what the keys cannot show, `preprocessor_config.json` or timm's own section how images are
normalised, and the model card under which licence the weights are. A file by itself is read here, too, so that whoever
wants weights need not ask which of the two a path is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dovit_deploy.bundle.bundle import file_entry
from dovit_deploy.checkpoints.configuration import Configuration, configuration_from_file
from dovit_deploy.checkpoints.folders import INDEXES, WHOLE, read_model
from dovit_deploy.checkpoints.keys import listed
from dovit_deploy.checkpoints.weights_file import WeightsFile, state_in, unwrapped_weights, weights_from_file
from dovit_deploy.documents import NotData, data_from_json, read_text
from dovit_deploy.errors import CheckpointMismatch, InputError

CONFIG, PREPROCESSOR, MODEL_CARD = "config.json", "preprocessor_config.json", "README.md"


@dataclass(frozen=True)
class ModelSource:
    """Weights, and what lies beside them."""

    weights: WeightsFile
    settings: Mapping[str, object] = field(default_factory=dict)
    """Of the folder's own files; empty for a file by itself."""
    class_names: tuple[str, ...] = ()
    """Of the head that the folder has; empty where it names none."""
    license: str = ""
    """What the model card says, or timm's `config.json`."""

    def configured(self, config: str | Path | None) -> Configuration | None:
        """The file given with `--config` over the folder's own settings.

        Raises:
            InputError: there is no such file, or it is not text.
            ConfigError: it cannot be parsed, or is not a mapping.
        """
        if config is None:
            return Configuration(self.settings, CONFIG) if self.settings else None
        given = configuration_from_file(Path(config))
        return replace(given, contents={**self.settings, **given.contents})


def source_from_path(path: Path, *, allow_pickle: bool) -> ModelSource:
    """The weights at `path`, a file or a folder of transformers or timm.

    Raises:
        InputError: a file is absent or unreadable, or the folder holds no weights.
        PickleRefused: a weight, or all of them, is a pickled object.
        CheckpointMismatch: an entry is no tensor, or the parts are not what their index lists.
    """
    folder = model_folder_of(path)
    if folder is None:
        return ModelSource(weights_from_file(path, allow_pickle=allow_pickle))
    weights = _weights_in(folder, allow_pickle=allow_pickle)
    config, preprocessor = _contents(folder / CONFIG), _contents(folder / PREPROCESSOR)
    # timm's own arguments; what stands above them describes the training.
    arguments = config.get("model_args")
    settings = {**config, **(arguments if isinstance(arguments, Mapping) else {})}
    settings |= _normalisation(config, preprocessor)
    return ModelSource(weights, settings, _class_names(config), _license(folder, config))


def model_folder_of(path: Path) -> Path | None:
    """The folder of transformers or timm that `path` is, or whose weights or index it is; None: it is neither."""
    # A part by itself is only a part; the whole weights stand for their folder.
    folder = path.parent if path.name in (*WHOLE, *INDEXES) else path
    indexed = any((folder / index).is_file() for index in INDEXES)
    return folder if folder.is_dir() and (indexed or read_model(folder) is not None) else None


def _weights_in(folder: Path, *, allow_pickle: bool) -> WeightsFile:
    whole = next((folder / name for name in WHOLE if (folder / name).is_file()), None)
    if whole is not None:
        # All of them are called alike: the folder's name says more.
        return replace(weights_from_file(whole, allow_pickle=allow_pickle), name=_name(folder))
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    if index is None:
        raise InputError(
            f"{folder} holds {read_model(folder)} without weights",
            f"Beside {CONFIG} there must be one of {', '.join((*WHOLE, *INDEXES))}",
        )
    return _weights_in_parts(index, allow_pickle=allow_pickle)


def _weights_in_parts(index: Path, *, allow_pickle: bool) -> WeightsFile:
    """All parts that `index` lists, each with exactly the entries that it lists for it."""
    listed_in = _part_of_entry(index)
    parts = {name: index.parent / name for name in dict.fromkeys(listed_in.values())}
    absent = [name for name, path in parts.items() if not path.is_file()]
    if absent:
        raise InputError(f"{index}: {len(absent)} of {len(parts)} parts are not beside it: {listed(absent)}")
    state: dict[str, object] = {}
    digests = [file_entry(index).sha256]
    for name, path in parts.items():
        entries = state_in(path, allow_pickle=allow_pickle)
        wanted = {entry for entry, part in listed_in.items() if part == name}
        faults = {"not in it": wanted - entries.keys(), "not listed": entries.keys() - wanted}
        wrong = "; ".join(f"{kind}: {listed(sorted(names))}" for kind, names in faults.items() if names)
        if wrong:
            raise CheckpointMismatch(
                f"{name} is not the part that {index.name} lists; {wrong}", "Fetch the files again, all of one version"
            )
        state.update(entries)
        digests.append(file_entry(path).sha256)
    # One digest for all of them, in the order of the index.
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    return unwrapped_weights(_name(index.parent), digest, state)


def _name(folder: Path) -> str:
    # "." has no name.
    return folder.resolve().name or str(folder)


def _part_of_entry(index: Path) -> dict[str, str]:
    """Names of entries -> name of the file, beside the index, that holds each."""
    places = _contents(index).get("weight_map")
    if not isinstance(places, Mapping) or not places:
        raise InputError(f"{index} lists no parts: it has no 'weight_map'")
    # A name from a file must not lead out of its folder.
    wrong = [part for part in places.values() if not isinstance(part, str) or Path(part).name != part]
    if wrong:
        raise InputError(f"{index}: {wrong[0]!r:.120} is no name of a file beside it")
    return {str(entry): str(part) for entry, part in places.items()}


def _contents(path: Path) -> dict[str, object]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        contents = data_from_json(read_text(path))
    except (NotData, ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(contents, dict):
        raise InputError(f"{path} is a {type(contents).__name__}; an object with names is needed")
    return contents


def _normalisation(config: Mapping[str, object], preprocessor: Mapping[str, object]) -> dict[str, object]:
    """Mean and standard deviation on 0..255, as the setting that every reader knows; both sources have them on 0..1."""
    timm = config.get("pretrained_cfg")
    known = timm if isinstance(timm, Mapping) else config
    mean = preprocessor.get("image_mean", known.get("mean"))
    std = preprocessor.get("image_std", known.get("std"))
    if not (isinstance(mean, list) and isinstance(std, list)):
        return {}
    numbers = [value for value in (*mean, *std) if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != len(mean) + len(std):
        return {}
    # Rounded: 0.485 * 255 is 123.67499999999998.
    scaled = [round(255 * value, 6) for value in numbers]
    return {"img_norm_cfg": {"mean": scaled[: len(mean)], "std": scaled[len(mean) :]}}


def _class_names(config: Mapping[str, object]) -> tuple[str, ...]:
    """Names of classes in the order of their numbers; none where they are the placeholders of transformers."""
    names = config.get("id2label")
    if not isinstance(names, Mapping) or set(names) != {str(number) for number in range(len(names))}:
        return ()
    ordered = tuple(str(names[str(number)]) for number in range(len(names)))
    return () if all(re.fullmatch(r"LABEL_\d+", name) for name in ordered) else ordered


def _license(folder: Path, config: Mapping[str, object]) -> str:
    """What the head of the model card says, or the section of timm."""
    timm, fields = config.get("pretrained_cfg"), _license_fields(folder / MODEL_CARD)
    stated = timm.get("license") if isinstance(timm, Mapping) else None
    name = fields.get("license_name") or fields.get("license") or stated
    link = f" ({fields['license_link'][:300]})" if "license_link" in fields else ""
    return f"model card: {name[:200]}{link}" if isinstance(name, str) and name else ""


def _license_fields(card: Path) -> dict[str, str]:
    """`license`, `license_name` and `license_link` of a model card's head, as far as they are there."""
    if not card.is_file():
        return {}
    try:
        head = re.match(r"---\n(.*?)\n---", read_text(card), flags=re.DOTALL)
    except (NotData, ValueError, OSError):
        # A card that cannot be read is no reason to refuse the weights beside it.
        return {}
    found = re.findall(r"^(license(?:_name|_link)?):(.*(?:\n[ \t]*-.*)*)$", head[1], flags=re.MULTILINE) if head else []
    # Several stand in a list, each on a line of its own.
    lines = {name: [line.strip(" \t-\"'") for line in text.splitlines()] for name, text in found}
    return {name: ", ".join(filter(None, parts)) for name, parts in lines.items() if any(parts)}
