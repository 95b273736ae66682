"""DFormer's encoder in PyTorch, by the same specification and with the names of segtasks.models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from dformer_torch_layers import DropPath, LayerNorm2d, depthwise, linear, product, resize
from torch import nn


def scale(channels: int) -> nn.Parameter:
    return nn.Parameter(torch.full((channels,), 1e-6))


def channel(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(1, -1, 1, 1)


class Mlp(nn.Module):
    """MLP of v1."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.norm, self.fc1 = LayerNorm2d(dim), linear(dim, dim * ratio)
        self.pos, self.fc2 = depthwise(dim * ratio, 3), linear(dim * ratio, dim)

    def forward(self, x):
        x = self.fc1(self.norm(x))
        return self.fc2(F.gelu(x + self.pos(x)))


class Attention(nn.Module):
    """Global and local attention of v1."""

    def __init__(self, dim: int, heads: int, last: bool) -> None:
        super().__init__()
        half, self.heads, self.last = dim // 2, heads, last
        self.q, self.q_cut = linear(dim, dim), linear(dim, half)
        self.a, self.l = linear(dim, dim), linear(dim, dim)
        self.conv, self.e_conv = depthwise(dim, 7), depthwise(half, 7)
        self.e_fore, self.e_back = linear(half, half), linear(half, half)
        width = 2 * dim if heads else dim + half
        self.proj = linear(width, dim)
        if not last:
            self.proj_e = linear(width, half)
        if heads:
            self.short_cut_linear, self.kv = linear(dim + half, half), linear(dim, dim)
        self.norm, self.norm_e = LayerNorm2d(dim), LayerNorm2d(half)

    def forward(self, x, e):
        x, e = self.norm(x), self.norm_e(e)
        shared = F.gelu(self.l(x))
        guidance = self.e_back(self.e_conv(self.e_fore(e)))
        parts = [self.q(x) * self.a(self.conv(shared))]
        if self.heads:
            parts.append(self.look(shared, x, e))
        parts.append(self.q_cut(x) * guidance)
        joined = torch.cat(parts, 1)
        return self.proj(joined), guidance if self.last else self.proj_e(joined)

    def look(self, shared, x, e):
        B, C, H, W = x.shape
        width = C // self.heads // 2
        pooled = F.adaptive_avg_pool2d(torch.cat([x, e], 1), 7)
        queries = self.short_cut_linear(pooled).reshape(B * self.heads, width, 49)
        keys, values = (
            t.reshape(B * self.heads, width, H * W) for t in self.kv(shared).chunk(2, 1)
        )
        weights = product(queries.mT * width**-0.5, keys).softmax(2)
        attended = product(values, weights.mT)
        return resize(attended.reshape(B, C // 2, 7, 7), (H, W))


class Block(nn.Module):
    """Block of v1."""

    def __init__(self, dim: int, heads: int, ratio: int, rate: float, last: bool) -> None:
        super().__init__()
        self.last = last
        self.layer_scale_1, self.layer_scale_2 = scale(dim), scale(dim)
        self.attn, self.mlp = Attention(dim, heads, last), Mlp(dim, ratio)
        if not last:
            self.layer_scale_1_e, self.layer_scale_2_e = scale(dim // 2), scale(dim // 2)
            self.mlp_e2 = Mlp(dim // 2, ratio)
        self.drop = DropPath(rate)

    def forward(self, pair):
        x, e = pair
        attended, attended_e = self.attn(x, e)
        x = x + self.drop(attended * channel(self.layer_scale_1))
        x = x + self.drop(self.mlp(x) * channel(self.layer_scale_2))
        if self.last:
            return x, attended_e
        e = e + self.drop(attended_e * channel(self.layer_scale_1_e))
        e = e + self.drop(self.mlp_e2(e) * channel(self.layer_scale_2_e))
        return x, e


def stem(cin: int, dim: int) -> nn.Sequential:
    half = dim // 2
    return nn.Sequential(
        nn.Conv2d(cin, half, 3, 2, 1), nn.BatchNorm2d(half), nn.GELU(),
        nn.Conv2d(half, dim, 3, 2, 1), nn.BatchNorm2d(dim),
    )  # fmt: skip


def smaller(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(cin), nn.Conv2d(cin, cout, 3, 2, 1))


class Encoder(nn.Module):
    """DFormer."""

    def __init__(self, dims: tuple[int, ...], depths: tuple[int, ...], rate: float) -> None:
        super().__init__()
        self.dims, half = dims, [d // 2 for d in dims]
        for name, widths, cin in (("", dims, 3), ("_e", half, 1)):
            later = [smaller(widths[i], widths[i + 1]) for i in range(3)]
            downs = nn.ModuleList([stem(cin, widths[0]), *later])
            setattr(self, f"downsample_layers{name}", downs)
        rates = iter(torch.linspace(0, rate, sum(depths)).tolist())
        self.stages = nn.ModuleList()
        for i, depth in enumerate(depths):
            heads, ratio = (0, 2, 4, 8)[i], (8, 8, 4, 4)[i]
            self.stages.append(
                nn.Sequential(
                    *[
                        Block(dims[i], heads, ratio, next(rates), i == 3 and k == depth - 1)
                        for k in range(depth)
                    ]
                )
            )

    def forward(self, x, e):
        features = []
        for down, down_e, blocks in zip(
            self.downsample_layers, self.downsample_layers_e, self.stages, strict=True
        ):
            x, e = blocks((down(x), down_e(e)))
            features.append(x)
        return features
