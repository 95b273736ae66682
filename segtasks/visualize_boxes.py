"""Pictures of detections: boxes with class and score on images, and sheets that compare them.

Images are RGB uint8 everywhere, boxes in pixels of the image they are drawn on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from segtasks.visualize import PictureError, colour_map

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_PAPER, _INK = 255, (40, 40, 46)
_DARK, _LIGHT = (24, 24, 28), (250, 250, 250)
_TILE_WIDTH = 400
_GAP = 8
_LINE = 32
_CAPTIONS = ("annotated", "detected")


@dataclass(frozen=True)
class Boxes:
    """Boxes on one image.

    Attributes:
        labels: (n,) class indices from 0.
        xyxy: (n, 4) left, top, right, bottom in pixels; what lies outside is cut off.
        scores: (n,) 0 to 1, or None for annotations.
    """

    labels: npt.NDArray[np.integer]
    xyxy: npt.NDArray[np.floating]
    scores: npt.NDArray[np.floating] | None = None

    def above(self, threshold: float) -> Boxes:
        """Those with a score of at least `threshold`; all of annotations."""
        if self.scores is None:
            return self
        kept = self.scores >= threshold
        return Boxes(self.labels[kept], self.xyxy[kept], self.scores[kept])

    def scaled(self, factor: float) -> Boxes:
        """The same on an image enlarged by `factor`."""
        return Boxes(self.labels, self.xyxy * factor, self.scores)


def draw_boxes(
    image: npt.NDArray[np.uint8], boxes: Boxes, class_names: Sequence[str]
) -> npt.NDArray[np.uint8]:
    """Draw boxes with their class, and score where there is one, on a copy of an image.

    Boxes with higher scores are drawn over those with lower ones.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: In pixels of `image`.
        class_names: Name of each class.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        PictureError: The image is no RGB image, or a label has no name.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise PictureError(f"boxes are drawn on (H, W, 3) uint8, got {image.shape} {image.dtype}")
    labels = np.asarray(boxes.labels, np.int64)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise PictureError(
            f"labels from {labels.min()} to {labels.max()}, but {len(class_names)} class names"
        )
    canvas = np.ascontiguousarray(image).copy()
    colours = colour_map(max(len(class_names), 1)).tolist()
    scores = boxes.scores
    order = range(len(labels)) if scores is None else np.argsort(scores, kind="stable").tolist()
    for index in order:
        name = class_names[labels[index]]
        text = name if scores is None else f"{name} {100 * float(scores[index]):.0f}"
        _draw_one(canvas, boxes.xyxy[index], text, colours[labels[index]])
    return canvas


def detection_sheet(
    images: Sequence[npt.NDArray[np.uint8]],
    annotated: Sequence[Boxes],
    detected: Sequence[Boxes],
    class_names: Sequence[str],
) -> npt.NDArray[np.uint8]:
    """Put images below each other, with the annotations on the left and the detections beside.

    Args:
        images: N arrays (H, W, 3) uint8 RGB; sizes may differ.
        annotated: N sets of boxes in pixels of their image.
        detected: N sets of boxes in pixels of their image.
        class_names: Name of each class.

    Returns:
        The sheet, (height, width, 3) uint8 RGB.

    Raises:
        PictureError: There are no images, or numbers differ.
    """
    counts = (len(images), len(annotated), len(detected))
    if len(set(counts)) != 1 or not images:
        raise PictureError(
            "need the same number of images, annotations and detections, at least one; got "
            f"{', '.join(map(str, counts))}"
        )
    rows = [_header()]
    for image, truth, found in zip(images, annotated, detected, strict=True):
        factor = _TILE_WIDTH / image.shape[1]
        tile = _tile(image, factor)
        drawn = [draw_boxes(tile, boxes.scaled(factor), class_names) for boxes in (truth, found)]
        gap = _blank(tile.shape[0], _GAP)
        rows += [np.hstack([gap, drawn[0], gap, drawn[1], gap]), _blank(_GAP)]
    return np.vstack(rows)


def _draw_one(
    canvas: npt.NDArray[np.uint8], box: npt.NDArray[np.floating], text: str, colour: list[int]
) -> None:
    height, width = canvas.shape[:2]
    limits = np.array([width - 1, height - 1, width - 1, height - 1])
    left, top, right, bottom = np.clip(np.rint(box), 0, limits).astype(int).tolist()
    thick = max(1, round(min(height, width) / 250))
    cv2.rectangle(canvas, (left, top), (right, bottom), colour, thick, cv2.LINE_8)
    scale = max(0.35, min(height, width) / 1000)
    (text_width, text_height), base = cv2.getTextSize(text, _FONT, scale, 1)
    # Above the box where there is room, else inside; never beyond the right border.
    bar_top = top - text_height - base - 2 if top > text_height + base + 2 else top
    bar_left = max(0, min(left, width - text_width - 4))
    corner = (bar_left + text_width + 3, bar_top + text_height + base + 1)
    cv2.rectangle(canvas, (bar_left, bar_top), corner, colour, cv2.FILLED)
    ink = _DARK if sum(colour) > 380 else _LIGHT
    origin = (bar_left + 2, bar_top + text_height + 1)
    cv2.putText(canvas, text, origin, _FONT, scale, ink, 1, cv2.LINE_AA)


def _tile(image: npt.NDArray[np.uint8], factor: float) -> npt.NDArray[np.uint8]:
    size = (_TILE_WIDTH, max(1, round(image.shape[0] * factor)))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(np.ascontiguousarray(image), size, interpolation=method)
    return np.asarray(resized, np.uint8)


def _blank(height: int, width: int | None = None) -> npt.NDArray[np.uint8]:
    full = len(_CAPTIONS) * (_TILE_WIDTH + _GAP) + _GAP
    return np.full((height, full if width is None else width, 3), _PAPER, np.uint8)


def _header() -> npt.NDArray[np.uint8]:
    header = _blank(_LINE)
    for column, caption in enumerate(_CAPTIONS):
        (width, _), _ = cv2.getTextSize(caption, _FONT, 0.5, 1)
        middle = _GAP + column * (_TILE_WIDTH + _GAP) + _TILE_WIDTH // 2
        origin = (middle - width // 2, _LINE - 11)
        cv2.putText(header, caption, origin, _FONT, 0.5, _INK, 1, cv2.LINE_AA)
    return header
