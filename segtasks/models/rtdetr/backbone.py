"""PResNet: the residual networks in front of RT-DETR, with the official parameter names.

"Deep Residual Learning for Image Recognition" (He et al., CVPR 2016) with the changes of variant d
in "Bag of Tricks for Image Classification with Convolutional Neural Networks" (He et al., CVPR
2019): a stem of three small convolutions, and average pooling in the shortcuts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import jittor as jt
import numpy as np
from jittor import nn

from segtasks.models.rtdetr.layers import Activation, ConvNorm, activation

Variant = Literal["a", "b", "c", "d"]

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
WIDTHS = (64, 128, 256, 512)
STRIDES = (4, 8, 16, 32)
#: Smaller images leave nothing to pool behind the stem.
SMALLEST_SIDE = 7


class PResNet(nn.Module):
    """Residual network that returns the maps of chosen stages.

    Frozen parts take no gradients from their construction on. The norms in them still update
    their running statistics in training unless `freeze_norm` is set, as in the official code.

    Args:
        depth: 18, 34 (two 3x3 convolutions a block), 50 or 101 (bottlenecks).
        variant: a: the stride of a bottleneck sits on its first convolution; b: on its second;
            c: also a stem of three convolutions; d: also average pooling in strided shortcuts.
        num_stages: stages to build, 1 to 4.
        return_idx: stages whose maps are returned, in this order; counted from 0.
        act: activation of all blocks and of the stem.
        freeze_at: -1 freezes nothing; n >= 0 freezes the stem and stages 0 to n - 1.
        freeze_norm: hold weights and statistics of all norms constant, as buffers.

    Attributes:
        out_channels: channels of each returned map.
        out_strides: pixels of the image per cell of each returned map.
    """

    def __init__(
        self,
        depth: int,
        variant: Variant = "d",
        num_stages: int = 4,
        return_idx: Sequence[int] = (0, 1, 2, 3),
        act: Activation = "relu",
        freeze_at: int = -1,
        freeze_norm: bool = True,
    ) -> None:
        super().__init__()
        _check(depth, variant, num_stages, return_idx, freeze_at)
        style = _Style(variant, act, freeze_norm)
        block = BasicBlock if depth < 50 else Bottleneck
        counts = BLOCKS[depth][:num_stages]
        inputs = (WIDTHS[0], *(width * block.expansion for width in WIDTHS))
        stages = [
            Stage(block, cin, width, count, style, shrink=i > 0)
            for i, (cin, width, count) in enumerate(zip(inputs, WIDTHS, counts, strict=False))
        ]
        self.return_idx = tuple(return_idx)
        self.conv1 = _stem(style)
        self.pool = nn.Pool(3, 2, 1, op="maximum")
        self.res_layers = nn.ModuleList(stages)
        self.out_channels = [WIDTHS[i] * block.expansion for i in self.return_idx]
        self.out_strides = [STRIDES[i] for i in self.return_idx]
        if freeze_at >= 0:
            _freeze([self.conv1, *stages[:freeze_at]])

    def execute(self, image: jt.Var) -> list[jt.Var]:
        """Maps of the chosen stages.

        Args:
            image: (B, 3, H, W), values in [0, 1]; H and W at least 7.

        Returns:
            A map (B, C, ceil(H / stride), ceil(W / stride)) for each entry of `return_idx`.
        """
        if min(image.shape[2:]) < SMALLEST_SIDE:
            raise ValueError(
                f"an image of {image.shape[2]}x{image.shape[3]} pixels is too small for PResNet; "
                f"both sides must be at least {SMALLEST_SIDE}"
            )
        x = self.pool(self.conv1(image))
        maps = []
        for stage in self.res_layers:
            x = stage(x)
            maps.append(x)
        return [maps[i] for i in self.return_idx]


@dataclass(frozen=True)
class _Style:
    """What all blocks of a network have in common."""

    variant: Variant
    act: Activation
    freeze_norm: bool

    def unit(
        self, cin: int, cout: int, kernel: int, stride: int = 1, *, plain: bool = False
    ) -> ConvNorm:
        """Convolution and norm, with the activation unless it is `plain`."""
        act = None if plain else self.act
        return ConvNorm(cin, cout, kernel, stride, act, freeze_norm=self.freeze_norm)

    def shortcut(self, cin: int, cout: int, stride: int) -> nn.Module:
        """The shortcut of a stage's first block."""
        if self.variant == "d" and stride == 2:
            return PooledShortcut(self.unit(cin, cout, 1, plain=True))
        return self.unit(cin, cout, 1, stride, plain=True)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, a projection in a stage's `first` block."""

    expansion = 1

    def __init__(self, cin: int, width: int, stride: int, style: _Style, first: bool) -> None:
        super().__init__()
        self.short = style.shortcut(cin, width, stride) if first else None
        self.branch2a = style.unit(cin, width, 3, stride)
        self.branch2b = style.unit(width, width, 3, plain=True)
        self.act = activation(style.act)

    def execute(self, x: jt.Var) -> jt.Var:
        short = x if self.short is None else self.short(x)
        return self.act(self.branch2b(self.branch2a(x)) + short)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution beside a shortcut; four times as wide outside as inside."""

    expansion = 4

    def __init__(self, cin: int, width: int, stride: int, style: _Style, first: bool) -> None:
        super().__init__()
        cout = width * self.expansion
        stride_a, stride_b = (stride, 1) if style.variant == "a" else (1, stride)
        self.short = style.shortcut(cin, cout, stride) if first else None
        self.branch2a = style.unit(cin, width, 1, stride_a)
        self.branch2b = style.unit(width, width, 3, stride_b)
        self.branch2c = style.unit(width, cout, 1, plain=True)
        self.act = activation(style.act)

    def execute(self, x: jt.Var) -> jt.Var:
        short = x if self.short is None else self.short(x)
        return self.act(self.branch2c(self.branch2b(self.branch2a(x))) + short)


class Stage(nn.Module):
    """Blocks of one width; the first one changes the channels, and halves the map to `shrink` it.

    Args:
        block: kind of its blocks.
        cin: channels of the input.
        width: channels inside a block.
        count: number of blocks.
        style: see _Style.
        shrink: whether it halves the map.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        cin: int,
        width: int,
        count: int,
        style: _Style,
        shrink: bool,
    ) -> None:
        super().__init__()
        blocks = [block(cin, width, 2 if shrink else 1, style, first=True)]
        for _ in range(count - 1):
            blocks.append(block(width * block.expansion, width, 1, style, first=False))
        self.blocks = nn.ModuleList(blocks)

    def execute(self, x: jt.Var) -> jt.Var:
        for block in self.blocks:
            x = block(x)
        return x


