"""What the detector returns, for its loss and its evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

import jittor as jt
import numpy as np


@dataclass
class Predictions:
    """Predictions of one decoder layer or of the encoder's head.

    Attributes:
        logits: class logits, (B, Q, C).
        boxes: (B, Q, 4), centre x, centre y, width and height in 0..1 of the image.
    """

    logits: jt.Var
    boxes: jt.Var


@dataclass(frozen=True)
class Denoising:
    """Which denoising queries stand for which box.

    Query `positive[i][k]` of image i is a noised copy of its box `k % n_i`, n_i being its number
    of boxes.

    Attributes:
        positive: per image the ascending positions, int64, (groups * n_i,).
        groups: copies of every box, once positive and once negative each.
        split: numbers of denoising and of matching queries.
    """

    positive: list[np.ndarray]
    groups: int
    split: tuple[int, int]


@dataclass
class RTDETROutput:
    """Predictions of the last layer in use and, in training, those of everything supervised.

    Attributes:
        logits: class logits, (B, Q, C).
        boxes: (B, Q, 4), centre x, centre y, width and height in 0..1 of the image.
        auxiliary: in training the decoder layers but the last, then the encoder's head.
        denoising: in training with boxes all decoder layers, on the denoising queries.
        denoising_meta: how `denoising` relates to the boxes; None without it.
    """

    logits: jt.Var
    boxes: jt.Var
    auxiliary: list[Predictions] = field(default_factory=list)
    denoising: list[Predictions] = field(default_factory=list)
    denoising_meta: Denoising | None = None
