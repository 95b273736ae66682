"""Images as people have them, arrays or files, checked before any work and read as data sets are.

A batch that is made here holds the numbers that validation would see for the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_args

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segtasks.data.images import ChannelOrder, read_colour, read_grey, verify_picture
from segtasks.data.rgbd import grey_table
from segtasks.data.samples import SegmentationBatch, SegmentationSample, collate
from segtasks.data.transforms.segmentation import validation_transform

ImageInput: TypeAlias = npt.NDArray[Any] | str | Path
"""An array, or the path of a .png or .jpg file."""
Many: TypeAlias = list[ImageInput] | list[npt.NDArray[Any]] | list[Path] | list[str]
"""Several of them."""

_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")


class PredictionError(ValueError):
    """What is asked for cannot be predicted; the message names the file or index and the remedy."""


@dataclass(frozen=True)
class Preparation:
    """What becomes of an image before the network sees it, as the configuration of the data says.

    Attributes:
        channel_order: order of the colours that the network was trained with.
        depth_max: raw value of 16-bit depth that becomes 255; None where depth is 8-bit.
        pad_to: (height, width) to pad to at the bottom and right; None for no padding.
    """

    channel_order: ChannelOrder = "bgr"
    depth_max: float | None = None
    pad_to: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_order(self.channel_order, "channel_order")
        if self.depth_max is not None and not self.depth_max > 0:
            raise PredictionError(f"depth_max must be above 0, got {self.depth_max}")


@dataclass(frozen=True)
class RGBDInput:
    """An image and its depth, checked but not read.

    Attributes:
        name: stem of the image's file, or the index of an array.
        rgb: the file, or (H, W, 3) uint8.
        depth: the file, or (H, W) or (H, W, 3), uint8 or uint16.
        size: (height, width) in pixels.
        order: order of the colours where `rgb` is an array.
    """

    name: str
    rgb: npt.NDArray[Any] | Path
    depth: npt.NDArray[Any] | Path
    size: tuple[int, int]
    order: ChannelOrder

    def read(self, preparation: Preparation) -> SegmentationSample:
        """Read it as a sample in uint8 without a label, as `RGBDDataset` reads it.

        Raises:
            DataError: a file is damaged.
        """
        wanted = preparation.channel_order
        if isinstance(self.rgb, Path):
            image = read_colour(self.rgb, wanted)
        else:
            image = self.rgb if self.order == wanted else self.rgb[..., ::-1]
        raw = read_grey(self.depth) if isinstance(self.depth, Path) else self._grey(self.depth)
        depth = np.dstack([scale_depth(raw, preparation.depth_max)] * 3)
        return SegmentationSample(
            np.ascontiguousarray(image), depth, np.zeros(self.size, np.uint8), self.name
        )

    def _grey(self, depth: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if depth.ndim == 2:
            return depth
        if depth.shape[2] == 1:
            return depth[..., 0]
        # Equal channels stay what they are; the weights of the colours sum to one.
        code = cv2.COLOR_BGR2GRAY if self.order == "bgr" else cv2.COLOR_RGB2GRAY
        return cv2.cvtColor(np.ascontiguousarray(depth), code)


def scale_depth(raw: npt.NDArray[Any], depth_max: float | None) -> npt.NDArray[np.uint8]:
    """Turn raw depth (H, W), uint8 or uint16, into grey values, as `RGBDDataset.scale_depth`."""
    if raw.dtype == np.uint8:
        return raw
    assert depth_max is not None, "check_inputs has seen to it"
    return grey_table(depth_max)[raw]


def name_classes(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Names of a network's classes: those that are given, or class 0, class 1, ...

    Raises:
        PredictionError: `names` has not as many as there are classes.
    """
    named = tuple(names or (f"class {i}" for i in range(count)))
    if len(named) != count:
        raise PredictionError(
            f"the network tells {count} classes apart, and class_names has {len(named)}; name "
            "each class once"
        )
    return named


def check_order(order: str, argument: str) -> None:
    """Raise PredictionError unless `order` is bgr or rgb."""
    if order not in get_args(ChannelOrder):
        raise PredictionError(f"{argument} must be 'bgr' or 'rgb', got {order!r}")


def check_inputs(
    rgb: Sequence[ImageInput],
    depth: Sequence[ImageInput],
    preparation: Preparation,
    order: ChannelOrder = "rgb",
) -> list[RGBDInput]:
    """Find what is wrong with any image before the first one is used.

    Args:
        rgb: images.
        depth: the depth of each.
        preparation: what the network wants.
        order: order of the colours of arrays.

    Raises:
        PredictionError: numbers, types, shapes or sizes that do not go together; names the index
            or the file.
        DataError: a file is missing or damaged.
    """
    check_order(order, "input_order")
    if len(rgb) != len(depth):
        raise PredictionError(
            f"there are {len(rgb)} images and {len(depth)} depths; give one depth per image"
        )
    return [
        _check_pair(index, image, its_depth, preparation, order)
        for index, (image, its_depth) in enumerate(zip(rgb, depth, strict=True))
    ]


