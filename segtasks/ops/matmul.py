"""Products of batches of matrices.

Jittor maps a product of two matrices onto oneDNN, but not a batch of them: on a CPU it generates
plain loops, which took half of a DFormer training step. Here the batch calls oneDNN's product.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

_HEADER = """
#include <cstdint>
#include <omp.h>
// oneDNN is in the process already: Jittor's own matrix product links it.
extern "C" int dnnl_sgemm(char, char, int64_t, int64_t, int64_t, float, const float*, int64_t,
                          const float*, int64_t, float, float*, int64_t);
"""

_SOURCE = """
    const int64_t G = out_shape0, M = out_shape1, N = out_shape2, K = {inner};
    const bool share = G >= omp_get_max_threads();  // a matrix per thread, or all threads on each
    #pragma omp parallel for schedule(static) if (share)
    for (int64_t g = 0; g < G; ++g)
        dnnl_sgemm('{a}', '{b}', M, N, K, 1.0f, in0_p + g * M * K, {a_row},
                   in1_p + g * K * N, {b_row}, 0.0f, out_p + g * M * N, N);
"""


def batched_matmul(
    a: jt.Var, b: jt.Var, *, transpose_a: bool = False, transpose_b: bool = False
) -> jt.Var:
    """Multiply matrix i of `a` by matrix i of `b`.

    Args:
        a: float32, (G, M, K), or (G, K, M) if `transpose_a`.
        b: float32, (G, K, N), or (G, N, K) if `transpose_b`.
        transpose_a: use the transposed matrices of `a`.
        transpose_b: use the transposed matrices of `b`.

    Returns:
        (G, M, N).
    """
    if jt.flags.use_cuda or jt.compile_extern.mkl_ops is None or a.dtype != "float32":
        return nn.matmul(_transposed(a, transpose_a), _transposed(b, transpose_b))
    return _BatchedMatmul()(a, b, transpose_a, transpose_b)


class _BatchedMatmul(jt.Function):
    """The product by oneDNN; its gradients are products again."""

    def execute(self, a: jt.Var, b: jt.Var, transpose_a: bool, transpose_b: bool) -> jt.Var:
        self.operands = (a, b, transpose_a, transpose_b)
        return _product(a, b, transpose_a, transpose_b)

    def grad(self, grad: jt.Var) -> tuple[jt.Var, jt.Var, None, None]:
        a, b, transpose_a, transpose_b = self.operands
        if transpose_a:
            grad_a = _product(b, grad, transpose_b, True)
        else:
            grad_a = _product(grad, b, False, not transpose_b)
        if transpose_b:
            grad_b = _product(grad, a, True, transpose_a)
        else:
            grad_b = _product(a, grad, not transpose_a, False)
        return grad_a, grad_b, None, None

    def macs(
        self,
        out: jt.Var,
        a: jt.Var,
        b: jt.Var,
        transpose_a: bool = False,
        transpose_b: bool = False,
    ) -> int:
        """Multiply-accumulates: every output element sums over the inner length."""
        return int(out.numel() * a.shape[1 if transpose_a else 2])


def _product(a: jt.Var, b: jt.Var, transpose_a: bool, transpose_b: bool) -> jt.Var:
    source = _SOURCE.format(
        inner="in0_shape1" if transpose_a else "in0_shape2",
        a="T" if transpose_a else "N",
        b="T" if transpose_b else "N",
        a_row="M" if transpose_a else "K",
        b_row="K" if transpose_b else "N",
    )
    rows = a.shape[2] if transpose_a else a.shape[1]
    columns = b.shape[1] if transpose_b else b.shape[2]
    shape = (a.shape[0], rows, columns)
    return jt.code(shape, a.dtype, [a, b], cpu_header=_HEADER, cpu_src=source)


def _transposed(matrices: jt.Var, wanted: bool) -> jt.Var:
    return matrices.transpose(0, 2, 1) if wanted else matrices
