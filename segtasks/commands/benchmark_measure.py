"""What `segtasks benchmark` measures: sizes, operations, time and memory of a network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
from jittor import nn

from jtlightning.callbacks.summary import summarize
from jtlightning.flops import count_macs
from jtlightning.trainer.evaluate import evaluation_mode

Shape = tuple[int, ...]
_MIB = 1024.0 * 1024.0
_STATUS = Path("/proc/self/status")


class BenchmarkError(ValueError):
    """Something that cannot be measured; the message says why and what to do."""


@dataclass(frozen=True)
class Counts:
    """What a network is made of.

    Attributes:
        trainable: Elements that take gradients.
        frozen: Elements that keep their values and are no statistics.
        statistics: Running means and variances, and registered buffers.
        macs_layers: Multiply-accumulates of convolutions and linear layers.
        macs_products: Those of other products of matrices, such as attention's.
    """

    trainable: int
    frozen: int
    statistics: int
    macs_layers: int
    macs_products: int


@dataclass(frozen=True)
class Speed:
    """Times of repeated forward passes, and the memory they took.

    Attributes:
        batch: Images per pass.
        milliseconds: Of every timed pass.
        peak_mib: Largest resident memory of the process while they ran, or on a GPU what Jittor
            took of its memory.
    """

    batch: int
    milliseconds: tuple[float, ...]
    peak_mib: float | None

    def percentile(self, percent: float) -> float:
        """Milliseconds that this share of the passes, 0 to 100, stays below."""
        return float(np.percentile(self.milliseconds, percent))

    @property
    def images_per_s(self) -> float:
        """At the median time."""
        return 1000 * self.batch / self.percentile(50)


def input_shapes(data: Any, size: tuple[int, int] | None) -> list[Shape]:
    """Shapes of the network's inputs for one image.

    Args:
        data: A data module with `input_shapes`, those of a training batch.
        size: (height, width) instead of the training crop's.

    Raises:
        BenchmarkError: The data module does not say them.
    """
    shapes = getattr(data, "input_shapes", None)
    if not shapes:
        raise BenchmarkError(
            f"{type(data).__name__} has no `input_shapes`, the shapes (B, C, H, W) of what the "
            "network takes; add the attribute to the data module"
        )
    return [(1, *shape[1:-2], *(size or shape[-2:])) for shape in shapes]


def network_of(task: Any) -> nn.Module:
    """What of a task is called with the inputs: the task itself, or its `model`.

    Raises:
        BenchmarkError: There is neither.
    """
    network = task if type(task).execute is not nn.Module.execute else getattr(task, "model", None)
    if not isinstance(network, nn.Module):
        raise BenchmarkError(
            f"{type(task).__name__} has neither execute() nor a `model` that takes the inputs"
        )
    return network


def count(network: nn.Module, shapes: Sequence[Shape]) -> Counts:
    """Count elements and operations of one forward pass in evaluation mode; computes nothing."""
    total = summarize(network, 0)[-1]
    inputs = [jt.zeros(shape) for shape in shapes]
    with evaluation_mode(network):
        macs = count_macs(network, lambda: network(*inputs))
    return Counts(
        total.trainable, total.frozen, total.statistics, macs.layers, macs.by_kind["product"]
    )


def measure(
    network: nn.Module,
    shapes: Sequence[Shape],
    *,
    batch: int,
    warm_up: int,
    runs: int,
    progress: Callable[[], None] = lambda: None,
) -> Speed:
    """Time forward passes in evaluation mode, each one waited for.

    Args:
        network: Takes one input of each shape.
        shapes: Of one image.
        batch: Images per pass.
        warm_up: Passes before the timed ones; the first compiles.
        runs: Timed passes.
        progress: Called after every pass.
    """
    rng = np.random.default_rng(0)
    inputs = [
        jt.array(rng.standard_normal((batch, *shape[1:]), dtype=np.float32)) for shape in shapes
    ]
    milliseconds = []
    jt.sync_all(True)
    jt.gc()
    forget_peak()
    with evaluation_mode(network), jt.no_grad():
        for index in range(warm_up + runs):
            taken = _timed(network, inputs)
            if index >= warm_up:
                milliseconds.append(taken)
            progress()
    return Speed(batch, tuple(milliseconds), peak_mib())


def passes(images: int, batch: int) -> int:
    """Batches that hold so many images, at least one where there are any."""
    return math.ceil(images / batch)


def _timed(network: nn.Module, inputs: Sequence[jt.Var]) -> float:
    start = time.perf_counter()
    output = network(*inputs)
    # Everything that is held is executed, and the device waited for.
    jt.sync_all(True)
    taken = 1000 * (time.perf_counter() - start)
    del output
    return taken


def forget_peak() -> None:
    """Let the system's record of the largest resident memory begin anew, where it can (Linux)."""
    if _STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mib() -> float | None:
    """Most memory in use, in MiB: of the card now, or of this process since `forget_peak`."""
    if jt.flags.use_cuda:
        return float(jt.get_mem_info().total_cuda_used / _MIB)
    if not _STATUS.exists():
        return None
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
