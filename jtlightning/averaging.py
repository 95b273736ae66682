"""An average of a task's weights that can take their place for a while."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jittor as jt
import numpy as np
from jittor import nn

_STATISTICS = ("running_mean", "running_var")


class WeightAverage:
    """What `EMA` and `StochasticWeightAveraging` share: the averages, and the swap.

    Averaged is what the optimizers update and, with `statistics`, the running means and variances
    of batch norm. Anything else (frozen weights, constants) is the same in both.

    Args:
        owner: The callback's name, for messages.
        statistics: Whether running statistics are averaged too.

    Attributes:
        values: The averages by parameter name; while they are swapped in, the task's weights.
    """

    def __init__(self, owner: str, *, statistics: bool = True) -> None:
        self.values: dict[str, jt.Var] = {}
        self._owner, self._statistics = owner, statistics
        self._weights: list[tuple[str, jt.Var]] = []  # the task's Vars of the same names
        self._updated_by: dict[str, int] = {}  # number of the optimizer
        self._grad_flags: list[bool] | None = None  # of the task's Vars while they are swapped out

    @property
    def swapped(self) -> bool:
        """Whether the task holds the average at the moment."""
        return self._grad_flags is not None

    def follow(self, task: nn.Module, optimizers: Sequence[Any]) -> None:
        """Pair the averages with the task's Vars; new ones start at their present value.

        Raises:
            ValueError: A weight is not float32, or an average has no counterpart of its shape.
        """
        updated_by = {
            id(parameter): number
            for number, optimizer in enumerate(optimizers)
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        self._weights, self._updated_by = [], {}
        for name, weight in task.named_parameters():
            if id(weight) not in updated_by and not self._is_statistic(name):
                continue
            if weight.dtype != "float32":
                raise ValueError(
                    f"{self._owner} averages float32 weights, but {name} is {weight.dtype}"
                )
            if name not in self.values:
                self.values[name] = jt.array(weight.numpy()).stop_grad()
            self._weights.append((name, weight))
            self._updated_by[name] = updated_by.get(id(weight), 0)
        self._check(dict(self._weights))

    def move(self, share: float, optimizer: int | None = None) -> None:
        """Move the averages towards the weights, lazily: `average += share * (weight - average)`.

        Args:
            share: 0 to 1.
            optimizer: Only what this optimizer updates, by number; the first one has the
                statistics. None for all.
        """
        with jt.no_grad():
            for name, weight in self._weights:
                if optimizer is not None and self._updated_by[name] != optimizer:
                    continue
                average = self.values[name]
                # In this form a weight that does not change stays exactly what it is.
                self.values[name] = (average + (weight - average) * share).stop_grad()

    def swap_in(self, task: nn.Module) -> None:
        """Give the task the average, where there is one."""
        if self.swapped or not self.values:
            return
        if not self._weights:  # validate, test and predict: there is a checkpoint but no optimizer
            named = dict(task.named_parameters())
            self._check(named)
            self._weights = [(name, named[name]) for name in self.values]
        self._grad_flags = [bool(weight.requires_grad) for _, weight in self._weights]
        for name, weight in self._weights:
            weight.swap(self.values[name])

    def swap_out(self) -> None:
        """Give the task its own weights back, where they are out."""
        if self._grad_flags is None:
            return
        for (name, weight), before in zip(self._weights, self._grad_flags, strict=True):
            # A trainer may switch gradients off before the swap or on again before its end: the
            # flags belong to what is swapped, so they are put right here whatever the order.
            wanted = before or bool(weight.requires_grad)
            weight.swap(self.values[name])
            weight.requires_grad = wanted
            self.values[name].stop_grad()
        self._grad_flags = None

    def release(self) -> None:
        """Let go of the task, which another run may replace; the averages stay."""
        self.swap_out()
        self._weights, self._updated_by = [], {}

    def average_arrays(self) -> dict[str, np.ndarray]:
        """The averages, whether they are swapped in or not."""
        return _fetch(dict(self._weights) if self.swapped else self.values)

    def raw_arrays(self) -> dict[str, np.ndarray]:
        """The task's own weights of the averaged names, likewise."""
        return _fetch(self.values if self.swapped else dict(self._weights))

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over averages that were saved."""
        self.values = {name: jt.array(array).stop_grad() for name, array in arrays.items()}

    def _is_statistic(self, name: str) -> bool:
        return self._statistics and name.rsplit(".", 1)[-1] in _STATISTICS

    def _check(self, weights: dict[str, jt.Var]) -> None:
        """Refuse averages that have no counterpart of their shape in the task."""
        wrong = [
            name
            for name, average in self.values.items()
            if name not in weights or tuple(weights[name].shape) != tuple(average.shape)
        ]
        if wrong:
            raise ValueError(
                f"the {self._owner} state of the checkpoint does not fit this task: "
                f"{', '.join(wrong[:5])}{' and others' if len(wrong) > 5 else ''}; train the same "
                f"parameters, or remove {self._owner} from the callbacks"
            )


def _fetch(named: Mapping[str, jt.Var]) -> dict[str, np.ndarray]:
    arrays = jt.fetch_sync(list(named.values())) if named else []
    return dict(zip(named, arrays, strict=True))
