"""Rows that a client may still hold in memory, kept in checkpoints until it has written them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_KEEP_S = 5.0
_MOST = 200


@dataclass
class _Row:
    step: int
    epoch: int
    metrics: dict[str, float]
    sent_at_s: float | None = None


class Recent:
    """The last rows of metrics, so that a kill right after a checkpoint loses none before it.

    A client may hold the newest row back until one of a later step comes, and writes in batches:
    a row is kept until its successor has been with the client for `keep_s`.

    Args:
        keep_s: Longer than the client takes to write.
        most: Rows kept at most.
        clock: Seconds.
    """

    def __init__(
        self,
        keep_s: float = _KEEP_S,
        most: int = _MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep_s, self._clock = keep_s, clock
        self._rows: deque[_Row] = deque(maxlen=most)

    def add(self, metrics: Mapping[str, float], step: int, epoch: int) -> Callable[[], None]:
        """Keep a row, and forget those that must have been written.

        Returns:
            What to call once the client has the row, from any thread. The time until then does
            not count: it may be long, as Jittor holds the interpreter while it compiles.
        """
        while len(self._rows) > 1 and self._is_old(self._rows[1]):
            self._rows.popleft()
        if self._rows and self._rows[-1].step == step:
            self._rows[-1].metrics.update(metrics)
        else:
            self._rows.append(_Row(step, epoch, dict(metrics)))
        row = self._rows[-1]

        def sent() -> None:
            row.sent_at_s = self._clock()

        return sent

    def rows(self) -> Iterator[tuple[dict[str, float], int, int]]:
        """Metrics, step and epoch of each row, oldest first."""
        for row in self._rows:
            yield row.metrics, row.step, row.epoch

    def state_dict(self) -> list[Any]:
        """Step, epoch and metrics of each row."""
        return [[step, epoch, dict(metrics)] for metrics, step, epoch in self.rows()]

    def load_state_dict(self, state: list[Any]) -> None:
        """Take over what `state_dict` returned."""
        self._rows.clear()
        for step, epoch, metrics in state:
            self.add(metrics, step, epoch)

    def _is_old(self, row: _Row) -> bool:
        return row.sent_at_s is not None and row.sent_at_s < self._clock() - self._keep_s
