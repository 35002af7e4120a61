"""What does a data set hold, in one line? Said when it is opened, so that a wrong reading shows before an hour of work.

Void and classes are counted in label maps spread over the split, at most `SAMPLED` of them: enough to see a wrong
reading, and no wait on a large data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.datasets.class_lists import CLASSES
from dovit_deploy.datasets.classification import LabelledImages
from dovit_deploy.datasets.dataset import IGNORE, Dataset, DatasetPart, LabelledFiles
from dovit_deploy.datasets.layouts import ADE20K
from dovit_deploy.record import Record

SAMPLED = 24
"""Label maps that are read for the line."""
_NAMED = 3
"""How many empty classes or values the line names."""


class DataSummary(Record):
    """What was found in a split when it was opened."""

    name: str
    """Folder and split."""
    layout: str
    images: int
    classes: int | None
    """How many the labels may name; None: there are no labels."""
    empty: tuple[str, ...] | None
    """Classes without a pixel (or image) in the labels that were read; None: none was read."""
    void: float | None
    """Share of the pixels that count nowhere, in [0, 1]."""
    void_values: tuple[int, ...]
    """Pixel values that they have in the files."""
    labels_read: int
    ignored: int
    """Files that lie among those of the data set and belong to no sample."""
    first_ignored: str | None
    doubt: str | None
    """What looks as if the data set were read otherwise than it is meant, with the remedy."""

    def lines(self) -> list[str]:
        """For people: layout, images, classes, void and what was ignored; and where there is a doubt, that."""
        return [self._line()] + ([] if self.doubt is None else [self.doubt])

    def _line(self) -> str:
        parts = [self.layout, f"{self.images} image{'' if self.images == 1 else 's'}"]
        parts += [] if self.classes is None else [self._classes(self.classes)]
        if self.void is not None:
            values = f" (value {_few(self.void_values)})" if self.void_values else ""
            parts.append(f"void {self.void:.1%}{values}")
        if 0 < self.labels_read < self.images:
            parts[-1] += f", in {self.labels_read} of the label maps"
        if self.first_ignored is not None:
            more = ", ..." if self.ignored > 1 else ""
            parts.append(f"ignored {self.ignored} other file{'s' if more else ''} ({self.first_ignored}{more})")
        return f"{self.name}: {'; '.join(parts)}"

    def _classes(self, classes: int) -> str:
        if not self.empty:
            return f"{classes} classes" + ("" if self.empty is None else ", none empty")
        return f"{classes - len(self.empty)} of {classes} classes, empty: {_few(self.empty)}"


def _few(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:_NAMED])) + (", ..." if len(values) > _NAMED else "")


def summary_of(data: Dataset | LabelledImages) -> DataSummary:
    """Look into a data set that was opened.

    Raises:
        DatasetError: a label that is read for it cannot be used.
    """
    if isinstance(data, LabelledImages):
        return _of_class_folders(data)
    files, indices = _files_of(data)
    if files is None:
        return _summary(data.name, len(data), len(data.classes.names), layout="rendered street scenes")
    spread = np.unique(np.linspace(0, len(indices) - 1, min(len(indices), SAMPLED)).round().astype(int))
    counts = np.sum([files.stored_counts(indices[number]) for number in spread], axis=0)
    present = np.flatnonzero(counts)
    meant = files.codes.table[present]
    void = present[meant == IGNORE]
    names = data.classes.names
    empty = tuple(name for number, name in enumerate(names) if number not in set(meant.tolist()))
    return _summary(
        data.name,
        len(data),
        len(names),
        layout=_layout_in_words(files),
        empty=empty,
        void=float(counts[void].sum() / counts.sum()),
        void_values=tuple(void.tolist()),
        labels_read=len(spread),
        ignored=files.ignored,
        doubt=_doubt(files, present, empty),
    )


def _layout_in_words(files: LabelledFiles) -> str:
    own = files.own_classes
    # The name of our own layout says it already.
    return files.layout if own is None or own.name in files.layout else f"{files.layout}, classes of {own.name}"


def _of_class_folders(data: LabelledImages) -> DataSummary:
    with_images = {file.label for file in data.files}
    empty = tuple(entry.name for number, entry in enumerate(data.classes) if number not in with_images)
    return _summary(data.name, len(data), len(data.classes), layout="class folders", empty=empty, ignored=data.ignored)


def summary_of_images(name: str, images: int, ignored: Sequence[Path]) -> DataSummary:
    """Of a folder of `images` images without labels; `ignored`: the other files in it."""
    return _summary(name, images, None, layout="images without labels", ignored=ignored)


def _summary(
    name: str,
    images: int,
    classes: int | None,
    *,
    layout: str,
    empty: tuple[str, ...] | None = None,
    void: float | None = None,
    void_values: tuple[int, ...] = (),
    labels_read: int = 0,
    ignored: Sequence[Path] = (),
    doubt: str | None = None,
) -> DataSummary:
    return DataSummary(
        name=name,
        layout=layout,
        images=images,
        classes=classes,
        empty=empty,
        void=void,
        void_values=void_values,
        labels_read=labels_read,
        ignored=len(ignored),
        first_ignored=ignored[0].name if ignored else None,
        doubt=doubt,
    )


def _files_of(data: Dataset) -> tuple[LabelledFiles | None, Sequence[int]]:
    """The files behind a data set or a part of one, and which of them it takes; None for what has no files."""
    if isinstance(data, LabelledFiles):
        return data, range(len(data))
    if not isinstance(data, DatasetPart):
        return None, ()
    files, indices = _files_of(data.whole)
    return files, () if files is None else [indices[number] for number in data.indices]


def _doubt(files: LabelledFiles, present: NDArray[np.intp], empty: Sequence[str]) -> str | None:
    """Two mistakes that are often made: own classes in ADE20K's folders, and masks of 0 and 255."""
    ignore = files.classes.ignore
    if files.layout == ADE20K and files.own_classes is None and present.max() <= len(files.classes.names) // 2:
        return (
            f"read as ADE20K (0 is void, 1 the first of 150 classes), but no pixel value is above {present.max()}; "
            f"for classes of your own put a {CLASSES} into the folder, or give it with --classes"
        )
    if empty and IGNORE in present and ignore != IGNORE:
        return (
            f"pixel value {IGNORE} was taken as void, and class '{empty[0]}' has no pixel; "
            f"where {IGNORE} is meant to be a class, write the class's id instead"
        )
    return None
