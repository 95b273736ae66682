"""Scores of a semantic segmentation, from one confusion matrix in 64-bit integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SegmentationScores:
    """Scores from 0 to 1.

    A class for which a score is 0/0 (absent from labels and predictions) scores 0 and counts in
    the means, as in DFormer's evaluation; helpers that skip such classes report higher means.

    Attributes:
        iou: (K,) intersection over union per class.
        accuracy: (K,) share of a class's pixels that were found (recall).
        f1: (K,) harmonic mean of precision and recall.
        miou: mean of `iou`.
        macc: mean of `accuracy`.
        mf1: mean of `f1`.
        pixel_accuracy: share of all labelled pixels that were right.
        fwiou: mean of `iou` weighted by how frequent a class is in the labels.
    """

    iou: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    f1: npt.NDArray[np.float64]
    miou: float
    macc: float
    mf1: float
    pixel_accuracy: float
    fwiou: float

    @classmethod
    def from_counts(cls, counts: npt.NDArray[np.int64]) -> SegmentationScores:
        """Compute the scores of a confusion matrix (K, K), rows labels, columns predictions."""
        right = np.diag(counts)
        labelled, predicted = counts.sum(1), counts.sum(0)
        iou = _ratio(right, labelled + predicted - right)
        accuracy = _ratio(right, labelled)
        f1 = _ratio(2 * right, labelled + predicted)
        total = labelled.sum()
        return cls(
            iou=iou,
            accuracy=accuracy,
            f1=f1,
            miou=float(iou.mean()),
            macc=float(accuracy.mean()),
            mf1=float(f1.mean()),
            pixel_accuracy=float(_ratio(right.sum(), total)),
            fwiou=float((_ratio(labelled, total) * iou).sum()),
        )


class ConfusionMatrix:
    """Counts of (label, prediction) pairs over any number of batches.

    Attributes:
        counts: (K, K) int64; `counts[t, p]` pixels of class t were predicted as p. Integers,
            because float32 loses single pixels once a cell passes 2^24 and one validation of
            NYUDepthv2 has 2e8 pixels.

    Args:
        num_classes: number of classes K.
        ignore_index: label value of pixels that do not count.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if 0 <= ignore_index < num_classes:
            raise ValueError(
                f"ignore_index {ignore_index} is one of the {num_classes} classes; "
                "choose a value outside 0 to num_classes - 1"
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts: npt.NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: npt.NDArray[np.integer], label: npt.NDArray[np.integer]) -> None:
        """Count one batch.

        Args:
            prediction: class indices, any shape.
            label: class indices or `ignore_index`, same shape.

        Raises:
            ValueError: the shapes differ, or a counted value is no class index.
        """
        if prediction.shape != label.shape:
            raise ValueError(
                f"prediction {prediction.shape} and label {label.shape} must have one shape"
            )
        counted = label != self.ignore_index
        labels = self._checked("label", label[counted])
        predictions = self._checked("prediction", prediction[counted])
        cells = np.bincount(labels * self.num_classes + predictions, minlength=self.counts.size)
        self.counts += cells.reshape(self.counts.shape)

    def reduce(
        self, sum_over_processes: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
    ) -> None:
        """Replace the counts by their sum over all processes.

        Args:
            sum_over_processes: returns the element-wise sum of every process's array.
        """
        self.counts = sum_over_processes(self.counts)

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.counts = np.zeros_like(self.counts)

    def scores(self) -> SegmentationScores:
        """Scores of everything counted so far."""
        return SegmentationScores.from_counts(self.counts)

    def _checked(self, what: str, values: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        if values.size and (values.min() < 0 or values.max() >= self.num_classes):
            wrong = values[(values < 0) | (values >= self.num_classes)][0]
            raise ValueError(
                f"{what} has the value {wrong}, but the classes are 0 to {self.num_classes - 1} "
                f"({self.ignore_index} is ignored in labels); check num_classes and the label shift"
            )
        return values.astype(np.int64)


def _ratio(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Quotient in float64, 0 where it is 0/0 (a part is never larger than its whole)."""
    return np.asarray(part, np.float64) / np.maximum(whole, 1)
