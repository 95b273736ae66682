"""Layers that several model families share; maps are channels first, (B, C, H, W).

Where Jittor's own layer differs from PyTorch's in its numbers, the one here follows PyTorch,
because the official weights were trained that way.
"""

from __future__ import annotations

from collections.abc import Iterator

import jittor as jt
from jittor import nn


class Linear2d(nn.Linear):
    """Linear layer over the channels of a map: (B, C_in, H, W) -> (B, C_out, H, W).

    The weight keeps the (C_out, C_in) shape of a linear layer in official checkpoints. It is
    applied as a 1x1 convolution, so that maps need no transposition around it.
    """

    def execute(self, x: jt.Var) -> jt.Var:
        kernel = self.weight.reshape(*self.weight.shape, 1, 1)
        return nn.conv2d(x, kernel, self.bias)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of a map, each pixel by itself.

    Args:
        channels: channels C of the map (B, C, H, W).
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = jt.ones((channels,))
        self.bias = jt.zeros((channels,))

    def execute(self, x: jt.Var) -> jt.Var:
        # Centred first: E[x^2] - E[x]^2 loses digits in residual streams with large means.
        centred = x - x.mean(1, keepdims=True)
        variance = (centred * centred).mean(1, keepdims=True)
        normalised = centred / jt.sqrt(variance + self.eps)
        return normalised * per_channel(self.weight) + per_channel(self.bias)


class BatchNorm2d(nn.Module):
    """Batch norm over (B, H, W) with PyTorch's statistics.

    Jittor's own layer keeps the biased variance as running value and computes it as
    E[x^2] - E[x]^2; this one keeps the unbiased one (factor n / (n - 1)) and centres first.

    Args:
        channels: channels C of the map (B, C, H, W).
        eps: added to the variance.
        momentum: share of the new batch in the running statistics.

    Attributes:
        sync: under MPI, use the statistics of the batches of all processes.
    """

    sync = False

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = jt.ones((channels,))
        self.bias = jt.zeros((channels,))
        self.running_mean = jt.zeros((channels,)).stop_grad()
        self.running_var = jt.ones((channels,)).stop_grad()

    def execute(self, x: jt.Var) -> jt.Var:
        if not self.is_training():
            scale = self.weight / jt.sqrt(self.running_var + self.eps)
            shift = self.bias - self.running_mean * scale
            return x * per_channel(scale) + per_channel(shift)
        axes = (0, 2, 3)
        count = x.numel() // x.shape[1]
        mean = x.mean(axes)
        if self.sync and jt.in_mpi:
            mean = mean.mpi_all_reduce("mean")
            count *= jt.world_size
        centred = x - per_channel(mean)
        variance = (centred * centred).mean(axes)
        if self.sync and jt.in_mpi:
            variance = variance.mpi_all_reduce("mean")
        scale = self.weight / jt.sqrt(variance + self.eps)
        self._update_statistics(mean, variance, count)
        return centred * per_channel(scale) + per_channel(self.bias)

    def _update_statistics(self, mean: jt.Var, variance: jt.Var, count: int) -> None:
        unbiased = variance * (count / max(1, count - 1))
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.update(running + (new - running) * self.momentum)


class ConvNormAct(nn.Module):
    """Convolution without bias, batch norm, ReLU; parts named `conv` and `bn`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd; the size of the map is kept.
        bn_eps: eps of the batch norm.
        bn_momentum: momentum of the batch norm.
        activation: apply ReLU at the end.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False)
        self.bn = BatchNorm2d(out_channels, bn_eps, bn_momentum)
        self.activation = activation

    def execute(self, x: jt.Var) -> jt.Var:
        x = self.bn(self.conv(x))
        return nn.relu(x) if self.activation else x


class DropPath(nn.Module):
    """Drop a residual branch per sample in training and scale the kept ones by 1 / (1 - rate).

    "Deep Networks with Stochastic Depth" (Huang et al., 2016). Every call draws a fresh mask.

    Args:
        rate: probability of a drop, 0 <= rate < 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"the drop path rate must be in [0, 1), got {rate}")
        self.rate = rate

    def execute(self, x: jt.Var) -> jt.Var:
        if self.rate == 0 or not self.is_training():
            return x
        keep = jt.rand((x.shape[0],) + (1,) * (x.ndim - 1)) >= self.rate
        return x * (keep.float32() / (1 - self.rate))


def drop_path_rates(rate: float, count: int) -> Iterator[float]:
    """Rates of `count` blocks, growing linearly from 0 to `rate`."""
    return (rate * k / max(1, count - 1) for k in range(count))


def depthwise_conv(channels: int, kernel_size: int) -> nn.Module:
    """A depthwise convolution with bias that keeps the size of the map."""
    return nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)


def per_channel(values: jt.Var) -> jt.Var:
    """(C,) -> (1, C, 1, 1), to combine with maps."""
    return values.reshape(1, -1, 1, 1)
