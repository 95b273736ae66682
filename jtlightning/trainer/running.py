"""The running state of a trainer: what tasks and callbacks see and ask for."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jittor as jt
import numpy as np

from jtlightning import distributed, signals
from jtlightning.checkpoint.container import Checkpoint, write_checkpoint
from jtlightning.data.batch import batch_size_of
from jtlightning.metrics import MetricLog
from jtlightning.state import RunState, Stage
from jtlightning.trainer import snapshot

if TYPE_CHECKING:
    from jtlightning.callbacks.base import Callback
    from jtlightning.data.datamodule import DataModule
    from jtlightning.distributed import Ranks
    from jtlightning.loggers.base import Logger
    from jtlightning.optim import OptimizerDriver
    from jtlightning.precision import LossScaler, Precision
    from jtlightning.run_directory import RunDirectory
    from jtlightning.task import Task
    from jtlightning.trainer.hooks import Hooks
    from jtlightning.trainer.loaders import BatchSource
    from jtlightning.trainer.session import Session
    from jtlightning.trainer.step import Stepper

log = logging.getLogger(__name__)
_NOTHING: AbstractContextManager[None] = nullcontext()


class Running:
    """Counters, metrics, logging, saving and stopping; `Trainer` adds arguments and entry points.

    Attributes:
        observers: While there are any, every hook and every part of the loop runs inside
            `observer(place)`, a context manager; `place` is such as `EMA.on_fit_start`,
            `MyTask.training_step` or `backward`.
        at_step_boundary: Whether the state is that after a whole number of optimizer steps.
        data_wait_s: Seconds that training has waited for batches in this process.
        samples_seen: Training samples that this process has taken.
    """

    # Set by `Trainer` from its arguments.
    accumulate_grad_batches: int
    callbacks: list[Callback]
    log_every_n_steps: int
    loggers: list[Logger]
    max_epochs: int | None
    max_steps: int
    max_time_s: float | None
    min_epochs: int
    ranks: Ranks
    precision: Precision
    scaler: LossScaler | None
    seed: int
    observers: list[Callable[[str], AbstractContextManager[Any]]]
    # Of the running session.
    hooks: Hooks
    session: Session
    stepper: Stepper

    def reset(self) -> None:
        """Empty what belongs to one call of an entry point; `Session` fills it."""
        self.state = RunState()
        self.metrics = MetricLog(self.gather if self.ranks.several else None)
        self.stage: Stage = "fit"
        self.sanity_checking = False
        self.evaluating: str | None = None  # validation, test or predict while one runs
        self.in_training_step = False
        self.at_step_boundary = False
        self.should_stop = False
        self.interrupted = False
        self.stop_reason: str | None = None
        self.run: RunDirectory | None = getattr(self, "run", None)
        self.task: Task | None = None
        self.datamodule: DataModule | None = None
        self.drivers: list[OptimizerDriver] = []
        self.batch_size = 0
        self.batch_position: int | None = None
        self.samples_seen = 0
        self.data_wait_s = 0.0
        self.num_training_batches = self.num_val_batches = 0
        self.val_check_batch = 1
        self.started_loggers: list[Logger] = []
        self._log_buffer: dict[str, float] = {}
        self._clock = time.perf_counter()
        self._signals: signals.StopSignals | None = None

    @property
    def global_rank(self) -> int:
        """Which of several processes this is, from 0."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """Number of processes of this run."""
        return self.ranks.size

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.ranks.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """What each process passes, by rank, such as counts to be added; all must call it."""
        return distributed.gather(value, self.ranks)

    def sum_over_processes(self, array: np.ndarray) -> np.ndarray:
        """Add what each process passes, such as the counts of a metric; all must call it."""
        return array if not self.ranks.several else np.sum(self.gather(array), axis=0)

    @property
    def current_epoch(self) -> int:
        """The epoch that is running, from 0."""
        return self.state.epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps done."""
        return self.state.global_step

    @property
    def batch_idx(self) -> int:
        """Micro-batches of the epoch that are done."""
        return self.state.batch_in_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; a shorter last window counts."""
        return -(-self.num_training_batches // self.accumulate_grad_batches)

    @property
    def estimated_stepping_batches(self) -> int:
        """Optimizer steps of the whole run, as far as epochs and steps limit it."""
        epochs = sys.maxsize if self.max_epochs is None else self.max_epochs * self.steps_per_epoch
        return min(epochs, self.max_steps) if self.max_steps >= 0 else epochs

    @property
    def optimizer(self) -> jt.optim.Optimizer | None:
        """The (first) optimizer, from `on_fit_start` on."""
        return self.drivers[0].optimizer if self.drivers else None

    @property
    def optimizers(self) -> list[jt.optim.Optimizer]:
        """All optimizers, from `on_fit_start` on; more than one with manual optimisation."""
        return [driver.optimizer for driver in self.drivers]

    def learning_rates(self) -> dict[str, float]:
        """The rates of the last step: `lr`, or `lr/<group>` with several groups.

        With several optimizers the second one's are `lr-1`, `lr-1/<group>`, and so on.
        """
        rates = {}
        for index, driver in enumerate(self.drivers):
            prefix = f"lr-{index}" if index else "lr"
            rates.update({prefix + n.removeprefix("lr"): r for n, r in driver.rates().items()})
        return rates

    def gradients(self) -> list[tuple[str, jt.Var]]:
        """Names and accumulated gradients, from `on_after_backward` until the update."""
        return [named for driver in self.drivers for named in driver.gradients()]

    @property
    def train_source(self) -> BatchSource:
        """The training batches of the running fit."""
        return self.session.train_source

    def driver_of(self, optimizer: jt.optim.Optimizer) -> OptimizerDriver:
        """What keeps the state of one of `optimizers`.

        Raises:
            ValueError: It is none of them.
        """
        for driver in self.drivers:
            if driver.optimizer is optimizer:
                return driver
        raise ValueError(
            f"this {type(optimizer).__name__} is not one that configure_optimizers returned"
        )

    def trial(
        self,
        steps: int,
        *,
        learning_rate: Callable[[int], float] | None = None,
        loader: Any = None,
    ) -> list[float]:
        """The losses of a few optimizer steps, after which everything is as it was before.

        No hooks are called and nothing is logged or saved. For `on_fit_start`.

        Args:
            steps: How many; a loss that is not finite ends the trial early and is included.
            learning_rate: Rate of step 0, 1, ... in place of the schedule's.
            loader: Training batches to use instead of the run's.
        """
        return self.session.trial(steps, learning_rate, loader)

    def replace_train_loader(self, loader: Any) -> None:
        """Train on `loader` from here on; epoch length and schedule follow. For `on_fit_start`."""
        self.session.replace_train_loader(loader)

    def set_learning_rate(self, rate: float) -> None:
        """Replace the (first) optimizer's configured rate; the schedule's factor still applies."""
        self.drivers[0].set_base_rate(rate)

    def observe(self, place: str) -> AbstractContextManager[Any]:
        """Enter every observer for the part of the loop that is named `place`."""
        if not self.observers:
            return _NOTHING
        stack = ExitStack()
        for observer in self.observers:
            stack.enter_context(observer(place))
        return stack

    @property
    def should_log(self) -> bool:
        """Whether the step just done is one of every `log_every_n_steps`."""
        step = self.state.global_step
        return self.at_step_boundary and step > 0 and step % self.log_every_n_steps == 0

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add numbers to what the loggers get for this step, and to `metrics`."""
        self.metrics.update(metrics)
        if not self.sanity_checking:
            self._log_buffer.update(metrics)

    @property
    def unwritten_logs(self) -> dict[str, float]:
        """What the loggers will get for this step."""
        return dict(self._log_buffer)

    def flush_logs(self) -> None:
        """Write what has been gathered for this step to every logger, as one row."""
        if self._log_buffer:
            row, state = self._log_buffer, self.state
            self.tell_loggers("log_metrics", row, step=state.global_step, epoch=state.epoch)
        self._log_buffer = {}

    def tell_loggers(self, method: str, *args: Any, **options: Any) -> None:
        """Call a method of every logger; one that raises is dropped with a warning."""
        for logger in list(self.started_loggers):
            try:
                getattr(logger, method)(*args, **options)
            except Exception:
                # Whatever a user's logger or its service comes up with: training goes on.
                log.exception("%s.%s failed: dropped", type(logger).__name__, method)
                self.started_loggers.remove(logger)

    def record(
        self,
        name: str,
        value: Any,
        on_step: bool | None,
        on_epoch: bool | None,
        prog_bar: bool,
        batch_size: int | None,
    ) -> None:
        """What `Task.log` calls; see there."""
        in_step = self.in_training_step
        on_step = in_step if on_step is None else on_step
        on_epoch = not in_step if on_epoch is None else on_epoch
        self.metrics.record(
            name,
            value,
            on_step=on_step,
            on_epoch=on_epoch,
            prog_bar=prog_bar,
            weight=self.batch_size if batch_size is None else batch_size,
            scope=self.evaluating or "train",
            position=self.batch_position,
        )

    def enter_batch(self, batch: Any, position: int) -> None:
        """Take the batch's size as the weight of what is logged with it.

        Args:
            batch: The next one.
            position: Its number in this pass, counted over all processes.
        """
        self.batch_size, self.batch_position = batch_size_of(batch), position

    def save_checkpoint(self, path: str | Path, weights_only: bool = False) -> None:
        """Write the run as it stands, atomically.

        In `on_exception` that is the last step boundary, as long as no update had begun. Of several
        processes rank 0 writes; the others do nothing and need not call it.

        Raises:
            RuntimeError: Inside a step, where the state is not one to continue from.
            CheckpointError: The system refused; what was there before is intact.
        """
        if self.is_global_zero:
            write_checkpoint(path, self.capture_checkpoint(weights_only))

    def capture_checkpoint(self, weights_only: bool = False) -> Checkpoint:
        """The run as it stands, as arrays of its own: training may go on while it is written.

        Raises:
            RuntimeError: Inside a step, where the state is not one to continue from.
        """
        if not self.at_step_boundary or self.task is None:
            raise RuntimeError(
                "a checkpoint was asked for inside a step or before training; save from "
                "on_train_batch_end (where trainer.at_step_boundary), on_validation_end or later "
                "hooks"
            )
        self.read_clock()
        return snapshot.capture(self, self.task, weights_only=weights_only)

    def stop(self, reason: str) -> None:
        """Ask for the end of training at the next step boundary."""
        self.stop_reason = self.stop_reason or reason

    def honour_stop_requests(self) -> None:
        """Called by the loop at step boundaries: signals, the time limit, callbacks' requests."""
        interruption = self._interruption()
        if self.ranks.several:
            # A signal reaches every process at another step, and each has a clock of its own.
            asked = self.gather((interruption, self.stop_reason, self.should_stop))
            interruption = next((x for x, _, _ in asked if x), None)
            self.stop_reason = next((x for _, x, _ in asked if x), None)
            self.should_stop = any(x for _, _, x in asked)
        if interruption is not None:
            self._interrupt(interruption)
        elif self.stop_reason is not None:
            done = self.state.epoch + int(self.state.epoch_finished)
            self.should_stop = done >= self.min_epochs

    def _interruption(self) -> str | None:
        """What asks this process to stop in the middle of an epoch."""
        watched = self._signals
        if watched is not None and watched.received is not None:
            return watched.received.name
        if self.max_time_s is not None and self.state.elapsed_s >= self.max_time_s:
            return f"max_time of {self.max_time_s:.0f} s"
        return None

    def _interrupt(self, reason: str) -> None:
        """End without the epoch's closing hooks: a resumed run will call them."""
        if not self.interrupted:
            log.info("stopping after step %d: %s", self.state.global_step, reason)
        self.stop_reason, self.interrupted, self.should_stop = reason, True, True

    def arm_signals(self) -> None:
        """Called by the loop once loader workers have started; see `StopSignals.arm`."""
        if self._signals is not None:
            self._signals.arm()

    def start_clock(self) -> None:
        """Training time counts from now."""
        self._clock = time.perf_counter()

    def read_clock(self) -> None:
        """Add the time since the last call to the run's training time."""
        now = time.perf_counter()
        self.state.elapsed_s += now - self._clock
        self._clock = now
