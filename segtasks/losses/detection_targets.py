"""The labelled boxes of a batch, checked and laid out for matching and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

# Box arithmetic in single precision may leave 0..1 by a few units in the last place.
_ROUNDING = 1e-5


class Target(Protocol):
    """The labelled boxes of one image, on the host.

    Attributes:
        labels: int64, (n,), each from 0 to the number of classes - 1.
        boxes: float32, (n, 4), centre x, centre y, width and height in 0..1 of the image.
    """

    labels: np.ndarray
    boxes: np.ndarray


class TargetError(ValueError):
    """An image's labels or boxes cannot be learnt from."""


class TargetBatch:
    """All labelled boxes of a batch, image after image.

    Args:
        targets: one per image, without boxes too.
        num_classes: labels are below it.

    Attributes:
        counts: boxes of each image.
        first: position of each image's first box in `labels` and `boxes`.
        labels: int32, (n,), n the boxes of the whole batch.
        boxes: float32, (n, 4), as in `Target`.

    Raises:
        TargetError: a label or a box is impossible; names the image's index and the value.
    """

    def __init__(self, targets: Sequence[Target], num_classes: int) -> None:
        for image, target in enumerate(targets):
            _check(np.asarray(target.labels), np.asarray(target.boxes), image, num_classes)
        self.counts = np.array([len(target.labels) for target in targets], np.int64)
        self.first = np.cumsum(self.counts) - self.counts
        # The empty arrays in front make batches without a box an ordinary case.
        labels = [np.zeros(0), *(np.asarray(target.labels) for target in targets)]
        boxes = [np.zeros((0, 4)), *(np.asarray(target.boxes) for target in targets)]
        self.labels = np.concatenate(labels).astype(np.int32)
        self.boxes = np.concatenate([b.reshape(-1, 4) for b in boxes]).astype(np.float32)

    def __len__(self) -> int:
        return len(self.counts)

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels (B, n) and boxes (B, n, 4), n the most boxes of an image.

        What fills the rows of images with fewer boxes is valid, and without meaning.
        """
        most = int(self.counts.max(initial=0))
        labels = np.zeros((len(self), most), np.int32)
        boxes = np.full((len(self), most, 4), 0.5, np.float32)
        real = np.arange(most) < self.counts[:, None]
        labels[real], boxes[real] = self.labels, self.boxes
        return labels, boxes


def _check(labels: np.ndarray, boxes: np.ndarray, image: int, num_classes: int) -> None:
    where = f"target of image {image} of the batch"
    if labels.ndim != 1 or boxes.size != 4 * len(labels):
        raise TargetError(
            f"{where}: labels of shape {labels.shape} and boxes of shape {boxes.shape} do not "
            "belong together, need (n,) and (n, 4)"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise TargetError(
            f"{where}: label {labels[wrong[0]]} of box {wrong[0]} is not among the {num_classes} "
            f"classes; labels count from 0 to {num_classes - 1}"
        )
    boxes = boxes.reshape(-1, 4)
    # Written so that NaN, which compares false, counts as wrong.
    inside = (boxes >= -_ROUNDING) & (boxes <= 1 + _ROUNDING)
    wrong = np.flatnonzero(~(inside.all(1) & (boxes[:, 2:] > 0).all(1)))
    if len(wrong):
        raise TargetError(
            f"{where}: box {wrong[0]} is {boxes[wrong[0]].tolist()}; need centre x, centre y, "
            "width and height within 0..1 of the image, width and height above 0"
        )
