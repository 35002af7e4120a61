"""How do the images look that an evaluation lost most on? They are run once more, dense and as deployed."""

from __future__ import annotations

from collections.abc import Sequence

from dovit_deploy.measure.eval_page import MOST_PICTURED, WorstPictures, image_facts, worst_images
from dovit_deploy.measure.eval_table import EitherReport
from dovit_deploy.measure.evaluate import LabelledSet
from dovit_deploy.pages.page import Still
from dovit_deploy.runtime.album import encoded_together
from dovit_deploy.runtime.lettering import Color
from dovit_deploy.runtime.paint import colored
from dovit_deploy.runtime.results import ClassMap, ShownPicture
from dovit_deploy.runtime.segmentation import SegmentationResult
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.tasks import ImageResult, predictor_for

PICTURES_BYTES = 400_000
"""Of all pictures of an image."""


def worst_pictures(
    session: Session, data: LabelledSet, report: EitherReport, settings: RunSettings, names: Sequence[str]
) -> WorstPictures:
    """The worst images with label and answers.

    Args:
        session: that the report was measured with.
        data: on which.
        report: of the evaluation; its rows are in the order of `data`.
        settings: of the dynamic run.
        names: of the classes, by their numbers.
    """
    predictor, spec = predictor_for(session), session.bundle.manifest.spec
    stop_nothing = RunSettings.stop_nothing(spec, dense=True) if spec.has_dense else None
    stills = list[Still]()
    key: tuple[tuple[str, Color], ...] = ()
    for number in worst_images(report)[:MOST_PICTURED]:
        sample = data.sample(number)
        dynamic = predictor.run(sample.rgb, settings)
        key = key or dynamic.token_key()
        dense = None if stop_nothing is None else predictor.run(sample.rgb, stop_nothing)
        pictures = encoded_together(_pictures(sample.label, dense, dynamic), most=PICTURES_BYTES)
        stills.append(Still(sample.stem, image_facts(report, number, names), pictures))
    return WorstPictures(tuple(stills), key)


def _pictures(label: ClassMap | int, dense: ImageResult | None, dynamic: ImageResult) -> list[ShownPicture]:
    image, answer, tokens = dynamic.pictures()
    shown = [image]
    if isinstance(dynamic, SegmentationResult) and not isinstance(label, int):
        # What has no label is beyond the palette, and black.
        shown.append(ShownPicture("label", colored(label, dynamic.palette.colors), flat=True))
    if dense is not None:
        whole = dense.pictures()[1]
        shown.append(ShownPicture(f"dense {whole.name}", whole.rgb, flat=whole.flat))
    return [*shown, ShownPicture(f"dynamic {answer.name}", answer.rgb, flat=answer.flat), tokens]
