"""Show how far a run is: a live bar on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer

_COMPILING_STEPS = 2  # the first steps of a process compile kernels: no speed is derived from them
_WINDOW = 20


class RichProgressBar(Callback):
    """Epoch, step, speed, remaining time, and the metrics logged with `prog_bar=True`.

    Only values that the trainer has fetched anyway are shown. Where the output is no terminal
    (a file, a pipe, a batch job) there are plain lines instead: one per epoch, one per
    validation, and in between at most one every `line_every_s`.

    Args:
        refresh_s: Least time between two refreshes of the bar.
        line_every_s: Least time between two plain lines within an epoch.
    """

    def __init__(self, *, refresh_s: float = 0.2, line_every_s: float = 10.0) -> None:
        if refresh_s <= 0 or line_every_s <= 0:
            raise ValueError(
                "RichProgressBar needs positive times, got "
                f"refresh_s={refresh_s}, line_every_s={line_every_s}"
            )
        self.refresh_s, self.line_every_s = refresh_s, line_every_s
        self.console = Console()
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        self._evaluated = 0
        self._shown_at_s = self._epoch_began_s = self._pause_s = 0.0
        self._steps_seen = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._rate: float | None = None

    def on_sanity_check_start(self, trainer: Trainer, task: Task) -> None:
        if not self.console.is_terminal:
            self._line("trying a few validation batches first (compiles kernels on first use)")

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        self._recent.clear()
        self._shown_at_s, self._steps_seen, self._rate = time.monotonic(), 0, None
        self._pause_s = self.refresh_s if self.console.is_terminal else self.line_every_s

    def on_train_epoch_start(self, trainer: Trainer, task: Task) -> None:
        self._epoch_began_s = time.monotonic()
        self._update("train", trainer.num_training_batches, trainer.batch_idx, trainer, force=True)

    def on_train_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self._steps_seen += 1
        if self._steps_seen >= _COMPILING_STEPS:
            self._recent.append((now, trainer.global_step))
        if now - self._shown_at_s < self._pause_s:
            return  # first of all: the console takes 17 us to say whether it is a terminal
        if self.console.is_terminal:
            self._update("train", trainer.num_training_batches, batch_idx + 1, trainer)
        else:
            self._shown_at_s = now
            self._line(f"{_epoch(trainer)}  {self._status(trainer)}")

    def on_train_epoch_end(self, trainer: Trainer, task: Task) -> None:
        if not self.console.is_terminal:
            took_s = time.monotonic() - self._epoch_began_s
            self._line(f"{_epoch(trainer)} took {took_s:.1f} s  {self._status(trainer)}")
            self._shown_at_s = time.monotonic()
        self._update("train", trainer.num_training_batches, trainer.batch_idx, trainer, force=True)

    def on_validation_start(self, trainer: Trainer, task: Task) -> None:
        self._start_evaluation("validation", trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._advance("validation", None if trainer.sanity_checking else trainer.num_val_batches)

    def on_validation_end(self, trainer: Trainer, task: Task) -> None:
        self._end_evaluation("validation", trainer)

    def on_test_start(self, trainer: Trainer, task: Task) -> None:
        self._start_evaluation("test", trainer)

    def on_test_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._advance("test", None)

    def on_test_end(self, trainer: Trainer, task: Task) -> None:
        self._end_evaluation("test", trainer)

    def on_predict_start(self, trainer: Trainer, task: Task) -> None:
        self._start_evaluation("predict", trainer)

    def on_predict_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._advance("predict", None)

    def on_predict_end(self, trainer: Trainer, task: Task) -> None:
        self._end_evaluation("predict", trainer)

    def on_train_end(self, trainer: Trainer, task: Task) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, task: Task, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: Trainer, task: Task, stage: str) -> None:
        self._close()

    def _start_evaluation(self, name: str, trainer: Trainer) -> None:
        self._evaluated = 0
        self._measure()
        self._recent.clear()  # the time of an evaluation is not a step's

    def _advance(self, name: str, total: int | None) -> None:
        self._evaluated += 1
        self._update(name, total or None, self._evaluated)

    def _end_evaluation(self, name: str, trainer: Trainer) -> None:
        if self._progress is not None and name in self._bars:
            self._progress.remove_task(self._bars.pop(name))
        if not trainer.sanity_checking:
            after = f" after step {trainer.global_step}" if trainer.stage == "fit" else ""
            values = _values(trainer)
            self._line(f"{name}{after}: {self._evaluated} batches{'  ' if values else ''}{values}")
            self._shown_at_s = time.monotonic()

    def _update(
        self,
        name: str,
        total: int | None,
        completed: int,
        trainer: Trainer | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Set the live bar `name`; drawn only where `refresh_s` has passed, or by `force`."""
        now = time.monotonic()
        if not self.console.is_terminal or (not force and now - self._shown_at_s < self.refresh_s):
            return
        self._shown_at_s = now
        if self._progress is None:
            # No thread refreshes it: steps hold the interpreter for long, and a step calls us.
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                console=self.console,
                auto_refresh=False,
            )
            self._progress.start()
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total, status="")
        label = name if trainer is None else _epoch(trainer)
        status = "" if trainer is None else self._status(trainer)
        self._progress.update(
            self._bars[name], total=total, completed=completed, description=label, status=status
        )
        self._progress.refresh()

    def _status(self, trainer: Trainer) -> str:
        total = trainer.estimated_stepping_batches
        endless = total <= 0 or total == sys.maxsize
        parts = [f"step {trainer.global_step}" + ("" if endless else f"/{total}")]
        self._measure()
        if self._rate is not None:
            slow = self._rate < 1
            parts.append(f"{1 / self._rate:.2f} s/it" if slow else f"{self._rate:.2f} it/s")
            if not endless:
                left_s = max(total - trainer.global_step, 0) / self._rate
                parts.append(f"ETA {timedelta(seconds=round(left_s))}")
        return "  ".join([*parts, *filter(None, [_values(trainer)])])

    def _measure(self) -> None:
        """Steps per second over the last steps; without any, what was measured before stays."""
        if len(self._recent) > 1:
            (first_s, first), (last_s, last) = self._recent[0], self._recent[-1]
            if last > first and last_s > first_s:
                self._rate = (last - first) / (last_s - first_s)

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._bars = None, {}


def _epoch(trainer: Trainer) -> str:
    last = trainer.max_epochs
    return f"epoch {trainer.current_epoch + 1}" + ("" if last is None else f"/{last}")


def _values(trainer: Trainer) -> str:
    shown = trainer.metrics.progress_bar()
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
