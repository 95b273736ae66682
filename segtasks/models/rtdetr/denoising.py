"""Contrastive denoising: in training, noised copies of the true boxes are queries as well.

"DINO" (Zhang et al., ICLR 2023), section 3.3. Everything here is NumPy on the host, where the
targets are; nothing of it depends on the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jittor as jt
import numpy as np

from segtasks.models.rtdetr.outputs import Denoising


class Target(Protocol):
    """What an image shows.

    Attributes:
        labels: classes, int64, (n,).
        boxes: float32, (n, 4), centre x, centre y, width and height in 0..1 of the image.
    """

    labels: np.ndarray
    boxes: np.ndarray


class Draws(Protocol):
    """Where random numbers come from; NumPy's generators are such."""

    def random(self, size: Any) -> Any:
        """Uniform in [0, 1)."""

    def integers(self, low: Any, high: Any, size: Any) -> Any:
        """Uniform over low to high - 1."""


@dataclass(frozen=True)
class DenoisingSettings:
    """How much noise.

    Attributes:
        queries: about how many denoising queries of either kind an image gets; 0 switches it off.
        label_noise: share of labels drawn anew, times two; 0 keeps all.
        box_noise: a positive copy's corners move by up to this share of half its box, a negative
            copy's by one to two times that; 0 keeps all.
    """

    queries: int = 100
    label_noise: float = 0.5
    box_noise: float = 1.0


@dataclass(frozen=True)
class NoisedQueries:
    """The denoising queries of a batch.

    Attributes:
        labels: noised classes, C for padding, int64, (B, N).
        boxes: logits of noised boxes, float32, (B, N, 4).
        blocked: True where a query must not see another, bool, (N + Q, N + Q).
        meta: which query stands for which box.
    """

    labels: np.ndarray
    boxes: np.ndarray
    blocked: np.ndarray
    meta: Denoising


def noised_queries(
    targets: Sequence[Target],
    num_classes: int,
    num_queries: int,
    settings: DenoisingSettings,
    draws: Draws,
) -> NoisedQueries | None:
    """Noised copies of the targets in groups, each with a positive and a negative of every box.

    The official code returns the boxes themselves instead of their logits when `box_noise` is 0;
    here they are logits then, too.

    Args:
        targets: one per image.
        num_classes: C.
        num_queries: Q, matching queries that follow the denoising ones.
        settings: amount of noise.
        draws: asked for labels to change, new labels, signs and distances, in this order.

    Returns:
        None if there is no box in the batch or the settings want none.

    Raises:
        ValueError: a target's label is not one of the classes, or labels and boxes differ in
            number.
    """
    counts = [_count(target, index, num_classes) for index, target in enumerate(targets)]
    most = max(counts, default=0)
    if settings.queries <= 0 or most == 0:
        return None
    groups = max(1, settings.queries // most)
    labels = np.full((len(targets), most), num_classes, np.int64)
    boxes = np.zeros((len(targets), most, 4), np.float32)
    for row, (target, count) in enumerate(zip(targets, counts, strict=True)):
        labels[row, :count], boxes[row, :count] = target.labels, target.boxes
    labels, boxes = np.tile(labels, (1, 2 * groups)), np.tile(boxes, (1, 2 * groups, 1))
    labels = _noised_labels(labels, num_classes, settings.label_noise, draws)
    # Copies 0, 2, 4, ... are positive: each group begins with its positives.
    negative = np.arange(2 * groups * most) // most % 2 == 1
    boxes = _noised_boxes(boxes, negative, settings.box_noise, draws)
    split = (len(negative), num_queries)
    positive = [_positions(count, most, groups) for count in counts]
    return NoisedQueries(
        labels, _logits(boxes), _blocked(split, 2 * most), Denoising(positive, groups, split)
    )


class SeededDraws:
    """A generator that follows Jittor's seed, so that a run repeats its noise.

    A trainer that sets the seed before each step gets noise that depends on that seed alone, also
    after a restart; without that, the stream goes on from call to call.
    """

    def __init__(self) -> None:
        self._seed: int | None = None
        self._generator = np.random.default_rng(0)

    def __call__(self) -> np.random.Generator:
        """The generator for what follows."""
        seed = int(jt.get_seed())
        if seed != self._seed:
            self._seed, self._generator = seed, np.random.default_rng(seed)
        return self._generator


def _count(target: Target, index: int, num_classes: int) -> int:
    labels, boxes = target.labels, target.boxes
    if boxes.shape != (len(labels), 4):
        raise ValueError(f"image {index}: {len(labels)} labels, but boxes {boxes.shape}")
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(
            f"image {index}: labels go from {labels.min()} to {labels.max()}; with "
            f"{num_classes} classes they must be 0 to {num_classes - 1}"
        )
    return len(labels)


def _noised_labels(labels: np.ndarray, num_classes: int, ratio: float, draws: Draws) -> np.ndarray:
    if ratio <= 0:
        return labels
    chosen = np.asarray(draws.random(labels.shape)) < ratio * 0.5
    new = draws.integers(0, num_classes, labels.shape)
    return np.where(chosen & (labels < num_classes), new, labels)


def _noised_boxes(
    boxes: np.ndarray, negative: np.ndarray, scale: float, draws: Draws
) -> np.ndarray:
    if scale <= 0:
        return boxes
    half = boxes[..., 2:] / 2
    corners = np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], -1)
    reach = np.concatenate([half, half], -1) * np.float32(scale)
    sign = np.float32(2) * np.asarray(draws.integers(0, 2, boxes.shape), np.float32) - 1
    distance = np.asarray(draws.random(boxes.shape), np.float32) + negative[:, None]
    corners = np.clip(corners + sign * distance.astype(np.float32) * reach, 0, 1)
    low, high = corners[..., :2], corners[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], -1)


def _logits(boxes: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    boxes = np.clip(boxes, 0, 1)
    return np.log(np.maximum(boxes, eps) / np.maximum(1 - boxes, eps)).astype(np.float32)


def _positions(count: int, most: int, groups: int) -> np.ndarray:
    """Where the positive copies of an image with `count` boxes stand."""
    starts = np.arange(groups, dtype=np.int64) * (2 * most)
    return (starts[:, None] + np.arange(count)).reshape(-1)


def _blocked(split: tuple[int, int], group: int) -> np.ndarray:
    """Matching queries see themselves only; a denoising group sees itself and the matching ones."""
    noised, total = split[0], sum(split)
    owner = np.arange(total) // group
    owner[noised:] = -1  # matching
    return (owner[None] != owner[:, None]) & (owner[None] != -1)
