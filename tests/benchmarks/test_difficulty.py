"""What depth gains an image against its MACs: against sums pixel by pixel, and the table that is made of it."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import difficulty
import numpy as np
import pytest
import torch
from difficulty import (
    MARK,
    DepthGain,
    cross_entropy,
    drive_figures,
    label_counts,
    measure,
    ranks,
    spearman,
    spearman_interval,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from report import END

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.datasets.dataset import IGNORE
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.datasets.recording import Moment
from dovit_deploy.measure.intervals import Blocks, blocks_of
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from tests.datasets.labelled_folder import write_labelled
from tests.tiny import tiny_spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write_labelled(tmp_path_factory.mktemp("labelled") / "set", images=9)
    classes = root / "classes.json"
    classes.write_text(json.dumps({**json.loads(classes.read_text()), "frame_rate": 0.1}))
    return root


def naive_cross_entropy(logits, label, spec) -> float:
    """Pixel by pixel of the model's input."""
    height, width = spec.size
    side = spec.patch * spec.grid[0] // logits.shape[1]
    total, count = 0.0, 0
    for y in range(height):
        for x in range(width):
            seen = label[int((y + 0.5) * label.shape[0] / height), int((x + 0.5) * label.shape[1] / width)]
            if seen == IGNORE:
                continue
            top, left = spec.pads_before
            row = logits[:, (y + top) // side, (x + left) // side].astype(float)
            total += math.log(sum(math.exp(value) for value in row)) - row[seen]
            count += 1
    return total / count if count else math.nan


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("padding", ["end", "centre"])
def test_the_cross_entropy_is_that_of_single_pixels(scale, padding):
    spec = tiny_spec(gates=(1, 2)).model_copy(update={"padding": padding})
    rng = np.random.default_rng(scale)
    logits = rng.normal(size=(5, spec.grid[0] * scale, spec.grid[1] * scale)).astype(np.float32)
    label = rng.integers(0, 5, (37, 29)).astype(np.uint8)
    label[:9] = IGNORE
    assert cross_entropy(logits, label, spec) == pytest.approx(naive_cross_entropy(logits, label, spec))
    assert math.isnan(cross_entropy(logits, np.full_like(label, IGNORE), spec))
    sides = (spec.patch // scale,) * 2
    counts = label_counts(np.zeros((8, 8), np.uint8), spec, cells=logits.shape[1:], sides=sides, classes=5)
    assert counts[0].sum() == counts.sum() == spec.size[0] * spec.size[1]


def test_the_gain_is_that_of_the_bundles_own_answers(tiny_bundle_path, folder):
    bundle, data = Bundle.open(tiny_bundle_path), dataset_from_path(folder, "val")
    gain = DepthGain(bundle)
    with Session(bundle, threads=1) as session:
        predictor = Predictor(session)
        (figures,) = measure(session, gain, data, name="val", seed=0)
        assert (figures["name"], figures["images"], figures["blocks"]) == ("drive", 9, 9)
        for number in (0, 4):
            sample = data.sample(number)
            pixels = predictor.to_input(sample.rgb)
            logits, _ = session.run(pixels, dense=True)
            model = gain.model
            tokens, _ = model.run_layers(model.embed(torch.from_numpy(pixels)), (0, 1), model.attend_at())
            early = gain.head(tokens[gain.spec.extra_tokens :]).detach().numpy().T.reshape(-1, *gain.spec.grid)
            wanted = naive_cross_entropy(early, sample.label, gain.spec)
            wanted -= naive_cross_entropy(logits[0], sample.label, gain.spec)
            assert gain.spec.gates[0].layer == 1
            assert figures["gains"][number] == pytest.approx(wanted, abs=1e-4)
            assert figures["gmacs"][number] == predictor.predict(sample.rgb).tokens.gmacs_actual
    assert figures["rank_correlation"] == pytest.approx(spearman(figures["gains"], figures["gmacs"]))


def test_drives_are_apart(tiny_bundle_path, folder, monkeypatch):
    """Within a drive, not across: the second drive costs more and gains more, which says nothing of the rule."""
    data = dataset_from_path(folder, "val")
    gain = SimpleNamespace(spec=SimpleNamespace(size=Bundle.open(tiny_bundle_path).manifest.spec.size))
    values = iter([1.0, 2.0, math.nan, 4.0, 5.0, 16.0, 17.0, 18.0, 19.0])
    gain.of = lambda pixels, label: next(values)
    moments = [Moment(f"drive {number // 5}", 10.0 * number) for number in range(9)]
    monkeypatch.setattr(type(data), "moments", property(lambda self: moments))
    with Session(Bundle.open(tiny_bundle_path), threads=1) as session:
        rows = measure(session, gain, data, name="val", seed=0)
    assert [row["name"] for row in rows] == ["drive 0", "drive 1"]
    assert [row["gains"] for row in rows] == [[1.0, 2.0, 4.0, 5.0], [16.0, 17.0, 18.0, 19.0]]
    assert [row["blocks"] for row in rows] == [4, 4] and rows[0]["interval"] is None


def figures_for(name: str, value: float, *, images: int = 12) -> dict:
    """Of a drive whose MACs follow the gain with noise that leaves a rank correlation of about `value`."""
    rng = np.random.default_rng(0)
    gains = rng.normal(size=images)
    gmacs = 4 + value * gains + (1 - abs(value)) * rng.normal(size=images)
    return drive_figures(name, gains.tolist(), gmacs.tolist(), blocks_of(images, None), seed=0)


def test_the_table_is_written_between_its_marks_and_again(tiny_bundle_path, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        difficulty, "measure", lambda session, gain, data, *, name, seed, show: [figures_for(name, 1.0)]
    )
    page, result = tmp_path / "page.md", tmp_path / "result.json"
    page.write_text(f"before\n{MARK}\nstale figures\n{END}\nafter\n")
    difficulty.main(
        [str(tiny_bundle_path), str(folder), "--split", "val:drive", "-o", str(result), "--docs", str(page)]
    )
    text = page.read_text()
    assert text.startswith(f"before\n{MARK}\n| drive |") and text.endswith(f"{END}\nafter\n") and "stale" not in text
    assert "| val:drive | 12, 12 |" in text and "| **1.00** (1.00 to 1.00) |" in text
    assert "the interval above 0: reached" in text
    short = {**json.loads(result.read_text()), "photographs": [figures_for("clip", 1.0, images=7)]}
    assert "no drive is long enough" in difficulty.table(short)
    both = {**short, "photographs": [*short["photographs"], figures_for("drive", -1.0)]}
    assert "**missed**" in difficulty.table(both)
    assert f"python benchmarks/difficulty.py {tiny_bundle_path.name} set --split val:drive --scenes 100" in text
    page.write_text(f"before\n{MARK}\nother\n{END}\nafter\n")
    difficulty.main(["--tables", str(result), "--docs", str(page)])
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("value", "images", "reached"), [(1.0, 12, True), (1.0, 7, False), (0.1, 12, False), (-1.0, 12, False)]
)
def test_what_reaches_the_aim(value, images, reached):
    assert difficulty._reached(figures_for("x", value, images=images)) is reached


def test_what_cannot_be_measured(dense_bundle_path, setr_bundle_path, folder, capsys):
    for bundle, words in ((dense_bundle_path, "no gates"), (setr_bundle_path, "up-samples")):
        with pytest.raises(SystemExit) as left:
            difficulty.main([str(bundle), str(folder)])
        assert left.value.code == 2 and words in capsys.readouterr().err
    for arguments in ([], ["x.dovit"], ["x.dovit", "set", "--tables", "x.json"], ["x.dovit", "set", "--scenes", "4"]):
        with pytest.raises(SystemExit):
            difficulty.main(arguments)
        assert "needed" in capsys.readouterr().err


# Rank correlation against values by hand, and what no monotone change of the values may alter.

whole = st.integers(-20, 20)


def test_equal_values_share_their_ranks():
    assert ranks([30, 10, 20]).tolist() == [3, 1, 2]
    assert ranks([5, 1, 5, 5, 2]).tolist() == [4, 1, 4, 4, 2]
    assert ranks([7, 7]).tolist() == [1.5, 1.5]


def test_by_hand():
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5).
    assert spearman([1, 2, 2, 9], [10, 30, 20, 40]) == pytest.approx(4.5 / math.sqrt(22.5))
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.tuples(whole, whole), min_size=3, max_size=20))
def test_only_the_order_matters(pairs):
    first, second = zip(*pairs, strict=True)
    assume(len(set(first)) > 1 and len(set(second)) > 1)
    value = spearman(first, second)
    assert -1 - 1e-12 <= value <= 1 + 1e-12
    assert spearman([number**3 for number in first], second) == pytest.approx(value)
    assert spearman(second, first) == pytest.approx(value)
    assert spearman([-number for number in first], second) == pytest.approx(-value)
    assert spearman(first, [2 * number + 1 for number in first]) == pytest.approx(1)


