"""Picking the tokens that become queries."""

from __future__ import annotations

import jittor as jt

_HEADER = """
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>
"""

# A partial sort goes by a heap, which stays inside its range for scores that are not numbers, too.
_SOURCE = """
    const int64_t B = in0_shape0, N = in0_shape1, K = out_shape1;
    std::vector<int> order(N);
    for (int64_t b = 0; b < B; ++b) {
        const float* const score = in0_p + b * N;
        std::iota(order.begin(), order.end(), 0);
        std::partial_sort(order.begin(), order.begin() + K, order.end(), [&](int i, int j) {
            return score[i] > score[j] || (score[i] == score[j] && i < j);
        });
        std::copy(order.begin(), order.begin() + K, out_p + b * K);
    }
"""


def best_tokens(scores: jt.Var, count: int) -> jt.Var:
    """Indices of the highest scores, best first; of equal scores the first one comes first.

    Args:
        scores: (B, N).
        count: how many, at most N.

    Returns:
        int32, (B, count).

    Raises:
        ValueError: if there are fewer than `count` tokens.
    """
    B, N = scores.shape
    if count > N:
        raise ValueError(
            f"{count} queries are to be picked from {N} tokens; use larger images or fewer queries"
        )
    if jt.flags.use_cuda:  # sorts by radix there, which keeps the order of equal scores
        return jt.argsort(scores, dim=1, descending=True)[0][:, :count]
    return jt.code((B, count), "int32", [scores.float32()], cpu_header=_HEADER, cpu_src=_SOURCE)


def gather_tokens(tokens: jt.Var, index: jt.Var) -> jt.Var:
    """Pick tokens of each image: (B or 1, N, d) and int32 (B, Q) -> (B, Q, d)."""
    B, Q = index.shape
    row = "0" if tokens.shape[0] == 1 else "i0"
    return tokens.reindex((B, Q, tokens.shape[2]), [row, "@e0(i0,i1)", "i2"], extras=[index])
