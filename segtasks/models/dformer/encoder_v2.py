"""DFormerv2 encoder: depth is not encoded, it only shapes the bias of the attention.

After "DFormerv2: Geometry Self-Attention for RGBD Semantic Segmentation" (Yin et al., CVPR 2025).

Maps are channels first throughout; the official code works channels last between convolutions.
Parameter names are the official ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import jittor as jt
from jittor import nn

from segtasks.models.dformer.geometry import Geometry, GeometryPrior, GeometrySettings
from segtasks.models.layers import (
    BatchNorm2d,
    DropPath,
    LayerNorm2d,
    Linear2d,
    depthwise_conv,
    drop_path_rates,
    per_channel,
)
from segtasks.ops.matmul import batched_matmul

LAYER_SCALE_INIT = 1e-6
#: Standard deviation of the linear weights at the start; cut at +-2, that is at 100 of them.
LINEAR_STD = 0.02


class DFormerV2Encoder(nn.Module):
    """Four stages of blocks with geometry self-attention: axial in three stages, full in the last.

    Args:
        dims: channels per stage.
        depths: blocks per stage.
        heads: attention heads per stage.
        heads_ranges: spread of the decay over the heads, per stage.
        ffn_ratios: hidden width of the feed-forward networks over their channels, per stage.
        layer_scale: scale the branches of stages 2 and 3 by learnt factors.
        drop_path: drop path rate of the last block; it grows linearly from 0 at the first.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        heads_ranges: Sequence[int],
        ffn_ratios: Sequence[int] = (4, 4, 3, 3),
        layer_scale: bool = False,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        self.dims = tuple(dims)
        self.patch_embed = PatchEmbed(dims[0])
        rates = drop_path_rates(drop_path, sum(depths))
        self.layers = nn.ModuleList()
        for i, depth in enumerate(depths):
            geometry = GeometrySettings(dims[i] // heads[i], heads[i], heads_ranges[i], axial=i < 3)
            blocks = [
                BlockV2(dims[i], geometry, ffn_ratios[i], layer_scale and i >= 2, next(rates))
                for _ in range(depth)
            ]
            merge = Merge(dims[i], dims[i + 1]) if i < 3 else None
            self.layers.append(Stage(blocks, merge))
        # eps is 1e-5 here and 1e-6 inside the blocks.
        self.extra_norms = nn.ModuleList([LayerNorm2d(dim, eps=1e-5) for dim in dims[1:]])
        _init_linears(self)

    def execute(self, image: jt.Var, depth: jt.Var) -> list[jt.Var]:
        """Features of the image.

        Args:
            image: (B, 3, H, W).
            depth: (B, k, H, W); only its first channel is used.

        Returns:
            Four maps (B, dims[i], ceil(H / s), ceil(W / s)) at strides s = 4, 8, 16, 32.
        """
        depth = depth[:, :1]
        x = self.patch_embed(image)
        features = []
        for i, stage in enumerate(self.layers):
            for block in stage.blocks:
                x = block(x, depth)
            features.append(x if i == 0 else self.extra_norms[i - 1](x))
            if i < 3:
                x = stage.downsample(x)
        return features


class PatchEmbed(nn.Module):
    """Four convolutions to stride 4.

    Args:
        dim: channels of the output.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.proj = nn.Sequential(
            nn.Conv2d(3, half, 3, stride=2, padding=1),
            BatchNorm2d(half),
            nn.GELU(),
            nn.Conv2d(half, half, 3, padding=1),
            BatchNorm2d(half),
            nn.GELU(),
            nn.Conv2d(half, dim, 3, stride=2, padding=1),
            BatchNorm2d(dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            BatchNorm2d(dim),
        )

    def execute(self, x: jt.Var) -> jt.Var:
        return self.proj(x)


class Merge(nn.Module):
    """Halve the size of the map: strided convolution, then batch norm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.norm = BatchNorm2d(out_channels)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.norm(self.reduction(x))


class Stage(nn.Module):
    """A container that gives the parts of a stage their official names.

    Args:
        blocks: the blocks, in order.
        merge: what follows the blocks; None in the last stage.
    """

    def __init__(self, blocks: Sequence[nn.Module], merge: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(list(blocks))
        if merge is not None:
            self.downsample = merge


class GeometryAttention(nn.Module):
    """Self-attention with rotated queries and keys and a geometry bias (section 3.2).

    Args:
        dim: channels C.
        settings: see GeometrySettings.
    """

    def __init__(self, dim: int, settings: GeometrySettings) -> None:
        super().__init__()
        self.heads, self.axial = settings.heads, settings.axial
        self.scale = settings.head_width**-0.5
        self.q_proj = Linear2d(dim, dim)
        self.k_proj = Linear2d(dim, dim)
        self.v_proj = Linear2d(dim, dim)
        self.lepe = DepthwiseConv(dim, 5)
        self.out_proj = Linear2d(dim, dim)

    def execute(self, x: jt.Var, prior: GeometryPrior) -> jt.Var:
        """(B, C, h, w) -> (B, C, h, w)."""
        B, C, H, W = x.shape
        shape = (B, self.heads, C // self.heads, H, W)
        values = self.v_proj(x)
        queries = _rotate(self.q_proj(x).reshape(shape), prior)
        keys = _rotate((self.k_proj(x) * self.scale).reshape(shape), prior)
        attend = _attend_axial if self.axial else _attend_full
        attended = attend(queries, keys, values.reshape(shape), prior)
        return self.out_proj(attended.reshape(B, C, H, W) + self.lepe(values))


class FeedForward(nn.Module):
    """Two linear layers with a depthwise convolution, added after the activation, in between.

    Args:
        dim: channels of input and output.
        ratio: hidden channels over `dim`.
    """

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = Linear2d(dim, dim * ratio)
        self.fc2 = Linear2d(dim * ratio, dim)
        self.dwconv = DepthwiseConv(dim * ratio, 3)

    def execute(self, x: jt.Var) -> jt.Var:
        x = nn.gelu(self.fc1(x))
        return self.fc2(x + self.dwconv(x))


class BlockV2(nn.Module):
    """Position encoding, geometry self-attention and feed-forward network.

    Args:
        dim: channels C.
        settings: see GeometrySettings.
        ffn_ratio: hidden width of the feed-forward network over C.
        layer_scale: scale both branches by learnt factors.
        drop_path: drop path rate.
    """

    def __init__(
        self,
        dim: int,
        settings: GeometrySettings,
        ffn_ratio: int,
        layer_scale: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm2d(dim)
        self.layer_norm2 = LayerNorm2d(dim)
        self.Attention = GeometryAttention(dim, settings)
        self.ffn = FeedForward(dim, ffn_ratio)
        self.cnn_pos_encode = DepthwiseConv(dim, 3)
        self.Geo = Geometry(settings)
        self.layer_scale = layer_scale
        if layer_scale:
            self.gamma_1 = jt.full((1, 1, 1, dim), LAYER_SCALE_INIT)
            self.gamma_2 = jt.full((1, 1, 1, dim), LAYER_SCALE_INIT)
        self.drop_path = DropPath(drop_path)

    def execute(self, x: jt.Var, depth: jt.Var) -> jt.Var:
        """(B, C, h, w) and the depth plane (B, 1, H, W) -> (B, C, h, w)."""
        x = x + self.cnn_pos_encode(x)
        prior = self.Geo((x.shape[2], x.shape[3]), depth)
        attended = self.Attention(self.layer_norm1(x), prior)
        x = x + self.drop_path(self._scaled("gamma_1", attended))
        return x + self.drop_path(self._scaled("gamma_2", self.ffn(self.layer_norm2(x))))

    def _scaled(self, name: str, x: jt.Var) -> jt.Var:
        return x * per_channel(getattr(self, name)) if self.layer_scale else x


class DepthwiseConv(nn.Module):
    """A depthwise convolution named `dwconv`, as in the official checkpoints.

    Args:
        channels: channels of input and output.
        kernel_size: odd; the size of the map is kept.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.dwconv = depthwise_conv(channels, kernel_size)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.dwconv(x)


def _rotate(x: jt.Var, prior: GeometryPrior) -> jt.Var:
    """Rotate channel pairs (2i, 2i + 1) of (B, n, d, H, W) by their angle at each position."""
    B, n, d, H, W = x.shape
    pairs = x.reshape(B, n, d // 2, 2, H, W)
    swapped = jt.stack([-pairs[:, :, :, 1], pairs[:, :, :, 0]], 3).reshape(x.shape)
    return x * prior.cos + swapped * prior.sin


def _attend_axial(q: jt.Var, k: jt.Var, v: jt.Var, prior: GeometryPrior) -> jt.Var:
    """Attend along rows, then along columns with the same queries and keys; (B, n, d, H, W)."""
    by_rows = (0, 1, 3, 2, 4)  # (B, n, H, d, W)
    v = _attend(q.permute(*by_rows), k.permute(*by_rows), v.permute(*by_rows), prior.rows)
    by_columns = (0, 1, 4, 2, 3)  # (B, n, W, d, H)
    v = _attend(
        q.permute(*by_columns), k.permute(*by_columns), v.permute(0, 1, 4, 3, 2), prior.columns
    )
    return v.permute(0, 1, 3, 4, 2)


def _attend_full(q: jt.Var, k: jt.Var, v: jt.Var, prior: GeometryPrior) -> jt.Var:
    """Attend over all positions; (B, n, d, H, W)."""
    B, n, d, H, W = q.shape
    flat = (B, n, d, H * W)
    return _attend(q.reshape(flat), k.reshape(flat), v.reshape(flat), prior.full).reshape(q.shape)


def _attend(q: jt.Var, k: jt.Var, v: jt.Var, bias: jt.Var) -> jt.Var:
    """Softmax attention along the last axis: (..., d, L) each, bias (..., L, L) -> (..., d, L)."""
    *_, d, L = q.shape
    scores = batched_matmul(q.reshape(-1, d, L), k.reshape(-1, d, L), transpose_a=True)
    weights = nn.softmax(scores + bias.reshape(-1, L, L), dim=2)
    return batched_matmul(v.reshape(-1, d, L), weights, transpose_b=True).reshape(q.shape)


def _init_linears(encoder: nn.Module) -> None:
    """Normal weights of std 0.02 and zero biases; the cut at +-2 can never be reached."""
    for _, layer in encoder.named_modules():
        if isinstance(layer, Linear2d):
            layer.weight = jt.randn(tuple(layer.weight.shape)) * LINEAR_STD
            layer.bias = jt.zeros(tuple(layer.bias.shape))
