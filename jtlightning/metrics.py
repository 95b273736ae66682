"""What `Task.log` records, read from the device only after a step boundary."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jittor as jt


class UnknownMetricError(KeyError):
    """A metric was asked for that nothing has logged."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass
class _Record:
    """One call of `log`; `value` is a Var until it is fetched."""

    name: str
    value: Any
    on_step: bool
    on_epoch: bool
    prog_bar: bool
    weight: float
    scope: str
    position: int | None


#: Of one process: scope -> metric -> (position of the batch, weighted value, weight).
_Parts = dict[str, dict[str, list[tuple[int | None, float, float]]]]


class MetricLog(Mapping[str, float]):
    """The newest value of every metric, by name; epoch values are means weighted by batch size.

    Logged Vars are held until they are fetched at a log step, all at once, so logging itself
    never waits for the device. With both `on_step` and `on_epoch` the loggers see `name_step`
    and `name_epoch`, as in Lightning.

    With several processes, the epoch's means are of all, added up in the order in which one
    process would have, so that an evaluation gives the same number to the last bit. Values of a
    step are those of this process.

    Args:
        gather: Returns what each process passes to it; None for a single process.
    """

    def __init__(self, gather: Callable[[Any], list[Any]] | None = None) -> None:
        self._gather = gather
        self._parts: _Parts = {}
        self._values: dict[str, float] = {}
        self._progress_names: dict[str, None] = {}
        self._pending: list[_Record] = []
        self._detached = 0  # so many of these have no graph any more
        # scope -> name -> [weighted sum, sum of weights]; a validation inside a training epoch
        # closes its own means and leaves those of the epoch open.
        self._sums: dict[str, dict[str, list[float]]] = {}
        self._both: set[str] = set()

    def __getitem__(self, name: str) -> float:
        if name in self._values:
            return self._values[name]
        near = difflib.get_close_matches(name, self._values, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(sorted(self._values)) or "none yet"
        raise UnknownMetricError(f"no metric {name!r} has been logged{hint} Known: {known}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def progress_bar(self) -> dict[str, float]:
        """The newest values of the metrics logged with `prog_bar=True`."""
        return {name: self._values[name] for name in self._progress_names if name in self._values}

    def record(
        self,
        name: str,
        value: Any,
        *,
        on_step: bool,
        on_epoch: bool,
        prog_bar: bool,
        weight: float,
        scope: str,
        position: int | None = None,
    ) -> None:
        """Take a scalar (Var or number) without reading it.

        Args:
            name: As in `Task.log`, like what follows.
            value: A scalar.
            on_step: Log the value of the step.
            on_epoch: Log the mean.
            prog_bar: Show it.
            weight: In the mean.
            scope: The stage that logs it.
            position: Number of the batch over all processes; None for what all of them log alike.

        Raises:
            ValueError: The Var has more than one element.
        """
        if isinstance(value, jt.Var) and value.numel() != 1:
            raise ValueError(f"log({name!r}) takes a scalar, got shape {tuple(value.shape)}")
        self._pending.append(
            _Record(name, value, on_step, on_epoch, prog_bar, weight, scope, position)
        )

    def update(self, values: Mapping[str, float]) -> None:
        """Set values that are numbers already, such as those that callbacks compute."""
        self._values.update(values)

    @property
    def held(self) -> int:
        """Number of logged values that have not been read yet."""
        return len(self._pending)

    def drop_after(self, held: int) -> None:
        """Forget what has been logged since `held` was this number."""
        del self._pending[held:]
        self._detached = min(self._detached, held)

    def detach(self) -> None:
        """Cut what is held from the graph of its step; call it right after the boundary."""
        for record in self._pending[self._detached :]:
            if isinstance(record.value, jt.Var):
                record.value.stop_grad()
        self._detached = len(self._pending)

    def fetch(self) -> dict[str, float]:
        """Read everything held and return the step values under their logger names."""
        held = [r for r in self._pending if isinstance(r.value, jt.Var)]
        if held:
            for record, array in zip(held, jt.fetch_sync([r.value for r in held]), strict=True):
                record.value = float(array.reshape(-1)[0])
        steps: dict[str, float] = {}
        for record in self._pending:
            self._take(record, steps)
        self._pending.clear()
        self._detached = 0
        self._values.update(steps)
        return steps

    def _take(self, record: _Record, steps: dict[str, float]) -> None:
        value = float(record.value)
        if record.prog_bar:
            self._progress_names[record.name] = None
        if record.on_epoch and self._gather is not None:
            parts = self._parts.setdefault(record.scope, {}).setdefault(record.name, [])
            parts.append((record.position, value * record.weight, record.weight))
        elif record.on_epoch:
            total = self._sums.setdefault(record.scope, {}).setdefault(record.name, [0.0, 0.0])
            total[0] += value * record.weight
            total[1] += record.weight
        if record.on_step and record.on_epoch:
            self._both.add(record.name)
            self._values[record.name] = value
            steps[f"{record.name}_step"] = value
        elif record.on_step:
            steps[record.name] = value

    def finish_epoch(self, scope: str) -> dict[str, float]:
        """Close the epoch means of one scope and return them under their logger names."""
        self.fetch()
        means: dict[str, float] = {}
        for name, (total, weight) in self._sums_of(scope).items():
            mean = total / weight if weight else float("nan")
            self._values[name] = mean
            means[f"{name}_epoch" if name in self._both else name] = mean
        self._values.update(means)
        return means

    def _sums_of(self, scope: str) -> dict[str, list[float]]:
        """Take the sums of one scope, of all processes."""
        sums = self._sums.pop(scope, {})
        if self._gather is None:
            return sums
        gathered = self._gather((sums, self._parts.pop(scope, {})))
        sums = gathered[0][0]  # from a checkpoint, so alike
        merged: dict[str, list[tuple[int, int, float, float]]] = {}
        for rank, (_, parts) in enumerate(gathered):
            for name, entries in parts.items():
                kept = [e for e in entries if e[0] is not None or rank == 0]
                merged.setdefault(name, []).extend(
                    (sys.maxsize if position is None else position, number, value, weight)
                    for number, (position, value, weight) in enumerate(kept)
                )
        for name, in_order in merged.items():
            total = sums.setdefault(name, [0.0, 0.0])
            for _, _, value, weight in sorted(in_order):
                total[0] += value
                total[1] += weight
        return sums

    def drop_epoch(self, scope: str) -> None:
        """Forget the open means of one scope, without reading what is held."""
        self._sums.pop(scope, None)
        self._parts.pop(scope, None)
        self._pending = [record for record in self._pending if record.scope != scope]
        self._detached = min(self._detached, len(self._pending))

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self._progress_names.clear()
        self._pending.clear()
        self._detached = 0
        self._sums.clear()
        self._parts.clear()

    def state_dict(self) -> dict[str, Any]:
        """Newest values and the open epoch's sums; what is held is read."""
        self.fetch()
        sums = {
            scope: {k: list(v) for k, v in named.items()} for scope, named in self._sums.items()
        }
        for scope, named in self._parts.items():  # of this process alone
            for name, entries in named.items():
                total = sums.setdefault(scope, {}).setdefault(name, [0.0, 0.0])
                total[0] += sum(value for _, value, _ in entries)
                total[1] += sum(weight for _, _, weight in entries)
        return {"values": dict(self._values), "sums": sums, "both": sorted(self._both)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._values = dict(state["values"])
        self._both = set(state["both"])
        self._sums = {
            scope: {name: list(total) for name, total in named.items()}
            for scope, named in state["sums"].items()
        }
