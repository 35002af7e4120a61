"""What `hold_out.py` lists: whole pieces of recording, always the same, and the committed lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from protocol.hold_out import held_out, main

from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.datasets.recording import Moment, moments_from_stems
from dovit_deploy.measure.intervals import FEWEST_BLOCKS, blocks_of
from tests.datasets.labelled_folder import write_labelled
from tests.paths import ROOT

FIT, HELD = "fit.txt", "held.txt"


def outputs(folder: Path) -> list[str]:
    return ["-o", str(folder / HELD), "--fit", str(folder / FIT)]


def test_every_third_piece_of_each_drive_is_held_out_whole():
    moments = [Moment("a", float(second)) for second in range(65)] + [Moment("b", second / 2) for second in range(62)]
    held = held_out(moments, seconds=10, every=3)
    assert [number for number, out in enumerate(held) if out] == [*range(20, 30), *range(50, 60), *range(105, 125)]


def test_the_lists_are_parts_of_the_split_and_the_same_again(tmp_path, capsys):
    root = write_labelled(tmp_path / "set", images=12)
    classes = root / "classes.json"
    classes.write_text(json.dumps({**json.loads(classes.read_text()), "frame_rate": 1}))
    command = [str(root), "--split", "val", "--seconds", "2", *outputs(tmp_path)]
    main(command)
    written = {name: (tmp_path / name).read_text() for name in (FIT, HELD)}
    main(command)
    assert written == {name: (tmp_path / name).read_text() for name in (FIT, HELD)}
    held = dataset_from_path(root, f"val:@{tmp_path / HELD}")
    fit = dataset_from_path(root, f"val:-@{tmp_path / HELD}")
    assert held.stems == ("drive_004", "drive_005", "drive_010", "drive_011")
    assert "\n".join(fit.stems) + "\n" == written[FIT]
    assert "8 images" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "words"), [((), "state frame_rate"), (("--split", "dev"), "splits here")])
def test_what_cannot_be_divided_is_a_line(tmp_path, capsys, more, words):
    root = write_labelled(tmp_path / "set", images=2)
    with pytest.raises(SystemExit) as left:
        main([str(root), "--split", "val", *more, *outputs(tmp_path)])
    assert left.value.code == 3
    assert words in capsys.readouterr().err
    assert not (tmp_path / FIT).exists() and not (tmp_path / HELD).exists()


def test_one_file_cannot_take_both_lists(tmp_path, capsys):
    root = write_labelled(tmp_path / "set", images=2)
    with pytest.raises(SystemExit) as left:
        main([str(root), "--split", "val", "-o", str(tmp_path / FIT), "--fit", str(tmp_path / "set" / ".." / FIT)])
    assert left.value.code == 2
    assert "two files are needed" in capsys.readouterr().err
    assert not (tmp_path / FIT).exists()


def test_the_committed_lists_never_hold_the_drive_that_is_read_once():
    lists = {name: (ROOT / "benchmarks" / "protocol" / name).read_text().split() for name in (FIT, HELD)}
    assert (len(lists[FIT]), len(lists[HELD])) == (176, 90)
    both = sorted(lists[FIT] + lists[HELD])
    assert len(set(both)) == 266 and not [stem for stem in both if stem.startswith("0006R0")]
    moments = moments_from_stems(both, None)
    held = held_out(moments, seconds=10, every=3)
    assert sorted(lists[HELD]) == [stem for stem, out in zip(both, held, strict=True) if out]
    found = [moment for moment, out in zip(moments, held, strict=True) if out]
    assert blocks_of(len(found), found).count >= FEWEST_BLOCKS
