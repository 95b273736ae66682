"""Assigning predicted boxes to labelled ones, as in DETR.

Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section 3.1, with the
focal classification cost of Deformable DETR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jittor as jt
import numpy as np
from jittor import nn
from scipy.optimize import linear_sum_assignment

from segtasks.losses.detection_targets import TargetBatch
from segtasks.ops.boxes import cxcywh_to_xyxy, pairwise_giou


class DivergedError(FloatingPointError):
    """Predictions are NaN or infinite, so nothing can be assigned to them."""


@dataclass(frozen=True)
class Matches:
    """Which query of each layer answers for which box; P pairs per layer.

    Attributes:
        queries: int64, (L, P), position among the B * Q queries of the layer, ascending.
        boxes: int64, (L, P), position among all boxes of the batch.
    """

    queries: np.ndarray
    boxes: np.ndarray


class HungarianMatcher:
    """One-to-one assignment of least total cost, for each image and layer on its own.

    The cost of a pair is `class_weight` times the classification cost, plus `l1_weight` times the
    L1 distance of the boxes (cxcywh), less `giou_weight` times their generalised IoU.

    Args:
        class_weight: weight of the classification cost.
        l1_weight: weight of the L1 distance.
        giou_weight: weight of the generalised IoU.
        focal: sigmoid scores with the focal cost; otherwise softmax scores, cost -score.
        alpha: weight of the focal cost's positive part, 1 - alpha that of its negative part.
        gamma: exponent of the focal cost.
    """

    def __init__(
        self,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        focal: bool = True,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight
        self.focal, self.alpha, self.gamma = focal, alpha, gamma

    def __call__(
        self, logits: jt.Var, boxes: jt.Var, targets: TargetBatch, layers: Sequence[str]
    ) -> Matches:
        """Assign the queries of all layers; waits for the device once.

        Args:
            logits: (L, B, Q, C).
            boxes: (L, B, Q, 4), cxcywh in 0..1.
            targets: the labelled boxes of the B images.
            layers: L names for error messages.

        Raises:
            DivergedError: a cost is NaN or infinite; names layer and image.
        """
        if len(targets.labels) == 0:
            none = np.zeros((len(layers), 0), np.int64)
            return Matches(none, none)
        costs = self.costs(logits, boxes, targets).numpy()
        pairs = [
            [
                self._assign(layer[image, :, :count], name, image)
                for image, count in enumerate(targets.counts)
            ]
            for layer, name in zip(costs, layers, strict=True)
        ]
        first_query = np.arange(len(targets)) * logits.shape[2]
        return Matches(
            np.stack([_joined([q for q, _ in layer], first_query) for layer in pairs]),
            np.stack([_joined([b for _, b in layer], targets.first) for layer in pairs]),
        )

    def costs(self, logits: jt.Var, boxes: jt.Var, targets: TargetBatch) -> jt.Var:
        """Cost of each query for each box of its image, (L, B, Q, n); without gradient.

        n is the most boxes of an image; columns beyond an image's own number mean nothing.
        """
        logits, boxes = logits.detach(), boxes.detach()
        padded = targets.padded()
        labels, target_boxes = jt.array(padded[0]), jt.array(padded[1])
        with jt.no_grad():
            corners = cxcywh_to_xyxy(target_boxes).unsqueeze(0)
            giou = pairwise_giou(cxcywh_to_xyxy(boxes), corners)
            distance = (boxes.unsqueeze(-2) - target_boxes.unsqueeze(-3)).abs().sum(-1)
            class_cost = self._class_cost(logits, labels)
            return (
                self.class_weight * class_cost + self.l1_weight * distance - self.giou_weight * giou
            )

    def _class_cost(self, logits: jt.Var, labels: jt.Var) -> jt.Var:
        """Classification cost (L, B, Q, n) for labels (B, n)."""
        if not self.focal:
            return -_picked(nn.softmax(logits, -1), labels)
        # Picked before the sigmoid: an image has far fewer boxes than there are classes.
        score = _picked(logits, labels).sigmoid()
        positive = self.alpha * (1 - score).pow(self.gamma) * -(score + 1e-8).log()
        return positive - (1 - self.alpha) * score.pow(self.gamma) * -(1 - score + 1e-8).log()

    def _assign(self, cost: np.ndarray, layer: str, image: int) -> tuple[np.ndarray, np.ndarray]:
        wrong = np.argwhere(~np.isfinite(cost))
        if len(wrong):
            query, box = wrong[0]
            raise DivergedError(
                f"the predictions of {layer} for image {image} of the batch cannot be matched: "
                f"the cost of query {query} for box {box} is {cost[query, box]}. Training has "
                "diverged: look at the gradient norm, lower the learning rate, start from an "
                "earlier checkpoint"
            )
        rows, columns = linear_sum_assignment(cost)
        return rows, columns


def _picked(values: jt.Var, labels: jt.Var) -> jt.Var:
    """Values (L, B, Q, C) at the classes `labels` (B, n): (L, B, Q, n)."""
    shape = (*values.shape[:3], labels.shape[1])
    return values.reindex(shape, ["i0", "i1", "i2", "@e0(i1, i3)"], extras=[labels])


def _joined(positions: list[np.ndarray], first: np.ndarray) -> np.ndarray:
    """Positions within each image as positions in the whole batch."""
    return np.concatenate([p + start for p, start in zip(positions, first, strict=True)])
