"""Resizing and adaptive pooling of feature maps, equal to PyTorch's for every size.

Both are linear maps that act on each axis alone, so each is written as small dense matrices.
Their gradients are matrix products as well: deterministic on every device, no atomics.
"""

from __future__ import annotations

from functools import lru_cache

import jittor as jt
import numpy as np
from jittor import nn


def resize_bilinear(x: jt.Var, size: tuple[int, int], align_corners: bool = False) -> jt.Var:
    """Resize maps to `size` as PyTorch's bilinear `interpolate` without antialiasing.

    Args:
        x: maps, (B, C, H, W).
        size: the new (height, width), each at least 1.
        align_corners: map corner pixel centres onto each other instead of the outer edges.

    Returns:
        (B, C, *size); `x` itself if it has that size already.
    """
    B, C, H, W = x.shape
    height, width = size
    if (height, width) == (H, W):
        return x
    x = nn.matmul(x.reshape(-1, W), jt.array(_bilinear_matrix(W, width, align_corners)))
    x = x.reshape(B * C, H, width).transpose(0, 2, 1).reshape(-1, H)
    x = nn.matmul(x, jt.array(_bilinear_matrix(H, height, align_corners)))
    return x.reshape(B * C, width, height).transpose(0, 2, 1).reshape(B, C, height, width)


def adaptive_average_pool(x: jt.Var, size: int) -> jt.Var:
    """Average over a `size` x `size` grid of bins that may overlap.

    Bin i covers rows floor(i H / size) to ceil((i + 1) H / size) - 1. Jittor's own layer uses
    bins of one fixed stride and fails where a map is smaller than the grid; here its pixels repeat.

    Args:
        x: maps, (B, C, H, W).
        size: bins per axis.

    Returns:
        (B, C, size, size).
    """
    B, C, H, W = x.shape
    matrix = jt.array(_pooling_matrix(H, W, size))
    return nn.matmul(x.reshape(B * C, H * W), matrix).reshape(B, C, size, size)


@lru_cache(maxsize=64)
def _bilinear_matrix(source: int, target: int, align_corners: bool) -> np.ndarray:
    """Weights (source, target) of each source pixel in each target pixel of one axis."""
    index = np.arange(target, dtype=np.float64)
    if align_corners:
        position = index * ((source - 1) / max(1, target - 1))
    else:
        position = np.maximum((index + 0.5) * (source / target) - 0.5, 0)
    low = np.minimum(position.astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    fraction = np.minimum(position - low, 1)
    matrix = np.zeros((source, target))
    np.add.at(matrix, (low, np.arange(target)), 1 - fraction)
    np.add.at(matrix, (high, np.arange(target)), fraction)
    return matrix.astype(np.float32)


@lru_cache(maxsize=64)
def _pooling_matrix(height: int, width: int, size: int) -> np.ndarray:
    """Weights (height * width, size * size) of each pixel in each bin."""
    rows, columns = _pooling_weights(height, size), _pooling_weights(width, size)
    return np.kron(rows, columns).T.astype(np.float32).copy()


def _pooling_weights(source: int, size: int) -> np.ndarray:
    """Weights (size, source) of one axis; each row sums to one."""
    weights = np.zeros((size, source))
    for i in range(size):
        start, stop = i * source // size, -(-(i + 1) * source // size)
        weights[i, start:stop] = 1 / (stop - start)
    return weights
