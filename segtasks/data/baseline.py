"""What a predictor scores that looks at no image: the most frequent class at every position."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from segtasks.data.samples import IGNORE_INDEX


class MajorityMap:
    """The class that training labels have most often at each position.

    A model that does not beat it has learnt where things usually are, not what it sees.

    Args:
        num_classes: number of classes K.
        size: (height, width) at which labels are counted; others are resized by nearest pixel.
    """

    def __init__(self, num_classes: int, size: tuple[int, int]) -> None:
        self.num_classes = num_classes
        self.size = size
        # One more row collects what is ignored, so that counting needs no mask.
        self._counts = np.zeros((num_classes + 1, size[0] * size[1]), np.int32)

    def update(self, label: npt.NDArray[np.uint8]) -> None:
        """Count one label (H, W), class indices or 255."""
        label = resize_nearest(label, self.size).reshape(-1)
        row = np.where(label == IGNORE_INDEX, self.num_classes, label)
        # Each position appears once, so that += counts it.
        self._counts[row, np.arange(label.size)] += 1

    def predict(self, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Predict an image of (height, width): class indices of that shape.

        Positions that were never labelled get the class that is most frequent overall; of equally
        frequent classes the first counts.
        """
        counts = self._counts[:-1]
        majority = counts.argmax(0)
        majority[counts.max(0) == 0] = counts.sum(1).argmax()
        return resize_nearest(majority.astype(np.uint8).reshape(self.size), size)


def resize_nearest(label: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Resize a label (H, W) to (height, width) by the nearest pixel."""
    if label.shape == size:
        return label
    resized = cv2.resize(label, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
    return resized.astype(np.uint8, copy=False)
