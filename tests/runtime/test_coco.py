"""`coco.json`: run lengths as COCO's own tools read them, and a file that holds whole frames only."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dovit_deploy.runtime.coco import CocoFile, annotations_from_map, encoded_lengths, run_lengths
from dovit_deploy.sources.source import Frame

NAMES = ("road", "car", "sky")


def class_map(seed: int, size: tuple[int, int] = (23, 31)) -> np.ndarray:
    """Areas of three classes (one of them may be missing), with some specks."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 3, (4, 5)), np.ones((6, 7)))[: size[0], : size[1]].astype(np.uint8)
    return np.where(rng.random(size) < 0.05, rng.integers(0, 3, size), coarse).astype(np.uint8)


def decoded(text: str) -> list[int]:
    """Run lengths of COCO's compact text, by its description: 5 bits a letter, the lowest first, the last with a sign,
    and from the fourth number on the difference to the one before the last."""
    lengths, number, shift = list[int](), 0, 0
    for letter in text:
        bits = ord(letter) - 48
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
            number = shift = 0
    return lengths


def painted(lengths: list[int], size: tuple[int, int]) -> np.ndarray:
    """The mask of run lengths down the columns."""
    values = np.concatenate([np.full(length, place % 2, dtype=bool) for place, length in enumerate(lengths)])
    return values.reshape(size, order="F")


@pytest.mark.parametrize("mask", [np.eye(4, dtype=bool), np.ones((3, 2), bool), np.zeros((3, 2), bool)])
def test_runs_begin_with_what_is_false(mask: np.ndarray) -> None:
    lengths = run_lengths(mask)
    assert sum(lengths) == mask.size
    np.testing.assert_array_equal(painted(lengths, mask.shape), mask)


def test_runs_of_any_length_come_back() -> None:
    rng = np.random.default_rng(0)
    for scale in (2, 20, 40, 5000, 10**7):
        lengths = rng.integers(1, scale, 30).tolist()
        assert decoded(encoded_lengths(lengths)) == lengths


def test_an_annotation_for_each_class_that_occurs() -> None:
    whole = class_map(1)
    whole[whole == 1] = 2
    found = annotations_from_map(whole)
    assert [entry["category_id"] for entry in found] == [0, 2]
    for entry in found:
        mask = whole == entry["category_id"]
        assert entry["area"] == mask.sum() and entry["segmentation"]["size"] == [23, 31]
        np.testing.assert_array_equal(painted(decoded(entry["segmentation"]["counts"]), mask.shape), mask)
        left, top, width, height = entry["bbox"]
        assert mask[top : top + height, left : left + width].sum() == mask.sum()
        assert mask[[top, top + height - 1]].any(axis=1).all() and mask[:, [left, left + width - 1]].any(axis=0).all()


def frame(index: int) -> Frame:
    rgb = np.zeros((23, 31, 3), dtype=np.uint8)
    return Frame(rgb=rgb, index=index, source=f"in/{index}.png", time_s=Fraction(index, 4), decode_ms=0.0)


def written(path: Path, *, video: bool, maps: int = 2) -> CocoFile:
    with CocoFile(path, video=video) as file:
        for number in range(maps):
            whole = class_map(number)
            file.add(frame(5 * number), whole.shape, annotations_from_map(whole), NAMES)
    return file


def test_a_file_of_images_and_one_of_frames(tmp_path: Path) -> None:
    written(tmp_path / "coco.json", video=False)
    contents = json.loads((tmp_path / "coco.json").read_text())
    assert [entry["name"] for entry in contents["categories"]] == list(NAMES)
    assert contents["images"][1] == {"id": 2, "file_name": "in/5.png", "width": 31, "height": 23}
    assert [entry["id"] for entry in contents["annotations"]] == list(range(1, 1 + len(contents["annotations"])))
    written(tmp_path / "coco.json", video=True)
    _, second = json.loads((tmp_path / "coco.json").read_text())["images"]
    assert (second["file_name"], second["frame_index"], second["time_s"]) == ("000005.png", 5, 1.25)
    assert {path.name for path in tmp_path.iterdir()} == {"coco.json"}


def test_frames_that_were_not_done_are_taken_out_and_none_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "coco.json"
    written(path, video=False, maps=3).write_first(2)
    contents = json.loads(path.read_text())
    assert len(contents["images"]) == 2 and {entry["image_id"] for entry in contents["annotations"]} == {1, 2}
    written(path, video=False, maps=0)
    assert json.loads(path.read_text())["images"] == []


def test_pycocotools_reads_the_same_masks(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    written(tmp_path / "coco.json", video=False)
    read = coco.COCO(str(tmp_path / "coco.json"))
    assert [read.cats[number]["name"] for number in sorted(read.cats)] == list(NAMES)
    for number in range(2):
        found = read.loadAnns(read.getAnnIds(imgIds=[number + 1]))
        assert sum(entry["area"] for entry in found) == 23 * 31
        for entry in found:
            mask = class_map(number) == entry["category_id"]
            np.testing.assert_array_equal(read.annToMask(entry), mask)
            area, box = coco.maskUtils.area(entry["segmentation"]), coco.maskUtils.toBbox(entry["segmentation"])
            assert (area, box.tolist()) == (entry["area"], entry["bbox"])
