"""Decoders: LightHam (matrix factorisation as attention) and the all-MLP decoder.

LightHam follows "Is Attention Better Than Matrix Decomposition?" (Geng et al., ICLR 2021) as used
by SegNeXt and DFormer; the MLP decoder follows SegFormer (Xie et al., NeurIPS 2021). Parameter
names are the official ones. Batch norms of the decoders use eps 1e-3 in the official
configurations, those of the encoders 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jittor as jt
import numpy as np
from jittor import nn

from segtasks.models.layers import BatchNorm2d, ConvNormAct, Linear2d
from segtasks.ops.matmul import batched_matmul
from segtasks.ops.resize import resize_bilinear

#: Draws the start of a factorisation: shape (B, D, R) -> values in [0, 1).
DrawBases = Callable[[tuple[int, int, int]], jt.Var]
HAM_WIDTH = 512


class HamDecoder(nn.Module):
    """LightHam: logits from the features at strides 8, 16 and 32.

    Args:
        in_channels: channels of the three features.
        num_classes: classes K.
        embed_dim: channels before the classifier; the factorisation always works on 512.
        dropout: probability of dropping a channel before the classifier.
        bn_eps: eps of the batch norms.
        bn_momentum: momentum of the batch norms.
        nmf_seed: fixes the random start of the factorisation in evaluation mode, so that the
            prediction repeats; None draws a new one for every batch as the official code does.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        embed_dim: int = 512,
        *,
        dropout: float = 0.1,
        bn_eps: float = 1e-3,
        bn_momentum: float = 0.1,
        nmf_seed: int | None = None,
    ) -> None:
        super().__init__()
        self.squeeze = ConvNormAct(
            sum(in_channels), HAM_WIDTH, bn_eps=bn_eps, bn_momentum=bn_momentum
        )
        self.hamburger = Hamburger(HAM_WIDTH, bn_eps, bn_momentum, nmf_seed)
        self.align = ConvNormAct(HAM_WIDTH, embed_dim, bn_eps=bn_eps, bn_momentum=bn_momentum)
        self.dropout = nn.Dropout2d(dropout, is_train=True)
        self.conv_seg = nn.Conv2d(embed_dim, num_classes, 1)
        self.num_classes = num_classes
        _kaiming_normal(self)

    def execute(self, features: Sequence[jt.Var]) -> jt.Var:
        """Four features at strides 4 to 32 -> logits (B, K, h, w) at stride 8."""
        size = features[1].shape[2:]
        joined = jt.concat([resize_bilinear(f, size) for f in features[1:]], 1)
        x = self.align(self.hamburger(self.squeeze(joined)))
        return self.conv_seg(self.dropout(x))


class Hamburger(nn.Module):
    """Low-rank reconstruction between two 1x1 convolutions, added to its input.

    Args:
        channels: channels of the map.
        bn_eps: eps of the batch norm.
        bn_momentum: momentum of the batch norm.
        nmf_seed: see HamDecoder.
    """

    def __init__(
        self, channels: int, bn_eps: float, bn_momentum: float, nmf_seed: int | None
    ) -> None:
        super().__init__()
        self.ham_in = nn.Module()
        self.ham_in.conv = nn.Conv2d(channels, channels, 1)
        self.nmf = NMF2d(seed=nmf_seed)
        self.ham_out = ConvNormAct(
            channels, channels, bn_eps=bn_eps, bn_momentum=bn_momentum, activation=False
        )

    def execute(self, x: jt.Var) -> jt.Var:
        low_rank = self.nmf(nn.relu(self.ham_in.conv(x)))
        return nn.relu(x + self.ham_out(low_rank))


