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

    #: False: `training_step` calls `manual_backward` and `optimizer_step` itself, for several
    #: optimizers (a GAN, say). One call of it is one step of the run then.
    automatic_optimization: bool = True
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

        With manual optimisation also a list of several of these.
        Called once, when the data is known: `self.trainer.estimated_stepping_batches` is the
        number of updates of the run.
        """
        raise NotImplementedError(f"{type(self).__name__} needs configure_optimizers()")

    def optimizers(self) -> Any:
        """What `configure_optimizers` returned: the optimizer, or the list of several."""
        found = self.trainer.optimizers
        return found[0] if len(found) == 1 else found

    def manual_backward(self, loss: jt.Var, optimizer: jt.optim.Optimizer) -> None:
        """Add the gradients of `loss` to those of the parameters that `optimizer` holds.

        Call it, as `optimizer_step`, from `training_step` of a task with
        `automatic_optimization = False`.
        """
        trainer = self.trainer
        trainer.stepper.backward(loss, trainer.driver_of(optimizer))

    def optimizer_step(self, optimizer: jt.optim.Optimizer) -> None:
        """Update the parameters of `optimizer` from their gradients, at its schedule's rate.

        Losses and gradients are checked before: one that is not finite is an error, and nothing
        has been updated by this call.
        """
        trainer = self.trainer
        trainer.stepper.optimize(trainer.driver_of(optimizer))

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
