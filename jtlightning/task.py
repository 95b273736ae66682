"""`Task`: a model with its losses and metrics, told what to do at each stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jittor as jt
from jittor import nn

if TYPE_CHECKING:
    from jtlightning.trainer import Trainer


class Task(nn.Module):
    """What is trained: subclass it and write `training_step` and `configure_optimizers`.

    A task may define any hook of `jtlightning.callbacks.base.Callback`, without the arguments
    `trainer` and `task`; the task's hook runs after the callbacks' (`setup(stage)`,
    `on_train_epoch_end()`, `on_after_backward()`, ...). A network held as an attribute is a part
    of the task, and its parameters are saved under the attribute's name.
    """

    _trainer: Trainer | None = None

    @property
    def trainer(self) -> Trainer:
        """The trainer that runs this task.

        Raises:
            RuntimeError: Outside of a run.
        """
        if self._trainer is None:
            raise RuntimeError(
                f"{type(self).__name__} is not attached to a trainer; `trainer` and `log` work "
                "only while Trainer.fit, validate, test or predict runs"
            )
        return self._trainer

    def training_step(self, batch: Any, batch_idx: int) -> jt.Var | dict[str, Any]:
        """The loss of one micro-batch, or a dict that holds it as `loss`."""
        raise NotImplementedError(f"{type(self).__name__} needs training_step(batch, batch_idx)")

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """One batch of validation; log what is to be averaged, or update a metric."""
        raise NotImplementedError(f"{type(self).__name__} needs validation_step(batch, batch_idx)")

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """One batch of a test; by default what validation does."""
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """The prediction for one batch; `Trainer.predict` returns the list of them."""
        raise NotImplementedError(f"{type(self).__name__} needs predict_step(batch, batch_idx)")

    def configure_optimizers(self) -> Any:
        """The optimizer of `jt.optim`, or a pair of it and a `Schedule`.

        Called once, when the data is known: `self.trainer.estimated_stepping_batches` is the
        number of updates of the run.
        """
        raise NotImplementedError(f"{type(self).__name__} needs configure_optimizers()")

    def log(
        self,
        name: str,
        value: jt.Var | float,
        *,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        prog_bar: bool = False,
        batch_size: int | None = None,
    ) -> None:
        """Record a scalar; nothing is read from the device here.

        Args:
            name: Such as `train/loss` or `val/miou`.
            value: A Var of one element, or a number.
            on_step: Log the value of this step; default: in `training_step`.
            on_epoch: Log the mean of the epoch; default: everywhere else.
            prog_bar: Show it in the progress bar.
            batch_size: Weight in the mean; default: the size of the current batch.
        """
        self.trainer.record(name, value, on_step, on_epoch, prog_bar, batch_size)

    def log_dict(self, values: Mapping[str, jt.Var | float], **options: Any) -> None:
        """Call `log` for each entry, with the same options."""
        for name, value in values.items():
            self.log(name, value, **options)
