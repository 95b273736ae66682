"""Optimizers as configuration, learning-rate schedules as closed forms, and their state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jittor as jt
import numpy as np


def _check(config: object, wanted: str, holds: Callable[[Any], bool], *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not holds(value):
            raise ValueError(f"{type(config).__name__}.{name} must be {wanted}, got {value!r}")


class OptimizerConfig:
    """Something that builds a Jittor optimizer once the parameters are known."""

    def build(self, groups: list[dict[str, Any]]) -> jt.optim.Optimizer:
        """An optimizer of parameter groups: `params`, optionally `name`, `lr`, `weight_decay`."""
        raise NotImplementedError(f"{type(self).__name__} needs build(groups)")


@dataclass(frozen=True)
class AdamW(OptimizerConfig):
    """AdamW (Loshchilov and Hutter, 2019), the arithmetic of PyTorch's.

    Args:
        lr: Learning rate, before the schedule's factor.
        betas: Decay of the first and second moment.
        eps: Added to the denominator.
        weight_decay: Decoupled decay; a parameter group may set its own.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        _check(self, "above 0", lambda x: x > 0, "lr", "eps")
        _check(self, "at least 0", lambda x: x >= 0, "weight_decay")
        _check(self, "from 0 to below 1", lambda x: all(0 <= b < 1 for b in x), "betas")

    def build(self, groups: list[dict[str, Any]]) -> jt.optim.Optimizer:
        """The Jittor optimizer of `groups`."""
        return jt.optim.AdamW(
            groups, self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class SGD(OptimizerConfig):
    """Stochastic gradient descent with momentum, weight decay added to the gradient.

    Args:
        lr: Learning rate, before the schedule's factor.
        momentum: Momentum.
        weight_decay: L2 penalty; a parameter group may set its own.
        nesterov: Nesterov's momentum.
    """

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        _check(self, "above 0", lambda x: x > 0, "lr")
        _check(self, "at least 0", lambda x: x >= 0, "weight_decay")
        _check(self, "from 0 to below 1", lambda x: 0 <= x < 1, "momentum")

    def build(self, groups: list[dict[str, Any]]) -> jt.optim.Optimizer:
        """The Jittor optimizer of `groups`."""
        return jt.optim.SGD(
            groups,
            self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


class Schedule:
    """A learning-rate factor as a closed form of the update count: no state, exact on resume."""

    def __call__(self, step: int, total_steps: int) -> float:
        """Factor for update number `step` (from 0) of a run of `total_steps` updates."""
        raise NotImplementedError(f"{type(self).__name__} needs __call__(step, total_steps)")


def _warmup(step: int, warmup_steps: int) -> float | None:
    """Linear from 0 to 1, or None once the warm-up is over."""
    return step / warmup_steps if step < warmup_steps else None


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """A factor of 1 after a linear warm-up.

    Args:
        warmup_steps: Updates of the warm-up from 0; 0 for none.
    """

    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check(self, "at least 0", lambda x: x >= 0, "warmup_steps")

    def __call__(self, step: int, total_steps: int) -> float:
        """See `Schedule`."""
        factor = _warmup(step, self.warmup_steps)
        return 1.0 if factor is None else factor


@dataclass(frozen=True)
class PolySchedule(Schedule):
    """`(1 - step / total) ** power` after a linear warm-up, not shifted by it.

    Args:
        power: The exponent.
        warmup_steps: Updates of the warm-up from 0; 0 for none.
        written_after_update: As the official DFormer code does, the rate computed for an update
            is written only after it and so acts on the next one; the very first update uses the
            full rate and the second none.
    """

    power: float = 0.9
    warmup_steps: int = 0
    written_after_update: bool = False

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check(self, "at least 0", lambda x: x >= 0, "warmup_steps")
        _check(self, "above 0", lambda x: x > 0, "power")

    def __call__(self, step: int, total_steps: int) -> float:
        """See `Schedule`."""
        if self.written_after_update:
            if step == 0:
                return 1.0
            step -= 1
        factor = _warmup(step, self.warmup_steps)
        if factor is not None:
            return factor
        return max(1.0 - step / total_steps, 0.0) ** self.power


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Half a cosine from 1 to `floor` after a linear warm-up.

    Args:
        warmup_steps: Updates of the warm-up from 0; 0 for none.
        floor: The factor at the end.
    """

    warmup_steps: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check(self, "at least 0", lambda x: x >= 0, "warmup_steps")
        _check(self, "from 0 to 1", lambda x: 0 <= x <= 1, "floor")

    def __call__(self, step: int, total_steps: int) -> float:
        """See `Schedule`."""
        factor = _warmup(step, self.warmup_steps)
        if factor is not None:
            return factor
        span = max(total_steps - self.warmup_steps, 1)
        done = min((step - self.warmup_steps) / span, 1.0)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


class OptimizerStateError(RuntimeError):
    """A checkpoint's optimizer state does not fit the optimizer."""


def trainable(parameters: Iterable[jt.Var]) -> list[jt.Var]:
    """Those that get gradients; running statistics and frozen parameters do not."""
    return [p for p in parameters if not p.is_stop_grad()]


class OptimizerDriver:
    """A Jittor optimizer with the learning rates of a schedule and a step count that is right.

    Jittor counts calls of `backward`, so that Adam's bias correction is wrong as soon as
    gradients are accumulated; the driver sets the count to the number of updates.

    Args:
        optimizer: Any of `jt.optim`.
        schedule: Factor of every group's own learning rate, or None for a constant 1.
        total_steps: As the attribute.
        names: Name of each parameter by `id`, for state and messages.
        first_group: Number of its first parameter group, counted over all optimizers of the run.

    Attributes:
        updates: Updates done by this optimizer.
        total_steps: Updates of the whole run, for the schedule.
        forced_rate: Learning rate by step in place of the schedule's, for trials.
    """

    def __init__(
        self,
        optimizer: jt.optim.Optimizer,
        schedule: Schedule | None,
        total_steps: int,
        names: Mapping[int, str],
        first_group: int = 0,
    ) -> None:
        self.optimizer = optimizer
        self.updates = 0
        self.total_steps = total_steps
        self.forced_rate: Callable[[int], float] | None = None
        self._first_group = first_group
        self._schedule = schedule
        self._names = names
        self._base_rates = [float(g.get("lr", optimizer.lr)) for g in optimizer.param_groups]

    def set_rates(self, step: int) -> None:
        """Write the rates for update number `step` into every group."""
        factor = 1.0 if self._schedule is None else self._schedule(step, self.total_steps)
        if self.forced_rate is not None:
            factor = self.forced_rate(step) / self._base_rates[0]
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base * factor

    def set_base_rate(self, rate: float) -> None:
        """Make `rate` the first group's learning rate before the schedule; others keep their ratio.

        Raises:
            ValueError: The rate is not above 0.
        """
        if not rate > 0:
            raise ValueError(f"a learning rate must be above 0, got {rate}")
        first = self._base_rates[0]
        # Not all by the factor: first * (rate / first) is not always rate.
        self._base_rates = [
            rate if base == first else base * (rate / first) for base in self._base_rates
        ]

    def describe_schedule(self) -> str:
        """The schedule as text, for the record in a checkpoint."""
        return repr(self._schedule)

    def rates(self) -> dict[str, float]:
        """Learning rate in force by group: `lr`, or `lr/<name or index>` with several groups."""
        groups = self.optimizer.param_groups
        if len(groups) == 1:
            return {"lr": float(groups[0].get("lr", self.optimizer.lr))}
        return {
            f"lr/{group.get('name', index)}": float(group.get("lr", self.optimizer.lr))
            for index, group in enumerate(groups)
        }

    def gradients(self) -> list[tuple[str, jt.Var]]:
        """Name and accumulated gradient of every trainable parameter."""
        return [
            (self._names.get(id(p), "?"), g)
            for group in self.optimizer.param_groups
            for p, g in zip(group["params"], group.get("grads", ()), strict=False)
            if not p.is_stop_grad()
        ]

    def parameters(self) -> list[jt.Var]:
        """All that the optimizer holds, frozen ones too."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def groups(self) -> range:
        """The numbers of its parameter groups, counted over all optimizers of the run."""
        return range(self._first_group, self._first_group + len(self.optimizer.param_groups))

    def step(self) -> None:
        """Update the parameters from the accumulated gradients.

        A group with `first_update`, the number of updates that had been done when it joined, has
        its own count: Adam corrects moments that begin at 0 as those of a new run.
        """
        self.updates += 1
        optimizer = self.optimizer
        groups = optimizer.param_groups
        try:
            for first in sorted({group.get("first_update", 0) for group in groups}):
                optimizer.param_groups = [g for g in groups if g.get("first_update", 0) == first]
                optimizer.n_step = self.updates - first
                optimizer.step()
        finally:
            optimizer.param_groups = groups
            # Left at 1 by an exception inside `step`, it would reorder all later operations.
            jt.flags.node_order = 0

    def moments(self) -> dict[str, jt.Var]:
        """Name in a checkpoint -> Var, for every per-parameter buffer of the optimizer."""
        moments = {}
        for index, group in zip(self.groups, self.optimizer.param_groups, strict=True):
            params = group["params"]
            for key, values in group.items():
                if key in ("params", "grads") or not _is_buffer_list(values, len(params)):
                    continue
                for parameter, value in zip(params, values, strict=True):
                    name = self._names.get(id(parameter))
                    if name is not None:
                        moments[f"optimizer/{index}/{key}/{name}"] = value
        return moments

    def state_tensors(self) -> dict[str, np.ndarray]:
        """Every moment as an array; read it at a step boundary only."""
        moments = self.moments()
        return dict(zip(moments, jt.fetch_sync(list(moments.values())), strict=True))

    def load_tensors(self, tensors: Mapping[str, np.ndarray], source: str) -> None:
        """Restore moments.

        Raises:
            OptimizerStateError: Names or shapes differ; nothing has been changed then.
        """
        moments = self.moments()
        missing = sorted(set(moments) - set(tensors))
        unknown = sorted(set(tensors) - set(moments))
        shapes = [
            name
            for name in set(moments) & set(tensors)
            if tuple(moments[name].shape) != tuple(tensors[name].shape)
        ]
        if missing or unknown or shapes:
            raise OptimizerStateError(
                f"the optimizer state of {source} does not fit {type(self.optimizer).__name__}: "
                f"missing {_some(missing)}; unknown {_some(unknown)}; other shape {_some(shapes)}. "
                "Was the run started with another optimizer or other parameter groups? Start anew "
                "from its weights alone if that is what you want"
            )
        for name, value in moments.items():
            value.update(jt.array(tensors[name]).stop_grad())


def _is_buffer_list(values: Any, length: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == length
        and all(isinstance(v, jt.Var) for v in values)
    )


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
