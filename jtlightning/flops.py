"""Multiply-accumulate operations of a forward pass, counted by the modules that do them.

The counting rule is that of the papers (and of fvcore and ptflops), which write FLOPs and mean
multiply-accumulates: a convolution counts `output elements x kernel elements x input channels /
groups`, a linear layer `output elements x input features`, a product of matrices `output elements x
inner length`, also inside attention. Normalisation, activations, additions, pooling, resizing and
softmax count nothing: they are less than a hundredth in the models here, and every tool counts them
in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from math import prod
from typing import Any

import jittor as jt
from jittor import nn


@dataclass
class MacCount:
    """Multiply-accumulates of one forward pass.

    Attributes:
        total: Of the whole pass.
        by_module: Path of a module -> what it and the modules inside it did.
    """

    total: int = 0
    by_module: dict[str, int] = field(default_factory=dict)


class _Counter:
    """The modules that are running, innermost last, and what has been counted for each."""

    def __init__(self) -> None:
        self.count = MacCount()
        self._running: list[str] = []
        self._inside = 0  # an operation that is counted may be made of others that are

    def add(self, macs: int) -> None:
        self.count.total += macs
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
    def operation(self) -> Iterator[list[int]]:
        """Add the number put into the list, unless an outer operation is counted already."""
        counted: list[int] = []
        self._inside += 1
        try:
            yield counted
        finally:
            self._inside -= 1
        if not self._inside:
            self.add(sum(counted))


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
        for owner, names, macs in _FUNCTIONS:
            for name in names:
                _count_function(owner, name, counter, macs, restore)
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
    macs = next((rule for kinds, rule in _LAYERS if isinstance(module, kinds)), None)

    @wraps(execute)
    def counting(*args: Any, **kwargs: Any) -> Any:
        with counter.module(path):
            if macs is None:
                return execute(*args, **kwargs)
            with counter.operation() as counted:
                output = execute(*args, **kwargs)
                counted.append(macs(output, args[0] if args else kwargs["x"], module.weight))
            return output

    if "execute" in attributes:
        restore.callback(partial(attributes.__setitem__, "execute", execute))
    else:
        restore.callback(partial(attributes.pop, "execute"))
    attributes["execute"] = counting


def _count_function(
    owner: Any, name: str, counter: _Counter, macs: Callable[..., int], restore: ExitStack
) -> None:
    """Let the function `name` of a module or class count; what it calls itself does not."""
    function = getattr(owner, name)

    @wraps(function)
    def counting(*args: Any, **kwargs: Any) -> Any:
        if owner is jt.Function and not hasattr(args[0], "macs"):
            return function(*args, **kwargs)
        with counter.operation() as counted:
            output = function(*args, **kwargs)
            counted.append(macs(output, *args, **kwargs))
        return output

    setattr(owner, name, counting)
    restore.callback(setattr, owner, name, function)


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


_LAYERS = (
    ((nn.Conv, nn.Conv1d, nn.Conv3d), _convolution),
    ((nn.ConvTranspose, nn.ConvTranspose3d), _transposed),
    # As a convolution of one element: a subclass may have the features on another axis.
    ((nn.Linear,), _convolution),
)
_FUNCTIONS = (
    (nn, ("matmul", "bmm", "matmul_transpose", "bmm_transpose", "linear"), _product),
    (jt, ("matmul", "bmm"), _product),
    (jt.Var, ("matmul", "__matmul__"), _product),
    (nn, ("conv2d", "conv3d"), _convolution),
    (nn, ("conv_transpose", "conv_transpose3d"), _transposed),
    (jt.Function, ("__call__",), _own),
)
