"""Average precision of detections by the COCO protocol, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

_log = logging.getLogger(__name__)
#: Digits kept of boxes (pixels) and scores; what is evaluated is what is written.
_BOX_DIGITS, _SCORE_DIGITS = 4, 8


class EvaluationError(ValueError):
    """Detections and annotations do not fit together; the message names the image."""


@dataclass(frozen=True)
class ImageDetections:
    """What was found in one image.

    Attributes:
        labels: (n,) class indices from 0.
        boxes: (n, 4) float64, left, top, right, bottom in pixels of the original image.
        scores: (n,) float64, 0 to 1.
    """

    labels: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]


#: Detections by the id of their image.
Images = dict[Hashable, ImageDetections]

#: The twelve numbers in the official order: average precisions, then recalls.
COCO_NUMBERS = (
    "ap",  # mean over the classes and the IoUs .50, .55, ... .95
    "ap50",  # at IoU .50 alone
    "ap75",  # at IoU .75 alone
    "ap_small",  # of objects below 32 x 32 pixels
    "ap_medium",  # of those up to 96 x 96
    "ap_large",  # of those above
    "ar1",  # recall at one detection of a class in an image, mean over classes and IoUs
    "ar10",  # at ten
    "ar100",  # at a hundred
    "ar_small",
    "ar_medium",
    "ar_large",
)


@dataclass(frozen=True)
class CocoScores:
    """Scores of the COCO evaluation, 0 to 1.

    A number is NaN where nothing is annotated that it could be measured on.

    Attributes:
        numbers: The twelve numbers by name, `COCO_NUMBERS`.
        class_ap: (K,) `ap` per class.
        class_ap50: (K,) `ap50` per class.
    """

    numbers: dict[str, float]
    class_ap: npt.NDArray[np.float64]
    class_ap50: npt.NDArray[np.float64]

    @property
    def ap(self) -> float:
        """Average precision, mean over the classes and the IoUs .50 to .95."""
        return self.numbers["ap"]

    @property
    def ap50(self) -> float:
        """The same at IoU .50."""
        return self.numbers["ap50"]


class CocoEvaluator:
    """Collects detections image by image and compares them with COCO annotations.

    The protocol is the official one for boxes: ten IoUs, 101 recall points, the 100 best
    detections of each class in each image, crowds as regions to ignore. Only images that
    detections were given for count, so that a part of a data set can be evaluated.

    Args:
        annotations: Content of an instances file: `images` with `id`, `annotations` with
            `image_id`, `category_id`, `bbox` (left, top, width, height in pixels) and, where
            known, `area` and `iscrowd`. It is not changed.
        category_ids: The category id of each class index.

    Raises:
        EvaluationError: A category id occurs twice.
    """

    def __init__(self, annotations: Mapping[str, Any], category_ids: Sequence[int]) -> None:
        self.category_ids = [int(number) for number in category_ids]
        if len(set(self.category_ids)) != len(self.category_ids):
            raise EvaluationError(f"category_ids holds an id twice: {self.category_ids}")
        self._annotations = annotations
        self._known = dict.fromkeys(image["id"] for image in annotations["images"])
        self.images: Images = {}

    def update(
        self,
        image_id: Hashable,
        labels: npt.NDArray[np.integer],
        boxes: npt.NDArray[np.floating],
        scores: npt.NDArray[np.floating],
    ) -> None:
        """Take the detections of one image.

        Args:
            image_id: As in the annotations.
            labels: (n,) class indices from 0; n may be 0.
            boxes: (n, 4) left, top, right, bottom in pixels of the original image.
            scores: (n,) confidences, 0 to 1, in any order.

        Raises:
            EvaluationError: The image is unknown or was given before, or values have no meaning.
        """
        self._check(image_id, labels, boxes, scores)
        self.images[image_id] = rounded(labels, boxes, scores)

    def reduce(self, gather: Callable[[Images], list[Images]]) -> None:
        """Take the images of every process, in the order of the annotations.

        Args:
            gather: Returns what every process passes.
        """
        found = {key: image for images in gather(self.images) for key, image in images.items()}
        self.images = {key: found[key] for key in self._known if key in found}

    def detections(self) -> list[dict[str, Any]]:
        """All detections in the COCO result format, images in the order they came in.

        Returns:
            Dicts with `image_id`, `category_id`, `bbox` (left, top, width, height) and `score`.
        """
        return [
            record
            for image_id, image in self.images.items()
            for record in coco_records(image_id, image, self.category_ids)
        ]

    def truth(self) -> list[dict[str, Any]]:
        """The annotations of the images seen, of known categories, as given."""
        known = set(self.category_ids)
        return [
            annotation
            for annotation in self._annotations["annotations"]
            if annotation["image_id"] in self.images and annotation["category_id"] in known
        ]

    def scores(self) -> CocoScores:
        """Scores of everything taken so far.

        Raises:
            EvaluationError: No image was given.
        """
        if not self.images:
            raise EvaluationError("there is nothing to evaluate: no image was given")
        truth = [_truth_record(i, a) for i, a in enumerate(self.truth(), start=1)]
        found = [_detection_record(i, d) for i, d in enumerate(self.detections(), start=1)]
        evaluation = self._evaluate(truth, found)
        defined = [float("nan") if value < 0 else float(value) for value in evaluation.stats]
        # IoUs x recalls x classes x object sizes x limits of detections; -1: nothing annotated.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        order = np.argsort(np.argsort(self.category_ids))  # pycocotools sorts the categories
        return CocoScores(
            numbers=dict(zip(COCO_NUMBERS, defined, strict=True)),
            class_ap=_class_means(precision)[order],
            class_ap50=_class_means(precision[:1])[order],
        )

    def _evaluate(self, truth: list[dict[str, Any]], found: list[dict[str, Any]]) -> COCOeval:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            evaluation = COCOeval(self._index(truth), self._index(found), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        _log.debug("%s", printed.getvalue())
        return evaluation

    def _index(self, annotations: list[dict[str, Any]]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image_id} for image_id in self.images],
            "categories": [{"id": number} for number in self.category_ids],
            "annotations": annotations,
        }
        coco.createIndex()
        return coco

    def _check(
        self,
        image_id: Hashable,
        labels: npt.NDArray[np.integer],
        boxes: npt.NDArray[np.floating],
        scores: npt.NDArray[np.floating],
    ) -> None:
        where = f"image {image_id!r}"
        if image_id not in self._known:
            raise EvaluationError(
                f"{where} is not among the {len(self._known)} annotated images; take the "
                "annotations of the split that is evaluated"
            )
        if image_id in self.images:
            raise EvaluationError(f"{where} was given twice; image ids must be unique")
        if not len(labels) == len(boxes) == len(scores):
            raise EvaluationError(
                f"{where}: {len(labels)} labels, {len(boxes)} boxes and {len(scores)} scores; "
                "there must be one of each per detection"
            )
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise EvaluationError(
                f"{where}: a box or score is not finite; the network's weights may have diverged"
            )
        count = len(self.category_ids)
        if len(labels) and not (np.min(labels) >= 0 and np.max(labels) < count):
            raise EvaluationError(
                f"{where}: labels from {np.min(labels)} to {np.max(labels)}, but the classes are "
                f"0 to {count - 1}; do model and data have the same num_classes?"
            )


def rounded(
    labels: npt.NDArray[np.integer], boxes: npt.NDArray[np.floating], scores: npt.NDArray[Any]
) -> ImageDetections:
    """Detections with the digits that files keep, so that numbers and files agree."""
    return ImageDetections(
        np.asarray(labels, np.int64).reshape(-1),
        np.round(np.asarray(boxes, np.float64).reshape(-1, 4), _BOX_DIGITS),
        np.round(np.asarray(scores, np.float64).reshape(-1), _SCORE_DIGITS),
    )


def coco_records(
    image_id: Hashable, image: ImageDetections, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """The detections of one image in the COCO result format; boxes become left, top, w, h."""
    sides = np.round(image.boxes[:, 2:] - image.boxes[:, :2], _BOX_DIGITS)
    boxes = np.concatenate([image.boxes[:, :2], sides], 1).tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for label, box, score in zip(
            image.labels.tolist(), boxes, image.scores.tolist(), strict=True
        )
    ]


def undefined_as_none(value: float) -> float | None:
    """A score for a JSON file, which has no NaN."""
    return None if math.isnan(value) else value


def _truth_record(number: int, annotation: Mapping[str, Any]) -> dict[str, Any]:
    """An annotation as pycocotools needs it, which changes it; an id of 0 would never match."""
    box = [float(value) for value in annotation["bbox"]]
    return {
        "id": number,
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "bbox": box,
        "area": float(annotation.get("area", box[2] * box[3])),
        "iscrowd": int(annotation.get("iscrowd", 0)),
    }


def _detection_record(number: int, detection: dict[str, Any]) -> dict[str, Any]:
    _, _, width, height = detection["bbox"]
    return {**detection, "id": number, "area": width * height, "iscrowd": 0}


def _class_means(precision: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over IoUs and recalls per class, (T, R, K) -> (K,); NaN where nothing is annotated."""
    means = precision.mean((0, 1))
    # A class without annotations is -1 throughout, any other one nowhere.
    return np.where(precision.min((0, 1)) < 0, np.nan, means)
