"""What travels from a data set to a model: one sample, and a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

_Value = TypeVar("_Value", bound=np.generic)

IGNORE_INDEX = 255
"""Label value of pixels that count neither in the loss nor in the metrics."""


class DataError(ValueError):
    """The data on disk do not fit what was asked for; the text names the file and the remedy."""


@dataclass(frozen=True)
class SegmentationSample:
    """One RGB-D image with its labels.

    Attributes:
        image: (H, W, 3), uint8 as read or float32 once normalised; BGR unless the data set was
            asked for RGB.
        depth: (H, W, 3), three equal channels, same type as `image`.
        label: (H, W) uint8, class indices from 0, 255 for pixels to ignore.
        name: stem of the files, unique within the data set.
    """

    image: npt.NDArray[Any]
    depth: npt.NDArray[Any]
    label: npt.NDArray[np.uint8]
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.label.shape
        return height, width


@dataclass(frozen=True)
class SegmentationBatch:
    """Samples of one size, channels first, as the models take them.

    Attributes:
        image: (B, 3, H, W) float32.
        depth: (B, 3, H, W) float32.
        label: (B, H, W) int32, 255 for pixels to ignore.
        names: names of the B samples.
    """

    image: npt.NDArray[np.float32]
    depth: npt.NDArray[np.float32]
    label: npt.NDArray[np.int32]
    names: list[str]


def collate(samples: Sequence[SegmentationSample]) -> SegmentationBatch:
    """Stack samples of one size into a batch.

    Raises:
        DataError: the samples differ in size, so they cannot share a batch.
    """
    remedy = "set the validation batch size to 1, or pad the images to a common size"
    check_one_size(samples, remedy)
    return SegmentationBatch(
        image=channels_first([sample.image for sample in samples], np.float32),
        depth=channels_first([sample.depth for sample in samples], np.float32),
        label=np.stack([sample.label for sample in samples]).astype(np.int32),
        names=[sample.name for sample in samples],
    )


class _Sized(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def size(self) -> tuple[int, int]: ...


def check_one_size(samples: Sequence[_Sized], remedy: str) -> None:
    """Raise DataError unless samples have one (height, width), so that they can share a batch."""
    if len({sample.size for sample in samples}) != 1:
        listing = ", ".join(f"{s.name} ({s.size[0]}x{s.size[1]})" for s in samples)
        raise DataError(f"a batch needs images of one size, got {listing}; {remedy}")


def channels_first(images: Sequence[npt.NDArray[Any]], dtype: type[_Value]) -> npt.NDArray[_Value]:
    """Images of one size, (H, W, C) each, as one array (B, C, H, W) of another type."""
    height, width, channels = images[0].shape
    out = np.empty((len(images), channels, height, width), dtype)
    for index, image in enumerate(images):
        out[index] = image.transpose(2, 0, 1)
    return out
