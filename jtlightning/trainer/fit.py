"""The training loop: epochs of micro-batches, validations between them, and when to end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jtlightning.trainer.arguments import validates
from jtlightning.trainer.evaluate import evaluate
from jtlightning.trainer.step import Stepper

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer.loaders import BatchSource
    from jtlightning.trainer.trainer import Trainer


log = logging.getLogger(__name__)


class FitLoop:
    """Runs `Trainer.fit` once everything is set up; the order is that of one step, exactly.

    Args:
        trainer: Whose arguments and counters are used.
        task: What is trained.
        train: Training batches.
        val: Validation batches, or None.
    """

    def __init__(
        self, trainer: Trainer, task: Task, train: BatchSource, val: BatchSource | None
    ) -> None:
        self.trainer, self.task = trainer, task
        self.train, self.val = train, val
        self.hooks, self.state = trainer.hooks, trainer.state
        self.stepper = trainer.stepper = Stepper(trainer, task, trainer.hooks)

    def run(self) -> None:
        """Train until a limit, a stop request or a signal."""
        try:
            self._run()
        except BaseException:
            # What runs after an error finds the last step boundary, where that is possible.
            self.stepper.boundary.roll_back()
            raise

    def _run(self) -> None:
        trainer = self.trainer
        if self._finished():
            log.warning(
                "nothing is left to train after step %d of epoch %d: raise max_epochs (%s), "
                "max_steps (%d) or max_time",
                self.state.global_step,
                self.state.epoch + 1,
                trainer.max_epochs,
                trainer.max_steps,
            )
        self._sanity_check()
        self.hooks.call("on_train_start")
        trainer.honour_stop_requests()  # a signal during set-up, before the first step compiles
        while not self._finished():
            self._run_epoch()
        trainer.flush_logs()
        self.hooks.call("on_train_end")

    def _finished(self) -> bool:
        trainer, state = self.trainer, self.state
        epochs_done = state.epoch + int(state.epoch_finished)
        if trainer.max_epochs is not None and epochs_done >= trainer.max_epochs:
            return True
        if 0 <= trainer.max_steps <= state.global_step:
            return True
        return trainer.should_stop

    def _sanity_check(self) -> None:
        """Try the validation code before hours of training depend on it."""
        trainer = self.trainer
        limit = min(trainer.num_sanity_val_steps, trainer.num_val_batches)
        if self.val is None or limit == 0:
            return
        kept = trainer.metrics.state_dict()
        trainer.sanity_checking = True
        self.hooks.call("on_sanity_check_start")
        evaluate(trainer, self.task, self.val, "validation", limit)
        self.hooks.call("on_sanity_check_end")
        trainer.sanity_checking = False
        trainer.metrics.clear()
        trainer.metrics.load_state_dict(kept)

    def _run_epoch(self) -> None:
        trainer, state = self.trainer, self.state
        if state.epoch_finished:
            state.enter_next_epoch()
        self.hooks.call("on_train_epoch_start")
        if state.validation_due:  # the checkpoint was written between step and validation
            self._validate()
        for batch in self._batches():
            self._run_batch(batch)
            if self._finished():
                break
        if not trainer.interrupted:
            self._end_epoch()

    def _batches(self) -> Iterator[Any]:
        """The rest of this epoch's micro-batches; the time spent waiting is counted."""
        trainer = self.trainer
        # Overfitting repeats the same order and the same augmentations.
        epoch = 0 if trainer.overfit_batches else self.state.epoch
        batches = self.train.batches(epoch, self.state.batch_in_epoch, seed=trainer.seed)
        first = True
        try:
            while self.state.batch_in_epoch < trainer.num_training_batches:
                start = time.perf_counter()
                with trainer.observe("train_next_batch"):
                    batch = next(batches, None)
                trainer.data_wait_s += time.perf_counter() - start
                if batch is None:
                    return
                if first:
                    trainer.arm_signals()
                first = False
                yield batch
        finally:
            if hasattr(batches, "close"):
                batches.close()

    def _run_batch(self, batch: Any) -> None:
        """One micro-batch; where it completes a step, what belongs behind the boundary."""
        trainer, state = self.trainer, self.state
        index = state.batch_in_epoch
        trainer.enter_batch(batch, index * trainer.world_size + trainer.global_rank)
        trainer.samples_seen += trainer.batch_size
        batch, outputs = self.stepper.run(batch, index)
        state.validation_due = state.validation_due or self._validation_falls_here()
        trainer.read_clock()
        if trainer.should_log:
            trainer.log_metrics(trainer.metrics.fetch())
        self.hooks.call("on_train_batch_end", outputs, batch, index)
        trainer.flush_logs()
        if trainer.at_step_boundary and state.validation_due:
            self._validate()
        if trainer.at_step_boundary:
            trainer.honour_stop_requests()

    def _validation_falls_here(self) -> bool:
        """Whether the cadence puts a validation behind the micro-batch just done."""
        trainer = self.trainer
        if self.val is None or trainer.num_val_batches == 0:
            return False
        if not validates(trainer.check_val_every_n_epoch, self.state.epoch + 1):
            return False
        return self.state.batch_in_epoch % trainer.val_check_batch == 0

    def _validate(self) -> None:
        assert self.val is not None
        # Before the hooks: a checkpoint written by them must not ask for this validation again.
        self.state.validation_due = False
        trainer = self.trainer
        try:
            evaluate(trainer, self.task, self.val, "validation", trainer.num_val_batches)
        except BaseException:
            # Half a validation counts for nothing: who continues from here repeats it.
            trainer.metrics.drop_epoch("validation")
            self.state.validation_due = True
            raise
        trainer.read_clock()

    def _end_epoch(self) -> None:
        """Close the epoch's means and run its last hooks; also where a step limit cut it short."""
        trainer, state = self.trainer, self.state
        state.epoch_finished = state.batch_in_epoch >= trainer.num_training_batches
        trainer.batch_position = None
        trainer.log_metrics(trainer.metrics.finish_epoch("train"))
        self.hooks.call("on_train_epoch_end")
        trainer.log_metrics(trainer.metrics.finish_epoch("train"))  # what the hooks logged
        self.hooks.call_after_task("on_train_epoch_end")
        trainer.flush_logs()
        trainer.honour_stop_requests()
