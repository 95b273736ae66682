"""One training step of RT-DETR r18 in PyTorch, for `benchmarks/rtdetr.py` to compare with.

The same structure, losses and optimizer as the Jittor network, written plainly: matching and losses
layer by layer, deformable attention by `grid_sample`. Run by rtdetr.py with an interpreter that has
PyTorch; it reads numbers of steps from its standard input and writes the seconds of each step, as
one line of JSON, to its standard output.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

CLASSES, QUERIES, DIM, HEADS, LEVELS, POINTS = 80, 300, 256, 8, 3, 4


class Unit(nn.Sequential):
    """Convolution, batch norm, activation."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, act=None) -> None:
        conv = nn.Conv2d(cin, cout, kernel, stride, (kernel - 1) // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(cout), *([act()] if act else []))


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, cin: int, cout: int, stride: int, first: bool) -> None:
        super().__init__()
        self.a, self.b = Unit(cin, cout, 3, stride, nn.ReLU), Unit(cout, cout, 3)
        pool = [nn.AvgPool2d(2, 2, ceil_mode=True)] if stride == 2 else []
        self.short = nn.Sequential(*pool, Unit(cin, cout, 1)) if first else nn.Identity()

    def forward(self, x):
        return F.relu(self.b(self.a(x)) + self.short(x))


class Backbone(nn.Module):
    """PResNet 18, variant d."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 32, 2), (32, 32, 1), (32, 64, 1))
        self.stem = nn.Sequential(*[Unit(a, b, 3, s, nn.ReLU) for a, b, s in sizes])
        self.stages = nn.ModuleList()
        for cin, cout in ((64, 64), (64, 128), (128, 256), (256, 512)):
            stride = 1 if cout == 64 else 2
            self.stages.append(
                nn.Sequential(Block(cin, cout, stride, True), Block(cout, cout, 1, False))
            )

    def forward(self, x):
        x, maps = F.max_pool2d(self.stem(x), 3, 2, 1), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1:]


class Rep(nn.Module):
    """RepVGG block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = Unit(width, width, 3), Unit(width, width, 1)

    def forward(self, x):
        return F.silu(self.a(x) + self.b(x))


class Fusion(nn.Module):
    """CSPRep block."""

    def __init__(self) -> None:
        super().__init__()
        half = DIM // 2
        self.a, self.b = (Unit(2 * DIM, half, 1, 1, nn.SiLU) for _ in range(2))
        self.rep = nn.Sequential(*[Rep(half) for _ in range(3)])
        self.out = Unit(half, DIM, 1, 1, nn.SiLU)

    def forward(self, *maps):
        x = torch.cat(maps, 1)
        return self.out(self.rep(self.a(x)) + self.b(x))


