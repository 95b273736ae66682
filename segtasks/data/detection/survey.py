"""Everything that can be said about the files of a detection split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from segtasks.data.checks import in_threads
from segtasks.data.detection.dataset import compare_size
from segtasks.data.detection.listing import Listing, Repairs, pack
from segtasks.data.images import read_colour
from segtasks.data.problems import Problem
from segtasks.data.samples import DataError
from segtasks.data.survey import Survey


@dataclass
class DetectionSurvey(Survey):
    """What a split of images with boxes holds.

    Attributes:
        boxes: boxes of each class, (K,); those that evaluation ignores are not among them.
        images: images in which each class occurs, (K,).
        ignored: boxes that evaluation ignores.
        empty_images: images without any box.
        repairs: what was mended in the boxes.
    """

    counted = ("box", "boxes")
    blocking = ("missing", "unreadable", "label", "annotation", "duplicate")
    boxes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    images: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: int = 0
    empty_images: int = 0
    repairs: Repairs = field(default_factory=lambda: Repairs(0, 0, 0))

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Boxes of each class."""
        return self.boxes

    @property
    def class_images(self) -> npt.NDArray[np.int64]:
        """Images in which each class occurs."""
        return self.images

    @property
    def total(self) -> int:
        """Boxes."""
        return int(self.boxes.sum())

    def facts(self) -> dict[str, str]:
        """Boxes, and what is unusual about them."""
        return {
            "boxes": f"{self.total:,}",
            "crowds and difficult ones": f"{self.ignored:,}",
            "images without a box": f"{self.empty_images:,}",
            "clipped to the image": f"{self.repairs.clipped:,}",
            "dropped, without an area": f"{self.repairs.dropped:,}",
        }


def survey_listing(
    listing: Listing, progress: Callable[[int, int], None] | None = None
) -> DetectionSurvey:
    """Decode every image of a split and count its objects, whatever is wrong with some.

    Args:
        listing: the split.
        progress: called with the number of images looked at, and of all.
    """
    files = [record.file for record in listing.images]
    survey = DetectionSurvey(listing.path, files, list(listing.problems))
    _count_boxes(survey, listing)
    there = [i for i in range(len(files)) if i not in listing.missing]
    for done, (size, problems) in enumerate(
        in_threads(lambda i: _look(listing, there[i]), len(there)), 1
    ):
        survey.problems += problems
        survey.sizes += Counter() if size is None else Counter([size])
        if progress is not None:
            progress(done, len(there))
    return survey


def _count_boxes(survey: DetectionSurvey, listing: Listing) -> None:
    packed = pack(listing, crowd=True)
    wanted = ~packed.objects.crowd
    labels = packed.objects.labels[wanted]
    owners = np.repeat(np.arange(len(listing.images)), np.diff(packed.starts))[wanted]
    classes = len(listing.categories)
    survey.boxes = np.bincount(labels, minlength=classes)
    pairs = np.unique(np.stack([owners, labels]), axis=1)
    survey.images = np.bincount(pairs[1], minlength=classes)
    survey.ignored = int((~wanted).sum())
    survey.empty_images = int((np.diff(packed.starts) == 0).sum())
    survey.repairs = packed.repairs


def _look(listing: Listing, position: int) -> tuple[tuple[int, int] | None, list[Problem]]:
    """Size of an image, None where it cannot be read, and what is wrong with it."""
    record = listing.images[position]
    path = listing.root / record.file
    try:
        height, width = read_colour(path).shape[:2]
    except DataError as error:
        return None, [Problem("unreadable", str(error))]
    try:
        compare_size(record, (height, width), path)
    except DataError as error:
        return (height, width), [Problem("size", str(error))]
    return (height, width), []
