"""DFormerv2's encoder in PyTorch, by the same specification and with the names of segtasks.models.

Attention is written as two products and a softmax, as ours is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from dformer_torch_layers import DropPath, LayerNorm2d, depthwise, linear, product, resize
from torch import nn


class Conv(nn.Module):
    """A depthwise convolution under its official name."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.dwconv = depthwise(channels, size)

    def forward(self, x):
        return self.dwconv(x)


class Geometry(nn.Module):
    """Rotation and bias of v2."""

    def __init__(self, width: int, heads: int, spread: int, axial: bool) -> None:
        super().__init__()
        self.axial, self.weight = axial, nn.Parameter(torch.ones(2, 1, 1, 1))
        angle = 1 / 10000 ** torch.linspace(0, 1, width // 2)
        self.register_buffer("angle", angle.repeat_interleave(2))
        exponent = -2 - spread * torch.arange(heads) / heads
        self.register_buffer("decay", torch.log(1 - 2**exponent))

    def forward(self, size, depth):
        h, w = size
        place = torch.arange(h * w, device=depth.device).view(1, h, w)
        phase, plane = place * self.angle.view(-1, 1, 1), resize(depth, size)[:, 0]
        rows, columns = place[0] // w, place[0] % w
        if self.axial:
            biases = self.bias(columns[0], plane), self.bias(rows[:, 0], plane.mT)
        else:
            grid = (rows.flatten(), columns.flatten())
            biases = (self.bias(grid, plane.flatten(1)[:, None])[:, :, 0],)
        return phase.sin(), phase.cos(), biases

    def bias(self, places, planes):
        places = places if isinstance(places, tuple) else (places,)
        distance = sum((p[:, None] - p).abs() for p in places)
        depth = (planes[..., None] - planes[..., None, :]).abs()
        mixed = distance * self.weight[0] + depth * self.weight[1]
        return mixed[:, None] * self.decay.view(1, -1, 1, 1, 1)


def attend(q, k, v, bias):
    """Over the last axis but one of (..., L, d)."""
    return product((product(q, k.mT) + bias).softmax(-1), v)


class GeometryAttention(nn.Module):
    """Attention of v2."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.factor = heads, (dim // heads) ** -0.5
        self.q_proj, self.k_proj, self.v_proj = (linear(dim, dim) for _ in range(3))
        self.lepe, self.out_proj = Conv(dim, 5), linear(dim, dim)

    def forward(self, x, prior):
        B, C, H, W = x.shape
        sin, cos, biases = prior
        values = self.v_proj(x)
        parts = (self.q_proj(x), self.k_proj(x) * self.factor, values)
        q, k, v = (t.view(B, self.heads, -1, H, W) for t in parts)
        # Batch, heads, height, width, features.
        q, k = (rotate(t, sin, cos).permute(0, 1, 3, 4, 2) for t in (q, k))
        v = v.permute(0, 1, 3, 4, 2)
        if len(biases) == 2:
            v = attend(q, k, v, biases[0]).transpose(2, 3)
            v = attend(q.transpose(2, 3), k.transpose(2, 3), v, biases[1]).transpose(2, 3)
        else:
            v = attend(*(t.flatten(2, 3) for t in (q, k, v)), biases[0]).view(v.shape)
        attended = v.permute(0, 1, 4, 2, 3).reshape(B, C, H, W)
        return self.out_proj(attended + self.lepe(values))


def rotate(x, sin, cos):
    swapped = torch.stack([-x[:, :, 1::2], x[:, :, ::2]], 3).flatten(2, 3)
    return x * cos + swapped * sin


class FeedForward(nn.Module):
    """MLP of v2."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(dim, dim * ratio), linear(dim * ratio, dim)
        self.dwconv = Conv(dim * ratio, 3)

    def forward(self, x):
        x = F.gelu(self.fc1(x))
        return self.fc2(x + self.dwconv(x))


class Block(nn.Module):
    """Block of v2."""

    def __init__(self, dim: int, geometry: Geometry, ratio: int, scaled: bool, rate: float) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.Geo, self.Attention = geometry, GeometryAttention(dim, len(geometry.decay))
        self.ffn, self.cnn_pos_encode = FeedForward(dim, ratio), Conv(dim, 3)
        self.scaled, self.drop = scaled, DropPath(rate)
        if scaled:
            self.gamma_1, self.gamma_2 = (
                nn.Parameter(torch.full((1, 1, 1, dim), 1e-6)) for _ in range(2)
            )

    def forward(self, x, depth):
        x = x + self.cnn_pos_encode(x)
        prior = self.Geo(tuple(x.shape[2:]), depth)
        x = x + self.drop(self.branch("gamma_1", self.Attention(self.layer_norm1(x), prior)))
        return x + self.drop(self.branch("gamma_2", self.ffn(self.layer_norm2(x))))

    def branch(self, name, x):
        return x * getattr(self, name).reshape(1, -1, 1, 1) if self.scaled else x


class PatchEmbed(nn.Module):
    """Stem of v2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half, layers = dim // 2, []
        for cin, cout, stride in ((3, half, 2), (half, half, 1), (half, dim, 2), (dim, dim, 1)):
            layers += [nn.Conv2d(cin, cout, 3, stride, 1), nn.BatchNorm2d(cout), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, x):
        return self.proj(x)


class Merge(nn.Module):
    """Halves a map."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.reduction, self.norm = nn.Conv2d(cin, cout, 3, 2, 1), nn.BatchNorm2d(cout)

    def forward(self, x):
        return self.norm(self.reduction(x))


class EncoderV2(nn.Module):
    """DFormerv2."""

    def __init__(self, dims, depths, heads, spreads, ratios, scaled, rate) -> None:
        super().__init__()
        self.dims, self.patch_embed = dims, PatchEmbed(dims[0])
        rates = iter(torch.linspace(0, rate, sum(depths)).tolist())
        self.layers = nn.ModuleList()
        for i, depth in enumerate(depths):
            stage, dim = nn.Module(), dims[i]
            stage.blocks = nn.ModuleList()
            for _ in range(depth):
                geometry = Geometry(dim // heads[i], heads[i], spreads[i], i < 3)
                block = Block(dim, geometry, ratios[i], scaled and i >= 2, next(rates))
                stage.blocks.append(block)
            if i < 3:
                stage.downsample = Merge(dim, dims[i + 1])
            self.layers.append(stage)
        self.extra_norms = nn.ModuleList([LayerNorm2d(dim, 1e-5) for dim in dims[1:]])

    def forward(self, image, depth):
        x, features = self.patch_embed(image), []
        for i, stage in enumerate(self.layers):
            for block in stage.blocks:
                x = block(x, depth)
            features.append(x if i == 0 else self.extra_norms[i - 1](x))
            if i < 3:
                x = stage.downsample(x)
        return features