class Encoder(nn.Module):
    """Hybrid encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.ModuleList([Unit(c, DIM, 1) for c in (128, 256, 512)])
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(DIM) for _ in range(2)])
        self.feed = nn.Sequential(nn.Linear(DIM, 1024), nn.GELU(), nn.Linear(1024, DIM))
        self.lateral = nn.ModuleList([Unit(DIM, DIM, 1, 1, nn.SiLU) for _ in range(2)])
        self.down = nn.ModuleList([Unit(DIM, DIM, 3, 2, nn.SiLU) for _ in range(2)])
        self.top_down = nn.ModuleList([Fusion() for _ in range(2)])
        self.bottom_up = nn.ModuleList([Fusion() for _ in range(2)])

    def forward(self, maps):
        fine, middle, coarse = (p(x) for p, x in zip(self.proj, maps, strict=True))
        B, _, h, w = coarse.shape
        x = coarse.flatten(2).transpose(1, 2)
        q = x + positions(h, w)
        x = self.norms[0](x + self.attention(q, q, x, need_weights=False)[0])
        x = self.norms[1](x + self.feed(x))
        coarse = self.lateral[0](x.transpose(1, 2).reshape(B, DIM, h, w))
        middle = self.top_down[0](F.interpolate(coarse, scale_factor=2.0), middle)
        middle = self.lateral[1](middle)
        fine = self.top_down[1](F.interpolate(middle, scale_factor=2.0), fine)
        middle = self.bottom_up[0](self.down[0](fine), middle)
        return [fine, middle, self.bottom_up[1](self.down[1](middle), coarse)]


def positions(h: int, w: int) -> torch.Tensor:
    omega = 10000 ** -(torch.arange(DIM // 4) / (DIM // 4))
    x, y = torch.meshgrid(torch.arange(w), torch.arange(h), indexing="ij")
    x, y = x.flatten()[:, None] * omega, y.flatten()[:, None] * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1)


def mlp(*widths: int) -> nn.Sequential:
    layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention by `grid_sample`."""

    def __init__(self) -> None:
        super().__init__()
        count = HEADS * LEVELS * POINTS
        self.offsets, self.weights = nn.Linear(DIM, 2 * count), nn.Linear(DIM, count)
        self.value, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, query, boxes, memory, shapes):
        B, Q, _ = query.shape
        offsets = self.offsets(query).view(B, Q, HEADS, LEVELS, POINTS, 2)
        weights = self.weights(query).view(B, Q, HEADS, LEVELS * POINTS).softmax(-1)
        box = boxes[:, :, None, None, None]
        grid = 2 * (box[..., :2] + offsets / POINTS * box[..., 2:] * 0.5) - 1
        grid = grid.permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
        value = self.value(memory).view(B, -1, HEADS, DIM // HEADS).permute(0, 2, 3, 1)
        levels, sampled = value.flatten(0, 1).split([h * w for h, w in shapes], -1), []
        for level, (h, w), points in zip(levels, shapes, grid, strict=True):
            maps = level.unflatten(-1, (h, w))
            sampled.append(F.grid_sample(maps, points, align_corners=False))
        weights = weights.transpose(1, 2).reshape(B * HEADS, 1, Q, -1)
        mixed = (torch.cat(sampled, -1) * weights).sum(-1)
        return self.out(mixed.view(B, DIM, Q).transpose(1, 2))


class Layer(nn.Module):
    """Decoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.cross, self.feed = DeformableAttention(), mlp(DIM, 1024, DIM)
        self.norms = nn.ModuleList([nn.LayerNorm(DIM) for _ in range(3)])

    def forward(self, x, position, boxes, memory, shapes, blocked):
        q = x + position
        attended = self.attention(q, q, x, attn_mask=blocked, need_weights=False)[0]
        x = self.norms[0](x + attended)
        x = self.norms[1](x + self.cross(x + position, boxes, memory, shapes))
        return self.norms[2](x + self.feed(x))


def logit(x, eps: float = 1e-5):
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


class Decoder(nn.Module):
    """Query selection and decoder."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.proj = nn.ModuleList([Unit(DIM, DIM, 1) for _ in range(LEVELS)])
        self.embedding = nn.Embedding(CLASSES + 1, DIM, padding_idx=CLASSES)
        self.layers = nn.ModuleList([Layer() for _ in range(layers)])
        self.position = mlp(4, 2 * DIM, DIM)
        self.tokens = nn.Sequential(nn.Linear(DIM, DIM), nn.LayerNorm(DIM))
        self.score = nn.ModuleList([nn.Linear(DIM, CLASSES) for _ in range(layers + 1)])
        self.box = nn.ModuleList([mlp(DIM, DIM, DIM, 4) for _ in range(layers + 1)])
        for score, box in zip(self.score, self.box, strict=True):
            nn.init.constant_(score.bias, -4.595)
            nn.init.zeros_(box[-1].weight)
            nn.init.zeros_(box[-1].bias)

    def forward(self, maps, noised):
        maps = [proj(x) for proj, x in zip(self.proj, maps, strict=True)]
        shapes = [x.shape[2:] for x in maps]
        memory = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
        anchors, valid = make_anchors(shapes)
        features = self.tokens(memory * valid)
        scores, boxes = self.score[-1](features), self.box[-1](features) + anchors
        best = scores.max(-1).values.topk(QUERIES).indices[..., None]
        scores, boxes = (x.gather(1, best.expand(-1, -1, x.shape[2])) for x in (scores, boxes))
        predictions = [(scores, boxes.sigmoid())]
        labels, noised_boxes, blocked = noised
        x = features.gather(1, best.expand(-1, -1, DIM)).detach()
        x = torch.cat([self.embedding(labels), x], 1)
        box, previous, layers = torch.cat([noised_boxes, boxes.detach()], 1).sigmoid(), None, []
        for layer, score, head in zip(self.layers, self.score, self.box, strict=False):
            x = layer(x, self.position(box), box, memory, shapes, blocked)
            offset = head(x)
            new = (offset + logit(box)).sigmoid()
            supervised = new if previous is None else (offset + logit(previous)).sigmoid()
            layers.append((score(x), supervised))
            previous, box = new, new.detach()
        count = labels.shape[1]
        matching = [(s[:, count:], b[:, count:]) for s, b in layers]
        return matching + predictions, [(s[:, :count], b[:, :count]) for s, b in layers]


def make_anchors(shapes):
    anchors = []
    for level, (h, w) in enumerate(shapes):
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        centre = torch.stack([(x + 0.5) / w, (y + 0.5) / h], -1).view(-1, 2)
        anchors.append(torch.cat([centre, torch.full_like(centre, 0.05 * 2**level)], 1))
    anchors = torch.cat(anchors)
    valid = ((anchors > 0.01) & (anchors < 0.99)).all(1, keepdim=True)
    return torch.where(valid, (anchors / (1 - anchors)).log(), torch.inf), valid


class Detector(nn.Module):
    """RT-DETR r18."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.encoder, self.decoder = Backbone(), Encoder(), Decoder()

    def forward(self, image, noised):
        return self.decoder(self.encoder(self.backbone(image)), noised)


def corners(boxes):
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def overlaps(a, b):
    """IoU and generalised IoU of broadcasting corner boxes."""
    inner = (torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])).clamp(min=0)
    outer = torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])
    area = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    inner, outer = inner.prod(-1), outer.prod(-1)
    union = area[0] + area[1] - inner
    return inner / union, inner / union - (outer - union) / outer


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (boxes) to columns (queries), no more rows than columns; shortest augmenting paths."""
    rows, columns = cost.shape
    u, v = np.zeros(rows + 1), np.zeros(columns + 1)
    owner, way = np.zeros(columns + 1, int), np.zeros(columns + 1, int)
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        least, used = np.full(columns + 1, np.inf), np.zeros(columns + 1, bool)
        while owner[column]:
            used[column] = True
            reduced = np.r_[np.inf, cost[owner[column] - 1] - u[owner[column]] - v[1:]]
            closer = ~used & (reduced < least)
            least[closer], way[closer] = reduced[closer], column
            column = int(np.where(used, np.inf, least).argmin())
            delta = least[column]
            u[owner[used]] += delta
            v[used] -= delta
            least[~used] -= delta
        while column:
            owner[column] = owner[way[column]]
            column = way[column]
    queries = np.flatnonzero(owner[1:])
    return queries, owner[1:][queries] - 1


@torch.no_grad()
def match(scores, boxes, labels, targets):
    """Queries and boxes of one image."""
    p = scores.sigmoid()[:, labels]
    focal = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
    giou = overlaps(corners(boxes)[:, None], corners(targets)[None])[1]
    cost = 2 * focal + 5 * torch.cdist(boxes, targets, p=1) - 2 * giou
    return [torch.from_numpy(x) for x in assign(cost.T.numpy())]


def layer_loss(scores, boxes, pairs, labels, targets, normaliser):
    """Varifocal, L1 and generalised IoU loss of one layer."""
    image = torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(pairs)])
    query, box = torch.cat([q for q, _ in pairs]), torch.cat([b for _, b in pairs])
    matched, wanted, classes = boxes[image, query], targets[image, box], labels[image, box]
    iou, giou = overlaps(corners(matched), corners(wanted))
    onehot, quality = torch.zeros_like(scores), torch.zeros_like(scores)
    onehot[image, query, classes], quality[image, query, classes] = 1, iou.detach()
    weight = 0.75 * scores.detach().sigmoid() ** 2 * (1 - onehot) + quality
    vfl = F.binary_cross_entropy_with_logits(scores, quality, weight, reduction="sum")
    return (vfl + 5 * (matched - wanted).abs().sum() + 2 * (1 - giou).sum()) / normaliser


