"""Products of batches of matrices."""

from __future__ import annotations

import jittor as jt
from jittor import nn


def batched_matmul(
    a: jt.Var, b: jt.Var, *, transpose_a: bool = False, transpose_b: bool = False
) -> jt.Var:
    """Multiply matrix i of `a` by matrix i of `b`.

    Args:
        a: (G, M, K), or (G, K, M) if `transpose_a`.
        b: (G, K, N), or (G, N, K) if `transpose_b`.
        transpose_a: use the transposed matrices of `a`.
        transpose_b: use the transposed matrices of `b`.

    Returns:
        (G, M, N).
    """
    if transpose_a:
        a = a.transpose(0, 2, 1)
    if transpose_b:
        b = b.transpose(0, 2, 1)
    return nn.matmul(a, b)
