"""Average precision of detections as in the Pascal VOC challenges, at one IoU.

"The PASCAL Visual Object Classes Challenge" (Everingham et al., 2010), section 4.2, and the
development kits of 2007 and 2010 to 2012. The kits count pixels of boxes with both ends included;
with boxes as edges, from xmin - 1 to xmax, their overlap is the plain one that is computed here.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segtasks.metrics.detection import CocoEvaluator, ImageDetections

Boxes = npt.NDArray[np.float64]


@dataclass(frozen=True)
class VocScores:
    """Average precision at one IoU, 0 to 1; NaN for a class that nothing is annotated of.

    Attributes:
        map_2007: mean over the classes of the eleven-point average, the rule up to 2009.
        map_2010: mean over the classes of the area under the curve, the rule from 2010 on.
        class_2007: (K,) per class.
        class_2010: (K,) per class.
    """

    map_2007: float
    map_2010: float
    class_2007: npt.NDArray[np.float64]
    class_2010: npt.NDArray[np.float64]

    def numbers(self) -> dict[str, float]:
        """The two means by name."""
        return {"voc_map_2007": self.map_2007, "voc_map_2010": self.map_2010}


def voc_scores(evaluator: CocoEvaluator, iou_threshold: float = 0.5) -> VocScores:
    """Scores of what an evaluator has collected.

    Objects that are `difficult`, or crowds, are neither to be found nor wrong to find. All
    detections count, not only the hundred best.

    Args:
        evaluator: With annotations that may have the key `difficult`.
        iou_threshold: Least overlap of a detection with the object it stands for, above 0 to 1.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be above 0 and at most 1, got {iou_threshold}")
    truth = evaluator.truth()
    rules: list[tuple[float, float]] = []
    for label, category in enumerate(evaluator.category_ids):
        objects = _objects([a for a in truth if a["category_id"] == category])
        curve = _curve(label, evaluator.images, objects, iou_threshold)
        rules.append((float("nan"), float("nan")) if curve is None else _both_rules(*curve))
    per_class = np.array(rules, np.float64).reshape(-1, 2)
    annotated = per_class[~np.isnan(per_class[:, 0])]
    means = annotated.mean(0) if len(annotated) else np.full(2, np.nan)
    return VocScores(float(means[0]), float(means[1]), per_class[:, 0], per_class[:, 1])


def voc_ap(recall: Boxes, precision: Boxes, *, eleven_points: bool) -> float:
    """Average precision of one curve.

    Args:
        recall: (n,) after each detection, best first, so never falling.
        precision: (n,) likewise.
        eleven_points: The rule up to 2009: the mean over recalls 0, 0.1, ... 1 of the best
            precision at that recall or more. Else the area below the curve that has been made to
            fall monotonically.
    """
    # Best precision at a recall or any higher one.
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if eleven_points:
        # Quotients, as a recall is one: 3 / 10 is 0.3, three times 0.1 is above it.
        firsts = np.searchsorted(recall, np.arange(11) / 10, side="left")
        return float(np.append(best, 0.0)[firsts].mean())
    steps = np.diff(recall, prepend=0.0)
    return float((steps * best).sum())


@dataclass(frozen=True)
class _Objects:
    """The objects of one class in one image: (n, 4) left, top, right, bottom, and what counts."""

    boxes: Boxes
    ignored: npt.NDArray[np.bool_]


def _objects(annotations: Sequence[Mapping[str, Any]]) -> dict[Hashable, _Objects]:
    grouped: dict[Hashable, list[Mapping[str, Any]]] = {}
    for annotation in annotations:
        grouped.setdefault(annotation["image_id"], []).append(annotation)
    objects = {}
    for image_id, group in grouped.items():
        boxes = np.array([annotation["bbox"] for annotation in group], np.float64)
        boxes[:, 2:] += boxes[:, :2]
        ignored = [bool(a.get("difficult", 0)) or bool(a.get("iscrowd", 0)) for a in group]
        objects[image_id] = _Objects(boxes, np.array(ignored, bool))
    return objects


def _curve(
    label: int,
    images: Mapping[Hashable, ImageDetections],
    objects: Mapping[Hashable, _Objects],
    threshold: float,
) -> tuple[Boxes, Boxes] | None:
    """Recall and precision of a class after each detection; None where there is nothing to find."""
    wanted = sum(int((~one.ignored).sum()) for one in objects.values())
    if wanted == 0:
        return None
    scores: list[npt.NDArray[np.float64]] = []
    verdicts: list[npt.NDArray[np.int64]] = []
    for image_id, image in images.items():
        own = image.labels == label
        order = np.argsort(-image.scores[own], kind="stable")
        scores.append(image.scores[own][order])
        verdicts.append(_judge(image.boxes[own][order], objects.get(image_id), threshold))
    ranked = np.concatenate(verdicts)[np.argsort(-np.concatenate(scores), kind="stable")]
    ranked = ranked[ranked >= 0]
    right = np.cumsum(ranked)
    return right / wanted, right / np.arange(1, len(ranked) + 1)


def _judge(boxes: Boxes, objects: _Objects | None, threshold: float) -> npt.NDArray[np.int64]:
    """1 right, 0 wrong, -1 not counted, for the detections of one image, best first."""
    verdicts = np.zeros(len(boxes), np.int64)
    if objects is None or not len(boxes):
        return verdicts
    overlaps = _iou(boxes, objects.boxes)
    taken = np.zeros(len(objects.boxes), bool)
    # As in the kits, a detection stands for the object it overlaps most, taken already or not.
    for index, nearest in enumerate(overlaps.argmax(1)):
        if overlaps[index, nearest] < threshold:
            continue
        if objects.ignored[nearest]:
            verdicts[index] = -1
        elif not taken[nearest]:
            verdicts[index], taken[nearest] = 1, True
    return verdicts


def _iou(a: Boxes, b: Boxes) -> Boxes:
    """(n, 4) and (m, 4) -> (n, m); 0 for two boxes without an area."""
    lower = np.maximum(a[:, None, :2], b[None, :, :2])
    upper = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(upper - lower, 0, None).prod(-1)
    areas = (a[:, 2:] - a[:, :2]).prod(-1)[:, None] + (b[:, 2:] - b[:, :2]).prod(-1)[None]
    union = areas - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _both_rules(recall: Boxes, precision: Boxes) -> tuple[float, float]:
    return (
        voc_ap(recall, precision, eleven_points=True),
        voc_ap(recall, precision, eleven_points=False),
    )
