"""Layers that the parts of RT-DETR share, with the official sub-module names.

Initial values are PyTorch's defaults, with which the official code trains: uniform within
+-1 / sqrt(fan_in) for convolutions and linear layers, which are Jittor's defaults too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import jittor as jt
from jittor import init, nn

from segtasks.models.layers import BatchNorm2d, per_channel
from segtasks.ops.matmul import batched_matmul
from segtasks.ops.softmax import attention_softmax

Activation = Literal["relu", "silu", "gelu"]

#: Added to a score that must not count: its softmax is exactly 0, and no infinity can make a NaN.
BLOCKED = -1e9


def activation(name: Activation | None) -> Callable[[jt.Var], jt.Var]:
    """The function of that name; None stands for the identity, "gelu" for the exact (erf) form.

    Raises:
        ValueError: There is no such function.
    """
    functions: dict[str | None, Callable[[jt.Var], jt.Var]] = {
        None: _identity,
        "relu": nn.relu,
        "silu": nn.silu,
        "gelu": nn.gelu,
    }
    if name not in functions:
        known = ", ".join(repr(known) for known in functions)
        raise ValueError(f"there is no activation {name!r}; choose one of {known}")
    return functions[name]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with constant statistics and affine map, one multiply-add: y = x s + t.

    All four tensors are buffers: saved and loaded under the names of a batch norm, but no
    parameters.

    Args:
        channels: channels C of the map (B, C, H, W).
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, jt.full((channels,), float(value)).stop_grad())

    def execute(self, x: jt.Var) -> jt.Var:
        scale = self.weight / jt.sqrt(self.running_var + self.eps)
        return x * per_channel(scale) + per_channel(self.bias - self.running_mean * scale)


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, activation; parts named `conv` and `norm`.

    Args:
        cin: channels of the input.
        cout: channels of the output.
        kernel: side of the kernel.
        stride: step of the kernel.
        act: activation at the end.
        padding: zeros around the map; by default (kernel - 1) // 2.
        freeze_norm: hold the norm's tensors constant.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int,
        stride: int = 1,
        act: Activation | None = None,
        padding: int | None = None,
        *,
        freeze_norm: bool = False,
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2 if padding is None else padding
        self.conv = nn.Conv2d(cin, cout, kernel, stride, padding, bias=False)
        self.norm = FrozenBatchNorm2d(cout) if freeze_norm else BatchNorm2d(cout)
        self.act = activation(act)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.act(self.norm(self.conv(x)))


class LayerNorm(nn.Module):
    """Layer norm over the last axis.

    Args:
        dim: length of that axis.
        eps: added to the variance.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = jt.ones((dim,))
        self.bias = jt.zeros((dim,))

    def execute(self, x: jt.Var) -> jt.Var:
        # Centred first: Jittor's own layer computes E[x^2] - E[x]^2, which loses digits.
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        return centred / jt.sqrt(variance + self.eps) * self.weight + self.bias


class MLP(nn.Module):
    """Linear layers with ReLU between them, named `layers.{i}`.

    Args:
        cin: features of the input, (..., cin).
        hidden: features between the layers.
        cout: features of the output.
        layers: number of layers, at least 1.
    """

    def __init__(self, cin: int, hidden: int, cout: int, layers: int) -> None:
        super().__init__()
        widths = [cin] + [hidden] * (layers - 1) + [cout]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])

    def execute(self, x: jt.Var) -> jt.Var:
        for i, layer in enumerate(self.layers):
            x = layer(x) if i == 0 else layer(nn.relu(x))
        return x


class MultiheadAttention(nn.Module):
    """Multi-head attention with the packed parameters of PyTorch's layer, batch first.

    `in_proj_weight` (3 dim, dim) and `in_proj_bias` stack the projections of queries, keys and
    values. "Attention Is All You Need" (Vaswani et al., 2017), section 3.2.2.

    Args:
        dim: features of queries, keys and values.
        heads: number of heads; divides `dim`.
        dropout: probability of dropping an attention weight in training.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads must divide the {dim} features, got {heads}")
        self.heads = heads
        self.in_proj_weight = init.xavier_uniform((3 * dim, dim))
        self.in_proj_bias = jt.zeros((3 * dim,))
        self.out_proj = nn.Linear(dim, dim)
        self.out_proj.bias = jt.zeros((dim,))
        self.dropout = make_dropout(dropout)

    def execute(self, q: jt.Var, k: jt.Var, v: jt.Var, blocked: jt.Var | None = None) -> jt.Var:
        """Attend from queries to keys.

        Args:
            q: queries, (B, L, dim).
            k: keys, (B, S, dim).
            v: values, (B, S, dim).
            blocked: bool, (L, S), True where a query must not see a key. A query that may see
                none at all sees every key alike.

        Returns:
            (B, L, dim).
        """
        B, L, dim = q.shape
        queries, keys, values = (self._split(x) for x in self._project(q, k, v))
        scores = batched_matmul(queries, keys, transpose_b=True)
        hidden = None if blocked is None else blocked.float32() * BLOCKED
        scale = 1 / math.sqrt(dim // self.heads)
        weights = self.dropout(attention_softmax(scores, scale, hidden))
        mixed = batched_matmul(weights, values)
        mixed = mixed.reshape(B, self.heads, L, -1).transpose(0, 2, 1, 3).reshape(B, L, dim)
        return self.out_proj(mixed)

    def _project(self, q: jt.Var, k: jt.Var, v: jt.Var) -> tuple[jt.Var, jt.Var, jt.Var]:
        dim = q.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if q is k:  # self-attention: one product for both
            both = nn.linear(q, weight[: 2 * dim], bias[: 2 * dim])
            queries, keys = both[..., :dim], both[..., dim:]
        else:
            queries = nn.linear(q, weight[:dim], bias[:dim])
            keys = nn.linear(k, weight[dim : 2 * dim], bias[dim : 2 * dim])
        return queries, keys, nn.linear(v, weight[2 * dim :], bias[2 * dim :])

    def _split(self, x: jt.Var) -> jt.Var:
        """(B, L, dim) -> (B heads, L, dim / heads)."""
        B, L, dim = x.shape
        x = x.reshape(B, L, self.heads, dim // self.heads).transpose(0, 2, 1, 3)
        return x.reshape(B * self.heads, L, dim // self.heads)


def make_dropout(probability: float) -> nn.Module:
    """Dropout that is active from the start, as PyTorch's; Jittor's waits for a call of train().

    Nothing is computed at probability 0.
    """
    return nn.Dropout(probability, is_train=True) if probability else nn.Identity()


def identical_layers(build: Callable[[], nn.Module], count: int) -> nn.ModuleList:
    """`count` modules that start from the same values, as the official code deep-copies one."""
    layers = [build() for _ in range(count)]
    for layer in layers[1:]:
        for own, first in zip(layer.parameters(), layers[0].parameters(), strict=True):
            own.assign(first.copy())
    return nn.ModuleList(layers)


def _identity(x: jt.Var) -> jt.Var:
    return x