class NMF2d(nn.Module):
    """Non-negative matrix factorisation of a map by multiplicative updates; no parameters.

    X (D, N) is approximated by bases (D, R) times coefficients (R, N), N the pixels; gradients
    flow through every update. The bases start at random on every call, in evaluation too.

    Args:
        rank: number R of bases.
        train_steps: updates in training mode.
        eval_steps: updates in evaluation mode.
        seed: start from bases of this seed in evaluation mode, instead of Jittor's generator.
        draw_bases: replaces both sources of the start; used by parity tests.
    """

    def __init__(
        self,
        rank: int = 64,
        train_steps: int = 6,
        eval_steps: int = 7,
        seed: int | None = None,
        draw_bases: DrawBases | None = None,
    ) -> None:
        super().__init__()
        self.rank, self.train_steps, self.eval_steps = rank, train_steps, eval_steps
        self.seed, self.draw_bases = seed, draw_bases

    def execute(self, x: jt.Var) -> jt.Var:
        """(B, D, H, W), non-negative -> its approximation of rank R."""
        B, D, H, W = x.shape
        data = x.reshape(B, D, H * W)
        bases = self._start((B, D, self.rank))
        norm = jt.sqrt((bases * bases).sum(1, keepdims=True))
        bases = bases / norm.maximum(1e-12)
        coefficients = nn.softmax(batched_matmul(bases, data, transpose_a=True), dim=1)
        for _ in range(self.train_steps if self.is_training() else self.eval_steps):
            coefficients = _update_coefficients(data, bases, coefficients)
            bases = _update_bases(data, bases, coefficients)
        coefficients = _update_coefficients(data, bases, coefficients)
        return batched_matmul(bases, coefficients).reshape(B, D, H, W)

    def _start(self, shape: tuple[int, int, int]) -> jt.Var:
        if self.draw_bases is not None:
            return self.draw_bases(shape)
        if self.seed is None or self.is_training():
            return jt.rand(shape)
        # One draw for every sample: the prediction of an image must not depend on its batch.
        bases = np.random.default_rng(self.seed).random((1, *shape[1:]), dtype=np.float32)
        return jt.array(np.repeat(bases, shape[0], axis=0))


def _update_coefficients(data: jt.Var, bases: jt.Var, coefficients: jt.Var) -> jt.Var:
    """One multiplicative update of the coefficients (B, R, N)."""
    numerator = batched_matmul(bases, data, transpose_a=True)
    gram = batched_matmul(bases, bases, transpose_a=True)
    return coefficients * numerator / (batched_matmul(gram, coefficients) + 1e-6)


def _update_bases(data: jt.Var, bases: jt.Var, coefficients: jt.Var) -> jt.Var:
    """One multiplicative update of the bases (B, D, R)."""
    numerator = batched_matmul(data, coefficients, transpose_b=True)
    gram = batched_matmul(coefficients, coefficients, transpose_b=True)
    return bases * numerator / (batched_matmul(bases, gram) + 1e-6)


class MLPDecoder(nn.Module):
    """Logits from all four features, each projected by a linear layer.

    Args:
        in_channels: channels of the four features.
        num_classes: classes K.
        embed_dim: channels of each projection.
        dropout: probability of dropping a channel before the classifier.
        bn_eps: eps of the batch norm.
        bn_momentum: momentum of the batch norm.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        embed_dim: int = 512,
        *,
        dropout: float = 0.1,
        bn_eps: float = 1e-3,
        bn_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.linear_c1, self.linear_c2, self.linear_c3, self.linear_c4 = (
            Projection(channels, embed_dim) for channels in in_channels
        )
        self.linear_fuse = nn.Sequential(
            nn.Conv2d(4 * embed_dim, embed_dim, 1),
            BatchNorm2d(embed_dim, bn_eps, bn_momentum),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout2d(dropout, is_train=True)
        self.linear_pred = nn.Conv2d(embed_dim, num_classes, 1)
        self.num_classes = num_classes

    def execute(self, features: Sequence[jt.Var]) -> jt.Var:
        """Four features at strides 4 to 32 -> logits (B, K, h, w) at stride 4."""
        size = features[0].shape[2:]
        layers = (self.linear_c1, self.linear_c2, self.linear_c3, self.linear_c4)
        projected = [
            resize_bilinear(layer(f), size) for layer, f in zip(layers, features, strict=True)
        ]
        return self.linear_pred(self.dropout(self.linear_fuse(jt.concat(projected[::-1], 1))))


class Projection(nn.Module):
    """A linear layer named `proj`, as in the official checkpoints.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = Linear2d(in_channels, out_channels)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.proj(x)


def _kaiming_normal(module: nn.Module) -> None:
    """Start convolutions of LightHam as the official code does: fan-in normal, gain of ReLU."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = math.prod(layer.weight.shape[1:])
            layer.weight = jt.randn(tuple(layer.weight.shape)) * math.sqrt(2 / fan_in)
            if layer.bias is not None and "ham_in" in name:
                layer.bias = jt.zeros(tuple(layer.bias.shape))
