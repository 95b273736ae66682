"""Backbone, encoder and decoder put together."""

from __future__ import annotations

from collections.abc import Sequence

import jittor as jt
import numpy as np
from jittor import nn

from segtasks.models.rtdetr.denoising import Target
from segtasks.models.rtdetr.outputs import RTDETROutput

#: Sides of an image are multiples of this, so that each map is twice as large as the next.
LARGEST_STRIDE = 32


class RTDETR(nn.Module):
    """Object detection without anchors to tune and without non-maximum suppression.

    "DETRs Beat YOLOs on Real-time Object Detection" (Zhao et al., CVPR 2024).

    Args:
        backbone: called with the image, returns maps, fine to coarse.
        encoder: called with the maps, returns fused ones.
        decoder: called with those and the targets; its `num_classes` is the detector's.
    """

    def __init__(self, backbone: nn.Module, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.decoder = decoder
        self.num_classes: int = decoder.num_classes

    def execute(
        self,
        image: jt.Var,
        targets: Sequence[Target] | None = None,
        size: tuple[int, int] | None = None,
    ) -> RTDETROutput:
        """Predict boxes.

        Args:
            image: RGB, (B, 3, H, W), 0 to 1 and not normalised otherwise; H and W are multiples
                of 32.
            targets: one per image; in training they make denoising queries, otherwise they have
                no effect.
            size: resize the batch to this (height, width) first, by nearest neighbour. Boxes are
                relative to the image, so targets stay as they are.

        Raises:
            ValueError: the image or the number of targets is not as described.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"image must be (B, 3, H, W), got {tuple(image.shape)}")
        height, width = size or image.shape[2:]
        if min(height, width) < LARGEST_STRIDE or height % LARGEST_STRIDE or width % LARGEST_STRIDE:
            raise ValueError(
                f"height and width must be multiples of {LARGEST_STRIDE}, got {height} x {width}"
            )
        if targets is not None and len(targets) != image.shape[0]:
            raise ValueError(f"{len(targets)} targets for {image.shape[0]} images")
        if size is not None:
            image = resize_nearest(image, size)
        return self.decoder(self.encoder(self.backbone(image)), targets)


def resize_nearest(image: jt.Var, size: tuple[int, int]) -> jt.Var:
    """Resize maps as PyTorch's `interpolate` with nearest neighbour does.

    Sizes are data here, so that a new one needs no compilation: multi-scale training has eleven.

    Args:
        image: (B, C, H, W).
        size: the new (height, width), each at least 1.

    Returns:
        (B, C, *size); pixel i is pixel floor(i * old / new); `image` itself if it has that size.
    """
    B, C, H, W = image.shape
    if tuple(size) == (H, W):
        return image
    rows, columns = (
        jt.array(_nearest(source, target)) for source, target in zip((H, W), size, strict=True)
    )
    shape = (B, C, *size)
    return image.reindex(shape, ["i0", "i1", "@e0(i2)", "@e1(i3)"], extras=[rows, columns])


def _nearest(source: int, target: int) -> np.ndarray:
    # In single precision, as PyTorch rounds it.
    scale = np.float32(source) / np.float32(target)
    positions = np.floor(np.arange(target, dtype=np.float32) * scale)
    return np.minimum(positions, source - 1).astype(np.int32)
