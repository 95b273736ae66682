"""One call of an entry point: folder, checkpoint, loaders and loggers, opened and closed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jittor as jt

from jtlightning import distributed
from jtlightning.accelerator import immediate_execution
from jtlightning.checkpoint.container import Checkpoint, read_checkpoint
from jtlightning.optim import OptimizerDriver
from jtlightning.precision import mixed_precision
from jtlightning.run_directory import RunDirectory, find_checkpoint
from jtlightning.trainer import snapshot
from jtlightning.trainer.evaluate import enter_training_mode, evaluate
from jtlightning.trainer.fit import FitLoop
from jtlightning.trainer.hooks import Hooks
from jtlightning.trainer.loaders import BatchSource, as_source, count_batches
from jtlightning.trainer.out_of_memory import check_allocations, explain_out_of_memory
from jtlightning.trainer.trial import run_trial

if TYPE_CHECKING:
    from jtlightning.data.datamodule import DataModule
    from jtlightning.state import Stage
    from jtlightning.task import Task
    from jtlightning.trainer.trainer import Trainer

log = logging.getLogger(__name__)

#: Stage -> word in the names of its hooks, step and limit.
WORDS = {"fit": "train", "validate": "validation", "test": "test", "predict": "predict"}


class Session:
    """Sets a stage up, restores a checkpoint, runs, and takes everything down again.

    Args:
        trainer: Its attributes are what callbacks see; the session fills them.
        stage: fit, validate, test or predict.
        task: What is run.
        loaders: Word of the stage -> loader that was passed, or None.
        datamodule: Where loaders come from that were not passed.
        ckpt_path: A path, last, best, auto or None.
    """

    def __init__(
        self,
        trainer: Trainer,
        stage: Stage,
        task: Task,
        loaders: Mapping[str, Any],
        datamodule: DataModule | None,
        ckpt_path: str | Path | None,
    ) -> None:
        trainer.reset()
        trainer.stage, trainer.task, trainer.datamodule = stage, task, datamodule
        trainer.hooks = Hooks(trainer, task, trainer.callbacks)
        trainer.session = self
        self.trainer, self.stage, self.task = trainer, stage, task
        self._loaders, self._datamodule, self._ckpt_path = loaders, datamodule, ckpt_path
        self._source_file: Path | None = None
        self._checkpoint: Checkpoint | None = None
        self._sources: list[BatchSource] = []
        self.train_source: BatchSource
        self._val: BatchSource | None = None

    def run(self, body: Callable[[], None]) -> None:
        """Set up, restore, run `body`, and take down whatever happens."""
        trainer = self.trainer
        self.task._trainer = trainer
        status = "failed"
        try:
            check_allocations()
            self._open_run()
            self._start_profiler()
            self._set_up_data()
            trainer.hooks.call("setup", self.stage)
            self._restore_weights()
            with (
                immediate_execution(trainer.detect_anomaly),
                mixed_precision(self.task, trainer.precision),
            ):
                body()
            status = "stopped" if trainer.interrupted else "finished"
        except BaseException as error:
            explained = explain_out_of_memory(error, trainer, self.task)
            trainer.hooks.call("on_exception", explained or error)
            if explained is not None:
                raise explained from error
            raise
        finally:
            self._take_down(status)
        # None leaves, with whatever exit code, before rank 0 has written everything.
        distributed.barrier(trainer.ranks)

    def _set_up_data(self) -> None:
        data, ranks = self._datamodule, self.trainer.ranks
        if data is None:
            return
        if ranks.rank == 0:  # what it prepares on the disk is there for the others
            data.prepare_data()
            data.setup(self.stage)
        distributed.barrier(ranks)
        if ranks.rank > 0:
            data.setup(self.stage)

    def fit(self) -> None:
        """The body of `Trainer.fit`."""
        trainer = self.trainer
        train = self.train_source = self._require_source("train")
        val = self._val = self._source("validation")
        self._count(train, val)
        trainer.drivers = self._make_drivers()
        resumed = None
        if self._checkpoint is not None:
            snapshot.restore_training(trainer, self._checkpoint, str(self._source_file))
            resumed = trainer.state.global_step
            self._checkpoint = None  # its arrays are as large as the model and its moments
        distributed.share_parameters(self.task.parameters(), trainer.ranks)
        distributed.choose_batch_norm(self.task, trainer.sync_batchnorm)
        self._start_loggers(resumed)
        trainer.flush_logs()
        enter_training_mode(self.task)
        trainer.start_clock()
        trainer.at_step_boundary = True
        trainer.hooks.call("on_fit_start")
        FitLoop(trainer, self.task, self.train_source, val).run()
        trainer.hooks.call("on_fit_end")

    def trial(
        self, steps: int, learning_rate: Callable[[int], float] | None, loader: Any
    ) -> list[float]:
        """The body of `Trainer.trial`."""
        if loader is None:
            return run_trial(self.trainer, self.task, self.train_source, steps, learning_rate)
        source = as_source(loader, "the loader of the trial")
        try:
            return run_trial(self.trainer, self.task, source, steps, learning_rate)
        finally:
            source.close()

    def replace_train_loader(self, loader: Any) -> None:
        """The body of `Trainer.replace_train_loader`."""
        self.train_source.close()
        self.train_source = as_source(loader, "the train dataloader")
        self._shard(self.train_source, "train")
        self._sources.append(self.train_source)
        self._count(self.train_source, self._val)
        for driver in self.trainer.drivers:
            driver.total_steps = self.trainer.estimated_stepping_batches

    def evaluate(self, *, collect: bool = False) -> list[Any]:
        """The body of the other entry points; returns predictions where they are collected."""
        trainer, word = self.trainer, WORDS[self.stage]
        source = self._require_source(word)
        limit = count_batches(trainer.limits[word], len(source), f"limit_{word}_batches")
        self._start_loggers(trainer.state.global_step)
        return evaluate(trainer, self.task, source, word, limit, collect=collect)

    def _take_down(self, status: str) -> None:
        """Close everything, whatever fails on the way; the last entered is closed first."""
        trainer = self.trainer
        with ExitStack() as stack:
            stack.callback(setattr, self.task, "_trainer", None)
            if trainer.run is not None:
                stack.callback(trainer.run.release)
            if self._datamodule is not None:
                stack.callback(self._datamodule.teardown, self.stage)
            for source in self._sources:
                stack.callback(source.close)
            stack.callback(trainer.tell_loggers, "finish", status)
            stack.callback(self._finish_profiler)
            trainer.hooks.teardown(self.stage)

    def _start_profiler(self) -> None:
        profiler = self.trainer.profiler
        if profiler is not None:
            profiler.start()
            self.trainer.observers.append(profiler.observe)

    def _finish_profiler(self) -> None:
        trainer, profiler = self.trainer, self.trainer.profiler
        if profiler is not None and profiler.observe in trainer.observers:
            trainer.observers.remove(profiler.observe)
            profiler.finish(None if trainer.run is None else trainer.run.path)

    def _open_run(self) -> None:
        """Find the checkpoint that is asked for, and the folder that this run writes to."""
        trainer = self.trainer
        path = self._resolve() if trainer.is_global_zero else None
        path = self._source_file = distributed.broadcast(path, trainer.ranks)
        continued = path is not None and str(self._ckpt_path) in ("last", "auto")
        if not (trainer.loggers or trainer.enable_checkpointing):
            trainer.run = None
        elif self.stage != "fit" and trainer.run is not None:
            trainer.run = RunDirectory.reopen(trainer.run.path)
        elif self.stage == "fit" and continued:
            assert path is not None
            trainer.run = RunDirectory.reopen(path.parent.parent)
        else:
            trainer.run = RunDirectory.create(trainer.default_root_dir)
        if trainer.run is not None:
            trainer.run.write_environment(sys.argv)

    def _resolve(self) -> Path | None:
        wanted = self._ckpt_path
        if wanted is None:
            return None
        if str(wanted) not in ("last", "best", "auto"):
            return _existing(Path(wanted))
        if str(wanted) == "auto" and self.stage != "fit":
            raise ValueError(
                f"ckpt_path is 'auto', but without a checkpoint there is nothing to {self.stage}; "
                "give a path, last or best"
            )
        which: Literal["last", "best"] = "best" if str(wanted) == "best" else "last"
        experiment = self.trainer.default_root_dir
        found = find_checkpoint(experiment, which)
        if found is None and str(wanted) != "auto":
            scratch = ", or auto to start from scratch" if self.stage == "fit" else ""
            raise ValueError(
                f"ckpt_path is {str(wanted)!r}, but no intact checkpoint lies below {experiment}; "
                f"give a path{scratch}"
            )
        if found is None:
            log.info("no checkpoint to continue from below %s: starting from scratch", experiment)
        return found

    def _restore_weights(self) -> None:
        """Load the weights, the position, and what callbacks keep, such as averages."""
        if self._source_file is None:
            return
        trainer, source = self.trainer, str(self._source_file)
        checkpoint = self._checkpoint = read_checkpoint(self._source_file)
        trainer.hooks.call("on_load_checkpoint", checkpoint)
        snapshot.restore_weights(self.task, checkpoint, source)
        snapshot.restore_callbacks(trainer, checkpoint)
        snapshot.restore_counters(trainer, checkpoint)
        log.info("loaded %s, saved after step %d", source, trainer.global_step)

    def _source(self, word: str) -> BatchSource | None:
        """The loader of a stage, given or taken from the data module; None without one."""
        name = "val" if word == "validation" else word
        loader = self._loaders[word]
        if loader is None and self._datamodule is not None:
            loader = getattr(self._datamodule, f"{name}_dataloader")()
        if loader is None:
            return None
        source = as_source(loader, f"the {name} dataloader")
        self._shard(source, name)
        self._sources.append(source)
        return source

    def _shard(self, source: BatchSource, name: str) -> None:
        ranks = self.trainer.ranks
        if not ranks.several:
            return
        if not hasattr(source, "shard"):
            raise ValueError(
                f"the {name} dataloader cannot be divided among {ranks.size} processes; pass a "
                "jtlightning.data.Loader, or a class with its method `shard`"
            )
        source.shard(ranks.rank, ranks.size, deal_batches=name != "train")

    def _require_source(self, word: str) -> BatchSource:
        source = self._source(word)
        if source is None:
            name = "val" if word == "validation" else word
            raise ValueError(
                f"Trainer.{self.stage} needs a {name} dataloader or a datamodule that has one"
            )
        return source

    def _count(self, train: BatchSource, val: BatchSource | None) -> None:
        trainer = self.trainer
        limit = "overfit_batches" if trainer.overfit_batches else "limit_train_batches"
        batches = count_batches(trainer.limits["train"], len(train), limit)
        if batches == 0:
            raise ValueError(
                f"an epoch has no training batch: the loader has {len(train)} and {limit} is "
                f"{trainer.limits['train']}; is the batch larger than the data set?"
            )
        trainer.num_training_batches = batches
        if val is not None:
            trainer.num_val_batches = count_batches(
                trainer.limits["validation"], len(val), "limit_val_batches"
            )
        interval = trainer.val_check_interval
        if isinstance(interval, float):
            interval = max(int(batches * interval), 1)
        if interval > batches:
            raise ValueError(
                f"val_check_interval is {interval} batches, but an epoch has only {batches}; no "
                "validation would ever run"
            )
        trainer.val_check_batch = interval

    def _make_drivers(self) -> list[OptimizerDriver]:
        task, trainer = self.task, self.trainer
        made = task.configure_optimizers()
        several = made if isinstance(made, list) else [made]
        if task.automatic_optimization and len(several) != 1:
            raise ValueError(
                f"{type(task).__name__}.configure_optimizers returned {len(several)} optimizers; "
                "that needs `automatic_optimization = False` and a training_step that calls "
                "manual_backward and optimizer_step"
            )
        if not task.automatic_optimization and trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "accumulate_grad_batches is for automatic optimisation; with manual optimisation "
                "call optimizer_step when enough gradients have been added"
            )
        names = {id(p): name for name, p in task.named_parameters()}
        total = trainer.estimated_stepping_batches
        drivers: list[OptimizerDriver] = []
        group = 0
        for entry in several:
            optimizer, schedule = entry if isinstance(entry, tuple) else (entry, None)
            if not isinstance(optimizer, jt.optim.Optimizer):
                raise ValueError(
                    f"{type(task).__name__}.configure_optimizers must return an optimizer of "
                    "jt.optim or a pair (optimizer, schedule), or with manual optimisation a list "
                    f"of these, got {type(optimizer).__name__}"
                )
            drivers.append(OptimizerDriver(optimizer, schedule, total, names, group))
            group += len(optimizer.param_groups)
        return drivers

    def _start_loggers(self, resumed_step: int | None) -> None:
        trainer = self.trainer
        for logger in trainer.loggers:
            assert trainer.run is not None
            logger.start(trainer.run, resumed_step=resumed_step)
            trainer.started_loggers.append(logger)


def _existing(path: Path) -> Path:
    """`path` where it is a file; what to give instead where it is a folder."""
    if path.is_file():
        return path
    inside = sorted(path.glob("*.ckpt")) + sorted(path.glob("checkpoints/*.ckpt"))
    if inside:
        raise ValueError(f"ckpt_path: {path} is a folder; give a file of it, such as {inside[-1]}")
    what = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
    raise ValueError(f"ckpt_path: {what}; give a checkpoint, or last, best or auto")