class PooledShortcut(nn.Module):
    """2x2 average pooling and a 1x1 convolution named `conv`: variant d's strided shortcut."""

    def __init__(self, unit: ConvNorm) -> None:
        super().__init__()
        self.conv = unit

    def execute(self, x: jt.Var) -> jt.Var:
        return self.conv(average_pool(x))


def average_pool(x: jt.Var) -> jt.Var:
    """Average over 2x2 cells, in "ceil mode": the last cells of an odd side are averaged alone.

    Jittor's own layer refuses maps of 2x2 cells and less.

    Args:
        x: maps, (B, C, H, W).

    Returns:
        (B, C, ceil(H / 2), ceil(W / 2)).
    """
    B, C, H, W = x.shape
    if H % 2 or W % 2:
        x = nn.pad(x, [0, W % 2, 0, H % 2])
    h, w = x.shape[2] // 2, x.shape[3] // 2
    total = x.reshape(B, C, h, 2, w, 2).sum((3, 5))
    if (2 * h, 2 * w) == (H, W):
        return total * 0.25
    rows, columns = np.full((h, 1), 2.0, np.float32), np.full((1, w), 2.0, np.float32)
    rows[-1] -= H % 2
    columns[:, -1] -= W % 2
    return total * jt.array(1 / (rows * columns)).reshape(1, 1, h, w)


def _stem(style: _Style) -> nn.Module:
    if style.variant in ("a", "b"):
        units = [style.unit(3, 64, 7, 2)]
    else:
        units = [style.unit(3, 32, 3, 2), style.unit(32, 32, 3), style.unit(32, 64, 3)]
    return nn.Sequential(OrderedDict((f"conv1_{i}", unit) for i, unit in enumerate(units, 1)))


def _freeze(parts: Iterable[nn.Module]) -> None:
    for part in parts:
        for tensor in part.parameters():
            tensor.stop_grad()


def _check(
    depth: int, variant: str, num_stages: int, return_idx: Sequence[int], freeze_at: int
) -> None:
    if depth not in BLOCKS:
        raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))}, got {depth!r}")
    if variant not in ("a", "b", "c", "d"):
        raise ValueError(f'variant must be "a", "b", "c" or "d", got {variant!r}')
    if not 1 <= num_stages <= len(WIDTHS):
        raise ValueError(f"num_stages must be from 1 to {len(WIDTHS)}, got {num_stages}")
    if not return_idx or any(not 0 <= i < num_stages for i in return_idx):
        raise ValueError(
            f"return_idx must name stages from 0 to {num_stages - 1}, got {list(return_idx)}"
        )
    if not -1 <= freeze_at <= num_stages:
        raise ValueError(f"freeze_at must be from -1 to {num_stages}, got {freeze_at}")
