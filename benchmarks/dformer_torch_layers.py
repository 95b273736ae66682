"""Layers of the PyTorch twin, by the same specification and with the names of segtasks.models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def linear(cin: int, cout: int) -> nn.Conv2d:
    """Over the channels of a map."""
    return nn.Conv2d(cin, cout, 1)


def depthwise(channels: int, size: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Batches of matrices; in float32 with mixed precision, too, as the trainer leaves them."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def resize(x: torch.Tensor, size: torch.Size | tuple[int, int]) -> torch.Tensor:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of a map."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps)

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Drops the branch of a sample."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if self.rate == 0 or not self.training:
            return x
        keep = (torch.rand(len(x), 1, 1, 1, device=x.device) >= self.rate).to(x.dtype)
        return x * (keep / (1 - self.rate))


class ConvNormAct(nn.Module):
    """1x1 convolution, batch norm, ReLU."""

    def __init__(self, cin: int, cout: int, activation: bool = True) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout, 1e-3)
        self.activation = activation

    def forward(self, x):
        x = self.bn(self.conv(x))
        return F.relu(x) if self.activation else x


class NMF(nn.Module):
    """Multiplicative updates; gradients flow through all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = torch.rand

    def forward(self, x):
        data = x.float().flatten(2)
        bases = self.draw((len(x), x.shape[1], 64), device=x.device)
        bases = F.normalize(bases, dim=1)
        weights = product(bases.mT, data).softmax(1)
        for _ in range(6 if self.training else 7):
            weights = self.update_weights(data, bases, weights)
            gram = product(weights, weights.mT)
            bases = bases * product(data, weights.mT) / (product(bases, gram) + 1e-6)
        weights = self.update_weights(data, bases, weights)
        return product(bases, weights).view(x.shape)

    @staticmethod
    def update_weights(data, bases, weights):
        gram = product(bases.mT, bases)
        return weights * product(bases.mT, data) / (product(gram, weights) + 1e-6)


class Hamburger(nn.Module):
    """Factorisation between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.ham_in = nn.Module()
        self.ham_in.conv = nn.Conv2d(512, 512, 1)
        self.nmf, self.ham_out = NMF(), ConvNormAct(512, 512, activation=False)

    def forward(self, x):
        return F.relu(x + self.ham_out(self.nmf(F.relu(self.ham_in.conv(x)))))


class HamDecoder(nn.Module):
    """LightHam."""

    def __init__(self, cin: int, classes: int, width: int) -> None:
        super().__init__()
        self.squeeze, self.hamburger = ConvNormAct(cin, 512), Hamburger()
        self.align, self.dropout = ConvNormAct(512, width), nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, features):
        joined = torch.cat([resize(f, features[1].shape[2:]) for f in features[1:]], 1)
        return self.conv_seg(self.dropout(self.align(self.hamburger(self.squeeze(joined)))))


class Segmenter(nn.Module):
    """Encoder and decoder."""

    def __init__(self, backbone: nn.Module, classes: int, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = HamDecoder(sum(backbone.dims[1:]), classes, width)

    def forward(self, image, depth):
        logits = self.decode_head(self.backbone(image, depth[:, :1]))
        return resize(logits, image.shape[2:])
