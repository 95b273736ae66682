"""The best value of a metric so far, for the summary of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Mode = Literal["min", "max"]


class Best:
    """Keeps the best value of some metrics, and the step of it.

    Args:
        modes: Metric -> whether its `min` or `max` is best.
        owner: For the message about another mode.

    Raises:
        ValueError: A mode is neither.
    """

    def __init__(self, modes: Mapping[str, Mode] | None, owner: str) -> None:
        self._modes = dict(modes or {})
        for name, mode in self._modes.items():
            if mode not in ("min", "max"):
                raise ValueError(f"{owner}.best[{name!r}] must be min or max, got {mode!r}")
        self._best: dict[str, list[float]] = {}

    def update(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Take new values in; what improved, as `best/<metric>` and `best/<metric>_step`."""
        improved: dict[str, float] = {}
        for name, mode in self._modes.items():
            value = float(metrics.get(name, float("nan")))
            old = self._best.get(name)
            # A NaN compares false with everything, so it is never the best.
            if value == value and (
                old is None or (value > old[0] if mode == "max" else value < old[0])
            ):
                self._best[name] = [value, step]
                improved[f"best/{name}"] = value
                improved[f"best/{name}_step"] = step
        return improved

    def summary(self) -> dict[str, float]:
        """All of it, named as in `update`."""
        named = {f"best/{name}": value for name, (value, _) in self._best.items()}
        return named | {f"best/{name}_step": step for name, (_, step) in self._best.items()}

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {name: list(pair) for name, pair in self._best.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, of the metrics that are still watched."""
        self._best = {name: list(state[name]) for name in self._modes if name in state}
