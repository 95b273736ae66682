"""The hybrid encoder of RT-DETR, with the official parameter names.

Section 4.2 of "DETRs Beat YOLOs on Real-time Object Detection" (Zhao et al., CVPR 2024):
attention within the coarsest maps (AIFI), then fusion of neighbouring maps by convolutions, top
down and bottom up (CCFF).
"""

from __future__ import annotations

from collections.abc import Sequence

import jittor as jt
from jittor import nn

from segtasks.models.layers import BatchNorm2d
from segtasks.models.rtdetr.geometry import position_embedding
from segtasks.models.rtdetr.layers import (
    Activation,
    ConvNorm,
    LayerNorm,
    MultiheadAttention,
    activation,
    identical_layers,
    make_dropout,
)


class HybridEncoder(nn.Module):
    """Fuse the maps of a backbone, each twice as large as the next.

    Args:
        in_channels: channels of the backbone's maps, fine to coarse.
        feat_strides: pixels of the image per cell of each map.
        hidden_dim: channels of all maps inside and behind the encoder.
        nhead: heads of the attention.
        dim_feedforward: features between the linear layers of an attention block.
        dropout: probability of dropping a value in the attention blocks.
        enc_act: activation of the attention blocks.
        use_encoder_idx: levels with attention, counted from the finest, 0.
        num_encoder_layers: attention blocks on each of them; 0 for none.
        pe_temperature: base of the wavelengths of the position embedding.
        expansion: channels inside a fusion block, as a share of `hidden_dim`.
        depth_mult: multiplies the number of convolution pairs of a fusion block, 3.
        act: activation of the convolutions.

    Attributes:
        out_channels: channels of each returned map.
        out_strides: pixels of the image per cell of each returned map.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (512, 1024, 2048),
        feat_strides: Sequence[int] = (8, 16, 32),
        hidden_dim: int = 256,
        nhead: int = 8,
        dim_feedforward: int = 1024,
        dropout: float = 0.0,
        enc_act: Activation = "gelu",
        use_encoder_idx: Sequence[int] = (2,),
        num_encoder_layers: int = 1,
        pe_temperature: float = 10000.0,
        expansion: float = 1.0,
        depth_mult: float = 1.0,
        act: Activation = "silu",
    ) -> None:
        super().__init__()
        levels = len(in_channels)
        _check(levels, feat_strides, use_encoder_idx, num_encoder_layers)
        if hidden_dim % 4:
            raise ValueError(f"hidden_dim must be a multiple of 4, got {hidden_dim}")
        self.hidden_dim, self.pe_temperature = hidden_dim, pe_temperature
        self.use_encoder_idx = tuple(use_encoder_idx) if num_encoder_layers else ()
        self.out_channels = [hidden_dim] * levels
        self.out_strides = list(feat_strides)

        def attention() -> EncoderLayer:
            return EncoderLayer(hidden_dim, nhead, dim_feedforward, dropout, enc_act)

        def fusion() -> CSPRepLayer:
            count = round(3 * depth_mult)
            return CSPRepLayer(2 * hidden_dim, hidden_dim, count, expansion, act)

        def fusions() -> nn.ModuleList:
            return nn.ModuleList([fusion() for _ in range(levels - 1)])

        def units(kernel: int, stride: int) -> nn.ModuleList:
            return nn.ModuleList(
                [ConvNorm(hidden_dim, hidden_dim, kernel, stride, act) for _ in range(levels - 1)]
            )

        self.input_proj = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(cin, hidden_dim, 1, bias=False), BatchNorm2d(hidden_dim))
                for cin in in_channels
            ]
        )
        blocks = list(identical_layers(attention, len(self.use_encoder_idx) * num_encoder_layers))
        self.encoder = nn.ModuleList(
            [
                EncoderStack(blocks[i * num_encoder_layers : (i + 1) * num_encoder_layers])
                for i in range(len(self.use_encoder_idx))
            ]
        )
        self.lateral_convs, self.fpn_blocks = units(1, 1), fusions()
        self.downsample_convs, self.pan_blocks = units(3, 2), fusions()

    def execute(self, maps: Sequence[jt.Var]) -> list[jt.Var]:
        """Fused maps.

        Args:
            maps: (B, C, H, W) for each of `in_channels`, fine to coarse.

        Returns:
            (B, hidden_dim, H, W) for each map.

        Raises:
            ValueError: There are more or fewer maps, or one is not twice as large as the next:
                the sides of the image are no multiples of 32.
        """
        self._check_sizes(maps)
        projected = [proj(x) for proj, x in zip(self.input_proj, maps, strict=True)]
        for stack, i in zip(self.encoder, self.use_encoder_idx, strict=True):
            projected[i] = self._attend(stack, projected[i])
        return self._bottom_up(self._top_down(projected))

    def _attend(self, stack: EncoderStack, x: jt.Var) -> jt.Var:
        B, dim, h, w = x.shape
        position = position_embedding(w, h, self.hidden_dim, self.pe_temperature)
        tokens = x.reshape(B, dim, h * w).transpose(0, 2, 1)
        tokens = stack(tokens, jt.array(position))
        return tokens.transpose(0, 2, 1).reshape(B, dim, h, w)

    def _top_down(self, projected: list[jt.Var]) -> list[jt.Var]:
        """Maps fine to coarse; all but the finest are what was handed up to the next finer one."""
        x, fused = projected[-1], []
        finer = reversed(projected[:-1])
        for lateral, block, below in zip(self.lateral_convs, self.fpn_blocks, finer, strict=True):
            x = lateral(x)
            fused.append(x)
            x = block(jt.concat([upsample(x), below], 1))
        return [x, *reversed(fused)]

    def _bottom_up(self, fused: list[jt.Var]) -> list[jt.Var]:
        outputs = fused[:1]
        for shrink, block, x in zip(self.downsample_convs, self.pan_blocks, fused[1:], strict=True):
            outputs.append(block(jt.concat([shrink(outputs[-1]), x], 1)))
        return outputs

    def _check_sizes(self, maps: Sequence[jt.Var]) -> None:
        if len(maps) != len(self.input_proj):
            raise ValueError(f"the encoder takes {len(self.input_proj)} maps, got {len(maps)}")
        sizes = [tuple(x.shape[2:]) for x in maps]
        for i in range(1, len(sizes)):
            if sizes[i - 1] != (2 * sizes[i][0], 2 * sizes[i][1]):
                listed = ", ".join(f"{h}x{w}" for h, w in sizes)
                raise ValueError(
                    f"maps of {listed} (height x width) do not halve from one to the next; both "
                    f"sides of the image must be multiples of {self.out_strides[-1]}"
                )


class EncoderStack(nn.Module):
    """Attention blocks in a row, without a norm behind them."""

    def __init__(self, layers: list[EncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def execute(self, x: jt.Var, position: jt.Var) -> jt.Var:
        for layer in self.layers:
            x = layer(x, position)
        return x


class EncoderLayer(nn.Module):
    """Self-attention and two linear layers, each beside a shortcut.

    "Attention Is All You Need" (Vaswani et al., 2017), section 3.1; positions are added to
    queries and keys only.

    Args:
        dim: features of a token.
        heads: heads of the attention.
        hidden: features between the linear layers.
        dropout: probability of dropping a value.
        act: activation between the linear layers.
        normalize_before: norms in front of the branches instead of behind the sums.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        dropout: float = 0.0,
        act: Activation = "gelu",
        normalize_before: bool = False,
    ) -> None:
        super().__init__()
        self.normalize_before = normalize_before
        self.self_attn = MultiheadAttention(dim, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = LayerNorm(dim), LayerNorm(dim)
        self.drop = make_dropout(dropout)
        self.act = activation(act)

    def execute(self, x: jt.Var, position: jt.Var) -> jt.Var:
        """Tokens (B, L, dim) and their positions (1, L, dim) -> (B, L, dim)."""
        if self.normalize_before:
            x = x + self._attend(self.norm1(x), position)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attend(x, position))
        return self.norm2(x + self._feed_forward(x))

    def _attend(self, x: jt.Var, position: jt.Var) -> jt.Var:
        placed = x + position
        return self.drop(self.self_attn(placed, placed, x))

    def _feed_forward(self, x: jt.Var) -> jt.Var:
        return self.drop(self.linear2(self.drop(self.act(self.linear1(x)))))


