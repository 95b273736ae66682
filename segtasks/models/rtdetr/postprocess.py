"""From the detector's output to boxes in pixels, in NumPy: no suppression and no threshold."""

from __future__ import annotations

from typing import NamedTuple

import jittor as jt
import numpy as np


class Detections(NamedTuple):
    """What was found in an image, best first.

    Attributes:
        labels: classes, int64, (n,).
        boxes_xyxy: left, top, right and bottom in pixels of the original image, float32, (n, 4).
        scores: float32, (n,), 0 to 1.
    """

    labels: np.ndarray
    boxes_xyxy: np.ndarray
    scores: np.ndarray


def top_predictions(
    logits: jt.Var | np.ndarray,
    boxes: jt.Var | np.ndarray,
    sizes_wh: np.ndarray,
    count: int = 300,
    *,
    softmax: bool = False,
) -> list[Detections]:
    """The best predictions of each image.

    A query may appear several times, with another class each time; with `softmax` once at most.

    Args:
        logits: class logits, (B, Q, C), or (B, Q, C + 1) with `softmax`, no object last.
        boxes: (B, Q, 4), centre x, centre y, width and height in 0..1.
        sizes_wh: (width, height) of each original image, (B, 2).
        count: how many at most.
        softmax: the classes exclude each other; officially without focal loss.

    Raises:
        ValueError: the shapes do not fit together, or `count` is below 1.
    """
    logits, boxes = _host(logits), _host(boxes)
    sizes_wh = np.asarray(sizes_wh)
    if sizes_wh.shape != (len(logits), 2):
        raise ValueError(f"sizes must be ({len(logits)}, 2), one per image, got {sizes_wh.shape}")
    if boxes.shape != (*logits.shape[:2], 4):
        raise ValueError(f"boxes must be (B, Q, 4), got {boxes.shape} beside {logits.shape}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    choose = _choose_by_query if softmax else _choose_by_class
    detections = []
    for image_logits, image_boxes, size in zip(logits, boxes, sizes_wh, strict=True):
        query, label, score = choose(image_logits, count)
        corners = _corners(image_boxes[query]) * np.tile(size, 2).astype(np.float32)
        detections.append(Detections(label, corners, score))
    return detections


def _choose_by_class(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, labels and scores of the best of all Q C pairs."""
    scores = _sigmoid(logits).reshape(-1)
    best = _best(scores, count)
    query, label = np.divmod(best, logits.shape[1])
    return query, label, scores[best]


def _choose_by_query(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, labels and scores of the best queries, each with its best class."""
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    shares = (exponents / exponents.sum(-1, keepdims=True))[:, :-1]
    label = shares.argmax(-1)
    scores = shares.max(-1)
    best = _best(scores, count)
    return best, label[best].astype(np.int64), scores[best]


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the highest scores, best first; of equal ones the first comes first."""
    if count < len(scores):
        # Sorting what can be among the best is enough: 300 of 24,000.
        limit = np.partition(scores, len(scores) - count)[len(scores) - count]
        candidates = np.flatnonzero(~(scores < limit))
    else:
        candidates = np.arange(len(scores))
    order = np.argsort(-scores[candidates], kind="stable")
    return candidates[order[:count]]


def _corners(boxes: np.ndarray) -> np.ndarray:
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], 1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # 1 / (1 + exp(-x)) without its overflow, and with all digits of small probabilities.
    return np.exp(-np.logaddexp(np.float32(0), -x))


def _host(x: jt.Var | np.ndarray) -> np.ndarray:
    array = x.numpy() if isinstance(x, jt.Var) else np.asarray(x)
    return array.astype(np.float32, copy=False)
