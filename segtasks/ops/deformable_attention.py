"""Multi-scale deformable sampling in one operation with its gradient.

"Deformable DETR" (Zhu et al., ICLR 2021), equation 3, without the linear layers around it. Written
with gathers it keeps four maps of B Q M S c numbers per level; here nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import jittor as jt
import numpy as np

_COMMON = """
#include <cmath>
#include <cstdint>

// Where a sample falls: the tokens of its four neighbours, -1 outside, and its place between them.
struct Cell { int64_t corner[4]; float fx, fy; };

FUNCTION Cell locate(const int* level, float x, float y) {
    const int height = level[0], width = level[1];
    const int64_t start = level[2];
    Cell cell;
#if DISCRETE
    // Official: both axes end at the height; the width keeps tall levels inside.
    const int last = height < width ? height - 1 : width - 1;
    const float fx = fminf(fmaxf(x * width + 0.5f, 0.0f), (float)last);
    const float fy = fminf(fmaxf(y * height + 0.5f, 0.0f), (float)(height - 1));
    const int column = (int)fx, row = (int)fy;
    const bool known = column >= 0 && column <= last && row >= 0 && row < height;
    cell.corner[0] = known ? start + (int64_t)row * width + column : -1;
    cell.corner[1] = cell.corner[2] = cell.corner[3] = -1;
    cell.fx = cell.fy = 0.0f;
#else
    // Far away is moved to just outside: it must not overflow an integer.
    const float px = fminf(fmaxf(x * width - 0.5f, -2.0f), width + 1.0f);
    const float py = fminf(fmaxf(y * height - 0.5f, -2.0f), height + 1.0f);
    const float left = floorf(px), top = floorf(py);
    cell.fx = px - left;
    cell.fy = py - top;
    for (int k = 0; k < 4; ++k) {
        const int column = (int)left + (k & 1), row = (int)top + (k >> 1);
        // Tested as integers, so that a NaN, whatever it was converted to, reads no memory.
        const bool inside = column >= 0 && column < width && row >= 0 && row < height;
        cell.corner[k] = inside ? start + (int64_t)row * width + column : -1;
    }
#endif
    return cell;
}

FUNCTION float share(const Cell& cell, int k) {
    return (k & 1 ? cell.fx : 1.0f - cell.fx) * (k >> 1 ? cell.fy : 1.0f - cell.fy);
}

// Derivatives by location from the products of the four neighbours with the upstream gradient.
FUNCTION void slopes(const Cell& cell, const int* level, const float* dot, float* gx, float* gy) {
#if DISCRETE
    *gx = *gy = 0.0f;
#else
    *gx = level[1] * ((1.0f - cell.fy) * (dot[1] - dot[0]) + cell.fy * (dot[3] - dot[2]));
    *gy = level[0] * ((1.0f - cell.fx) * (dot[2] - dot[0]) + cell.fx * (dot[3] - dot[1]));
#endif
}
"""

# in0 value (B, N, M, c), in1 locations (B, Q, M, S, 2), in2 weights (B, Q, M, S), in3 levels (S, 3)
_SIZES = """
    const int64_t B = in0_shape0, N = in0_shape1, M = in0_shape2, C = in0_shape3;
    const int64_t Q = in1_shape1, S = in1_shape3;
"""

_CPU_FORWARD = """
    #pragma omp parallel for schedule(static)
    for (int64_t item = 0; item < B * Q * M; ++item) {
        const int64_t b = item / (Q * M), m = item % M;
        const float* const head = in0_p + (b * N * M + m) * C;
        float* const out = out0_p + item * C;
        for (int64_t i = 0; i < C; ++i) out[i] = 0.0f;
        for (int64_t s = 0; s < S; ++s) {
            const float* const xy = in1_p + (item * S + s) * 2;
            const Cell cell = locate(in3_p + s * 3, xy[0], xy[1]);
            for (int k = 0; k < 4; ++k) {
                if (cell.corner[k] < 0) continue;
                const float factor = share(cell, k) * in2_p[item * S + s];
                const float* const token = head + cell.corner[k] * M * C;
                #pragma omp simd
                for (int64_t i = 0; i < C; ++i) out[i] += factor * token[i];
            }
        }
    }
