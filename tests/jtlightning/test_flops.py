"""Multiply-accumulates of layers and functions against the formula written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jittor as jt
import pytest
from jittor import nn

from jtlightning.flops import count_macs, human


def zeros(*shape: int) -> jt.Var:
    return jt.zeros(shape)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (lambda: nn.Linear(16, 8), (4, 16), 4 * 8 * 16),
        (lambda: nn.Linear(16, 8, bias=False), (2, 5, 16), 2 * 5 * 8 * 16),
        (lambda: nn.Conv2d(3, 8, 3, padding=1), (2, 3, 10, 12), 2 * 8 * 10 * 12 * 3 * 9),
        (lambda: nn.Conv2d(4, 8, 3, stride=2), (1, 4, 11, 9), 8 * 5 * 4 * 4 * 9),
        (lambda: nn.Conv2d(8, 8, 7, padding=3, groups=8), (1, 8, 6, 6), 8 * 36 * 49),
        (lambda: nn.Conv1d(4, 6, 3), (2, 4, 10), 2 * 6 * 8 * 4 * 3),
        (lambda: nn.ConvTranspose(4, 6, 2, stride=2), (1, 4, 5, 5), 4 * 25 * 6 * 4),
        (lambda: nn.BatchNorm2d(4), (1, 4, 5, 5), 0),
        (lambda: nn.Relu(), (4, 4), 0),
    ],
)
def test_layers(layer: Callable[[], nn.Module], shape: tuple[int, ...], macs: int) -> None:
    module = layer()
    assert count_macs(module, lambda: module(zeros(*shape))).total == macs


def test_a_linear_layer_over_another_axis_counts_its_features() -> None:
    class Linear2d(nn.Linear):
        def execute(self, x: jt.Var) -> jt.Var:
            B, C, H, W = x.shape
            out = nn.matmul(self.weight, x.reshape(B, C, H * W))
            return out.reshape(B, -1, H, W)

    layer = Linear2d(6, 8)
    found = count_macs(layer, lambda: layer(zeros(2, 6, 5, 7)))
    assert found.total == 2 * 8 * 5 * 7 * 6


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        (lambda: nn.matmul(zeros(4, 5), zeros(5, 6)), 4 * 5 * 6),
        (lambda: zeros(2, 4, 5) @ zeros(2, 5, 6), 2 * 4 * 5 * 6),
        (lambda: jt.matmul(zeros(2, 3, 4, 5), zeros(5, 6)), 2 * 3 * 4 * 5 * 6),
        (lambda: nn.bmm(zeros(2, 4, 5), zeros(2, 5, 6)), 2 * 4 * 5 * 6),
        (lambda: nn.matmul(zeros(4, 5), zeros(5)), 4 * 5),
        (lambda: nn.linear(zeros(4, 5), zeros(6, 5)), 4 * 5 * 6),
        (lambda: nn.conv2d(zeros(1, 3, 8, 8), zeros(6, 3, 3, 3)), 6 * 36 * 27),
        (lambda: nn.conv_transpose(zeros(1, 3, 4, 4), zeros(3, 6, 2, 2), stride=2), 48 * 24),
    ],
)
def test_functions(function: Callable[[], Any], macs: int) -> None:
    assert count_macs(nn.Relu(), function).total == macs


class Attention(nn.Module):
    """One head without a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def execute(self, x: jt.Var) -> jt.Var:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(nn.matmul(nn.softmax(q @ k.transpose(0, 2, 1), dim=-1), v))


def test_modules_are_told_apart_and_used_twice_counts_twice() -> None:
    block = nn.Sequential(Attention(), nn.Relu())
    found = count_macs(block, lambda: block(block(zeros(2, 10, 8))))
    projections, products = 2 * 10 * 8 * 32, 2 * (2 * 10 * 10 * 8)
    assert found.total == 2 * (projections + products)
    assert found.by_module["0"] == found.total
    assert found.by_module["0.qkv"] == 2 * (2 * 10 * 8 * 24)
    assert "1" not in found.by_module


def test_layers_are_told_from_products_of_matrices() -> None:
    network = nn.Sequential(nn.Conv1d(4, 8, 1), nn.ConvTranspose(8, 8, 1), Attention())
    x = zeros(1, 4, 10)
    found = count_macs(
        network, lambda: network[2](network[1](network[0](x)[..., None])[0, :, :, 0][None, :, :8])
    )
    convolutions, projections, products = 10 * 8 * 4 + 10 * 8 * 8, 8 * 8 * 32, 2 * (8 * 8 * 8)
    assert found.by_kind == {
        "convolution": convolutions,
        "linear": projections,
        "product": products,
    }
    assert found.layers == convolutions + projections
    assert found.total == found.layers + products


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda: nn.linear(zeros(4, 5), zeros(6, 5)), "linear"),
        (lambda: nn.conv2d(zeros(1, 3, 8, 8), zeros(6, 3, 3, 3)), "convolution"),
        (lambda: nn.conv_transpose(zeros(1, 3, 4, 4), zeros(3, 6, 2, 2)), "convolution"),
        (lambda: zeros(2, 4, 5) @ zeros(2, 5, 6), "product"),
    ],
)
def test_functions_are_told_apart_too(function: Callable[[], Any], kind: str) -> None:
    found = count_macs(nn.Relu(), function)
    assert [name for name, macs in found.by_kind.items() if macs] == [kind]


def test_an_own_operation_says_what_it_counts() -> None:
    class Product(jt.Function):
        def execute(self, a: jt.Var, b: jt.Var) -> jt.Var:
            return nn.matmul(a, b)

        def macs(self, output: jt.Var, a: jt.Var, b: jt.Var) -> int:
            return 1000

    class Silent(jt.Function):
        def execute(self, a: jt.Var, b: jt.Var) -> jt.Var:
            return nn.matmul(a, b)

    a, b = zeros(4, 5), zeros(5, 6)
    assert count_macs(nn.Relu(), lambda: Product()(a, b)).total == 1000
    assert count_macs(nn.Relu(), lambda: Silent()(a, b)).total == 120


def test_everything_is_put_back_also_after_an_error() -> None:
    before = [nn.matmul, jt.matmul, jt.Var.matmul, nn.conv2d, jt.Function.__call__]
    block, seen = nn.Sequential(Attention()), []
    block[0].qkv.register_forward_hook(lambda *_: seen.append("hook"))

    def fails() -> None:
        block(zeros(1, 2, 8))
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        count_macs(block, fails)
    assert seen == ["hook"]
    assert [nn.matmul, jt.matmul, jt.Var.matmul, nn.conv2d, jt.Function.__call__] == before
    assert not [m for m in block.modules() if "execute" in vars(m)]


def test_counting_computes_nothing() -> None:
    block = Attention()
    jt.sync_all()
    outputs: list[jt.Var] = []
    count_macs(block, lambda: outputs.append(block(zeros(64, 2000, 8))))
    assert "0x0" in outputs[0].debug_msg() or ",,0)" in outputs[0].debug_msg()


@pytest.mark.parametrize(
    ("macs", "text"),
    [(999, "999"), (1_500, "1.50 k"), (4_210_000_000, "4.21 G"), (2 * 10**12, "2.00 T")],
)
def test_numbers_are_shortened(macs: int, text: str) -> None:
    assert human(macs) == text
