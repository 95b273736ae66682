"""Pictures for people: colours of classes, overlays, and sheets that compare predictions.

Images are RGB uint8 everywhere; only `save_picture` knows that OpenCV wants BGR.
"""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

# Clearly different at a glance, muted enough to sit beside photographs; further classes get
# hues a golden section apart.
_FIRST_COLOURS = (
    (124, 127, 201),
    (203, 170, 112),
    (188, 219, 228),
    (222, 62, 60),
    (241, 169, 43),
    (63, 160, 82),
    (149, 71, 180),
    (42, 200, 212),
    (235, 130, 175),
    (120, 84, 60),
    (150, 190, 60),
    (60, 90, 150),
)
_GOLDEN_SECTION = 0.61803398875
_UNLABELLED = (32, 32, 36)
_INK = (40, 40, 46)
_PAPER = 255
_TILE_WIDTH = 256
_GAP = 8
_LINE = 26
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_SCALE = 0.5
_CAPTIONS = ("RGB", "depth", "ground truth", "prediction")


class PictureError(ValueError):
    """Arrays do not fit together, or a picture cannot be written."""


def colour_map(num_classes: int) -> np.ndarray:
    """Return one RGB colour per class, (K, 3) uint8; the first ones never change with K.

    Raises:
        ValueError: when `num_classes` is below 1.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be 1 or more, got {num_classes}")
    colours = list(_FIRST_COLOURS[:num_classes])
    for number in range(len(colours), num_classes):
        hue = number * _GOLDEN_SECTION % 1.0
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.55, 0.8)[number % 2], 0.6 + number % 3 / 6)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return np.array(colours, np.uint8)


def paint_labels(label: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return the label map (H, W) in colours, (H, W, 3) uint8; values past K - 1 come out dark.

    Args:
        label: (H, W) class numbers, 0 to K - 1; anything else, such as 255, is unlabelled.
        colours: (K, 3) uint8 as from `colour_map`.
    """
    table = np.vstack([colours, np.array([_UNLABELLED], np.uint8)])
    index = label.astype(np.int64)
    known = (index >= 0) & (index < len(colours))
    return table[np.where(known, index, len(colours))]


