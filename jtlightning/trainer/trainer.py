"""`Trainer`: the arguments, the counters that callbacks read, and the four entry points."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jittor as jt

from jtlightning import signals
from jtlightning.accelerator import Accelerator, select_device
from jtlightning.callbacks.base import Callback
from jtlightning.checkpoint.container import write_checkpoint
from jtlightning.data.batch import batch_size_of
from jtlightning.data.datamodule import DataModule
from jtlightning.loggers.base import Logger
from jtlightning.metrics import MetricLog
from jtlightning.optim import OptimizerDriver
from jtlightning.run_directory import RunDirectory
from jtlightning.seed import seed_everything
from jtlightning.state import RunState, Stage
from jtlightning.task import Task
from jtlightning.trainer import arguments, snapshot
from jtlightning.trainer.hooks import Hooks
from jtlightning.trainer.session import WORDS, Session

log = logging.getLogger(__name__)


class Trainer:
    """Runs a `Task` on batches: training, validation, test, prediction.

    Names and meanings are Lightning's. A *step* is an optimizer step; counters, logs and
    checkpoints speak of steps that are done.

    Args:
        accelerator: `cpu`, `cuda`, or `auto` for CUDA where it can be used.
        max_epochs: Stop after that many epochs; 1000 where no limit at all is given.
        max_steps: Stop after that many steps; -1 for no limit.
        max_time: Stop after this training time, `DD:HH:MM:SS`; the run can be continued.
        min_epochs: Ignore requests of callbacks to stop before that many epochs.
        limit_train_batches: Batches per epoch (int), or a fraction of them (float).
        limit_val_batches: Batches per validation, likewise.
        limit_test_batches: Batches per test, likewise.
        limit_predict_batches: Batches per prediction, likewise.
        overfit_batches: Train on these batches only (number or fraction), in the same order and
            with the same augmentations every epoch.
        fast_dev_run: Run one (or that many) batches of every stage, without logs or checkpoints.
        num_sanity_val_steps: Validation batches tried before training.
        val_check_interval: Validate every so many batches (int) or fractions of an epoch (float).
        check_val_every_n_epoch: Validate only in every n-th epoch.
        accumulate_grad_batches: Micro-batches per step; the loss is their mean.
        gradient_clip_val: Largest gradient norm or element; None for no clipping.
        gradient_clip_algorithm: `norm` (global L2 norm) or `value` (element by element).
        log_every_n_steps: Steps between two writes to the loggers.
        callbacks: In calling order; model checkpoints are moved to the end.
        logger: One or several loggers; True for a CSV file, False for none.
        enable_progress_bar: Show progress (plain lines where the output is no terminal).
        enable_model_summary: Show the table of modules before training.
        enable_checkpointing: Save checkpoints; adds a `ModelCheckpoint` where none is given.
        default_root_dir: Folder of this experiment; each run gets its own folder in it.
        barebones: No logs, checkpoints, progress, sanity or finite check; for measuring speed.
        seed: Of everything random; the same seed gives the same run.
    """

    def __init__(  # noqa: PLR0913 - Lightning's arguments, under Lightning's names
        self,
        *,
        accelerator: Accelerator = "auto",
        max_epochs: int | None = None,
        max_steps: int = -1,
        max_time: str | None = None,
        min_epochs: int = 0,
        limit_train_batches: int | float = 1.0,
        limit_val_batches: int | float = 1.0,
        limit_test_batches: int | float = 1.0,
        limit_predict_batches: int | float = 1.0,
        overfit_batches: int | float = 0,
        fast_dev_run: bool | int = False,
        num_sanity_val_steps: int = 2,
        val_check_interval: int | float = 1.0,
        check_val_every_n_epoch: int = 1,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        log_every_n_steps: int = 50,
        callbacks: list[Callback] | None = None,
        logger: Logger | list[Logger] | bool = True,
        enable_progress_bar: bool = True,
        enable_model_summary: bool = True,
        enable_checkpointing: bool = True,
        default_root_dir: str = "runs/default",
        barebones: bool = False,
        seed: int = 0,
    ) -> None:
        arguments.check(locals())
        signals.reclaim()
        signals.end_compile_pool()
        self.device = select_device(accelerator)
        self.seed = seed
        seed_everything(seed)
        self.barebones = barebones
        self.fast_dev_run = int(fast_dev_run)
        quick = bool(fast_dev_run)
        self.max_epochs: int | None = 1 if quick else max_epochs
        self.max_steps = self.fast_dev_run if quick else max_steps
        self.max_time_s = arguments.parse_duration(max_time)
        if self.max_epochs is None and self.max_steps < 0 and self.max_time_s is None:
            self.max_epochs = 1000
        self.min_epochs = min_epochs
        self.overfit_batches = overfit_batches
        self.limits: dict[str, int | float] = {
            "train": overfit_batches or limit_train_batches,
            "validation": limit_val_batches,
            "test": limit_test_batches,
            "predict": limit_predict_batches,
        }
        if quick:
            self.limits = dict.fromkeys(self.limits, self.fast_dev_run)
        self.num_sanity_val_steps = 0 if quick or barebones else num_sanity_val_steps
        self.val_check_interval = 1.0 if quick else val_check_interval
        self.check_val_every_n_epoch = check_val_every_n_epoch
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.log_every_n_steps = 1 if quick else log_every_n_steps
        self.default_root_dir = Path(default_root_dir)
        silent = quick or barebones
        self.enable_checkpointing = enable_checkpointing and not silent
        self.loggers = [] if silent else arguments.choose_loggers(logger)
        self.callbacks = arguments.choose_callbacks(
            list(callbacks or ()),
            progress_bar=enable_progress_bar and not barebones,
            summary=enable_model_summary and not barebones,
            checkpoints=self.enable_checkpointing,
        )
        self.reset()

    def reset(self) -> None:
        """Empty what belongs to one call of an entry point; `Session` fills it."""
        self.state = RunState()
        self.metrics = MetricLog()
        self.stage: Stage = "fit"
        self.sanity_checking = False
        self.evaluating: str | None = None  # validation, test or predict while one runs
        self.in_training_step = False
        self.at_step_boundary = True
        self.should_stop = False
        self.interrupted = False
        self.stop_reason: str | None = None
        self.run: RunDirectory | None = getattr(self, "run", None)
        self.task: Task | None = None
        self.datamodule: DataModule | None = None
        self.driver: OptimizerDriver | None = None
        self.batch_size = 0
        self.samples_seen = 0
        self.data_wait_s = 0.0
        self.num_training_batches = self.num_val_batches = 0
        self.val_check_batch = 1
        self.started_loggers: list[Logger] = []
        self._log_buffer: dict[str, float] = {}
        self._clock = time.perf_counter()
        self._signals: signals.StopSignals | None = None

    hooks: Hooks  # of the running session

    # ---- entry points -----------------------------------------------------------------------

    def fit(
        self,
        task: Task,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | Path | None = None,
    ) -> None:
        """Train `task`, from scratch or from a checkpoint.

        Args:
            task: What to train.
            train_dataloaders: A `Loader`, or any iterable of batches with a length.
            val_dataloaders: Likewise, or None for no validation.
            datamodule: Gives the loaders instead.
            ckpt_path: A file to continue from, exactly; `last` (the newest intact checkpoint of
                this experiment), `best`, or `auto` (`last` if there is one, else from scratch).

        Raises:
            SystemExit: With code 130 or 143 after SIGINT or SIGTERM, once the finished step has
                been saved.
        """
        loaders = {"train": train_dataloaders, "validation": val_dataloaders}
        with signals.StopSignals() as watched:
            session = Session(self, "fit", task, loaders, datamodule, ckpt_path)
            self._signals = watched
            session.run(session.fit)
        if watched.received is not None:
            sys.exit(128 + watched.received)

    def validate(
        self,
        task: Task,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | Path | None = None,
    ) -> dict[str, float]:
        """One pass of validation; returns its metrics. `ckpt_path`: weights to load first."""
        return self._evaluate("validate", task, dataloaders, datamodule, ckpt_path)[0]

    def test(
        self,
        task: Task,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | Path | None = None,
    ) -> dict[str, float]:
        """One pass of the test; returns its metrics. `ckpt_path`: weights to load first."""
        return self._evaluate("test", task, dataloaders, datamodule, ckpt_path)[0]

    def predict(
        self,
        task: Task,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | Path | None = None,
    ) -> list[Any]:
        """The list of what `predict_step` returns. `ckpt_path`: weights to load first."""
        return self._evaluate("predict", task, dataloaders, datamodule, ckpt_path)[1]

    def _evaluate(
        self, stage: Stage, task: Task, loader: Any, datamodule: DataModule | None, ckpt_path: Any
    ) -> tuple[dict[str, float], list[Any]]:
        outputs: list[Any] = []
        session = Session(self, stage, task, {WORDS[stage]: loader}, datamodule, ckpt_path)
        session.run(lambda: outputs.extend(session.evaluate()))
        return dict(self.metrics), outputs

    # ---- what tasks and callbacks use -------------------------------------------------------

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
        """The optimizer, from `on_fit_start` on."""
        return self.driver.optimizer if self.driver is not None else None

    def learning_rates(self) -> dict[str, float]:
        """The rates of the last step by group: `lr`, or `lr/<group>` with several groups."""
        return self.driver.rates() if self.driver is not None else {}

    def gradients(self) -> list[tuple[str, jt.Var]]:
        """Names and accumulated gradients, from `on_after_backward` until the update."""
        return self.driver.gradients() if self.driver is not None else []

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

    def flush_logs(self) -> None:
        """Write what has been gathered for this step to every logger, as one row."""
        if self._log_buffer:
            for logger in self.started_loggers:
                logger.log_metrics(
                    self._log_buffer, step=self.state.global_step, epoch=self.state.epoch
                )
        self._log_buffer = {}

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
        )

    def enter_batch(self, batch: Any) -> None:
        """Take the batch's size as the weight of what is logged with it."""
        self.batch_size = batch_size_of(batch)

    def save_checkpoint(self, path: str | Path, weights_only: bool = False) -> None:
        """Write the run as it stands, atomically.

        Raises:
            RuntimeError: Inside a step, where the state is not one to continue from.
        """
        if not self.at_step_boundary:
            raise RuntimeError(
                "save_checkpoint was called inside a step; call it from on_train_batch_end (where "
                "trainer.at_step_boundary), on_validation_end or later hooks"
            )
        assert self.task is not None
        self.read_clock()
        write_checkpoint(path, snapshot.capture(self, self.task, weights_only=weights_only))

    def stop(self, reason: str) -> None:
        """Ask for the end of training at the next step boundary."""
        self.stop_reason = self.stop_reason or reason

    def honour_stop_requests(self) -> None:
        """Called by the loop at step boundaries: signals, the time limit, callbacks' requests."""
        watched = self._signals
        if watched is not None and watched.received is not None:
            self._interrupt(watched.received.name)
        elif self.max_time_s is not None and self.state.elapsed_s >= self.max_time_s:
            self._interrupt(f"max_time of {self.max_time_s:.0f} s")
        elif self.stop_reason is not None:
            done = self.state.epoch + int(self.state.epoch_finished)
            self.should_stop = done >= self.min_epochs

    def _interrupt(self, reason: str) -> None:
        """End without the epoch's closing hooks: a resumed run will call them."""
        if not self.interrupted:
            log.info("stopping after step %d: %s", self.state.global_step, reason)
        self.stop_reason, self.interrupted, self.should_stop = reason, True, True

    def start_clock(self) -> None:
        """Training time counts from now."""
        self._clock = time.perf_counter()

    def read_clock(self) -> None:
        """Add the time since the last call to the run's training time."""
        now = time.perf_counter()
        self.state.elapsed_s += now - self._clock
        self._clock = now
