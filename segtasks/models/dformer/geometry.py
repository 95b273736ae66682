"""Geometry prior of DFormerv2: how far two positions are apart, in the image plane and in depth.

Section 3.2 of "DFormerv2: Geometry Self-Attention for RGBD Semantic Segmentation" (Yin et al.,
CVPR 2025).
"""

from __future__ import annotations

from dataclasses import dataclass

import jittor as jt
import numpy as np
from jittor import nn

from segtasks.ops.resize import resize_bilinear

DECAY_INITIAL_VALUE = 2


@dataclass(frozen=True)
class GeometrySettings:
    """What the attention of a stage needs to know.

    Attributes:
        head_width: channels of a head; even.
        heads: number of heads n.
        heads_range: spread of the decay over the heads.
        axial: attend along rows, then columns, instead of over the whole map.
    """

    head_width: int
    heads: int
    heads_range: int
    axial: bool


@dataclass
class GeometryPrior:
    """Rotation tables and attention biases of one block; one of `full` and the axial pair is None.

    Attributes:
        sin: (d, h, w), d the head width.
        cos: (d, h, w).
        columns: bias along columns, (B, n, w, h, h).
        rows: bias along rows, (B, n, h, w, w).
        full: bias between all positions, (B, n, h w, h w).
    """

    sin: jt.Var
    cos: jt.Var
    columns: jt.Var | None = None
    rows: jt.Var | None = None
    full: jt.Var | None = None


class Geometry(nn.Module):
    """Geometry prior: distances in position and depth, weighted and decayed per head (section 3.2).

    Args:
        settings: see GeometrySettings.
    """

    def __init__(self, settings: GeometrySettings) -> None:
        super().__init__()
        self.axial = settings.axial
        self.weight = jt.ones((2, 1, 1, 1))
        self.angle = jt.array(_rotation_angles(settings.head_width)).stop_grad()
        self.decay = jt.array(_head_decay(settings.heads, settings.heads_range)).stop_grad()

    def execute(self, size: tuple[int, int], depth: jt.Var) -> GeometryPrior:
        """Prior for maps of `size` (h, w) from a depth plane (B, 1, H, W)."""
        h, w = size
        plane = resize_bilinear(depth, size)[:, 0]
        raster = jt.array(np.arange(h * w, dtype=np.float32).reshape(1, h, w))
        phase = raster * self.angle.reshape(-1, 1, 1)
        prior = GeometryPrior(phase.sin(), phase.cos())
        if self.axial:
            prior.rows = self._bias(_line_distances(w), plane)
            prior.columns = self._bias(_line_distances(h), plane.transpose(0, 2, 1))
        else:
            flat = plane.reshape(plane.shape[0], 1, h * w)
            prior.full = self._bias(_grid_distances(h, w), flat)[:, :, 0]
        return prior

    def _bias(self, distances: np.ndarray, planes: jt.Var) -> jt.Var:
        """Distances (L, L) and planes (B, lines, L) -> biases (B, n, lines, L, L)."""
        depth = (planes.unsqueeze(-1) - planes.unsqueeze(-2)).abs()  # (B, lines, L, L)
        position_weight, depth_weight = self.weight[0], self.weight[1]  # (1, 1, 1) each
        mixed = jt.array(distances) * position_weight + depth * depth_weight
        return mixed.unsqueeze(1) * self.decay.reshape(1, -1, 1, 1, 1)


def _rotation_angles(head_width: int) -> np.ndarray:
    """Angles (d,) of the channel pairs: 10000^(-i / (d/2 - 1)), each twice.

    They are part of official checkpoints, so the roundings to float32 are PyTorch's: the step of
    its `linspace`, which counts from the nearer end, the power, and the reciprocal.
    """
    half = head_width // 2
    index = np.arange(half)
    step = float(np.float32(1) / np.float32(half - 1))
    exponents = np.where(index < half // 2, step * index, 1 - step * (half - 1 - index))
    powers = 10000.0 ** exponents.astype(np.float32).astype(np.float64)
    return np.repeat(np.float32(1) / powers.astype(np.float32), 2)


def _head_decay(heads: int, heads_range: int) -> np.ndarray:
    """log(1 - 2^(-2 - range n / heads)), negative, (heads,), rounded as in official checkpoints."""
    steps = np.float32(heads_range) * np.arange(heads, dtype=np.float32) / np.float32(heads)
    exponents = np.float32(-DECAY_INITIAL_VALUE) - steps
    kept = np.float32(1) - (2.0 ** exponents.astype(np.float64)).astype(np.float32)
    decay = np.log(kept.astype(np.float64)).astype(np.float32)
    # log(0.75) lies almost midway between two floats, and the official buffers hold the farther.
    decay[0] = np.nextafter(decay[0], np.float32(0))
    return decay


def _line_distances(length: int) -> np.ndarray:
    index = np.arange(length, dtype=np.float32)
    return np.abs(index[:, None] - index[None])


def _grid_distances(height: int, width: int) -> np.ndarray:
    rows, columns = np.divmod(np.arange(height * width), width)
    distances = np.abs(rows[:, None] - rows) + np.abs(columns[:, None] - columns)
    return distances.astype(np.float32)
