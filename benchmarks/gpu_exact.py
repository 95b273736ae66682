"""What gpu_probe.py compares with: operations in NumPy, of the type that they are given."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def rounded(x: np.ndarray, precision: str) -> np.ndarray:
    """float32 values that the operands of this precision hold exactly."""
    if precision == "16-mixed":
        return x.astype(np.float16).astype(np.float32)
    if precision == "bf16-mixed":
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        return ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)
    return x


def convolution(x: np.ndarray, w: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """(B, C, H, W) with (K, C, k, k)."""
    return np.einsum("bchwij,kcij->bkhw", _windows(x, w.shape[2], padding, stride), w)


def depthwise(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(B, C, H, W) with (C, 1, k, k), k odd; the size is kept."""
    return np.einsum("bchwij,cij->bchw", _windows(x, w.shape[2], w.shape[2] // 2, 1), w[:, 0])


def _windows(x: np.ndarray, size: int, padding: int, stride: int) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
    return windows[:, :, ::stride, ::stride]


def elementwise(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    erf = np.vectorize(math.erf)
    gelu = x * (1 + erf(x / math.sqrt(2))) / 2
    return (np.exp(-x * x) / (1 + np.exp(-y)) + gelu).sum(1)


def norm(x: np.ndarray, axes: tuple[int, ...], eps: float) -> np.ndarray:
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + eps)


def softmax(x: np.ndarray) -> np.ndarray:
    parts = np.exp(x - x.max(-1, keepdims=True))
    return parts / parts.sum(-1, keepdims=True)


def cross_entropy(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Mean over labels other than 255, as an array of one element."""
    scores = np.log(softmax(np.moveaxis(logits, 1, -1)))[label != 255]
    wanted = label[label != 255]
    return -scores[np.arange(len(wanted)), wanted].mean(keepdims=True)


def sampling(
    value: np.ndarray,
    levels: Sequence[tuple[int, int]],
    locations: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """Equation 3 of Deformable DETR without its linear layers; shapes as of the operation."""
    B, Q, M = weights.shape[:3]
    out = np.zeros((B, Q, M, value.shape[3]))
    item, head, start = np.arange(B)[:, None, None, None], np.arange(M)[:, None], 0
    for level, (h, w) in enumerate(levels):
        x, y = np.moveaxis(locations[:, :, :, level] * (w, h) - 0.5, -1, 0)
        for column in (np.floor(x), np.floor(x) + 1):
            for row in (np.floor(y), np.floor(y) + 1):
                inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
                share = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[:, :, :, level]
                token = np.where(inside, start + row * w + column, 0).astype(int)
                out += ((share * inside)[..., None] * value[item, token, head]).sum(3)
        start += h * w
    return out.reshape(B, Q, -1)


def resized(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, corners not aligned: pixel centres at half-integers, edges repeated."""
    for axis, size in ((2, height), (3, width)):
        source = x.shape[axis]
        place = np.clip((np.arange(size) + 0.5) * source / size - 0.5, 0, source - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape((-1, 1) if axis == 2 else (-1,))
        high = np.minimum(low + 1, source - 1)
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def pooled(x: np.ndarray, size: int) -> np.ndarray:
    """Means over a grid of bins that may overlap."""
    for axis in (2, 3):
        edges = [
            (i * x.shape[axis] // size, -(-(i + 1) * x.shape[axis] // size)) for i in range(size)
        ]
        bins = [np.take(x, range(a, b), axis).mean(axis, keepdims=True) for a, b in edges]
        x = np.concatenate(bins, axis)
    return x


def adamw(x: np.ndarray, steps: int, lr: float, decay: float) -> np.ndarray:
    """Updates on the sum of squares; betas 0.9 and 0.999, eps 1e-8."""
    first, second = np.zeros_like(x), np.zeros_like(x)
    for step in range(1, steps + 1):
        gradient = 2 * x
        x = x * (1 - lr * decay)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        mean, spread = first / (1 - 0.9**step), second / (1 - 0.999**step)
        x = x - lr * mean / (np.sqrt(spread) + 1e-8)
    return x
