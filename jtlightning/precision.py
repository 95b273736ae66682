"""Mixed precision: products in 16 bits, everything else in float32, and scaling of the loss.

Jittor has neither master weights nor a scaled loss. Here the weights stay float32; convolutions
and linear layers round their operands to 16 bits and hand their result on in float32, so that
norms, softmax, losses, statistics and the update never see 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import jittor as jt
from jittor import nn

Precision = Literal[32, "16-mixed", "bf16-mixed"]

_TYPES = {"16-mixed": "float16", "bf16-mixed": "bfloat16"}
_PRODUCTS = (nn.Linear, nn.Conv, nn.Conv1d, nn.Conv3d, nn.ConvTranspose, nn.ConvTranspose3d)


@contextmanager
def mixed_precision(module: nn.Module, precision: Precision) -> Iterator[None]:
    """Let the convolutions and linear layers of `module` compute in 16 bits.

    Depthwise convolutions stay in float32: they are bound by memory, and no tensor core takes
    them. On a CPU, whose kernels know float32 only, operands and results are rounded to what 16
    bits hold, and the sums are those of a GPU that accumulates in float32.

    Args:
        module: Its layers, at any depth; back to float32 afterwards.
        precision: 32 changes nothing.
    """
    if precision == 32:
        yield
        return
    layers = [m for m in module.modules() if isinstance(m, _PRODUCTS) and not _is_depthwise(m)]
    for layer in layers:
        layer.execute = _HalfProduct(layer, _TYPES[precision])
    try:
        yield
    finally:
        for layer in layers:
            del layer.execute


class _HalfProduct:
    """Stands in for `execute` of one layer."""

    def __init__(self, layer: nn.Module, dtype: str) -> None:
        self.layer, self.dtype = layer, dtype
        self.full = type(layer).execute

    def __call__(self, x: jt.Var, *args: Any) -> jt.Var:
        weight = self.layer.weight
        # Parameters are found by name, and the optimizer holds the Var itself: for the length of
        # this call only, the layer sees a rounded weight, through which gradients reach the other.
        self.layer.weight = self._round(weight)
        try:
            out = self.full(self.layer, self._round(x), *args)
        finally:
            self.layer.weight = weight
        return out.float32() if jt.flags.use_cuda else self._round(out)

    def _round(self, x: jt.Var) -> jt.Var:
        half = x.cast(self.dtype)
        return half if jt.flags.use_cuda else half.float32()


def _is_depthwise(layer: nn.Module) -> bool:
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == getattr(layer, "in_channels", 0)


class LossScaler:
    """Multiplies the loss, so that small gradients survive 16 bits, and adapts the factor.

    A step whose gradients overflow is skipped and halves the scale; `growth_interval` good steps
    in a row double it. Start, factors and interval are those of PyTorch's `GradScaler`
    (Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2).

    Attributes:
        scale: The present factor, a power of two.
        skipped: Steps that were skipped so far.
    """

    smallest = 1.0

    def __init__(self, scale: float = 2.0**16, growth_interval: int = 2000) -> None:
        self.scale, self.growth_interval = scale, growth_interval
        self.skipped = 0
        self._good = 0

    def scaled(self, loss: jt.Var) -> jt.Var:
        """The loss to call `backward` on."""
        # As data: Jittor would compile kernels anew for every value of a constant.
        return loss * jt.array([self.scale])

    def unscale(self, gradients: Sequence[jt.Var]) -> None:
        """Divide the gradients in place, lazily; exact, as the factor is a power of two."""
        factor = jt.array([1.0 / self.scale])
        for gradient in gradients:
            gradient.update(gradient * factor)

    @property
    def exhausted(self) -> bool:
        """Whether a smaller factor cannot be the remedy of an overflow."""
        return self.scale <= self.smallest

    def overflowed(self) -> None:
        """Account for a step that is skipped."""
        self.scale = max(self.scale / 2, self.smallest)
        self.skipped += 1
        self._good = 0

    def went_well(self) -> None:
        """Account for an update."""
        self._good += 1
        if self._good == self.growth_interval:
            self.scale *= 2
            self._good = 0

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"scale": self.scale, "skipped": self.skipped, "good": self._good}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue where the state was taken."""
        self.scale = state["scale"]
        self.skipped, self._good = int(state["skipped"]), int(state["good"])
