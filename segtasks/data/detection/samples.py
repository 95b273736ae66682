"""What travels from a detection data set to a model: objects, one sample, and a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from segtasks.data.samples import channels_first, check_one_size


@dataclass(frozen=True)
class Objects:
    """Annotated objects; filtering goes through `keep`, so that no field is left behind.

    The reference's sanitizing filters boxes and labels only, whose lengths then differ from those
    of area and crowd.

    Attributes:
        boxes_xyxy: (N, 4) float32, left, top, right, bottom in pixels of the present image.
        labels: (N,) int64, from 0.
        area: (N,) float32, as annotated: pixels of the original image, of the object or its box.
        crowd: (N,) bool, objects that evaluation ignores: crowds (COCO) and difficult ones (VOC).
    """

    boxes_xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    area: npt.NDArray[np.float32]
    crowd: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        lengths = {len(self.boxes_xyxy), len(self.labels), len(self.area), len(self.crowd)}
        if len(lengths) != 1 or self.boxes_xyxy.shape[1:] != (4,):
            raise ValueError(
                "boxes_xyxy (N, 4), labels (N,), area (N,) and crowd (N,) must have one N, got "
                f"{self.boxes_xyxy.shape}, {self.labels.shape}, {self.area.shape}, "
                f"{self.crowd.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sides(self) -> npt.NDArray[np.float32]:
        """Width and height of each box, (N, 2)."""
        return self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]

    def keep(self, which: npt.NDArray[Any] | slice) -> Objects:
        """Those that a mask, indices or a slice choose."""
        return Objects(
            self.boxes_xyxy[which], self.labels[which], self.area[which], self.crowd[which]
        )

    def moved_to(self, boxes_xyxy: npt.NDArray[Any]) -> Objects:
        """The same objects with other boxes, (N, 4)."""
        return replace(self, boxes_xyxy=boxes_xyxy.astype(np.float32, copy=False))


@dataclass(frozen=True)
class DetectionSample:
    """One image with its objects.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        objects: in pixels of `image`.
        image_id: the data set's number of the image.
        original_size: (width, height) of the image as read, whatever transforms made of it.
        name: file, relative to the data set's folder.
    """

    image: npt.NDArray[np.uint8]
    objects: Objects
    image_id: int
    original_size: tuple[int, int]
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.image.shape[:2]
        return height, width


class DetectionTarget:
    """What a model is to find in one image, in NumPy.

    Not a dataclass: the trainer moves the arrays of dataclasses to the device, and matching needs
    these on the host.

    Attributes:
        labels: (n,) int64, from 0.
        boxes: (n, 4) float32, centre x, centre y, width, height as fractions of the image.
        image_id: the data set's number of the image.
        original_size: (width, height) of the image as read, in pixels.
        name: file, relative to the data set's folder.
        area: (n,) float32, as annotated, in pixels of the original image.
        crowd: (n,) bool, objects that evaluation ignores; all False in training.
    """

    def __init__(
        self,
        labels: npt.NDArray[np.int64],
        boxes: npt.NDArray[np.float32],
        *,
        image_id: int,
        original_size: tuple[int, int],
        name: str,
        area: npt.NDArray[np.float32],
        crowd: npt.NDArray[np.bool_],
    ) -> None:
        self.labels = labels
        self.boxes = boxes
        self.image_id = image_id
        self.original_size = original_size
        self.name = name
        self.area = area
        self.crowd = crowd

    def __repr__(self) -> str:
        return f"DetectionTarget({self.name!r}, {len(self.labels)} objects)"

    @classmethod
    def of(cls, sample: DetectionSample) -> DetectionTarget:
        """The objects of a sample, with boxes relative to the size that its image has now."""
        height, width = sample.size
        objects = sample.objects
        return cls(
            objects.labels,
            relative_cxcywh(objects.boxes_xyxy, (height, width)),
            image_id=sample.image_id,
            original_size=sample.original_size,
            name=sample.name,
            area=objects.area,
            crowd=objects.crowd,
        )


@dataclass(frozen=True)
class DetectionBatch:
    """Images of one size, channels first, and what is to be found in each.

    Attributes:
        image: (B, 3, H, W) uint8, RGB; models take it divided by 255.
        targets: those of the B images.
    """

    image: npt.NDArray[np.uint8]
    targets: list[DetectionTarget]

    @property
    def names(self) -> list[str]:
        """Names of the B images."""
        return [target.name for target in self.targets]


def relative_cxcywh(
    boxes_xyxy: npt.NDArray[np.float32], size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Turn corners in pixels, (N, 4), into centre, width and height as fractions of the image.

    Args:
        boxes_xyxy: left, top, right, bottom.
        size: (height, width) of the image in pixels.
    """
    height, width = size
    boxes = boxes_xyxy.astype(np.float64)
    first, last = boxes[:, :2], boxes[:, 2:]
    relative = np.concatenate([(first + last) / 2, last - first], axis=1)
    return (relative / np.array([width, height, width, height])).astype(np.float32)


def collate(samples: Sequence[DetectionSample]) -> DetectionBatch:
    """Stack samples of one size into a batch.

    Raises:
        DataError: the samples differ in size, so they cannot share a batch.
    """
    check_one_size(samples, "end the transform with Resize")
    image = channels_first([sample.image for sample in samples], np.uint8)
    return DetectionBatch(image, [DetectionTarget.of(sample) for sample in samples])
