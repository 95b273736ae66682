"""Multiply-accumulate operations of a forward pass, counted by the modules that do them.

The counting rule is that of the papers (and of fvcore and ptflops), which write FLOPs and mean
multiply-accumulates: a convolution counts `output elements x kernel elements x input channels /
groups`, a linear layer `output elements x input features`, a product of matrices `output elements x
inner length`, also inside attention. Normalisation, activations, additions, pooling, resizing and
softmax count nothing: they are less than a hundredth in the models here, and every tool counts them
in another way.

Papers differ in one point: many count by hooks on layers, and so leave out products of matrices
that belong to no layer, such as those of attention. Both numbers are kept: `MacCount.layers` is of
layers alone, `MacCount.total` of everything. A resizing written as a product counts as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from math import prod
from typing import Any, Literal, NamedTuple, get_args

import jittor as jt
from jittor import nn

Kind = Literal["convolution", "linear", "product"]


@dataclass
class MacCount:
    """Multiply-accumulates of one forward pass.

    Attributes:
        total: Of the whole pass.
        by_module: Path of a module -> what it and the modules inside it did.
        by_kind: The total, split into `convolution`, `linear` and `product`: products of matrices
            that are no linear layer's, such as those of attention, and operations that say
            themselves what they count.
    """

    total: int = 0
    by_module: dict[str, int] = field(default_factory=dict)
    by_kind: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(get_args(Kind), 0))

    @property
    def layers(self) -> int:
        """Of convolutions and linear layers, without products of matrices."""
        return self.by_kind["convolution"] + self.by_kind["linear"]


class _Counter:
    """The modules that are running, innermost last, and what has been counted for each."""

    def __init__(self) -> None:
        self.count = MacCount()
        self._running: list[str] = []
        self._inside = 0  # an operation that is counted may be made of others that are

    def add(self, macs: int, kind: Kind) -> None:
        self.count.total += macs
        self.count.by_kind[kind] += macs
        for path in dict.fromkeys(self._running):
            self.count.by_module[path] = self.count.by_module.get(path, 0) + macs

    @contextmanager
    def module(self, path: str) -> Iterator[None]:
        self._running.append(path)
        try:
            yield
        finally:
            self._running.pop()

    @contextmanager
    def operation(self, kind: Kind) -> Iterator[list[int]]:
        """Add the number put into the list, unless an outer operation is counted already."""
        counted: list[int] = []
        self._inside += 1
        try:
            yield counted
        finally:
            self._inside -= 1
        if not self._inside:
            self.add(sum(counted), kind)


def count_macs(module: nn.Module, run: Callable[[], Any]) -> MacCount:
    """Count the multiply-accumulates of `run`, which calls `module` (or a part of it).

    Nothing is computed: Jittor is lazy, so shapes are known without it, as long as `run` reads no
    value. Hooks are called as ever. Gradients are not counted; a training step takes about three
    times as many. An operation written as a `jt.Function` counts where its class has a method
    `macs(output, *inputs)`; `einsum` and recurrent layers' inner products do not.

    Args:
        module: Whose parts are told apart in the result.
        run: The forward pass, such as `lambda: model(jt.zeros((1, 3, 480, 640)))`.
    """
    counter = _Counter()
    with ExitStack() as restore, jt.no_grad():
        for path, child in module.named_modules():
            _count_module(child, path, counter, restore)
        for owner, names, rule in _FUNCTIONS:
            for name in names:
                _count_function(owner, name, counter, rule, restore)
        run()
    return counter.count


def human(macs: int) -> str:
    """`4.21 G` for 4,210,000,000 operations."""
    for factor, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if macs >= factor:
            return f"{macs / factor:.2f} {unit}"
    return f"{macs}"


def _count_module(module: nn.Module, path: str, counter: _Counter, restore: ExitStack) -> None:
    """Let `module` say when it runs, and count where it is a layer; hooks stay as they are."""
    attributes, execute = vars(module), module.execute
    rule = next((rule for classes, rule in _LAYERS if isinstance(module, classes)), None)

    @wraps(execute)
    def counting(*args: Any, **kwargs: Any) -> Any:
        with counter.module(path):
            if rule is None:
                return execute(*args, **kwargs)
            with counter.operation(rule.kind) as counted:
                output = execute(*args, **kwargs)
                counted.append(rule.macs(output, args[0] if args else kwargs["x"], module.weight))
            return output

    if "execute" in attributes:
        restore.callback(partial(attributes.__setitem__, "execute", execute))
    else:
        restore.callback(partial(attributes.pop, "execute"))
    attributes["execute"] = counting


def _count_function(
    owner: Any, name: str, counter: _Counter, rule: _Rule, restore: ExitStack
) -> None:
    """Let the function `name` of a module or class count; what it calls itself does not."""
    function = getattr(owner, name)

    @wraps(function)
    def counting(*args: Any, **kwargs: Any) -> Any:
        if owner is jt.Function and not hasattr(args[0], "macs"):
            return function(*args, **kwargs)
        with counter.operation(rule.kind) as counted:
            output = function(*args, **kwargs)
            counted.append(rule.macs(output, *args, **kwargs))
        return output

    setattr(owner, name, counting)
    restore.callback(setattr, owner, name, function)


class _Rule(NamedTuple):
    """What an operation is, and its number from its output and arguments."""

    kind: Kind
    macs: Callable[..., int]


def _product(out: jt.Var, a: jt.Var, *_: Any, **__: Any) -> int:
    """Of matrices, also `x` by a weight: every output element sums over the last axis of `a`."""
    return int(out.numel() * a.shape[-1])


def _convolution(out: jt.Var, x: jt.Var, weight: jt.Var, *_: Any, **__: Any) -> int:
    """`weight` is (out, in / groups, kernel...)."""
    return int(out.numel() * prod(weight.shape[1:]))


def _transposed(out: jt.Var, x: jt.Var, weight: jt.Var, *_: Any, **__: Any) -> int:
    """`weight` is (in, out / groups, kernel...): every input element meets the whole kernel."""
    return int(x.numel() * prod(weight.shape[1:]))


def _own(out: Any, function: Any, *inputs: Any) -> int:
    return int(function.macs(out, *inputs))


_CONVOLUTION, _TRANSPOSED = _Rule("convolution", _convolution), _Rule("convolution", _transposed)
_PRODUCT = _Rule("product", _product)
_LAYERS: tuple[tuple[Any, _Rule], ...] = (
    ((nn.Conv, nn.Conv1d, nn.Conv3d), _CONVOLUTION),
    ((nn.ConvTranspose, nn.ConvTranspose3d), _TRANSPOSED),
    # As a convolution of one element: a subclass may have the features on another axis.
    (nn.Linear, _Rule("linear", _convolution)),
)
_FUNCTIONS: tuple[tuple[Any, tuple[str, ...], _Rule], ...] = (
    (nn, ("linear",), _Rule("linear", _product)),
    (nn, ("matmul", "bmm", "matmul_transpose", "bmm_transpose"), _PRODUCT),
    (jt, ("matmul", "bmm"), _PRODUCT),
    (jt.Var, ("matmul", "__matmul__"), _PRODUCT),
    (nn, ("conv2d", "conv3d"), _CONVOLUTION),
    (nn, ("conv_transpose", "conv_transpose3d"), _TRANSPOSED),
    (jt.Function, ("__call__",), _Rule("product", _own)),
)
