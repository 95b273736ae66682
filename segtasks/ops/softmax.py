"""Softmax of attention scores in one operation with its gradient.

Jittor's softmax keeps no exponentials: each of the kernels that it is fused into computes them
again, six times for a training step, which took a fifth of one of RT-DETR's. Here each score is
exponentiated once.
"""

from __future__ import annotations

import jittor as jt

_HEADER = """
#include <cmath>
#include <cstdint>
"""

# in0 scores (G, L, S), in1 bias (L, S) where there is one; the scale is part of the source.
_SIZES = """
    const int64_t G = in0_shape0, L = in0_shape1, S = in0_shape2;
"""

_CPU_FORWARD = """
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < G * L; ++row) {
        const float* const in = in0_p + row * S;
        float* const out = out0_p + row * S;
        float most = -INFINITY, sum = 0.0f;
        #pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < S; ++i) {
            const float score = in[i] * SCALE + BIAS;
            out[i] = score;
            most = score > most ? score : most;
        }
        #pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < S; ++i) {
            const float part = expf(out[i] - most);
            out[i] = part;
            sum += part;
        }
        const float factor = 1.0f / sum;
        #pragma omp simd
        for (int64_t i = 0; i < S; ++i) out[i] *= factor;
    }
"""

# in0 weights, in1 upstream gradient, both (G, L, S).
_CPU_BACKWARD = """
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < G * L; ++row) {
        const float* const weight = in0_p + row * S;
        const float* const upstream = in1_p + row * S;
        float* const out = out0_p + row * S;
        float sum = 0.0f;
        #pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < S; ++i) sum += weight[i] * upstream[i];
        #pragma omp simd
        for (int64_t i = 0; i < S; ++i) out[i] = SCALE * weight[i] * (upstream[i] - sum);
    }
"""

# A warp per row.
_CUDA_FORWARD_KERNEL = """
__global__ static void softmax_forward(const float* scores, const float* bias, float* weights,
                                       int64_t rows, int64_t L, int64_t S, float scale) {
    const int64_t row = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;  // a whole warp at once
    const float* const in = scores + row * S;
    const float* const added = bias ? bias + row % L * S : nullptr;
    float* const out = weights + row * S;
    float most = -INFINITY, sum = 0.0f;
    for (int64_t i = lane; i < S; i += 32)
        most = fmaxf(most, in[i] * scale + (added ? added[i] : 0.0f));
    for (int step = 16; step > 0; step /= 2)
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
    for (int64_t i = lane; i < S; i += 32) {
        const float part = expf(in[i] * scale + (added ? added[i] : 0.0f) - most);
        out[i] = part;
        sum += part;
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    for (int64_t i = lane; i < S; i += 32) out[i] /= sum;
}
"""

_CUDA_FORWARD = """
    const int64_t threads = G * L * 32;
    if (threads)
        softmax_forward<<<(unsigned)((threads + 255) / 256), 256>>>(
            in0_p, POINTER, out0_p, G * L, L, S, SCALE);
"""

_CUDA_BACKWARD_KERNEL = """
__global__ static void softmax_backward(const float* weights, const float* upstream, float* grad,
                                        int64_t rows, int64_t S, float scale) {
    const int64_t row = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int64_t i = lane; i < S; i += 32) sum += weights[row * S + i] * upstream[row * S + i];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    for (int64_t i = lane; i < S; i += 32) {
        const int64_t place = row * S + i;
        grad[place] = scale * weights[place] * (upstream[place] - sum);
    }
}
"""

_CUDA_BACKWARD = """
    const int64_t threads = G * L * 32;
    if (threads)
        softmax_backward<<<(unsigned)((threads + 255) / 256), 256>>>(
            in0_p, in1_p, out0_p, G * L, S, SCALE);
"""


def attention_softmax(scores: jt.Var, scale: float, bias: jt.Var | None = None) -> jt.Var:
    """Softmax of `scale * scores + bias` over the last axis; there is a gradient for `scores`.

    "Attention Is All You Need" (Vaswani et al., 2017), equation 1, between the two products.

    Args:
        scores: products of queries and keys, (G, L, S); calculated in float32.
        scale: usually one over the root of the features of a head.
        bias: float32, (L, S), added to the scores of every group: very negative where a query
            must not see a key. No gradient flows to it.

    Returns:
        (G, L, S) of the scores' type; every row adds up to 1.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    if scores.ndim != 3 or (bias is not None and bias.shape != scores.shape[1:]):
        added = None if bias is None else tuple(bias.shape)
        raise ValueError(
            f"scores must be (G, L, S), bias (L, S); got {tuple(scores.shape)}, {added}"
        )
    weights = _Softmax(scale, bias)(scores.float32())
    return weights.cast(scores.dtype)


class _Softmax(jt.Function):
    """The operation on float32."""

    def __init__(self, scale: float, bias: jt.Var | None) -> None:
        super().__init__()
        self.scale = f"{scale:.9e}f"  # all digits of a float32
        self.bias = bias

    def execute(self, scores: jt.Var) -> jt.Var:
        added = "0.0f" if self.bias is None else "in1_p[row % L * S + i]"
        pointer = "nullptr" if self.bias is None else "in1_p"
        cpu, cuda = (
            source.replace("BIAS", added).replace("POINTER", pointer).replace("SCALE", self.scale)
            for source in (_CPU_FORWARD, _CUDA_FORWARD)
        )
        self.weights = jt.code(
            scores.shape,
            "float32",
            [scores] if self.bias is None else [scores, self.bias],
            cpu_header=_HEADER,
            cpu_src=_SIZES + cpu,
            cuda_header=_HEADER + _CUDA_FORWARD_KERNEL,
            cuda_src=_SIZES + cuda,
        )
        return self.weights

    def grad(self, upstream: jt.Var) -> jt.Var:
        cpu, cuda = (s.replace("SCALE", self.scale) for s in (_CPU_BACKWARD, _CUDA_BACKWARD))
        return jt.code(
            upstream.shape,
            "float32",
            [self.weights, upstream],
            cpu_header=_HEADER,
            cpu_src=_SIZES + cpu,
            cuda_header=_HEADER + _CUDA_BACKWARD_KERNEL,
            cuda_src=_SIZES + cuda,
        )
