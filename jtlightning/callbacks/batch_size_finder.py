"""Find the largest batch that fits into memory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import jittor as jt

from jtlightning.accelerator import NO_MEMORY
from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.checkpoint.container import Checkpoint
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer

_log = logging.getLogger(__name__)
_MIB = 2**20
#: Of the device's memory. Beyond it CUDA would not fail but go on slowly in shared memory.
_DEFAULT_SHARE = 0.9


class BatchSizeFinder(Callback):
    """Train with the largest batch size of which a short trial fits into memory.

    Before training, trials of a few steps double the data module's batch size until one fails for
    want of memory, passes the limit, or exceeds the data set; afterwards the run is what it was,
    bit for bit, but for the size of its training batches. The data module needs an attribute for
    it that its `train_dataloader` uses. The learning rate stays; a finder for it comes after this
    one in the list of callbacks.

    A resumed run takes the size that was found and makes no new trials; one with `fast_dev_run`
    makes none either. Validation keeps the size that it had.

    Args:
        mode: `power` takes the largest size of the doubled ones, `binsearch` goes on between it
            and the first that failed.
        steps_per_trial: Steps of each trial.
        init_val: First size.
        max_val: Largest size to try.
        batch_arg_name: Name of the data module's attribute.
        memory_limit_mb: What Jittor may hold in a trial, in MiB, on the GPU or, on the CPU, in
            main memory; by default 90 percent of what there is.
    """

    def __init__(
        self,
        mode: Literal["power", "binsearch"] = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        *,
        max_val: int = 8192,
        batch_arg_name: str = "batch_size",
        memory_limit_mb: float | None = None,
    ) -> None:
        if mode not in ("power", "binsearch"):
            raise ValueError(f"BatchSizeFinder.mode must be power or binsearch, got {mode!r}")
        if steps_per_trial < 1 or not 1 <= init_val <= max_val:
            raise ValueError(
                "BatchSizeFinder needs steps_per_trial >= 1 and 1 <= init_val <= max_val, got "
                f"{steps_per_trial}, {init_val} and {max_val}"
            )
        if memory_limit_mb is not None and memory_limit_mb <= 0:
            raise ValueError(
                f"BatchSizeFinder.memory_limit_mb must be above 0, got {memory_limit_mb}"
            )
        self.mode, self.steps_per_trial = mode, steps_per_trial
        self.init_val, self.max_val = init_val, max_val
        self.batch_arg_name, self.memory_limit_mb = batch_arg_name, memory_limit_mb
        self.optimal_batch_size: int | None = None
        self._reason = ""  # why the last size that failed did

    def setup(self, trainer: Trainer, task: Task, stage: str) -> None:
        if stage == "fit" and not hasattr(trainer.datamodule, self.batch_arg_name):
            have = type(trainer.datamodule).__name__ if trainer.datamodule else "there is none"
            raise ValueError(
                f"BatchSizeFinder sets {self.batch_arg_name!r} of the data module ({have}); pass "
                "a data module that has it and uses it in train_dataloader"
            )

    def on_load_checkpoint(self, trainer: Trainer, task: Task, checkpoint: Checkpoint) -> None:
        # Before the loaders are made, so that the resumed run counts its batches with this size.
        state = checkpoint.metadata.get("callbacks", {}).get(self.state_key)
        if state is not None and trainer.stage == "fit":
            setattr(trainer.datamodule, self.batch_arg_name, state["batch_size"])

    def on_fit_start(self, trainer: Trainer, task: Task) -> None:
        if trainer.fast_dev_run or trainer.global_step or self.optimal_batch_size is not None:
            return
        before = getattr(trainer.datamodule, self.batch_arg_name)
        try:
            found = self._search(trainer)
        except BaseException:
            setattr(trainer.datamodule, self.batch_arg_name, before)
            raise
        self.optimal_batch_size = found
        trainer.replace_train_loader(self._loader(trainer, found))
        _log.info("batch size %d: %s", found, self._reason or "nothing larger was to be tried")

    def state_dict(self) -> dict[str, Any]:
        size = self.optimal_batch_size
        return {} if size is None else {"batch_size": size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimal_batch_size = state["batch_size"]

    def _search(self, trainer: Trainer) -> int:
        """The largest size that fits."""
        samples = len(getattr(self._loader(trainer, self.init_val), "dataset", ())) or self.max_val
        largest = min(self.max_val, samples)
        size, good, bad = self.init_val, 0, largest + 1
        while size <= largest:
            if not self._fits(trainer, size):
                bad = size
                break
            good, size = size, size * 2
        if not good:
            raise RuntimeError(
                f"BatchSizeFinder: not even a batch of {self.init_val} can be trained: "
                f"{self._reason or f'the data set has {samples} samples'}"
            )
        while self.mode == "binsearch" and bad - good > 1:
            middle = (good + bad) // 2
            if self._fits(trainer, middle):
                good = middle
            else:
                bad = middle
        return good

    def _fits(self, trainer: Trainer, size: int) -> bool:
        jt.gc()
        try:
            trainer.trial(self.steps_per_trial, loader=self._loader(trainer, size))
            # Freed blocks stay with Jittor until `gc`, so this is the largest amount of the trial.
            held_mib, limit_mib = self._memory()
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
                raise
            self._reason = f"there is no memory for {size}"
            return False
        finally:
            jt.gc()
        if held_mib > limit_mib:
            self._reason = f"{size} takes {held_mib:.0f} MiB, the limit is {limit_mib:.0f}"
            return False
        return True

    def _memory(self) -> tuple[float, float]:
        """MiB that Jittor holds on the device, and the limit."""
        memory = jt.get_mem_info()
        if jt.flags.use_cuda:
            held, there = memory.total_cuda_used, memory.total_cuda_ram
        else:
            held, there = memory.total_cpu_used, memory.total_cpu_ram
        limit = self.memory_limit_mb
        return held / _MIB, there * _DEFAULT_SHARE / _MIB if limit is None else limit

    def _loader(self, trainer: Trainer, size: int) -> Any:
        assert trainer.datamodule is not None
        setattr(trainer.datamodule, self.batch_arg_name, size)
        return trainer.datamodule.train_dataloader()