"""

# in4 upstream (B, Q, M, c); out0..2 gradients of value, locations and weights. One thread owns a
# head of an image: no other writes to its part of any gradient.
_CPU_BACKWARD = """
    #pragma omp parallel for schedule(dynamic)
    for (int64_t bm = 0; bm < B * M; ++bm) {
        const int64_t b = bm / M, m = bm % M;
        const float* const head = in0_p + (b * N * M + m) * C;
        float* const grad_head = out0_p + (b * N * M + m) * C;
        for (int64_t n = 0; n < N; ++n)
            for (int64_t i = 0; i < C; ++i) grad_head[n * M * C + i] = 0.0f;
        for (int64_t q = 0; q < Q; ++q)
            for (int64_t s = 0; s < S; ++s) {
                const int64_t item = (b * Q + q) * M + m, sample = item * S + s;
                const float* const up = in4_p + item * C;
                const int* const level = in3_p + s * 3;
                const Cell cell = locate(level, in1_p[sample * 2], in1_p[sample * 2 + 1]);
                const float weight = in2_p[sample];
                float dot[4] = {0.0f, 0.0f, 0.0f, 0.0f}, total = 0.0f;
                for (int k = 0; k < 4; ++k) {
                    if (cell.corner[k] < 0) continue;
                    const float part = share(cell, k), factor = part * weight;
                    const float* const token = head + cell.corner[k] * M * C;
                    float* const grad = grad_head + cell.corner[k] * M * C;
                    float sum = 0.0f;
                    #pragma omp simd reduction(+ : sum)
                    for (int64_t i = 0; i < C; ++i) {
                        sum += token[i] * up[i];
                        grad[i] += factor * up[i];
                    }
                    dot[k] = sum;
                    total += part * sum;
                }
                float gx, gy;
                slopes(cell, level, dot, &gx, &gy);
                out1_p[sample * 2] = weight * gx;
                out1_p[sample * 2 + 1] = weight * gy;
                out2_p[sample] = total;
            }
    }
"""

# A thread per channel of an output: neighbouring threads read neighbouring channels.
_CUDA_FORWARD_KERNEL = """
__global__ static void sample_forward(
        const float* value, const float* locations, const float* weights, const int* levels,
        float* out, int64_t B, int64_t N, int64_t M, int64_t C, int64_t Q, int64_t S) {
    const int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= B * Q * M * C) return;
    const int64_t item = index / C, channel = index % C, b = item / (Q * M), m = item % M;
    const float* const head = value + (b * N * M + m) * C + channel;
    float sum = 0.0f;
    for (int64_t s = 0; s < S; ++s) {
        const float* const xy = locations + (item * S + s) * 2;
        const Cell cell = locate(levels + s * 3, xy[0], xy[1]);
        const float weight = weights[item * S + s];
        for (int k = 0; k < 4; ++k)
            if (cell.corner[k] >= 0)
                sum += share(cell, k) * weight * head[cell.corner[k] * M * C];
    }
    out[index] = sum;
}
"""

_CUDA_FORWARD = """
    const int64_t threads = B * Q * M * C;
    if (threads)
        sample_forward<<<(unsigned)((threads + 255) / 256), 256>>>(
            in0_p, in1_p, in2_p, in3_p, out0_p, B, N, M, C, Q, S);
"""

# A warp per sample, its lanes over the channels. Only the tokens' gradients are shared between
# warps; their additions are atomic, so that the last bits depend on the order of execution.
_CUDA_BACKWARD_KERNEL = """
__global__ static void sample_backward(
        const float* value, const float* locations, const float* weights, const int* levels,
        const float* upstream, float* grad_value, float* grad_locations, float* grad_weights,
        int64_t B, int64_t N, int64_t M, int64_t C, int64_t Q, int64_t S) {
    const int64_t sample = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const int lane = threadIdx.x % 32;
    if (sample >= B * Q * M * S) return;  // a whole warp at once
    const int64_t item = sample / S, b = item / (Q * M), m = item % M;
    const int* const level = levels + (sample % S) * 3;
    const Cell cell = locate(level, locations[sample * 2], locations[sample * 2 + 1]);
    const float weight = weights[sample];
    float dot[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int64_t i = lane; i < C; i += 32) {
        const float up = upstream[item * C + i];
        for (int k = 0; k < 4; ++k) {
            if (cell.corner[k] < 0) continue;
            const int64_t place = ((b * N + cell.corner[k]) * M + m) * C + i;
            dot[k] += value[place] * up;
            atomicAdd(grad_value + place, share(cell, k) * weight * up);
        }
    }
    float total = 0.0f;
    for (int k = 0; k < 4; ++k) {
        for (int step = 16; step > 0; step /= 2)
            dot[k] += __shfl_down_sync(0xffffffffu, dot[k], step);
        total += share(cell, k) * dot[k];
    }
    if (lane) return;
    float gx, gy;
    slopes(cell, level, dot, &gx, &gy);
    grad_locations[sample * 2] = weight * gx;
    grad_locations[sample * 2 + 1] = weight * gy;
    grad_weights[sample] = total;
}
"""

_CUDA_BACKWARD = """
    cudaMemsetAsync(out0_p, 0, out0->size, 0);
    const int64_t threads = B * Q * M * S * 32;
    if (threads)
        sample_backward<<<(unsigned)((threads + 255) / 256), 256>>>(
            in0_p, in1_p, in2_p, in3_p, in4_p, out0_p, out1_p, out2_p, B, N, M, C, Q, S);