def test_the_interval_holds_the_value_and_shrinks_with_more_blocks():
    rng = np.random.default_rng(0)
    widths = []
    for count in (20, 200):
        first = rng.normal(size=count)
        second = first + rng.normal(size=count)
        low, high = spearman_interval(first, second, blocks_of(count, None), seed=1, resamples=400)
        assert low < spearman(first, second) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    again = spearman_interval(first, second, blocks_of(count, None), seed=1, resamples=400)
    assert again == (low, high)
    rising = list(range(8))
    assert spearman_interval(rising, rising, blocks_of(8, None), seed=1, resamples=50) == (1, 1)
    assert spearman_interval(rising, rising, Blocks(np.arange(8) // 2), seed=1) is None
    assert spearman_interval(rising, [1] * 8, blocks_of(8, None), seed=1, resamples=50) is None


def test_alike_neighbours_are_no_evidence_of_their_own():
    """Ten images of each block are the same: the interval is that of the blocks."""
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=12), rng.normal(size=12)
    alone = spearman_interval(first, second, blocks_of(12, None), seed=1, resamples=400)
    repeated = [np.repeat(values, 10) for values in (first, second)]
    together = spearman_interval(*repeated, Blocks(np.arange(120) // 10), seed=1, resamples=400)
    assert together == pytest.approx(alone, abs=0.03)
