"""What gpu_probe.py compares: operations on the device, and the same in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gpu_exact as exact  # beside this file
import jittor as jt
import numpy as np
from jittor import nn

from jtlightning.optim import AdamW
from segtasks.losses.segmentation import cross_entropy
from segtasks.models.layers import BatchNorm2d, LayerNorm2d
from segtasks.ops.deformable_attention import deformable_sampling
from segtasks.ops.matmul import batched_matmul
from segtasks.ops.resize import adaptive_average_pool, resize_bilinear
from segtasks.ops.softmax import attention_softmax

PRECISIONS = ("32", "TF32", "16-mixed", "bf16-mixed")
SAMPLED_LEVELS = ((6, 8), (3, 4))


@dataclass
class Operation:
    """What a probe compares.

    Attributes:
        ours: On Jittor's device.
        exact: The same on NumPy's float64.
        inputs: Of both, float32; gradients are compared for all of them.
        precision: Of the layers, one of PRECISIONS.
    """

    ours: Callable[..., jt.Var]
    exact: Callable[..., np.ndarray]
    inputs: Sequence[np.ndarray]
    precision: str = "32"


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def linear(precision: str) -> Operation:
    layer = nn.Linear(96, 80, bias=False)
    inputs = [normal(64, 96), normal(80, 96) / 10]
    return Operation(as_layer(layer), lambda x, w: x @ w.T, inputs, precision)


def convolution(precision: str) -> Operation:
    layer = nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False)
    inputs = [normal(2, 16, 17, 21), normal(24, 16, 3, 3) / 12]
    return Operation(as_layer(layer), lambda x, w: exact.convolution(x, w, 2, 1), inputs, precision)


def depthwise(precision: str) -> Operation:
    layer = nn.Conv2d(16, 16, 7, padding=3, groups=16, bias=False)
    inputs = [normal(2, 16, 15, 20), normal(16, 1, 7, 7) / 7]
    return Operation(as_layer(layer), exact.depthwise, inputs, precision)


def elementwise() -> Operation:
    return Operation(
        lambda x, y: (jt.exp(-x * x) * jt.sigmoid(y) + nn.gelu(x)).sum(1),
        exact.elementwise,
        [normal(64, 50), normal(64, 50)],
    )


def products() -> Operation:
    return Operation(
        lambda a, b: batched_matmul(a, b, transpose_a=True),
        lambda a, b: a.transpose(0, 2, 1) @ b,
        [normal(6, 32, 49) / 6, normal(6, 32, 70)],
    )


def batch_norm() -> Operation:
    return Operation(
        lambda x: BatchNorm2d(12)(x), lambda x: exact.norm(x, (0, 2, 3), 1e-5),
        [normal(4, 12, 9, 10)],
    )  # fmt: skip


def layer_norm() -> Operation:
    return Operation(
        lambda x: LayerNorm2d(48)(x), lambda x: exact.norm(x, (1,), 1e-6), [normal(2, 48, 9, 10)]
    )


def softmax() -> Operation:
    bias = normal(50, 70)
    return Operation(
        lambda x: attention_softmax(x, 0.25, jt.array(bias)),
        lambda x: exact.softmax(x / 4 + bias),
        [normal(6, 50, 70)],
    )


def jittor_softmax() -> Operation:
    return Operation(lambda x: nn.softmax(x, dim=2), exact.softmax, [normal(6, 49, 300)])


def sampling() -> Operation:
    rng = np.random.default_rng(0)
    locations = rng.uniform(-0.1, 1.1, (2, 10, 4, 2, 3, 2)).astype(np.float32)
    return Operation(
        lambda value, where, weights: deformable_sampling(value, SAMPLED_LEVELS, where, weights),
        lambda value, where, weights: exact.sampling(value, SAMPLED_LEVELS, where, weights),
        [normal(2, 60, 4, 8), locations, normal(2, 10, 4, 2, 3)],
    )


def resizing() -> Operation:
    return Operation(
        lambda x: resize_bilinear(x, (23, 17)),
        lambda x: exact.resized(x, 23, 17),
        [normal(2, 5, 12, 9)],
    )


def pooling() -> Operation:
    return Operation(
        lambda x: adaptive_average_pool(x, 4), lambda x: exact.pooled(x, 4), [normal(2, 5, 10, 13)]
    )


def loss() -> Operation:
    label = np.random.default_rng(0).integers(0, 11, (2, 9, 10)).astype(np.int32)
    label[:, ::4] = 255
    return Operation(
        lambda x: cross_entropy(x, jt.array(label)),
        lambda x: exact.cross_entropy(x, label),
        [normal(2, 11, 9, 10)],
    )


def optimizer() -> Operation:
    """Three updates of AdamW; the loss is quadratic, so nothing else can differ."""

    def ours(start: jt.Var) -> jt.Var:
        parameter = start.clone()
        driver = AdamW(lr=1e-2, weight_decay=0.1).build([{"params": [parameter]}])
        for _ in range(3):
            driver.step((parameter * parameter).sum())
        return parameter

    return Operation(ours, lambda x: exact.adamw(x, 3, 1e-2, 0.1), [normal(300)])


#: Name -> what to compare, and whether with gradients.
PROBES: dict[str, tuple[Callable[[], Operation], bool]] = {
    "elementwise and sum": (elementwise, True),
    **{f"linear, {p}": (lambda p=p: linear(p), True) for p in PRECISIONS},
    **{f"convolution, {p}": (lambda p=p: convolution(p), True) for p in PRECISIONS},
    "depthwise convolution": (lambda: depthwise("32"), True),
    "products of batches": (products, True),
    "batch norm": (batch_norm, True),
    "layer norm": (layer_norm, True),
    "softmax of Jittor": (jittor_softmax, True),
    "softmax of attention": (softmax, True),
    "deformable sampling": (sampling, True),
    "resizing": (resizing, True),
    "adaptive pooling": (pooling, True),
    "cross entropy": (loss, True),
    "AdamW": (optimizer, False),
}


def as_layer(layer: nn.Module) -> Callable[[jt.Var, jt.Var], jt.Var]:
    """The layer as a function of its input and weight; wrapped by `check` as training does."""

    def call(x: jt.Var, weight: jt.Var) -> jt.Var:
        layer.weight = weight
        return layer(x)

    call.layer = layer  # type: ignore[attr-defined]
    return call
