"""Transforms of RGB-D segmentation samples, with DFormer's official order and values.

Each random transform draws its decision and hands it to a plain function (`mirror`, `rescale`,
`cut_and_pad`), so that a recorded decision can be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from segtasks.data.samples import IGNORE_INDEX, SegmentationSample

SampleTransform = Callable[[SegmentationSample, np.random.Generator], SegmentationSample]

ArrayMap = Callable[[npt.NDArray[Any]], Any]

OFFICIAL_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


# ImageNet's constants, listed in RGB order, meet BGR pixels position by position: the official
# weights were trained with that slip, so "fixing" it costs accuracy.
_IMAGE_STATISTICS = np.array([(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)])
_DEPTH_STATISTICS = np.array([(0.48,) * 3, (0.28,) * 3])


def _normalised(statistics: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Normalised values of the 256 grey values, (1, 256, 3): float64, then float32."""
    grey = np.arange(256, dtype=np.float64)[None, :, None] / 255.0
    mean, std = statistics
    return ((grey - mean) / std).astype(np.float32)


_IMAGE_VALUES = _normalised(_IMAGE_STATISTICS)
_DEPTH_VALUES = _normalised(_DEPTH_STATISTICS)


def mirror(sample: SegmentationSample) -> SegmentationSample:
    """Swap left and right."""
    return _map(sample, lambda array: cv2.flip(array, 1))


def rescale(sample: SegmentationSample, scale: float) -> SegmentationSample:
    """Resize to `int(H * scale)` x `int(W * scale)`.

    Image and depth bilinearly with half-pixel centres, without antialiasing, on 8-bit values;
    the label by the nearest pixel.

    Raises:
        ValueError: nothing would be left of the sample.
    """
    height, width = (int(side * scale) for side in sample.size)
    if min(height, width) < 1:
        raise ValueError(f"scale {scale} leaves nothing of {sample.name!r}, {sample.size}")
    if (height, width) == sample.size:
        return sample
    return _map(
        sample,
        lambda array: cv2.resize(array, (width, height), interpolation=cv2.INTER_LINEAR),
        lambda label: cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST),
    )


def normalise(sample: SegmentationSample) -> SegmentationSample:
    """Turn 8-bit image and depth into float32 of about zero mean and unit variance.

    Raises:
        ValueError: the sample is not 8-bit, so it has been normalised before.
    """
    for name, array in (("image", sample.image), ("depth", sample.depth)):
        if array.dtype != np.uint8:
            raise ValueError(f"{name} of {sample.name!r} must be uint8, got {array.dtype}")
    return replace(
        sample,
        image=cv2.LUT(sample.image, _IMAGE_VALUES),
        depth=cv2.LUT(sample.depth, _DEPTH_VALUES),
    )


