"""DFormer encoder: image and depth in one backbone.

After "DFormer: Rethinking RGBD Representation Learning for Semantic Segmentation" (Yin et al.,
ICLR 2024).

Maps are channels first throughout; the official code works channels last between convolutions.
Parameter names are the official ones. Linear layers and convolutions start from PyTorch's defaults,
which are Jittor's as well: uniform in +-1/sqrt(fan_in).
"""

from __future__ import annotations

from collections.abc import Sequence

import jittor as jt
from jittor import nn

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
from segtasks.ops.resize import adaptive_average_pool, resize_bilinear

LAYER_SCALE_INIT = 1e-6
#: Side of the grid of pooled queries; fixed in the official code.
QUERY_GRID = 7


class DFormerEncoder(nn.Module):
    """Four stages of blocks in which depth guides the features of the image.

    Args:
        dims: channels of the image branch per stage; the depth branch has half of them.
        depths: blocks per stage.
        heads: heads of the global attention per stage.
        mlp_ratios: hidden width of the MLPs over their channels, per stage.
        drop_path: drop path rate of the last block; it grows linearly from 0 at the first.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        self.dims = tuple(dims)
        half = [dim // 2 for dim in dims]
        self.downsample_layers = nn.ModuleList(
            [_stem(3, dims[0]), *(_downsampler(dims[i], dims[i + 1]) for i in range(3))]
        )
        self.downsample_layers_e = nn.ModuleList(
            [_stem(1, half[0]), *(_downsampler(half[i], half[i + 1]) for i in range(3))]
        )
        rates = drop_path_rates(drop_path, sum(depths))
        self.stages = nn.ModuleList()
        for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            blocks = [
                Block(
                    dim,
                    # Stage 0 has no global attention.
                    heads=heads[stage] if stage > 0 else 0,
                    mlp_ratio=mlp_ratios[stage],
                    drop_path=next(rates),
                    drop_depth=stage == 3 and i == depth - 1,
                )
                for i in range(depth)
            ]
            self.stages.append(nn.Sequential(*blocks))

    def execute(self, image: jt.Var, depth: jt.Var) -> list[jt.Var]:
        """Features of the image branch.

        Args:
            image: (B, 3, H, W).
            depth: (B, k, H, W); only its first channel is used.

        Returns:
            Four maps (B, dims[i], ceil(H / s), ceil(W / s)) at strides s = 4, 8, 16, 32.
        """
        x, e = image, depth[:, :1]
        features = []
        layers = zip(self.downsample_layers, self.downsample_layers_e, self.stages, strict=True)
        for downsample, downsample_e, blocks in layers:
            x, e = downsample(x), downsample_e(e)
            for block in blocks:
                x, e = block(x, e)
            features.append(x)
        return features


class Block(nn.Module):
    """Attention and MLP, for the image and (unless dropped) for the depth (figure 3).

    Args:
        dim: channels C of the image branch; the depth branch has C / 2.
        heads: heads of the global attention; 0 leaves it out.
        mlp_ratio: hidden width of the MLPs over their channels.
        drop_path: drop path rate.
        drop_depth: this is the last block, whose depth output nobody uses.
    """

    def __init__(
        self, dim: int, heads: int, mlp_ratio: int, drop_path: float, drop_depth: bool
    ) -> None:
        super().__init__()
        self.drop_depth = drop_depth
        self.layer_scale_1 = jt.full((dim,), LAYER_SCALE_INIT)
        self.layer_scale_2 = jt.full((dim,), LAYER_SCALE_INIT)
        if not drop_depth:
            self.layer_scale_1_e = jt.full((dim // 2,), LAYER_SCALE_INIT)
            self.layer_scale_2_e = jt.full((dim // 2,), LAYER_SCALE_INIT)
        self.attn = Attention(dim, heads, drop_depth)
        self.mlp = MLP(dim, mlp_ratio)
        if not drop_depth:
            self.mlp_e2 = MLP(dim // 2, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def execute(self, x: jt.Var, e: jt.Var) -> tuple[jt.Var, jt.Var]:
        """(B, C, H, W) and (B, C / 2, H, W) -> the same shapes."""
        attended, attended_e = self.attn(x, e)
        x = x + self._branch(self.layer_scale_1, attended)
        x = x + self._branch(self.layer_scale_2, self.mlp(x))
        if self.drop_depth:
            return x, attended_e
        e = e + self._branch(self.layer_scale_1_e, attended_e)
        e = e + self._branch(self.layer_scale_2_e, self.mlp_e2(e))
        return x, e

    def _branch(self, scale: jt.Var, x: jt.Var) -> jt.Var:
        return self.drop_path(x * per_channel(scale))


class MLP(nn.Module):
    """Two linear layers with a depthwise convolution, added before the activation, in between.

    Args:
        dim: channels of input and output.
        ratio: hidden channels over `dim`.
    """

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.fc1 = Linear2d(dim, dim * ratio)
        self.pos = depthwise_conv(dim * ratio, 3)
        self.fc2 = Linear2d(dim * ratio, dim)

    def execute(self, x: jt.Var) -> jt.Var:
        x = self.fc1(self.norm(x))
        return self.fc2(nn.gelu(x + self.pos(x)))


class Attention(nn.Module):
    """Global awareness attention and local enhancement attention (section 2.2, equations 1 to 4).

    Args:
        dim: channels C of the image branch; the depth branch has C / 2.
        heads: heads of the global attention; 0 leaves it out.
        drop_depth: give back the raw depth guidance instead of a projected depth output.
    """

    def __init__(self, dim: int, heads: int, drop_depth: bool) -> None:
        super().__init__()
        half = dim // 2
        self.heads, self.drop_depth = heads, drop_depth
        self.q = Linear2d(dim, dim)
        self.q_cut = Linear2d(dim, half)
        self.a = Linear2d(dim, dim)
        self.l = Linear2d(dim, dim)
        self.conv = depthwise_conv(dim, 7)
        self.e_conv = depthwise_conv(half, 7)
        self.e_fore = Linear2d(half, half)
        self.e_back = Linear2d(half, half)
        width = 2 * dim if heads else dim + half
        self.proj = Linear2d(width, dim)
        if not drop_depth:
            self.proj_e = Linear2d(width, half)
        if heads:
            self.short_cut_linear = Linear2d(dim + half, half)
            self.kv = Linear2d(dim, dim)
        self.norm = LayerNorm2d(dim)
        self.norm_e = LayerNorm2d(half)

    def execute(self, x: jt.Var, e: jt.Var) -> tuple[jt.Var, jt.Var]:
        """(B, C, H, W) and (B, C / 2, H, W) -> updates of both, before scale and residual."""
        x, e = self.norm(x), self.norm_e(e)
        shared = nn.gelu(self.l(x))
        guidance = self.e_back(self.e_conv(self.e_fore(e)))
        parts = [self.q(x) * self.a(self.conv(shared))]
        if self.heads:
            parts.append(self._global(shared, x, e))
        parts.append(self.q_cut(x) * guidance)
        joined = jt.concat(parts, 1)
        return self.proj(joined), guidance if self.drop_depth else self.proj_e(joined)

    def _global(self, shared: jt.Var, x: jt.Var, e: jt.Var) -> jt.Var:
        """Pooled queries of image and depth look at all pixels of the image: (B, C / 2, H, W)."""
        B, C, H, W = x.shape
        width = C // self.heads // 2
        groups = B * self.heads
        pooled = adaptive_average_pool(jt.concat([x, e], 1), QUERY_GRID)
        queries = self.short_cut_linear(pooled).reshape(groups, width, QUERY_GRID**2)
        key_values = self.kv(shared)
        keys = key_values[:, : C // 2].reshape(groups, width, H * W)
        values = key_values[:, C // 2 :].reshape(groups, width, H * W)
        scores = batched_matmul(queries * width**-0.5, keys, transpose_a=True)
        weights = nn.softmax(scores, dim=2)  # (groups, 49, H * W)
        attended = batched_matmul(values, weights, transpose_b=True)  # (groups, width, 49)
        grid = attended.reshape(B, C // 2, QUERY_GRID, QUERY_GRID)
        return resize_bilinear(grid, (H, W))


def _stem(in_channels: int, dim: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, dim // 2, 3, stride=2, padding=1),
        BatchNorm2d(dim // 2),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1),
        BatchNorm2d(dim),
    )


def _downsampler(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(
        BatchNorm2d(in_channels),
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1),
    )
