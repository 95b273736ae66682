"""A detector of two parameters, so that nothing large is compiled."""

from __future__ import annotations

from typing import Any

import jittor as jt
import numpy as np
from jittor import nn

from segtasks.models.rtdetr.outputs import RTDETROutput

#: Class (its number, the category is 3 or 8) and box (left, top, width, height) of the 2 objects.
OBJECTS = ((0, [8, 8, 16, 16]), (1, [32, 16, 24, 24]))


class Constant(nn.Module):
    """The same detections for every image: the two objects, with parameters to learn."""

    def __init__(self, num_classes: int = 2, score: float = 2.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.sizes: list[Any] = []
        logits = np.full((2, num_classes), -4.0, np.float32)
        logits[[0, 1], [0, 1]] = score
        left, top, width, height = np.array([box for _, box in OBJECTS], np.float32).T
        boxes = np.stack([left + width / 2, top + height / 2, width, height], 1)
        self.logits = jt.array(logits)
        self.box = jt.array(boxes / np.array([64, 48, 64, 48], np.float32))

    def execute(self, image: jt.Var, targets: Any = None, size: Any = None) -> RTDETROutput:
        self.sizes.append((tuple(image.shape), size))
        # Times one plus nothing: the image takes part, so that a summary can follow it.
        one = 1 + 0 * image.mean()
        batch = image.shape[0]
        logits = (self.logits * one).unsqueeze(0).expand(batch, *self.logits.shape)
        return RTDETROutput(logits, self.box.unsqueeze(0).expand(batch, 2, 4))