"""


def deformable_sampling(
    value: jt.Var,
    shapes: Sequence[tuple[int, int]],
    locations: jt.Var,
    weights: jt.Var,
    *,
    points: Sequence[int] | None = None,
    discrete: bool = False,
) -> jt.Var:
    """Weighted sums of values sampled from several maps.

    A sample at (x, y) of a level of width w and height h lies at the pixel (x w - 0.5, y h - 0.5)
    and is interpolated bilinearly; neighbours outside the map count as zero. There is a gradient
    for value, locations and weights.

    Args:
        value: tokens of all levels one after the other, rows first, (B, N, M, c), M heads.
        shapes: (height, width) of each of the L levels; their areas add up to N.
        locations: (x, y) from 0 to 1 across the image, anything else lies outside; (B, Q, M, L, P,
            2), or (B, Q, M, S, 2) with `points`.
        weights: (B, Q, M, L, P), or (B, Q, M, S) with `points`.
        points: RT-DETRv2: samples of each level, S in sum; None: P each.
        discrete: RT-DETRv2's fine-tuning stage: the value of one pixel, x w + 0.5 and y h + 0.5
            truncated and brought into 0..h - 1 on both axes, as officially; no gradient for
            locations. Where a level is higher than wide, x stays inside the width instead.

    Returns:
        (B, Q, M c), the heads one after the other.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    B, _, M, C = value.shape
    if points is None:
        if locations.ndim != 6:
            raise ValueError(f"locations must be (B, Q, M, L, P, 2), got {tuple(locations.shape)}")
        L, P = locations.shape[3:5]
        points = [P] * L
    Q, S = locations.shape[1], sum(points)
    _check(value, shapes, locations, weights, points)
    sampling = _Sampling(jt.array(_level_table(shapes, points)), discrete)
    output = sampling(
        _single(value),
        _single(locations).reshape(B, Q, M, S, 2),
        _single(weights).reshape(B, Q, M, S),
    )
    return output.reshape(B, Q, M * C).cast(value.dtype)


class _Sampling(jt.Function):
    """The operation on float32; `levels` (S, 3) tells height, width and first token of a sample.

    The level sizes are data, not part of the source: another image size needs no compilation.
    """

    def __init__(self, levels: jt.Var, discrete: bool) -> None:
        super().__init__()
        self.levels, self.define = levels, f"#define DISCRETE {int(discrete)}\n"

    def execute(self, value: jt.Var, locations: jt.Var, weights: jt.Var) -> jt.Var:
        self.inputs = [value, locations, weights, self.levels]
        B, _, M, C = value.shape
        return jt.code(
            (B, locations.shape[1], M, C),
            "float32",
            self.inputs,
            cpu_header=self._header("static inline"),
            cpu_src=_SIZES + _CPU_FORWARD,
            cuda_header=self._header("__device__ static inline") + _CUDA_FORWARD_KERNEL,
            cuda_src=_SIZES + _CUDA_FORWARD,
        )

    def grad(self, upstream: jt.Var) -> tuple[jt.Var, ...]:
        gradients = jt.code(
            [x.shape for x in self.inputs[:3]],
            ["float32"] * 3,
            [*self.inputs, upstream],
            cpu_header=self._header("static inline"),
            cpu_src=_SIZES + _CPU_BACKWARD,
            cuda_header=self._header("__device__ static inline") + _CUDA_BACKWARD_KERNEL,
            cuda_src=_SIZES + _CUDA_BACKWARD,
        )
        return tuple(gradients)

    def macs(self, output: jt.Var, *_: jt.Var) -> int:
        """Multiply-accumulates: four neighbours of each sample for every output channel."""
        return int(output.numel() * self.levels.shape[0] * 4)

    def _header(self, function: str) -> str:
        return f"#undef FUNCTION\n#define FUNCTION {function}\n{self.define}{_COMMON}"


def _level_table(shapes: Sequence[tuple[int, int]], points: Sequence[int]) -> np.ndarray:
    """(S, 3) int32: height, width and first token of each sample's level."""
    areas = [height * width for height, width in shapes]
    starts = np.cumsum([0, *areas[:-1]])
    rows = [(*shape, start) for shape, start in zip(shapes, starts, strict=True)]
    return np.repeat(np.array(rows, np.int32), points, axis=0)


def _single(x: jt.Var) -> jt.Var:
    return x if x.dtype == "float32" else x.float32()


def _check(
    value: jt.Var,
    shapes: Sequence[tuple[int, int]],
    locations: jt.Var,
    weights: jt.Var,
    points: Sequence[int],
) -> None:
    tokens = sum(height * width for height, width in shapes)
    if tokens != value.shape[1]:
        raise ValueError(f"levels {list(shapes)} have {tokens} tokens, value has {value.shape[1]}")
    if len(points) != len(shapes):
        raise ValueError(f"{len(points)} point counts for {len(shapes)} levels")
    if tuple(locations.shape[:-1]) != tuple(weights.shape) or locations.shape[-1] != 2:
        raise ValueError(
            f"locations {tuple(locations.shape)} must be the weights' {tuple(weights.shape)} and 2"
        )
    heads = (value.shape[0], value.shape[2])
    samples = int(np.prod(weights.shape[3:]))
    if (weights.shape[0], weights.shape[2]) != heads or samples != sum(points):
        raise ValueError(
            f"weights {tuple(weights.shape)} do not fit batch and heads {heads} of the value and "
            f"{sum(points)} samples"
        )