def criterion(matching, denoising, labels, targets, positive, groups):
    count, total = labels.numel(), 0
    for scores, boxes in matching:
        pairs = [match(*x) for x in zip(scores, boxes, labels, targets, strict=True)]
        total = total + layer_loss(scores, boxes, pairs, labels, targets, count)
    pairs = [(positive, torch.arange(len(positive)) % labels.shape[1])] * len(labels)
    for scores, boxes in denoising:
        total = total + layer_loss(scores, boxes, pairs, labels, targets, count * groups)
    return total


def noise(labels, targets):
    """Denoising queries; labels (B, n), targets (B, n, 4), as many boxes in each image."""
    n = labels.shape[1]
    groups = max(1, 100 // n)
    group = torch.arange(2 * groups * n) // n
    labels, boxes = labels.repeat(1, 2 * groups), targets.repeat(1, 2 * groups, 1)
    labels = torch.where(
        torch.rand(labels.shape) < 0.25, torch.randint_like(labels, CLASSES), labels
    )
    distance = torch.rand(boxes.shape) + (group % 2)[:, None]
    sign = 2 * torch.randint(0, 2, boxes.shape) - 1
    edges = (corners(boxes) + sign * distance * boxes[..., 2:].repeat(1, 1, 2) / 2).clamp(0, 1)
    boxes = torch.cat([(edges[..., :2] + edges[..., 2:]) / 2, edges[..., 2:] - edges[..., :2]], -1)
    owner = torch.cat([group // 2, torch.full((QUERIES,), -1)])
    blocked = (owner[:, None] != owner) & (owner >= 0)
    return (labels, logit(boxes), blocked), (group % 2 == 0).nonzero()[:, 0], groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--boxes", type=int, default=8)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = Detector().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    image = torch.rand(arguments.batch, 3, arguments.size, arguments.size)
    labels = torch.randint(0, CLASSES, (arguments.batch, arguments.boxes))
    targets = 0.3 + 0.4 * torch.rand(*labels.shape, 4)

    def step() -> float:
        start = time.perf_counter()
        noised, positive, groups = noise(labels, targets)
        loss = criterion(*model(image, noised), labels, targets, positive, groups)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        return time.perf_counter() - start

    count = sum(p.numel() for p in model.parameters())
    print(json.dumps({"parameters": count, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        print(json.dumps([step() for _ in range(int(line))]), flush=True)


if __name__ == "__main__":
    main()
