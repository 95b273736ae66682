"""Encoder and decoder put together."""

from __future__ import annotations

import jittor as jt
from jittor import nn

from segtasks.ops.resize import resize_bilinear


class DFormerSegmenter(nn.Module):
    """Semantic segmentation of RGB-D images.

    Args:
        backbone: called with image and depth, returns features at strides 4, 8, 16, 32.
        decode_head: called with the features, returns logits at any stride; its `num_classes`
            is the segmenter's.
    """

    def __init__(self, backbone: nn.Module, decode_head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = decode_head
        self.num_classes: int = decode_head.num_classes

    def execute(self, image: jt.Var, depth: jt.Var) -> jt.Var:
        """Logits of every pixel.

        Args:
            image: normalised image, (B, 3, H, W), any H and W.
            depth: normalised depth, (B, k, H, W); only the first channel is used.

        Returns:
            (B, K, H, W), K the number of classes.
        """
        _check_inputs(image, depth)
        logits = self.decode_head(self.backbone(image, depth))
        return resize_bilinear(logits, (image.shape[2], image.shape[3]))


def _check_inputs(image: jt.Var, depth: jt.Var) -> None:
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"image must be (B, 3, H, W), got {tuple(image.shape)}")
    if depth.ndim != 4 or tuple(depth.shape[2:]) != tuple(image.shape[2:]):
        raise ValueError(
            f"depth must be (B, k, H, W) of the image's size, got {tuple(depth.shape)} "
            f"beside image {tuple(image.shape)}"
        )
