"""Random transforms of detection samples, with RT-DETR's official order and values.

Each draws its decision and hands it to a plain function of `detection_steps`, so that a recorded
decision can be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from segtasks.data.detection.samples import DetectionSample
from segtasks.data.transforms.detection_steps import (
    Distortion,
    Window,
    centres_inside,
    cut,
    distort,
    mirror,
    resize,
    sanitize,
    window_ious,
    zoom_out,
)

DetectionTransform = Callable[[DetectionSample, np.random.Generator], DetectionSample]

Range = tuple[float, float]
"""Smallest and largest value of a uniform draw."""


@dataclass(frozen=True)
class Compose:
    """Apply transforms one after the other, all drawing from one generator."""

    transforms: Sequence[DetectionTransform]

    def __call__(self, sample: DetectionSample, generator: np.random.Generator) -> DetectionSample:
        for transform in self.transforms:
            sample = transform(sample, generator)
        return sample


@dataclass(frozen=True)
class PhotometricDistortion:
    """Change brightness, contrast, saturation, hue and channels, each with `probability`.

    Contrast comes before or after saturation and hue with equal chance.
    """

    probability: float = 0.5
    brightness: Range = (0.875, 1.125)
    contrast: Range = (0.5, 1.5)
    saturation: Range = (0.5, 1.5)
    hue: Range = (-0.05, 0.05)

    def __post_init__(self) -> None:
        _check_probability(self.probability, "the photometric probability")
        for name in ("brightness", "contrast", "saturation"):
            _check_range(getattr(self, name), name, 0.0, float("inf"))
        _check_range(self.hue, "hue", -0.5, 0.5)

    def draw(self, generator: np.random.Generator) -> Distortion:
        """Decide."""

        def factor(limits: Range) -> float | None:
            value = float(generator.uniform(*limits))
            return value if generator.random() < self.probability else None

        # All values are drawn, used or not: one step's chance changes no other's value.
        brightness, contrast, saturation, hue = (
            factor(limits) for limits in (self.brightness, self.contrast, self.saturation, self.hue)
        )
        order = generator.permutation(3).tolist()
        channels = (order[0], order[1], order[2])
        permuted = generator.random() < self.probability
        return Distortion(
            brightness,
            contrast,
            saturation,
            hue,
            channels if permuted else None,
            contrast_first=bool(generator.random() < 0.5),
        )

    def __call__(self, sample: DetectionSample, generator: np.random.Generator) -> DetectionSample:
        return replace(sample, image=distort(sample.image, self.draw(generator)))


@dataclass(frozen=True)
class RandomZoomOut:
    """With `probability`, place the image on a black canvas `factor` times as large."""

    probability: float = 0.5
    factor: Range = (1.0, 4.0)

    def __post_init__(self) -> None:
        _check_probability(self.probability, "the probability of zooming out")
        _check_range(self.factor, "zoom_factor", 1.0, float("inf"))

    def __call__(self, sample: DetectionSample, generator: np.random.Generator) -> DetectionSample:
        if generator.random() >= self.probability:
            return sample
        factor, (height, width) = generator.uniform(*self.factor), sample.size
        canvas = int(height * factor), int(width * factor)
        across, down = generator.random(2).tolist()
        start = int((canvas[0] - height) * down), int((canvas[1] - width) * across)
        return zoom_out(sample, canvas, start)


@dataclass(frozen=True)
class RandomIoUCrop:
    """With `probability`, cut a window that overlaps some object well enough.

    One of `min_ious` is drawn; 1 or more leaves the image as it is. Then up to `trials` windows
    are tried, until one has a box's centre inside, and among such boxes one whose IoU with the
    window is at least that value; if none has, another value is drawn. An image without objects
    stays as it is.

    Attributes:
        probability: 0 to 1.
        min_ious: at least one of them 1 or more, so that the search ends.
        scale: width and height of a window, each as a fraction of the image's.
        aspect_ratio: width by height of a window.
        trials: windows for each drawn value.
    """

    probability: float = 0.8
    min_ious: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    scale: Range = (0.3, 1.0)
    aspect_ratio: Range = (0.5, 2.0)
    trials: int = 40

    def __post_init__(self) -> None:
        _check_probability(self.probability, "the probability of cropping")
        _check_range(self.scale, "crop_scale", 0.0, 1.0)
        _check_range(self.aspect_ratio, "crop_aspect_ratio", 0.0, float("inf"))
        if not any(value >= 1 for value in self.min_ious) or min(self.min_ious) < 0:
            raise ValueError(
                "crop_min_ious must be 0 or more, and one of them 1 (as it is), without which the "
                f"search for a window may not end; got {list(self.min_ious)}"
            )
        if self.trials < 1:
            raise ValueError(f"crop_trials must be 1 or more, got {self.trials}")

    def draw(self, sample: DetectionSample, generator: np.random.Generator) -> Window | None:
        """Choose a window; None for the whole image."""
        boxes = sample.objects.boxes_xyxy
        while len(boxes):
            min_iou = self.min_ious[int(generator.integers(len(self.min_ious)))]
            if min_iou >= 1:
                break
            windows = self._windows(sample.size, generator)
            inside = centres_inside(boxes, windows)
            best = np.where(inside, window_ious(boxes, windows), -1.0).max(axis=1, initial=-1.0)
            found = np.flatnonzero(best >= min_iou)
            if len(found):
                return Window(*windows[found[0]].astype(int).tolist())
        return None

    def _windows(
        self, size: tuple[int, int], generator: np.random.Generator
    ) -> npt.NDArray[np.float32]:
        """Windows of all trials that have a fitting shape, (T, 4) xyxy in whole pixels."""
        whole = np.array(size[::-1])  # width, height
        draws = generator.random((self.trials, 4))
        low, high = self.scale
        sides = np.floor(whole * (low + (high - low) * draws[:, :2]))
        starts = np.floor((whole - sides) * draws[:, 2:])
        ratio = sides[:, 0] / np.maximum(sides[:, 1], 1)
        good = (sides >= 1).all(axis=1)
        good &= (self.aspect_ratio[0] <= ratio) & (ratio <= self.aspect_ratio[1])
        return np.concatenate([starts, starts + sides], axis=1)[good].astype(np.float32)

    def __call__(self, sample: DetectionSample, generator: np.random.Generator) -> DetectionSample:
        if generator.random() >= self.probability:
            return sample
        window = self.draw(sample, generator)
        return sample if window is None else cut(sample, window)


@dataclass(frozen=True)
class RandomMirror:
    """Swap left and right with a probability of 0 to 1."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self.probability, "the probability of mirroring")

    def __call__(self, sample: DetectionSample, generator: np.random.Generator) -> DetectionSample:
        return mirror(sample) if generator.random() < self.probability else sample