class CSPRepLayer(nn.Module):
    """Fusion block: a branch of RepVGG blocks and a plain one, added up.

    Args:
        cin: channels of the input.
        cout: channels of the output.
        count: RepVGG blocks.
        expansion: channels inside, as a share of `cout`.
        act: activation of all convolutions.
    """

    def __init__(self, cin: int, cout: int, count: int, expansion: float, act: Activation) -> None:
        super().__init__()
        hidden = int(cout * expansion)
        self.conv1 = ConvNorm(cin, hidden, 1, act=act)
        self.conv2 = ConvNorm(cin, hidden, 1, act=act)
        self.bottlenecks = nn.Sequential(*[RepVGGBlock(hidden, act) for _ in range(count)])
        same = hidden == cout
        self.conv3 = nn.Identity() if same else ConvNorm(hidden, cout, 1, act=act)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))


class RepVGGBlock(nn.Module):
    """A 3x3 and a 1x1 convolution side by side, one convolution once they are merged.

    "RepVGG: Making VGG-style ConvNets Great Again" (Ding et al., CVPR 2021), without the identity
    branch. `segtasks.models.rtdetr.deploy` merges.

    Args:
        channels: channels of the input and the output.
        act: activation of the sum.
    """

    def __init__(self, channels: int, act: Activation) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)
        self.conv: nn.Conv2d | None = None  # in place of both
        self.act = activation(act)

    def execute(self, x: jt.Var) -> jt.Var:
        if self.conv is not None:
            return self.act(self.conv(x))
        return self.act(self.conv1(x) + self.conv2(x))


def upsample(x: jt.Var) -> jt.Var:
    """Repeat every cell twice along both axes: (B, C, H, W) -> (B, C, 2 H, 2 W)."""
    B, C, H, W = x.shape
    x = x.reshape(B, C, H, 1, W, 1).broadcast((B, C, H, 2, W, 2))
    return x.reshape(B, C, 2 * H, 2 * W)


def _check(
    levels: int, feat_strides: Sequence[int], use_encoder_idx: Sequence[int], layers: int
) -> None:
    if len(feat_strides) != levels:
        raise ValueError(
            f"feat_strides must have an entry for each of {levels} maps, got {list(feat_strides)}"
        )
    if any(not 0 <= i < levels for i in use_encoder_idx):
        raise ValueError(
            f"use_encoder_idx must name maps from 0 to {levels - 1}, got {list(use_encoder_idx)}"
        )
    if layers < 0:
        raise ValueError(f"num_encoder_layers must be 0 or more, got {layers}")
