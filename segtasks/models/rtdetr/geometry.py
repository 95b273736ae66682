"""Constants that follow from the sizes of the maps: position embeddings and anchor boxes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

#: Width and height of the finest level's anchors, of the image's; twice that on each further level.
ANCHOR_SIDE = 0.05


@lru_cache(maxsize=64)
def position_embedding(
    width: int, height: int, dim: int, temperature: float = 10000.0
) -> np.ndarray:
    """Sines and cosines of the positions in a map, as the official encoder adds them to its tokens.

    "End-to-End Object Detection with Transformers" (Carion et al., ECCV 2020). Positions are
    listed column by column: p stands for column p // height and row p % height. Official
    weights were trained with tokens listed row by row, so that the token at (row, column) gets
    the embedding of another place unless the map is square; to use them, keep it.

    Args:
        width: columns of the map.
        height: rows of the map.
        dim: features of a token, a multiple of 4.
        temperature: base of the wavelengths.

    Returns:
        (1, width * height, dim) float32, read-only: sines and cosines of the column, then of the
        row.

    Raises:
        ValueError: `dim` is no multiple of 4.
    """
    if dim < 4 or dim % 4:
        raise ValueError(f"a position embedding needs a multiple of 4 features, got {dim}")
    frequencies = 1 / np.float64(temperature) ** (np.arange(dim // 4) / (dim // 4))
    columns, rows = np.divmod(np.arange(width * height), height)
    x, y = columns[:, None] * frequencies, rows[:, None] * frequencies
    embedding = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1)
    return _constant(embedding[None])


def make_anchors(
    shapes: Sequence[tuple[int, int]], eps: float = 1e-2
) -> tuple[np.ndarray, np.ndarray]:
    """One box around the centre of each cell, fine to coarse, row by row.

    Args:
        shapes: (height, width) of each level's map; level l has boxes of side 0.05 * 2^l.
        eps: a box is valid if all its four numbers lie in (eps, 1 - eps).

    Returns:
        Logits log(a / (1 - a)) of the boxes a = (cx, cy, w, h), relative to the image, (1, N, 4)
        float32, infinite where invalid; and whether each is valid, (1, N, 1) bool. Read-only.
    """
    return _anchors(tuple((int(height), int(width)) for height, width in shapes), eps)


@lru_cache(maxsize=64)
def _anchors(shapes: tuple[tuple[int, int], ...], eps: float) -> tuple[np.ndarray, np.ndarray]:
    levels = []
    for level, (height, width) in enumerate(shapes):
        y, x = np.divmod(np.arange(height * width), width)
        side = np.full(height * width, ANCHOR_SIDE * 2.0**level)
        levels.append(np.stack([(x + 0.5) / width, (y + 0.5) / height, side, side], 1))
    anchors = np.concatenate(levels)
    valid = ((anchors > eps) & (anchors < 1 - eps)).all(1, keepdims=True)
    # From the sixth level on, sides exceed 1 and have no logit; they are invalid anyway.
    inside = np.where(valid, anchors, 0.5)
    logits = np.where(valid, np.log(inside / (1 - inside)), np.inf)
    valid.flags.writeable = False
    return _constant(logits[None]), valid[None]


def _constant(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array.flags.writeable = False
    return array
