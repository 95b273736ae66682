"""Evaluation protocols: how a model is asked about an image, recorded beside its scores.

The arithmetic is that of DFormer's official evaluation, in its order of mirroring and resizing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jittor as jt

from segtasks.ops.resize import resize_bilinear

Segmenter = Callable[[jt.Var, jt.Var], jt.Var]
"""A model (image, depth) -> logits: (B, 3, H, W) each -> (B, K, H, W)."""


class Protocol:
    """A way from an image to the scores of every class at every pixel."""

    def __call__(self, model: Segmenter, image: jt.Var, depth: jt.Var) -> jt.Var:
        """Return the scores of every class, (B, K, H, W), 0 to 1 with sum 1 over K.

        Args:
            model: a segmenter in evaluation mode.
            image: (B, 3, H, W) normalised.
            depth: (B, 3, H, W) normalised.
        """
        raise NotImplementedError(f"{type(self).__name__} needs __call__(model, image, depth)")

    def describe(self) -> dict[str, Any]:
        """Return the protocol's name and settings, for the file with the results."""
        raise NotImplementedError(f"{type(self).__name__} needs describe()")


class SingleScale(Protocol):
    """Ask once, for the whole image at its own size."""

    def __call__(self, model: Segmenter, image: jt.Var, depth: jt.Var) -> jt.Var:
        return jt.nn.softmax(model(image, depth), dim=1)

    def describe(self) -> dict[str, Any]:
        return {"protocol": "single_scale"}


class Sliding(Protocol):
    """Ask for overlapping windows and average their logits.

    The last window of each axis is moved back to end at the border. An image that is smaller than
    the window in either axis is resized to exactly the window, without keeping its aspect.

    Args:
        crop: (height, width) of a window.
        stride: (rows, columns) between windows; two thirds of the window unless given.
    """

    def __init__(
        self, crop: tuple[int, int] = (480, 640), stride: tuple[int, int] | None = None
    ) -> None:
        self.crop = (crop[0], crop[1])
        self.stride = (2 * crop[0] // 3, 2 * crop[1] // 3) if stride is None else tuple(stride)
        if min(self.crop) < 1 or not all(
            1 <= step <= size for step, size in zip(self.stride, self.crop, strict=True)
        ):
            raise ValueError(
                f"Sliding needs a crop of at least 1x1 and strides from 1 to the crop's size, got "
                f"crop {self.crop} and stride {self.stride}"
            )

    def __call__(self, model: Segmenter, image: jt.Var, depth: jt.Var) -> jt.Var:
        size = (image.shape[2], image.shape[3])
        logits = resize_bilinear(self.logits(model, image, depth), size, align_corners=True)
        return jt.nn.softmax(logits, dim=1)

    def logits(self, model: Segmenter, image: jt.Var, depth: jt.Var) -> jt.Var:
        """Mean logits of the windows over each pixel, (B, K, H, W).

        H and W are the window's for an image that is smaller than it.
        """
        H, W = image.shape[2], image.shape[3]
        height, width = self.crop
        if height > H or width > W:
            image, depth = (
                resize_bilinear(x, self.crop, align_corners=True) for x in (image, depth)
            )
            H, W = height, width
        total, count = None, jt.zeros((1, 1, H, W))
        for top in _starts(H, height, self.stride[0]):
            for left in _starts(W, width, self.stride[1]):
                rows, columns = slice(top, top + height), slice(left, left + width)
                window = model(image[:, :, rows, columns], depth[:, :, rows, columns])
                if total is None:
                    total = jt.zeros((window.shape[0], window.shape[1], H, W))
                total[:, :, rows, columns] += window
                count[:, :, rows, columns] += 1
                # Executed here: the graph of all windows of a large image would not fit.
                jt.sync([total, count])
        return total / count

    def describe(self) -> dict[str, Any]:
        return {"protocol": "sliding", "crop": list(self.crop), "stride": list(self.stride)}


class MultiScaleFlip(Protocol):
    """Ask at several sizes, also mirrored, and average the scores.

    Args:
        scales: Factors of the image's size; each product is rounded up to a multiple of 32.
        flip: Ask for the mirrored image too.
        window: Ask by windows at each size; None for the whole image.
    """

    def __init__(
        self,
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5),
        flip: bool = True,
        window: Sliding | None = None,
    ) -> None:
        if not scales or min(scales) <= 0:
            raise ValueError(f"MultiScaleFlip needs scales above 0, got {list(scales)}")
        self.scales, self.flip, self.window = tuple(scales), flip, window

    def __call__(self, model: Segmenter, image: jt.Var, depth: jt.Var) -> jt.Var:
        size = (image.shape[2], image.shape[3])
        total = 0
        for scale in self.scales:
            # The normalised pictures are resized, so that border colours do not matter.
            scaled = [resize_bilinear(x, _rounded(size, scale), True) for x in (image, depth)]
            for mirrored in (False, True) if self.flip else (False,):
                logits = self._logits(model, *(_mirror(x) if mirrored else x for x in scaled))
                logits = _mirror(logits) if mirrored else logits
                total = total + jt.nn.softmax(resize_bilinear(logits, size, True), dim=1)
                total.sync()
        return total / (len(self.scales) * (2 if self.flip else 1))

    def describe(self) -> dict[str, Any]:
        window = None if self.window is None else self.window.describe()
        return {
            "protocol": "multi_scale",
            "scales": list(self.scales),
            "flip": self.flip,
            "window": window,
        }

    def _logits(self, model: Segmenter, image: jt.Var, depth: jt.Var) -> jt.Var:
        if self.window is None:
            return model(image, depth)
        return self.window.logits(model, image, depth)


def _starts(length: int, crop: int, stride: int) -> list[int]:
    """Where the windows of one axis begin."""
    number = max(length - crop + stride - 1, 0) // stride + 1
    return [min(k * stride, length - crop) for k in range(number)]


def _rounded(size: tuple[int, int], scale: float) -> tuple[int, int]:
    height, width = (math.ceil(int(side * scale) / 32) * 32 for side in size)
    return height, width


def _mirror(x: jt.Var) -> jt.Var:
    """Left and right exchanged."""
    return x[:, :, :, ::-1]
