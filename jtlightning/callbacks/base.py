"""The hooks of a training run, in the order in which the trainer calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jittor as jt

    from jtlightning.checkpoint.container import Checkpoint
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer


class Callback:
    """Something that happens at certain moments of a run: override the hooks it needs.

    Names and order are Lightning's; `on_after_optimizer_step` is ours. Callbacks run in list
    order and before the task's own hook of the same name; model checkpoints run last. Hooks
    between `on_train_batch_start` and `on_after_optimizer_step` run inside a step: reading a
    `jt.Var` there changes which kernels are fused and with it the bits of the training.
    """

    #: Run `on_train_epoch_end` after the task's, to see what the task logs there.
    runs_after_task: bool = False

    @property
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint; two of a kind need different keys."""
        return type(self).__name__

    def setup(self, trainer: Trainer, task: Task, stage: str) -> None:
        """First of all; `stage` is fit, validate, test or predict. Check arguments here."""

    def on_fit_start(self, trainer: Trainer, task: Task) -> None:
        """The task has its optimizer, a checkpoint has been restored, nothing has run yet.

        All modules are in training mode; one that is put in evaluation mode here (a frozen batch
        norm, say) stays in it, also through validations.
        """

    def on_sanity_check_start(self, trainer: Trainer, task: Task) -> None:
        """Before the few validation batches that try the validation code before training."""

    def on_sanity_check_end(self, trainer: Trainer, task: Task) -> None:
        """After them; what they logged has been dropped."""

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        """Before the first epoch of this process."""

    def on_train_epoch_start(self, trainer: Trainer, task: Task) -> None:
        """Before an epoch's first batch, also where a resumed run enters it in the middle."""

    def on_train_batch_start(
        self, trainer: Trainer, task: Task, batch: Any, batch_idx: int
    ) -> None:
        """Before a micro-batch's `training_step`; the batch is on the device."""

    def on_before_backward(self, trainer: Trainer, task: Task, loss: jt.Var) -> None:
        """`loss` is what is differentiated: divided by the accumulation window's size."""

    def on_after_backward(self, trainer: Trainer, task: Task) -> None:
        """The micro-batch's gradients have been added to those of its window."""

    def on_before_optimizer_step(self, trainer: Trainer, task: Task, optimizer: Any) -> None:
        """The window is complete; gradients are not clipped yet."""

    def on_after_optimizer_step(self, trainer: Trainer, task: Task, optimizer: Any) -> None:
        """Between update and step boundary, for averages of the weights."""

    def on_train_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a micro-batch; where it ended a window, after the step boundary."""

    def on_validation_start(self, trainer: Trainer, task: Task) -> None:
        """Before a validation; also in `Trainer.validate` and the sanity check."""

    def on_validation_epoch_start(self, trainer: Trainer, task: Task) -> None:
        """The task is in evaluation mode, gradients are off."""

    def on_validation_batch_start(
        self, trainer: Trainer, task: Task, batch: Any, batch_idx: int
    ) -> None:
        """Before `validation_step`."""

    def on_validation_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After `validation_step`."""

    def on_validation_epoch_end(self, trainer: Trainer, task: Task) -> None:
        """All validation batches are done; the task logs its metrics here."""

    def on_validation_end(self, trainer: Trainer, task: Task) -> None:
        """Validation metrics are in `trainer.metrics`, the task is back in training mode."""

    def on_train_epoch_end(self, trainer: Trainer, task: Task) -> None:
        """Epoch means are in `trainer.metrics`."""

    def on_train_end(self, trainer: Trainer, task: Task) -> None:
        """After the last epoch, also after a stop request or a signal; not after an error."""

    def on_fit_end(self, trainer: Trainer, task: Task) -> None:
        """Last of `Trainer.fit` before `teardown`."""

    def on_test_start(self, trainer: Trainer, task: Task) -> None:
        """Like `on_validation_start`, as are the other test hooks."""

    def on_test_epoch_start(self, trainer: Trainer, task: Task) -> None: ...

    def on_test_batch_start(
        self, trainer: Trainer, task: Task, batch: Any, batch_idx: int
    ) -> None: ...

    def on_test_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None: ...

    def on_test_epoch_end(self, trainer: Trainer, task: Task) -> None: ...

    def on_test_end(self, trainer: Trainer, task: Task) -> None: ...

    def on_predict_start(self, trainer: Trainer, task: Task) -> None:
        """Like `on_validation_start`, as are the other predict hooks."""

    def on_predict_epoch_start(self, trainer: Trainer, task: Task) -> None: ...

    def on_predict_batch_start(
        self, trainer: Trainer, task: Task, batch: Any, batch_idx: int
    ) -> None: ...

    def on_predict_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None: ...

    def on_predict_epoch_end(self, trainer: Trainer, task: Task) -> None: ...

    def on_predict_end(self, trainer: Trainer, task: Task) -> None: ...

    def on_exception(self, trainer: Trainer, task: Task, exception: BaseException) -> None:
        """An error is about to leave the trainer; `teardown` follows."""

    def on_save_checkpoint(self, trainer: Trainer, task: Task, checkpoint: Checkpoint) -> None:
        """A checkpoint has been filled and is about to be written; add to it here."""

    def on_load_checkpoint(self, trainer: Trainer, task: Task, checkpoint: Checkpoint) -> None:
        """A checkpoint is about to be restored."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart: JSON values and NumPy arrays, nested in dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""

    def teardown(self, trainer: Trainer, task: Task, stage: str) -> None:
        """Always runs, also after an error; release files and processes here."""


def check_monitored(metrics: Mapping[str, float], name: str) -> None:
    """Refuse a misspelt metric after the trial validation, before training depends on it.

    Only names of validation can be judged then: those that share their first part (`val/`) with
    a metric that it logged.

    Args:
        metrics: What is known after the trial validation, `trainer.metrics`.
        name: The metric that a callback watches.

    Raises:
        UnknownMetricError: There is none of this name.
    """
    first, slash, _ = name.partition("/")
    if slash and any(known.startswith(f"{first}/") for known in metrics):
        metrics[name]
