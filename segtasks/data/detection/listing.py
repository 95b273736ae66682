"""What the annotation files of a split say, whatever their format, before anything is repaired."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from segtasks.data.detection.samples import Objects
from segtasks.data.problems import Problem

# Rounded coordinates overshoot by less; more is worth telling.
_NOTABLE_PIXELS = 0.5


class Category(NamedTuple):
    """A class, with the number that the data set gives it."""

    id: int
    name: str


class ImageRecord(NamedTuple):
    """An image of the split: its file, relative to the root, its number, its size in pixels."""

    file: str
    id: int
    width: int
    height: int


class Annotation(NamedTuple):
    """One object.

    Attributes:
        image: position of its image in the listing.
        box_xywh: left, top, width and height in pixels.
        label: from 0.
        area: in pixels, of the object or its box.
        crowd: whether evaluation ignores it: a crowd (COCO), or difficult (VOC).
    """

    image: int
    box_xywh: tuple[float, float, float, float]
    label: int
    area: float
    crowd: bool


@dataclass
class Listing:
    """A split as its files describe it.

    Attributes:
        path: the annotation file, or the text file that lists the split.
        root: folder of the data set.
        categories: the classes, in the order of the labels.
        images: those whose entry is sound, in the order of the split.
        annotations: those that are sound, in any order.
        problems: what is wrong; with any of these the split is not to be used.
        missing: positions of the images without a file.
    """

    path: Path
    root: Path
    categories: tuple[Category, ...]
    images: list[ImageRecord] = field(default_factory=list)
    annotations: list[Annotation] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    missing: set[int] = field(default_factory=set)

    def ground_truth(self) -> dict[str, Any]:
        """All objects, crowds included and nothing repaired, as a COCO instances dictionary.

        Annotations are numbered from 1: the standard evaluation takes a 0 for "no object", and
        two of one number for one.
        """
        return {
            "info": {},
            "images": [
                {"id": i.id, "file_name": i.file, "width": i.width, "height": i.height}
                for i in self.images
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": self.images[a.image].id,
                    "category_id": self.categories[a.label].id,
                    "bbox": list(a.box_xywh),
                    "area": a.area,
                    "iscrowd": int(a.crowd),
                }
                for number, a in enumerate(self.annotations, 1)
            ],
            "categories": [{"id": c.id, "name": c.name} for c in self.categories],
        }


@dataclass(frozen=True)
class Repairs:
    """What was mended silently, but counted.

    Attributes:
        boxes: boxes of the split.
        clipped: those that left their image by more than half a pixel.
        dropped: those of no width or height, or entirely outside.
    """

    boxes: int
    clipped: int
    dropped: int

    def __bool__(self) -> bool:
        return self.clipped > 0 or self.dropped > 0

    def __str__(self) -> str:
        parts = []
        if self.clipped:
            parts.append(f"{self.clipped:,} of {self.boxes:,} boxes clipped to their image")
        if self.dropped:
            parts.append(f"{self.dropped:,} of {self.boxes:,} boxes without an area dropped")
        return ", ".join(parts)

    @property
    def suspicious(self) -> bool:
        """Whether so many were mended that the boxes are probably of another format."""
        return 5 * (self.clipped + self.dropped) > self.boxes


@dataclass(frozen=True)
class PackedObjects:
    """The objects of all images in a few arrays, which cost little to hand to workers.

    Attributes:
        objects: sorted by image.
        starts: where the objects of each image begin, and an end: (M + 1,).
        repairs: what was mended.
    """

    objects: Objects
    starts: npt.NDArray[np.int64]
    repairs: Repairs

    def of_image(self, position: int) -> Objects:
        """The objects of one image, in the order of the file."""
        return self.objects.keep(slice(*self.starts[position : position + 2].tolist()))


def pack(listing: Listing, *, crowd: bool) -> PackedObjects:
    """Turn boxes into corners, clip them to their images and drop those without an area.

    Args:
        listing: the split.
        crowd: keep objects that evaluation ignores.
    """
    chosen = [a for a in listing.annotations if crowd or not a.crowd]
    owners = np.array([a.image for a in chosen], np.int64)
    sides = np.array([(i.width, i.height) for i in listing.images], np.float64).reshape(-1, 2)
    boxes = np.array([a.box_xywh for a in chosen], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    inside = boxes.clip(0, np.tile(sides[owners], 2))
    good = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    moved = np.abs(inside - boxes).max(axis=1, initial=0) > _NOTABLE_PIXELS
    repairs = Repairs(len(boxes), int((good & moved).sum()), int((~good).sum()))
    order = np.argsort(owners, kind="stable")
    order = order[good[order]]
    objects = Objects(
        inside.astype(np.float32),
        np.array([a.label for a in chosen], np.int64),
        np.array([a.area for a in chosen], np.float32),
        np.array([a.crowd for a in chosen], bool),
    ).keep(order)
    starts = np.searchsorted(owners[order], np.arange(len(listing.images) + 1))
    return PackedObjects(objects, starts, repairs)