def overlay(
    image: np.ndarray, label: np.ndarray, colours: np.ndarray, opacity: float = 0.55
) -> np.ndarray:
    """Lay the colours of a label map over an image; unlabelled pixels stay as they are.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) class numbers.
        colours: (K, 3) uint8 as from `colour_map`.
        opacity: 0 shows the image alone, 1 the colours alone.

    Raises:
        PictureError: when sizes differ.
        ValueError: when `opacity` lies outside 0 to 1.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie between 0 and 1, got {opacity}")
    if image.shape[:2] != label.shape:
        raise PictureError(f"image {image.shape[:2]} and label {label.shape} differ in size")
    painted = image * (1 - opacity) + paint_labels(label, colours) * opacity
    known = (label >= 0) & (label < len(colours))
    return np.where(known[..., None], np.rint(painted), image).astype(np.uint8)


def paint_depth(depth: np.ndarray) -> np.ndarray:
    """Return a depth image in colours from violet (near) to yellow (far), holes in black.

    Args:
        depth: (H, W), or (H, W, C) with equal channels, uint8; dark is near, 0 a hole.
    """
    grey = depth[..., 0] if depth.ndim == 3 else depth
    measured = grey > 0
    if not measured.any():
        return np.zeros((*grey.shape, 3), np.uint8)
    near, far = float(grey[measured].min()), float(grey[measured].max())
    stretched = (grey.astype(np.float32) - near) * (255 / max(far - near, 1.0))
    levels = np.clip(stretched, 0, 255).astype(np.uint8)
    coloured = cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return np.where(measured[..., None], coloured, 0).astype(np.uint8)


def prediction_sheet(
    images: Sequence[np.ndarray],
    depths: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    class_names: Sequence[str],
) -> np.ndarray:
    """Put samples below each other as RGB, depth, ground truth and prediction, with a legend.

    Args:
        images: N arrays (H, W, 3) uint8 RGB; sizes may differ between samples.
        depths: N arrays (H, W) or (H, W, C) uint8, dark is near, 0 a hole.
        labels: N arrays (H, W) of classes 0 to K - 1; anything else is unlabelled.
        predictions: N arrays (H, W) of classes 0 to K - 1.
        class_names: K names; the legend shows those that occur.

    Returns:
        The sheet, (height, width, 3) uint8 RGB.

    Raises:
        PictureError: when there are no samples, or numbers or sizes differ.
    """
    _check_samples(images, depths, labels, predictions)
    colours = colour_map(len(class_names))
    rows = [_header(_CAPTIONS)]
    for image, depth, label, prediction in zip(images, depths, labels, predictions, strict=True):
        pictures = (
            image,
            paint_depth(depth),
            paint_labels(label, colours),
            paint_labels(prediction, colours),
        )
        rows += [_row([_tile(picture) for picture in pictures]), _blank(_GAP)]
    occurring = np.unique(np.concatenate([np.ravel(a) for a in (*labels, *predictions)]))
    rows.append(_legend(occurring, class_names, colours))
    return np.vstack(rows)


def save_picture(path: Path | str, picture: np.ndarray) -> None:
    """Write an RGB picture (H, W, 3) or a grey one (H, W), uint8; the suffix names the format.

    Raises:
        PictureError: when the folder cannot be written or the suffix is no image format.
    """
    path = Path(path)
    pixels = np.ascontiguousarray(picture[..., ::-1]) if picture.ndim == 3 else picture
    if not cv2.haveImageWriter(path.name):
        raise PictureError(f"{path}: {path.suffix!r} is no picture format; use .png or .jpg")
    _, encoded = cv2.imencode(path.suffix, pixels)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A viewer that looks now and then never meets half a picture.
        temporary.write_bytes(encoded.tobytes())
        temporary.replace(path)
    except OSError as error:
        raise PictureError(f"cannot write {path}: {error.strerror}") from error


def _check_samples(
    images: Sequence[np.ndarray],
    depths: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
) -> None:
    counts = (len(images), len(depths), len(labels), len(predictions))
    if len(set(counts)) != 1 or not images:
        raise PictureError(
            "need the same number of images, depths, labels and predictions, at least one;"
            f" got {', '.join(map(str, counts))}"
        )
    for number, sample in enumerate(zip(images, depths, labels, predictions, strict=True)):
        sizes = [array.shape[:2] for array in sample]
        if len(set(sizes)) != 1:
            raise PictureError(
                f"sample {number}: image, depth, label and prediction differ in size: {sizes}"
            )


def _tile(picture: np.ndarray) -> np.ndarray:
    """Bring a picture to the width of a tile; enlarged pixels keep their edges."""
    height, width = picture.shape[:2]
    size = (_TILE_WIDTH, max(1, round(height * _TILE_WIDTH / width)))
    method = cv2.INTER_AREA if width > _TILE_WIDTH else cv2.INTER_NEAREST
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=method)


def _blank(height: int, width: int | None = None) -> np.ndarray:
    full = len(_CAPTIONS) * (_TILE_WIDTH + _GAP) + _GAP
    return np.full((height, full if width is None else width, 3), _PAPER, np.uint8)


def _row(tiles: list[np.ndarray]) -> np.ndarray:
    gap = _blank(tiles[0].shape[0], _GAP)
    return np.hstack([gap, *(part for tile in tiles for part in (tile, gap))])


def _write(canvas: np.ndarray, text: str, left: int, baseline: int) -> None:
    cv2.putText(canvas, text, (left, baseline), _FONT, _FONT_SCALE, _INK, 1, cv2.LINE_AA)


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)[0][0])


def _header(captions: Sequence[str]) -> np.ndarray:
    header = _blank(_LINE + 6)
    for column, caption in enumerate(captions):
        middle = _GAP + column * (_TILE_WIDTH + _GAP) + _TILE_WIDTH // 2
        _write(header, caption, middle - _text_width(caption) // 2, _LINE - 5)
    return header


def _legend(occurring: np.ndarray, class_names: Sequence[str], colours: np.ndarray) -> np.ndarray:
    """Return lines of swatches with names, as many as fit beside each other."""
    entries = [
        (class_names[number], tuple(map(int, colours[number])))
        for number in occurring.tolist()
        if 0 <= number < len(class_names)
    ]
    if len(entries) < len(occurring):
        entries.append(("unlabelled", _UNLABELLED))
    lines, left = [_blank(_LINE)], _GAP
    for name, colour in entries:
        width = 22 + _text_width(name) + 20
        if left > _GAP and left + width > lines[-1].shape[1]:
            lines.append(_blank(_LINE))
            left = _GAP
        cv2.rectangle(lines[-1], (left, 5), (left + 14, 19), colour, cv2.FILLED, cv2.LINE_AA)
        _write(lines[-1], name, left + 22, 17)
        left += width
    return np.vstack([*lines, _blank(_GAP)])
