"""The dense pass: what is kept of it, in memory and in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dovit_deploy.adapt import features
from dovit_deploy.adapt.features import DensePass, FeatureCache, patch_answers, seen_from_images
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.errors import OutputFailed
from dovit_deploy.export.plan import ExportPlan
from dovit_deploy.families.registry import model_from_spec
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.transforms import whole_input
from tests.bundles import tiny_checkpoint
from tests.tiny import tiny_pixels, tiny_spec

SPEC = tiny_spec(head="light", gate="linear", gates=(1, 3), size=(40, 56), answer="lens", aggregate_rate=1.0)


def planned(spec: VisionTransformerSpec = SPEC, **changes: object) -> tuple[torch.nn.Module, Bundle]:
    checkpoint = tiny_checkpoint(spec, **changes)
    bundle = Bundle(Path("x.dovit"), ExportPlan.resolve(checkpoint, Path("x.dovit")).manifest)
    return model_from_spec(spec, checkpoint.state), bundle


def test_a_window_gives_its_tokens_at_every_gate_and_at_the_end(tmp_path: Path) -> None:
    model, bundle = planned()
    cache = FeatureCache(tmp_path)
    pixels = tiny_pixels(SPEC.size, seed=3).numpy()
    logits, _ = DensePass(model, bundle, cache, most=100).run_one(pixels, RunSettings.stop_nothing(SPEC))
    first, second, last, answers = cache.columns()
    with torch.no_grad():
        wanted = model.one_image(torch.as_tensor(pixels), dense=True).results[0]
        tokens = model.embed(torch.as_tensor(pixels))
        for layer, block in enumerate(model.blocks, 1):
            tokens = block(tokens, model.attend_at())
            at = {1: first, 3: second, 4: last}.get(layer)
            if at is not None:
                torch.testing.assert_close(at, tokens[1:], atol=0, rtol=0)
    np.testing.assert_array_equal(logits, wanted.numpy())
    # The head answers on a grid twice as fine: four positions a patch.
    shares = wanted.softmax(1)[0].unflatten(1, (3, 2)).unflatten(3, (4, 2)).mean((2, 4)).flatten(1).T
    torch.testing.assert_close(answers, shares)


def test_answers_of_queries_are_sums_and_no_logits() -> None:
    spec = tiny_spec(head="query", gates=(1,))
    masses = torch.rand(1, spec.classes, *spec.logits_grid) * 3
    answers = patch_answers(masses, spec)
    torch.testing.assert_close(answers.sum(1), torch.ones(spec.patches))
    equal = torch.zeros(1, spec.classes, *spec.logits_grid)
    equal[:, 2] = 1e-3
    assert (patch_answers(equal, spec)[:, 2] > 0.99).all()


def test_rows_beyond_the_memory_are_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    windows = [(torch.randn(n, 4, generator=draw), torch.randn(n, 2, generator=draw)) for n in (5, 3, 4)]
    found = {}
    for size in (2**20, 150, 0):
        monkeypatch.setattr(features, "IN_MEMORY", size)
        cache = FeatureCache(tmp_path / str(size))
        cache.folder.mkdir()
        for window in windows:
            cache.append(window)
        found[size] = cache.columns()
        assert cache.windows == [5, 3, 4]
        assert bool(list(cache.folder.iterdir())) == (size < 2**20)
    for size in (150, 0):
        for mine, theirs in zip(found[size], found[2**20], strict=True):
            torch.testing.assert_close(mine, theirs, atol=0, rtol=0)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "IN_MEMORY", 0)
    monkeypatch.setattr(FeatureCache, "_file", lambda self, number: Path("/dev/full"))
    with pytest.raises(OutputFailed, match=r"cannot write .*: No space left on device"):
        FeatureCache(tmp_path).append([torch.zeros(9_000, 4)])


def test_tokens_are_kept_as_they_enter_each_layer_that_sees_pooled_keys(tmp_path: Path) -> None:
    spec = tiny_spec(
        head="linear", gate="linear", gates=(1, 3), size=(40, 56), depth=5, answer="gate", context="pooled"
    )
    model, bundle = planned(spec)
    (image,) = images = [np.full((40, 56, 3), 70, np.uint8)]
    seen = seen_from_images(model, bundle, images, count=1, folder=tmp_path, advance=lambda: None)
    assert list(seen.entering) == [1, 2, 3, 4] and len(seen.reached) == 2
    with torch.no_grad():
        tokens = model.embed(torch.from_numpy(whole_input(image, bundle.manifest)))
        for layer, block in enumerate(model.blocks):
            if layer in seen.entering:
                torch.testing.assert_close(seen.entering[layer], tokens[spec.extra_tokens :], atol=0, rtol=0)
            tokens = block(tokens)


def test_larger_images_slide_and_give_more_rows(tmp_path: Path) -> None:
    model, bundle = planned(stride=(20, 28))
    images = [np.zeros((60, 84, 3), np.uint8), np.zeros((40, 56, 3), np.uint8)]
    advanced = []
    seen = seen_from_images(model, bundle, images, count=2, folder=tmp_path, advance=lambda: advanced.append(1))
    assert seen.windows == (12,) * 5
    assert len(seen.last) == len(seen.answers) == 60 and len(seen.reached) == 2
    assert len(advanced) == 2


def test_what_lenses_of_taps_are_fitted_to_is_what_the_tapped_layer_gives(tmp_path: Path) -> None:
    spec = tiny_spec(
        head="light",
        gate="linear",
        gates=(1, 3),
        size=(40, 56),
        depth=5,
        taps=(1, 2, 4),
        answer="lens",
        tap_answer="lens",
    )
    model, bundle = planned(spec)
    (image,) = images = [np.full((40, 56, 3), 70, np.uint8)]
    seen = seen_from_images(model, bundle, images, count=1, folder=tmp_path, advance=lambda: None)
    # The first tap is before all gates: everything ran to it.
    assert seen.tapped.keys() == {2, 4}
    with torch.no_grad():
        tokens = model.embed(torch.from_numpy(whole_input(image, bundle.manifest)))
        for layer, block in enumerate(model.blocks, start=1):
            tokens = block(tokens)
            for wanted in [one for tap, one in seen.tapped.items() if tap == layer]:
                torch.testing.assert_close(wanted, tokens[spec.extra_tokens :])
        torch.testing.assert_close(seen.last, tokens[spec.extra_tokens :])
