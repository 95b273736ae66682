"""`Trainer`: the arguments and the four entry points."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from jtlightning import signals
from jtlightning.accelerator import Accelerator, be_deterministic, select_device
from jtlightning.callbacks.base import Callback
from jtlightning.data.datamodule import DataModule
from jtlightning.distributed import Ranks, end_all_after_an_error, find_ranks
from jtlightning.loggers.base import Logger
from jtlightning.precision import LossScaler, Precision
from jtlightning.profiler import Profiler, make_profiler
from jtlightning.seed import seed_everything
from jtlightning.state import Stage
from jtlightning.task import Task
from jtlightning.trainer import arguments
from jtlightning.trainer.running import Running
from jtlightning.trainer.session import WORDS, Session


class Trainer(Running):
    """Runs a `Task` on batches: training, validation, test, prediction.

    Names and meanings are Lightning's. A *step* is an optimizer step; counters, logs and
    checkpoints speak of steps that are done.

    Args:
        accelerator: `cpu`, `cuda`, or `auto` for CUDA where it can be used.
        devices: Processes on this machine, each with a GPU or a share of the CPU: `auto` takes
            those that `mpirun` has started; the command line starts a number of them itself.
        num_nodes: Machines that `mpirun` has started processes on.
        sync_batchnorm: Let batch norms use the statistics of all processes.
        precision: 32; `16-mixed` or `bf16-mixed`: convolutions and linear layers compute in 16
            bits, all else and the weights stay in float32. `16-mixed` scales the loss, and skips
            steps whose gradients overflow.
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
        check_val_every_n_epoch: Validate only in every n-th epoch; or pairs [first epoch, n], where
            from that epoch on, counted from 1, those divisible by n are meant, and 0 is none:
            [[1, 1], [2, 10], [251, 1]] is epoch 1, every tenth, and every one from 251 on.
        accumulate_grad_batches: Micro-batches per step; the loss is their mean.
        gradient_clip_val: Largest gradient norm or element; None for no clipping.
        gradient_clip_algorithm: `norm` (global L2 norm) or `value` (element by element).
        log_every_n_steps: Steps between two writes to the loggers.
        deterministic: On CUDA take no kernels whose choice depends on timing. On a CPU every run
            is deterministic.
        detect_anomaly: Execute every operation at once, so that an error's traceback points at
            the line that caused it; slow, and with other last bits.
        profiler: `simple` for times by hook and part of the loop, `kernels` for Jittor's kernels,
            or a `Profiler`; the report goes to `profile.txt` in the run's folder.
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
        devices: int | Literal["auto"] = "auto",
        num_nodes: int = 1,
        sync_batchnorm: bool = False,
        precision: Precision = 32,
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
        check_val_every_n_epoch: int | list[tuple[int, int]] = 1,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        log_every_n_steps: int = 50,
        deterministic: bool = False,
        detect_anomaly: bool = False,
        profiler: Profiler | Literal["simple", "kernels"] | None = None,
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
        self.ranks = _join_processes(devices, num_nodes)
        self.sync_batchnorm = sync_batchnorm
        self.device = select_device(accelerator)
        self.precision = precision
        self.scaler = LossScaler() if precision == "16-mixed" else None
        if deterministic:
            be_deterministic()
        self.detect_anomaly = detect_anomaly
        self.profiler = make_profiler(profiler)
        self.observers = []
        self.seed = seed
        seed_everything(seed)
        self.barebones = barebones
        self.fast_dev_run = int(fast_dev_run)
        quick = bool(fast_dev_run)
        self.max_steps = self.fast_dev_run if quick else max_steps
        self.max_time_s = arguments.parse_duration(max_time)
        unlimited = max_epochs is None and self.max_steps < 0 and self.max_time_s is None
        self.max_epochs: int | None = 1 if quick else 1000 if unlimited else max_epochs
        self.min_epochs = min_epochs
        self.overfit_batches = overfit_batches
        self.limits: dict[str, int | float] = {
            "train": self.fast_dev_run or overfit_batches or limit_train_batches,
            "validation": self.fast_dev_run or limit_val_batches,
            "test": self.fast_dev_run or limit_test_batches,
            "predict": self.fast_dev_run or limit_predict_batches,
        }
        self.num_sanity_val_steps = 0 if quick or barebones else num_sanity_val_steps
        self.val_check_interval = 1.0 if quick else val_check_interval
        self.check_val_every_n_epoch = check_val_every_n_epoch
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.log_every_n_steps = 1 if quick else log_every_n_steps
        self.default_root_dir = Path(default_root_dir)
        silent = quick or barebones or self.ranks.rank > 0  # rank 0 speaks and writes for all
        self.enable_checkpointing = enable_checkpointing and not silent
        self.loggers = [] if silent else arguments.choose_loggers(logger)
        self.callbacks = arguments.choose_callbacks(
            list(callbacks or ()),
            progress_bar=enable_progress_bar and not barebones and self.is_global_zero,
            summary=enable_model_summary and not barebones and self.is_global_zero,
            checkpoints=self.enable_checkpointing,
        )
        self.reset()

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
        return_predictions: bool = True,
    ) -> list[Any]:
        """The list of what `predict_step` returns.

        Args:
            task: Whose `predict_step` is called.
            dataloaders: A `Loader`, or any iterable of batches with a length.
            datamodule: Gives the loader instead.
            ckpt_path: Weights to load first.
            return_predictions: False: keep nothing and return an empty list, where a callback
                writes the predictions or there are too many to hold.
        """
        collect = return_predictions
        if self.ranks.several:
            raise ValueError(
                f"prediction runs in one process, and there are {self.world_size}; start it "
                "without mpirun, or test, whose numbers are of all processes"
            )
        return self._evaluate("predict", task, dataloaders, datamodule, ckpt_path, collect)[1]

    def _evaluate(
        self,
        stage: Stage,
        task: Task,
        loader: Any,
        datamodule: DataModule | None,
        ckpt_path: Any,
        collect: bool = False,
    ) -> tuple[dict[str, float], list[Any]]:
        outputs: list[Any] = []
        session = Session(self, stage, task, {WORDS[stage]: loader}, datamodule, ckpt_path)
        session.run(lambda: outputs.extend(session.evaluate(collect=collect)))
        return dict(self.metrics), outputs


def _join_processes(devices: int | str, nodes: int) -> Ranks:
    """The processes of this run, as many as asked for."""
    ranks = find_ranks()
    arguments.check_processes(devices, nodes, ranks.size)
    if ranks.several:
        end_all_after_an_error(ranks)
    return ranks
