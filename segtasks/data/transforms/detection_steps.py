"""What the transforms of detection samples do to pixels and boxes, once all is decided.

The pixels go through Pillow, as in RT-DETR's reference, because other libraries round colours
differently and do not antialias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from segtasks.data.detection.samples import DetectionSample


@dataclass(frozen=True)
class Distortion:
    """What to do to the colours; None leaves that step out.

    Attributes:
        brightness: factor of all values.
        contrast: factor of the distance to the mean grey.
        saturation: factor of the distance to each pixel's own grey.
        hue: shift on the colour circle, -0.5 to 0.5 being the whole of it.
        channels: order of the colour channels.
        contrast_first: whether contrast comes before saturation and hue, or after them.
    """

    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    channels: tuple[int, int, int] | None = None
    contrast_first: bool = True


def distort(image: npt.NDArray[np.uint8], decision: Distortion) -> npt.NDArray[np.uint8]:
    """Change the colours of an image, (H, W, 3) uint8 RGB; every step rounds to 8 bits."""
    pixels = Image.fromarray(image)
    first, last = decision.contrast, None
    if not decision.contrast_first:
        first, last = last, first
    if decision.brightness is not None:
        pixels = ImageEnhance.Brightness(pixels).enhance(decision.brightness)
    if first is not None:
        pixels = ImageEnhance.Contrast(pixels).enhance(first)
    if decision.saturation is not None:
        pixels = ImageEnhance.Color(pixels).enhance(decision.saturation)
    if decision.hue is not None:
        pixels = _shift_hue(pixels, decision.hue)
    if last is not None:
        pixels = ImageEnhance.Contrast(pixels).enhance(last)
    array = np.asarray(pixels)
    return array if decision.channels is None else array[..., list(decision.channels)]


def _shift_hue(pixels: Image.Image, shift: float) -> Image.Image:
    hue, saturation, value = pixels.convert("HSV").split()
    # 8 bits are the whole circle, so the sum may wrap.
    hue = hue.point([(grey + int(shift * 255)) % 256 for grey in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def zoom_out(
    sample: DetectionSample, canvas: tuple[int, int], start: tuple[int, int]
) -> DetectionSample:
    """Place an image on a larger black canvas.

    Args:
        sample: the sample.
        canvas: (height, width) of the canvas in pixels.
        start: row and column of the canvas where the image begins.
    """
    (height, width), (top, left) = sample.size, start
    image = np.zeros((*canvas, 3), np.uint8)
    image[top : top + height, left : left + width] = sample.image
    objects = sample.objects
    moved = objects.moved_to(objects.boxes_xyxy + np.array([left, top, left, top], np.float32))
    return replace(sample, image=image, objects=moved)


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels; `right` and `bottom` are the first outside of it."""

    left: int
    top: int
    right: int
    bottom: int


def cut(sample: DetectionSample, window: Window) -> DetectionSample:
    """Cut a window out: objects with their centre strictly inside stay, clipped to it."""
    objects = sample.objects
    inside = centres_inside(objects.boxes_xyxy, np.array([_corners(window)], np.float32))[0]
    objects = objects.keep(inside)
    left, top, right, bottom = _corners(window)
    limits = np.array([right - left, bottom - top] * 2, np.float32)
    boxes = objects.boxes_xyxy - np.array([left, top, left, top], np.float32)
    return replace(
        sample,
        image=sample.image[top:bottom, left:right],
        objects=objects.moved_to(boxes.clip(0, limits)),
    )


def _corners(window: Window) -> tuple[int, int, int, int]:
    return window.left, window.top, window.right, window.bottom


def centres_inside(
    boxes_xyxy: npt.NDArray[np.float32], windows_xyxy: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    """Whether each of N centres is strictly inside each of T windows: (T, N)."""
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    windows = windows_xyxy[:, None]
    inside: npt.NDArray[np.bool_] = (
        (windows[..., :2] < centres) & (centres < windows[..., 2:])
    ).all(axis=-1)
    return inside


def window_ious(
    boxes_xyxy: npt.NDArray[np.float32], windows_xyxy: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Intersection over union of T windows and N boxes: (T, N)."""
    windows = windows_xyxy[:, None]
    sides = np.minimum(boxes_xyxy[:, 2:], windows[..., 2:]) - np.maximum(
        boxes_xyxy[:, :2], windows[..., :2]
    )
    common = sides.clip(0).prod(axis=-1)
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=-1)
    whole = (windows_xyxy[:, 2:] - windows_xyxy[:, :2]).prod(axis=-1)[:, None]
    ious: npt.NDArray[np.float32] = common / np.maximum(areas + whole - common, 1e-9)
    return ious


def sanitize(sample: DetectionSample, min_side: float = 1.0) -> DetectionSample:
    """Drop boxes with a side below `min_side` pixels, and those not within the image."""
    boxes, (height, width) = sample.objects.boxes_xyxy, sample.size
    good = (sample.objects.sides >= min_side).all(axis=1)
    good &= (boxes >= 0).all(axis=1)
    good &= (boxes[:, 2:] <= np.array([width, height], np.float32)).all(axis=1)
    return sample if good.all() else replace(sample, objects=sample.objects.keep(good))


def mirror(sample: DetectionSample) -> DetectionSample:
    """Swap left and right."""
    boxes = sample.objects.boxes_xyxy.copy()
    boxes[:, [0, 2]] = sample.size[1] - boxes[:, [2, 0]]
    return replace(sample, image=sample.image[:, ::-1], objects=sample.objects.moved_to(boxes))


def resize(sample: DetectionSample, size: tuple[int, int]) -> DetectionSample:
    """Resize to (height, width), whatever the aspect ratio: Pillow's antialiased bilinear."""
    if size == sample.size:
        return sample
    (old_height, old_width), (height, width) = sample.size, size
    pixels = Image.fromarray(np.ascontiguousarray(sample.image))
    image = np.asarray(pixels.resize((width, height), Image.Resampling.BILINEAR))
    # In float64: rounding could push a box out of the image otherwise, and `sanitize` drop it.
    factors = np.array([width / old_width, height / old_height] * 2)
    moved = sample.objects.moved_to(sample.objects.boxes_xyxy * factors)
    return replace(sample, image=image, objects=moved)
