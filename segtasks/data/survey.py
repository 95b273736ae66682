"""Everything that can be said about the files of a split: what is wrong, and what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from segtasks.data.checks import in_threads
from segtasks.data.images import read_classes, read_colour, read_grey
from segtasks.data.problems import Kind, Problem
from segtasks.data.rgbd import RGBDDataset
from segtasks.data.samples import IGNORE_INDEX, DataError

T = TypeVar("T")


@dataclass
class Survey:
    """What a split lists, and what its files hold.

    Attributes:
        counted: what is counted of each class: one, and many.
        blocking: problems with which no batch can be made, so that none is tried.
        path: the file that describes the split.
        listed: names of the samples, in the order of the split.
        problems: what is wrong, in the order of the samples.
        sizes: samples by (height, width).
    """

    counted: ClassVar[tuple[str, str]]
    blocking: ClassVar[tuple[Kind, ...]]
    path: Path
    listed: list[str]
    problems: list[Problem] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """How much of each class there is; those beyond the number of classes are a problem."""
        raise NotImplementedError

    @property
    def class_images(self) -> npt.NDArray[np.int64]:
        """Images in which each class occurs, as many as `counts`."""
        raise NotImplementedError

    @property
    def total(self) -> int:
        """What the shares of the classes are shares of."""
        raise NotImplementedError

    def facts(self) -> dict[str, str]:
        """What else is worth knowing: a heading, and what was found."""
        return {}


@dataclass
class SplitSurvey(Survey):
    """What a split of images with depth and pixel labels holds.

    Attributes:
        pixels: pixels of each label after the shift, (256,); 255 is unlabelled.
        images: images in which each label occurs, (256,).
        depth_bits: samples by bits per pixel of their depth, 8 or 16.
        largest_depth: the largest raw value of 16-bit depth, 0 where there is none.
    """

    counted = ("pixel", "pixels")
    blocking = ("missing", "unreadable")
    pixels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    images: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    depth_bits: Counter[int] = field(default_factory=Counter)
    largest_depth: int = 0

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Pixels of each label but the one to ignore."""
        return self.pixels[:IGNORE_INDEX]

    @property
    def class_images(self) -> npt.NDArray[np.int64]:
        """Images in which each label occurs."""
        return self.images[:IGNORE_INDEX]

    @property
    def total(self) -> int:
        """Pixels, with those to ignore."""
        return int(self.pixels.sum())

    def facts(self) -> dict[str, str]:
        """Depth, and what is not labelled."""
        depth = ", ".join(f"{bits}-bit ({n:,})" for bits, n in sorted(self.depth_bits.items()))
        if self.largest_depth:
            depth += f", largest {self.largest_depth}"
        share = self.pixels[IGNORE_INDEX] / max(self.total, 1)
        return {"depth": depth, "pixels without a label": f"{share:.2%}"}


@dataclass
class _Look:
    """What one sample holds; a part is None where it cannot be read."""

    problems: list[Problem] = field(default_factory=list)
    counts: npt.NDArray[np.int64] | None = None
    size: tuple[int, int] | None = None
    depth_bits: int | None = None
    largest_depth: int = 0

    def attempt(self, kind: Kind, function: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return function(*arguments)
        except DataError as error:
            self.problems.append(Problem(kind, str(error)))
            return None


def survey_split(
    dataset: RGBDDataset, path: Path, progress: Callable[[int, int], None] | None = None
) -> SplitSurvey:
    """Decode every file of a split.

    Args:
        dataset: the split, opened with `skip_missing`.
        path: the split file.
        progress: called with the number of samples looked at, and of all.
    """
    survey = SplitSurvey(path, dataset.listed)
    survey.problems += _missing(dataset, path) + _duplicates(dataset, path)
    for done, look in enumerate(in_threads(lambda i: _look(dataset, i), len(dataset)), 1):
        survey.problems += look.problems
        if look.counts is not None and look.size is not None:
            survey.pixels += look.counts
            survey.images += look.counts > 0
            survey.sizes[look.size] += 1
        if look.depth_bits is not None:
            survey.depth_bits[look.depth_bits] += 1
            survey.largest_depth = max(survey.largest_depth, look.largest_depth)
        if progress is not None:
            progress(done, len(dataset))
    return survey


def find_overlap(first: Survey, second: Survey) -> list[Problem]:
    """Samples that stand in two splits, so that what was trained on would be tested."""
    seen = set(first.listed)
    return [
        Problem("overlap", f"{stem!r} is in {first.path} and in {second.path}; take one out")
        for stem in dict.fromkeys(second.listed)
        if stem in seen
    ]


def _missing(dataset: RGBDDataset, path: Path) -> list[Problem]:
    return [
        Problem("missing", f"{path} lists {stem!r}: no file {' and '.join(files)}")
        for stem, files in dataset.missing.items()
    ]


def _duplicates(dataset: RGBDDataset, path: Path) -> list[Problem]:
    return [
        Problem("duplicate", f"{path} lists {stem!r} {times} times; leave one of the lines")
        for stem, times in Counter(dataset.listed).items()
        if times > 1
    ]


def _look(dataset: RGBDDataset, index: int) -> _Look:
    look = _Look()
    image_path, depth_path, label_path = dataset.files(index)
    image = look.attempt("unreadable", read_colour, image_path)
    depth = look.attempt("unreadable", read_grey, depth_path)
    label = look.attempt("unreadable", read_classes, label_path)
    if depth is not None:
        look.depth_bits = 8 * depth.dtype.itemsize
        look.largest_depth = int(depth.max()) if look.depth_bits == 16 else 0
        look.attempt("16-bit depth", dataset.scale_depth, depth, depth_path)
    if label is not None:
        look.size = (label.shape[0], label.shape[1])
        look.attempt("label", dataset.shift_label, label, label_path)
        counts = np.bincount(label.reshape(-1), minlength=256)
        # Counted before the shift: the first count, of raw 0, then becomes that of 255.
        look.counts = np.roll(counts, -1) if dataset.label_shift else counts
    if image is not None and depth is not None and label is not None:
        look.attempt("size", dataset.compare_sizes, index, image.shape[:2], depth.shape, look.size)
    return look