@dataclass(frozen=True)
class Sanitize:
    """`sanitize` as a transform."""

    min_side: float = 1.0

    def __call__(self, sample: DetectionSample, generator: np.random.Generator) -> DetectionSample:
        return sanitize(sample, self.min_side)


@dataclass(frozen=True)
class Resize:
    """`resize` to `size` (height, width) as a transform."""

    size: tuple[int, int]

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size must be (height, width), each 1 or more, got {self.size}")

    def __call__(self, sample: DetectionSample, generator: np.random.Generator) -> DetectionSample:
        return resize(sample, self.size)


@dataclass(frozen=True)
class DetectionAugmentation:
    """How training images are varied; the defaults are those of RT-DETR's official recipe.

    Args:
        photometric: Probability of each change of colours: brightness, contrast, saturation, hue,
            order of the channels; 0 switches them off.
        brightness: Smallest and largest factor.
        contrast: Smallest and largest factor.
        saturation: Smallest and largest factor.
        hue: Smallest and largest shift; 1 would be the whole colour circle.
        zoom_out: Probability of placing the image on a larger black canvas.
        zoom_factor: Smallest and largest canvas, in multiples of the image's height and width.
        iou_crop: Probability of cutting a window around some object.
        crop_min_ious: What one of the objects and the window must have in common, as IoU; one of
            them is drawn, and 1 is the whole image.
        crop_scale: Smallest and largest width, and height, of a window, as fractions.
        crop_aspect_ratio: Smallest and largest width by height of a window.
        crop_trials: Windows tried for a drawn IoU before another is drawn.
        mirror: Probability of swapping left and right.
    """

    photometric: float = 0.5
    brightness: Range = (0.875, 1.125)
    contrast: Range = (0.5, 1.5)
    saturation: Range = (0.5, 1.5)
    hue: Range = (-0.05, 0.05)
    zoom_out: float = 0.5
    zoom_factor: Range = (1.0, 4.0)
    iou_crop: float = 0.8
    crop_min_ious: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    crop_scale: Range = (0.3, 1.0)
    crop_aspect_ratio: Range = (0.5, 2.0)
    crop_trials: int = 40
    mirror: float = 0.5

    def transform(self, size: tuple[int, int], *, strong: bool = True) -> Compose:
        """The training transform, in the official order.

        Args:
            size: (height, width) of the result.
            strong: Also change colours, zoom out and crop, which version 2 of the recipe leaves
                out in its last epochs.

        Raises:
            ValueError: A value is out of its range.
        """
        changes: tuple[DetectionTransform, ...] = (
            PhotometricDistortion(
                self.photometric, self.brightness, self.contrast, self.saturation, self.hue
            ),
            RandomZoomOut(self.zoom_out, self.zoom_factor),
            RandomIoUCrop(
                self.iou_crop,
                self.crop_min_ious,
                self.crop_scale,
                self.crop_aspect_ratio,
                self.crop_trials,
            ),
        )
        always = (Sanitize(), RandomMirror(self.mirror), Resize(size), Sanitize())
        return Compose((*changes, *always) if strong else always)


def validation_transform(size: tuple[int, int]) -> Compose:
    """Official validation transform: resize to (height, width) only."""
    return Compose((Resize(size),))


def _check_probability(value: float, what: str) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{what} must be 0 to 1, got {value}")


def _check_range(limits: Range, what: str, lowest: float, highest: float) -> None:
    if len(limits) != 2 or not lowest <= limits[0] <= limits[1] <= highest:
        raise ValueError(
            f"{what} must be two ascending numbers from {lowest:g} to {highest:g}, got "
            f"{list(limits)}"
        )
