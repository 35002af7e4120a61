"""TensorRT for RTX builds every family without gates: one graph each, in both precisions, with and without plugins."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.checkpoints.checkpoint import Checkpoint
from dovit_deploy.engines.tensorrt.build import build_engines
from dovit_deploy.engines.tensorrt.package import tensorrt_package
from dovit_deploy.engines.tensorrt.record import BuildRequest
from dovit_deploy.engines.tensorrt.store import EngineCache
from dovit_deploy.families.any_spec import AnySpec
from tests import tiny_stvit
from tests.bundles import export
from tests.tiny_evovit import tiny_deit_spec, tiny_evo_state, tiny_levit_spec

pytestmark = [
    # Six exports and a dozen builds take minutes.
    pytest.mark.exhaustive,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed (requirements-dev.txt)"
    ),
]

FAMILIES: dict[str, Callable[[], AnySpec]] = {
    "Evo-ViT on DeiT": tiny_deit_spec,
    "Evo-ViT on DeiT, segmentation": lambda: tiny_deit_spec(head="setr", stem="conv"),
    "Evo-ViT on LeViT": tiny_levit_spec,
    "STViT-R": tiny_stvit.tiny_classifier,
    "STViT-R, segmentation": tiny_stvit.tiny_segmenter,
    "STViT-R, backbone": tiny_stvit.tiny_backbone,
    "STViT on DeiT": tiny_stvit.tiny_deit,
    "Swin": tiny_stvit.tiny_swin,
}


def exported(spec: AnySpec, path: Path) -> Bundle:
    state = tiny_evo_state(spec) if spec.family.startswith("evovit") else tiny_stvit.deployed_state(spec)
    checkpoint = Checkpoint(
        spec=spec,
        state=state,
        preprocessing=Preprocessing(
            mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), assumed=False, stride=None
        ).for_spec(spec),
        classes=tuple(ClassEntry(name=f"class {number}", color=(number, 90, 7)) for number in range(spec.classes)),
        thresholds=(),
        floor=0.0,
        slide_size=None,
        source="tiny.safetensors",
        source_sha256="0" * 64,
    )
    return export(checkpoint, path)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_builds(family: str, tmp_path: Path) -> None:
    bundle = exported(FAMILIES[family](), tmp_path / "tiny.dovit")
    package, cache = tensorrt_package("tensorrt-rtx"), EngineCache(tmp_path / "cache")
    for request in (BuildRequest(), BuildRequest(plugins=False), BuildRequest(precision="fp32", plugins=False)):
        engines, _ = build_engines(bundle, request, package=package, cache=cache, progress=lambda step: None)
        record = engines.records["stage0"]
        assert record.layers.host_syncs == 0
        assert (record.layers.plugin_layers > 0) <= request.plugins