def restore_pixels(
    image: npt.NDArray[np.float32], depth: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Undo `normalise` on one element of a batch, for pictures.

    Args:
        image: (3, H, W) as in a batch.
        depth: (3, H, W) as in a batch.

    Returns:
        Image and depth, (H, W, 3) uint8, in the data set's channel order.
    """
    statistics = (_IMAGE_STATISTICS, _DEPTH_STATISTICS)
    first, second = (
        np.rint((array.transpose(1, 2, 0) * std + mean) * 255).clip(0, 255).astype(np.uint8)
        for array, (mean, std) in zip((image, depth), statistics, strict=True)
    )
    return first, second


def cut_and_pad(
    sample: SegmentationSample, start: tuple[int, int], size: tuple[int, int]
) -> SegmentationSample:
    """Cut a window and pad it to `size` where the sample ends before.

    Args:
        sample: the sample, normalised: 0 is the mean then, and fills image and depth.
        start: first row and column of the window.
        size: height and width of the window and of the result.
    """
    return _map(
        sample,
        lambda array: _cut_and_pad(array, start, size, 0),
        lambda label: _cut_and_pad(label, start, size, IGNORE_INDEX),
    )


def _cut_and_pad(
    array: npt.NDArray[Any], start: tuple[int, int], size: tuple[int, int], fill: int
) -> npt.NDArray[Any]:
    """Padding is split evenly, an odd line goes to the bottom or right."""
    window = array[start[0] : start[0] + size[0], start[1] : start[1] + size[1]]
    top, left = (size[0] - window.shape[0]) // 2, (size[1] - window.shape[1]) // 2
    out = np.full((*size, *array.shape[2:]), fill, array.dtype)
    out[top : top + window.shape[0], left : left + window.shape[1]] = window
    return out


def pad_bottom_right(sample: SegmentationSample, size: tuple[int, int]) -> SegmentationSample:
    """Pad image and depth with 0 and the label with 255 at the bottom and right.

    Raises:
        ValueError: the sample is larger than `size`.
    """
    rows, columns = size[0] - sample.size[0], size[1] - sample.size[1]
    if min(rows, columns) < 0:
        raise ValueError(f"{sample.name!r} is {sample.size}, larger than the padded size {size}")
    sides = ((0, rows), (0, columns))
    return _map(
        sample,
        lambda array: np.pad(array, (*sides, (0, 0))),
        lambda label: np.pad(label, sides, constant_values=IGNORE_INDEX),
    )


def _map(
    sample: SegmentationSample, pixels: ArrayMap, labels: ArrayMap | None = None
) -> SegmentationSample:
    """Apply `pixels` to image and depth, and `labels` (default: `pixels`) to the label."""
    return replace(
        sample,
        image=pixels(sample.image),
        depth=pixels(sample.depth),
        label=(labels or pixels)(sample.label),
    )


@dataclass(frozen=True)
class Compose:
    """Apply transforms one after the other, all drawing from one generator."""

    transforms: Sequence[SampleTransform]

    def __call__(
        self, sample: SegmentationSample, generator: np.random.Generator
    ) -> SegmentationSample:
        for transform in self.transforms:
            sample = transform(sample, generator)
        return sample


@dataclass(frozen=True)
class RandomMirror:
    """Swap left and right with a probability of 0 to 1."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"the probability must be 0 to 1, got {self.probability}")

    def __call__(
        self, sample: SegmentationSample, generator: np.random.Generator
    ) -> SegmentationSample:
        return mirror(sample) if generator.random() < self.probability else sample


@dataclass(frozen=True)
class RandomScale:
    """Resize by one of `scales`, all equally likely."""

    scales: Sequence[float] = OFFICIAL_SCALES

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be a list of numbers above 0, got {self.scales}")

    def __call__(
        self, sample: SegmentationSample, generator: np.random.Generator
    ) -> SegmentationSample:
        return rescale(sample, self.scales[int(generator.integers(len(self.scales)))])


@dataclass(frozen=True)
class Normalise:
    """`normalise` as a transform."""

    def __call__(
        self, sample: SegmentationSample, generator: np.random.Generator
    ) -> SegmentationSample:
        return normalise(sample)


@dataclass(frozen=True)
class RandomCrop:
    """Cut a window at a random place, padded where the sample is smaller than the window.

    Attributes:
        size: height and width.
    """

    size: tuple[int, int]

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"the crop size must be (height, width), each >= 1, got {self.size}")

    def draw_start(self, size: tuple[int, int], generator: np.random.Generator) -> tuple[int, int]:
        """Draw the first row and column of the window in a sample of `size`."""
        top, left = (
            # As in the official code the last start lies one line past the last full window.
            int(generator.integers(0, whole - part + 2)) if whole > part else 0
            for whole, part in zip(size, self.size, strict=True)
        )
        return top, left

    def __call__(
        self, sample: SegmentationSample, generator: np.random.Generator
    ) -> SegmentationSample:
        return cut_and_pad(sample, self.draw_start(sample.size, generator), self.size)


@dataclass(frozen=True)
class PadBottomRight:
    """`pad_bottom_right` to `size` (height, width) as a transform."""

    size: tuple[int, int]

    def __call__(
        self, sample: SegmentationSample, generator: np.random.Generator
    ) -> SegmentationSample:
        return pad_bottom_right(sample, self.size)


def training_transform(
    crop_size: tuple[int, int],
    scales: Sequence[float] = OFFICIAL_SCALES,
    mirror_probability: float = 0.5,
) -> Compose:
    """Official training transform: mirror, scale, normalise, random crop of (height, width)."""
    return Compose(
        (
            RandomMirror(mirror_probability),
            RandomScale(tuple(scales)),
            Normalise(),
            RandomCrop(crop_size),
        )
    )


def validation_transform(pad_to: tuple[int, int] | None = None) -> Compose:
    """Official validation transform: normalise only.

    Args:
        pad_to: (height, width) to pad to *before* normalising, so that pads are black, not mean;
            531x730 for DFormerv2 on SUNRGBD.
    """
    return Compose((Normalise(),) if pad_to is None else (PadBottomRight(pad_to), Normalise()))
