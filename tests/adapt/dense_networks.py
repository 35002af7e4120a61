"""Small dense networks to adapt, and images of them in code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.bundles import saved_tiny
from tests.tiny import tiny_spec, tiny_state

SIZE = (48, 64)


def quiet_state(spec: VisionTransformerSpec, seed: int = 0) -> dict[str, Tensor]:
    """Weights whose layers change tokens only a little, so that an early answer is almost always the last one."""
    state = tiny_state(spec, seed)
    for name in state:
        if name.startswith("blocks.") and (".attention.output." in name or ".mlp.contract." in name):
            state[name] = state[name] * 0.02
    return state


def saved_quiet(folder: Path, **changes: object) -> Path:
    """A dense checkpoint of our own format with `quiet_state`."""
    spec = tiny_spec(**{"head": "linear", "gates": (), "depth": 4, "size": SIZE, **changes})
    return saved_tiny(spec, folder, changed=quiet_state(spec))


def write_images(folder: Path, count: int, *, bad: int = 0, seed: int = 0) -> Path:
    """`count` images of soft coloured noise, and `bad` files that only pass for images."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    for number in range(count):
        coarse = draw.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(SIZE[::-1]).save(folder / f"{number:03d}.png")
    for number in range(bad):
        (folder / f"bad{number}.png").write_bytes(b"no image")
    return folder
