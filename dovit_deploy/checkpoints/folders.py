"""What is in a folder that is no checkpoint of ours: a model of another library, parts of one, a run's own folder?

Only names of files and the text of `config.json` are looked at; PyTorch is not needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dovit_deploy.documents import NotData, bytes_of_document, data_from_json

WEIGHTS_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_SHOWN = 4
"""Files of weights that a message names."""


WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Weights of transformers and timm in one file."""
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Lists of the files that hold the weights in parts."""
READ_TYPES = frozenset({"dinov2", "dinov2_with_registers", "dinov3_vit", "eomt"})
"""Models of transformers that are read, by `model_type`."""
READ_ARCHITECTURES = ("vit_", "deit_", "deit3_")
"""Beginnings of the names of timm's models that are read."""


def read_model(folder: Path) -> str | None:
    """The model of transformers or timm that `folder` holds and that is read, named as `foreign_model` does."""
    settings = _settings_in(folder)
    architecture = settings.get("architecture")
    if isinstance(architecture, str) and _is_timm(settings):
        return _named(settings) if architecture.startswith(READ_ARCHITECTURES) else None
    return _named(settings) if settings.get("model_type") in READ_TYPES else None


def foreign_model(folder: Path) -> str | None:
    """The model of another library that `config.json` describes, as "a timm ViT (vit_tiny)", and that is not read.

    None for anything else.
    """
    return None if read_model(folder) is not None else _named(_settings_in(folder))


def _settings_in(folder: Path) -> dict[str, Any]:
    try:
        settings = data_from_json(bytes_of_document(folder / "config.json"))
    except (OSError, NotData):
        return {}
    return settings if isinstance(settings, dict) else {}


def _is_timm(settings: dict[str, Any]) -> bool:
    return "pretrained_cfg" in settings or "num_classes" in settings


def _named(settings: dict[str, Any]) -> str | None:
    timm = settings.get("architecture")
    if isinstance(timm, str) and _is_timm(settings):
        transformer = "ViT" if any(name in timm for name in ("vit", "deit", "beit")) else "model"
        return f"a timm {transformer} ({timm[:60]})"
    classes = settings.get("architectures")
    if isinstance(classes, list) and classes and isinstance(classes[0], str):
        return f"a transformers model ({classes[0][:60]})"
    if isinstance(settings.get("model_type"), str):
        return f"a transformers model ({settings['model_type'][:60]})"
    if isinstance(settings.get("_class_name"), str):
        return f"a diffusers model ({settings['_class_name'][:60]})"
    return None


def other_checkpoint(folder: Path) -> tuple[str, str] | None:
    """What of a checkpoint is in `folder`, and how it becomes one that is read; None where nothing is.

    Raises:
        OSError: the folder cannot be read.
    """
    names = sorted(path.name for path in folder.iterdir())
    index = next((name for name in names if name.endswith((".safetensors.index.json", ".bin.index.json"))), None)
    if index is not None:
        return (
            f"a checkpoint in parts, which {index} lists; only whole ones are read",
            "Join the parts: save_file({k: v for part in parts for k, v in load_file(part).items()}, 'all.safetensors')"
            if ".safetensors." in index
            else "Join the parts: torch.save({k: v for part in parts for k, v in torch.load(part).items()}, 'all.pth')",
        )
    if "zero_to_fp32.py" in names or any(name.endswith(("_optim_states.pt", "_model_states.pt")) for name in names):
        return (
            "a DeepSpeed checkpoint in parts; only whole ones are read",
            "Join the parts with DeepSpeed's own script: python zero_to_fp32.py . joined",
        )
    if any(name.endswith(".distcp") for name in names):
        return (
            "a distributed checkpoint of torch; only whole ones are read",
            f"Join it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} all.pth",
        )
    weights = [name for name in names if name.endswith(WEIGHTS_SUFFIXES)]
    if not weights:
        return None
    more = f" and {len(weights) - _SHOWN} more" if len(weights) > _SHOWN else ""
    return f"no checkpoint by itself; in it are {', '.join(weights[:_SHOWN])}{more}", "Give one of these files"
