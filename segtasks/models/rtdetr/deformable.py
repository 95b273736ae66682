"""Multi-scale deformable attention: every query looks at a few points of every level.

"Deformable DETR" (Zhu et al., ICLR 2021), section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jittor as jt
import numpy as np
from jittor import init, nn

from segtasks.ops.deformable_attention import deformable_sampling


class DeformableAttention(nn.Module):
    """Attention over sampled points, placed relative to each query's reference.

    Args:
        dim: features d of queries and memory.
        heads: number of heads M; divides `dim`.
        levels: number of levels L.
        points: points P that a head samples on each level.
    """

    def __init__(self, dim: int, heads: int = 8, levels: int = 4, points: int = 4) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads must divide the {dim} features, got {heads}")
        self.heads, self.levels, self.points = heads, levels, points
        samples = heads * levels * points
        self.sampling_offsets = nn.Linear(dim, samples * 2)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._initialise()

    def execute(
        self,
        query: jt.Var,
        reference: jt.Var,
        memory: jt.Var,
        shapes: Sequence[tuple[int, int]],
    ) -> jt.Var:
        """Attend from queries to the memory.

        Args:
            query: (B, Q, d).
            reference: in 0..1 of the image, (B, Q, 1 or L, 4) boxes as centre x, centre y, width
                and height, or (B, Q, 1 or L, 2) points.
            memory: tokens of all levels one after the other, rows first, (B, N, d).
            shapes: (height, width) of each level.

        Returns:
            (B, Q, d).
        """
        B, Q, dim = query.shape
        M, L, P = self.heads, self.levels, self.points
        value = self.value_proj(memory).reshape(B, -1, M, dim // M)
        offsets = self.sampling_offsets(query).reshape(B, Q, M, L, P, 2)
        weights = nn.softmax(self.attention_weights(query).reshape(B, Q, M, L * P), -1)
        locations = self._locations(reference, offsets, shapes)
        sampled = deformable_sampling(value, shapes, locations, weights.reshape(B, Q, M, L, P))
        return self.output_proj(sampled)

    def _locations(
        self, reference: jt.Var, offsets: jt.Var, shapes: Sequence[tuple[int, int]]
    ) -> jt.Var:
        """(B, Q, M, L, P, 2)."""
        B, Q, levels, numbers = reference.shape
        reference = reference.reshape(B, Q, 1, levels, 1, numbers)
        if numbers == 4:
            # The first offsets, 1..P in some direction, reach the border of the box.
            return reference[..., :2] + offsets * (reference[..., 2:] * (0.5 / self.points))
        if numbers == 2:
            pixel = 1 / np.array([(width, height) for height, width in shapes], np.float32)
            return reference + offsets * jt.array(pixel.reshape(1, 1, 1, -1, 1, 2))
        raise ValueError(f"references are points (2) or boxes (4), got {numbers} numbers each")

    def _initialise(self) -> None:
        """Every head looks in a direction of its own, point p at distance p + 1, equally."""
        directions = initial_directions(self.heads).reshape(self.heads, 1, 1, 2)
        distances = np.arange(1, self.points + 1, dtype=np.float32).reshape(1, 1, -1, 1)
        offsets = np.broadcast_to(directions * distances, (self.heads, self.levels, self.points, 2))
        self.sampling_offsets.weight = jt.zeros(self.sampling_offsets.weight.shape)
        self.sampling_offsets.bias = jt.array(offsets.reshape(-1).astype(np.float32))
        for layer in (self.attention_weights, self.value_proj, self.output_proj):
            layer.bias = jt.zeros(layer.bias.shape)
        self.attention_weights.weight = jt.zeros(self.attention_weights.weight.shape)
        for layer in (self.value_proj, self.output_proj):
            layer.weight = init.xavier_uniform(tuple(layer.weight.shape))


def initial_directions(heads: int) -> np.ndarray:
    """Evenly spread directions (heads, 2), scaled so that the larger component is 1."""
    angles = np.arange(heads, dtype=np.float32) * np.float32(2 * math.pi / heads)
    directions = np.stack([np.cos(angles), np.sin(angles)], -1)
    return directions / np.abs(directions).max(-1, keepdims=True)
