from __future__ import annotations

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jtlightning.flops import count_macs
from segtasks.ops.matmul import batched_matmul


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("groups", [1, 5])
def test_product_and_gradients_are_those_of_numpy(
    transpose_a: bool, transpose_b: bool, groups: int
) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((groups, 7, 3)), rng.standard_normal((groups, 3, 4))
    upstream = rng.standard_normal((groups, 7, 4))
    left = jt.array((a.swapaxes(1, 2) if transpose_a else a).astype(np.float32))
    right = jt.array((b.swapaxes(1, 2) if transpose_b else b).astype(np.float32))

    product = batched_matmul(left, right, transpose_a=transpose_a, transpose_b=transpose_b)
    gradients = jt.grad((product * jt.array(upstream.astype(np.float32))).sum(), [left, right])

    grad_a, grad_b = upstream @ b.swapaxes(1, 2), a.swapaxes(1, 2) @ upstream
    # Sums of up to seven products of standard normals, in single precision.
    np.testing.assert_allclose(product.numpy(), a @ b, atol=1e-5)
    for gradient, expected, swap in zip(
        gradients, (grad_a, grad_b), (transpose_a, transpose_b), strict=True
    ):
        expected = expected.swapaxes(1, 2) if swap else expected
        np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_multiply_accumulates_are_counted_as_products(transpose_a: bool, transpose_b: bool) -> None:
    a = jt.zeros((5, 3, 7) if transpose_a else (5, 7, 3))
    b = jt.zeros((5, 4, 3) if transpose_b else (5, 3, 4))

    def run() -> jt.Var:
        return batched_matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)

    count = count_macs(nn.Module(), run)

    assert count.by_kind == {"convolution": 0, "linear": 0, "product": 5 * 7 * 3 * 4}