def make_batch(
    samples: Sequence[SegmentationSample], preparation: Preparation
) -> SegmentationBatch:
    """Pad, normalise and stack samples as validation does."""
    transform = validation_transform(preparation.pad_to)
    unused = np.random.default_rng(0)
    return collate([transform(sample, unused) for sample in samples])


def _check_pair(
    index: int,
    rgb: ImageInput,
    depth: ImageInput,
    preparation: Preparation,
    order: ChannelOrder,
) -> RGBDInput:
    image, its_depth = (Path(x) if isinstance(x, str) else x for x in (rgb, depth))
    size = image_size(index, image)
    depth_size = _depth_size(index, its_depth, preparation)
    if size != depth_size:
        both = (_place("rgb", index, image), _place("depth", index, its_depth))
        raise PredictionError(
            f"{both[0]} is {_text(size)} and {both[1]} is {_text(depth_size)} (height x width);"
            " resize them to one size"
        )
    pad_to = preparation.pad_to
    if pad_to is not None and (size[0] > pad_to[0] or size[1] > pad_to[1]):
        raise PredictionError(
            f"{_place('rgb', index, image)} is {_text(size)}, larger than pad_to {_text(pad_to)};"
            " give a larger pad_to, or None to pad nothing"
        )
    name = image.stem if isinstance(image, Path) else str(index)
    return RGBDInput(name, image, its_depth, size, order)


def image_size(
    index: int, image: npt.NDArray[Any] | Path, *, kind: str = "rgb", grey_files: bool = False
) -> tuple[int, int]:
    """Check a colour image, and return its (height, width).

    Args:
        index: its place among others, for errors.
        image: an array, or the path of a file.
        kind: what it is called in errors.
        grey_files: take files that hold one channel, which reading repeats to three.

    Raises:
        PredictionError: a type or shape that is no colour image.
        DataError: the file is missing or damaged.
    """
    place = _place(kind, index, image)
    if isinstance(image, Path):
        return _file_size(place, image, grey_files)
    if not isinstance(image, np.ndarray):
        raise PredictionError(f"{place} is a {type(image).__name__}; give an array or a path")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise PredictionError(
            f"{place} has the shape {image.shape}; give one image as (height, width, 3), several as"
            " a list; repeat a grey one to three channels"
        )
    if image.dtype != np.uint8:
        raise PredictionError(
            f"{place} has {image.dtype} values; give pixels as uint8, 0 to 255, not normalised"
        )
    return image.shape[0], image.shape[1]


def _file_size(place: str, path: Path, grey_files: bool) -> tuple[int, int]:
    header = verify_picture(path)
    with Image.open(path) as picture:
        grey = picture.mode in _GREY_MODES
    if header.bits > 8:
        raise PredictionError(f"{place} is a {header.bits}-bit picture; the network needs 8-bit")
    if grey and not grey_files:
        raise PredictionError(
            f"{place} is a grey picture, the network needs colour; are image and depth exchanged?"
        )
    return header.size


def _depth_size(
    index: int, depth: npt.NDArray[Any] | Path, preparation: Preparation
) -> tuple[int, int]:
    place = _place("depth", index, depth)
    if isinstance(depth, Path):
        header = verify_picture(depth)
        size, is_wide = header.size, header.bits > 8
    elif not isinstance(depth, np.ndarray):
        raise PredictionError(f"{place} is a {type(depth).__name__}; give an array or a path")
    else:
        if depth.ndim not in (2, 3) or depth.shape[2:] not in ((), (1,), (3,)) or not depth.size:
            raise PredictionError(
                f"{place} has the shape {depth.shape}; give (height, width) or (height, width, 3)"
            )
        if depth.dtype not in (np.uint8, np.uint16):
            raise PredictionError(
                f"{place} has {depth.dtype} values; give uint8, or uint16 with depth_max"
            )
        size, is_wide = (depth.shape[0], depth.shape[1]), depth.dtype == np.uint16
    if is_wide and preparation.depth_max is None:
        raise PredictionError(
            f"{place} is 16-bit, which needs depth_max, the raw value that becomes 255: the one"
            " that the network was trained with"
        )
    return size


def _place(kind: str, index: int, image: object) -> str:
    return f"{kind} {image}" if isinstance(image, Path) else f"{kind}[{index}]"


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
