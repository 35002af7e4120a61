"""Data sets of labelled images, whatever their layout: what other floors import."""

from __future__ import annotations

from dovit_deploy.measure.dataset_part import DatasetPart, with_prefix
from dovit_deploy.measure.folder_layout import SegmentationFolder, class_list_from_file
from dovit_deploy.measure.labelled_files import IGNORE, ClassList, Dataset, LabelledFiles, Sample

__all__ = [
    "IGNORE",
    "ClassList",
    "Dataset",
    "DatasetPart",
    "LabelledFiles",
    "Sample",
    "SegmentationFolder",
    "class_list_from_file",
    "with_prefix",
]
