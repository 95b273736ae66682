"""One optimizer step: micro-batches, their checks, the update, and the boundary behind it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jittor as jt

from jtlightning.distributed import average, own_gradients
from jtlightning.gradients import clip_by_norm, clip_by_value, gradient_norm
from jtlightning.seed import reseed
from jtlightning.trainer import anomaly
from jtlightning.trainer.boundary import Boundary
from jtlightning.trainer.device import to_device

if TYPE_CHECKING:
    from jtlightning.optim import OptimizerDriver
    from jtlightning.task import Task
    from jtlightning.trainer.hooks import Hooks
    from jtlightning.trainer.trainer import Trainer


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; the parameters are those of the update before."""


class NonFiniteGradientError(RuntimeError):
    """A gradient is NaN or infinite; the parameters are those of the update before."""


class Stepper:
    """Runs micro-batches and updates in the order that makes a run reproducible.

    Args:
        trainer: Whose arguments and counters are used.
        task: What is trained.
        hooks: Called at every point of the step.
    """

    def __init__(self, trainer: Trainer, task: Task, hooks: Hooks) -> None:
        self.trainer, self.task, self.hooks = trainer, task, hooks
        self.boundary = Boundary(trainer, task)
        self.window_done = 0  # micro-batches of the open accumulation window
        self.window_size = 1
        self._scaler, self._ranks = trainer.scaler, trainer.ranks
        self._checks = not trainer.barebones
        self._overflow = False  # of a scaled loss in the open window
        self._norm: jt.Var | None = None  # of the gradients of the complete window
        self._batch: Any = None
        self._losses: list[jt.Var] = []  # of manual optimisation, since the last update

    def run(self, batch: Any, index: int) -> tuple[Any, Any]:
        """One micro-batch, and the update where it completes the window.

        Returns:
            The batch on the device, and what `training_step` returned.
        """
        trainer, state = self.trainer, self.trainer.state
        if self.window_done == 0:
            left = trainer.num_training_batches - index
            self.window_size = max(min(trainer.accumulate_grad_batches, left), 1)
            self.boundary.remember()
        trainer.at_step_boundary = False
        self._seed()
        with trainer.observe("to_device"):
            self._batch = batch = to_device(batch)
        self.hooks.call("on_train_batch_start", batch, index)
        if self.task.automatic_optimization:
            outputs = self._forward_backward(batch, index)
            self.window_done += 1
            if self.window_done == self.window_size:
                self._update_or_skip(trainer.drivers[0], self._norm)
                self._reach_boundary()
        else:
            outputs = self._training_step(batch, index)
            self._losses.clear()
            self._reach_boundary()
        state.batch_in_epoch += 1
        return batch, outputs

    def backward(self, loss: jt.Var, driver: OptimizerDriver) -> None:
        """Gradients that a task with manual optimisation asks for inside its training step."""
        self.hooks.call("on_before_backward", loss)
        with self.trainer.observe("backward"), own_gradients():
            driver.optimizer.backward(self._scaled(loss))
        self.hooks.call("on_after_backward")
        self._losses.append(loss)

    def optimize(self, driver: OptimizerDriver) -> None:
        """The update that such a task asks for; the losses since the last one are checked."""
        gradients = [g for _, g in driver.gradients()]
        norm = self._norm_of(gradients)
        with self.trainer.observe("synchronize"):
            jt.sync([*gradients, *self._losses, *([] if norm is None else [norm])])
            self._check(self._losses, norm, self.trainer.state.batch_in_epoch, driver)
        self._losses.clear()
        self._update_or_skip(driver, norm)

    def _seed(self) -> None:
        step = self.trainer.state.global_step
        reseed(self.trainer.seed, step, self.window_done, self._ranks.rank)

    def _training_step(self, batch: Any, index: int) -> Any:
        trainer = self.trainer
        trainer.in_training_step = True
        with trainer.observe(f"{type(self.task).__name__}.training_step"):
            outputs = self.task.training_step(batch, index)
        trainer.in_training_step = False
        return outputs

    def _forward_backward(self, batch: Any, index: int) -> Any:
        trainer, (driver,) = self.trainer, self.trainer.drivers
        outputs = self._training_step(batch, index)
        loss = loss_of(outputs, self.task)
        share = loss / self.window_size if self.window_size > 1 else loss
        self.hooks.call("on_before_backward", share)
        with trainer.observe("backward"), own_gradients():
            driver.optimizer.backward(self._scaled(share))
        self.hooks.call("on_after_backward")
        looks = self._checks or self._scaler or trainer.gradient_clip_val is not None
        if not looks and self.window_size == 1 and not self._ranks.several:
            return outputs  # nothing is read, and the boundary that follows executes it
        gradients = [g for _, g in driver.gradients()]
        wanted = [*gradients, loss]
        if self.window_done + 1 == self.window_size:
            self._norm = self._norm_of(gradients)
            wanted.extend([] if self._norm is None else [self._norm])
        with trainer.observe("synchronize"):
            # Left unsynced, every micro-batch of the window would keep its graph alive.
            jt.sync(wanted)
            self._check([loss], self._norm, index, driver)
        return outputs

    def _scaled(self, loss: jt.Var) -> jt.Var:
        return loss if self._scaler is None else self._scaler.scaled(loss)

    def _norm_of(self, gradients: list[jt.Var]) -> jt.Var | None:
        """The norm where it is needed, to be checked or to clip by; of a window's true gradients.

        Call it once per window: gradients are averaged over the processes, and those of a scaled
        loss divided by the scale, first.
        """
        trainer = self.trainer
        average(gradients, self._ranks)
        if self._scaler is not None:
            self._scaler.unscale(gradients)
        clips = trainer.gradient_clip_val is not None and trainer.gradient_clip_algorithm == "norm"
        wanted = self._checks or self._scaler or clips
        return gradient_norm(gradients) if gradients and wanted else None

    def _check(
        self, losses: list[jt.Var], norm: jt.Var | None, index: int, driver: OptimizerDriver
    ) -> None:
        """See whether all is finite; a scaled loss that overflows is remembered, else it raises."""
        if self._scaler is not None and not self._scaler.exhausted:
            values = [*losses, *([] if norm is None else [norm])]
            self._overflow |= not all(math.isfinite(value.item()) for value in values)
        elif self._checks:
            for loss in losses:
                self._check_loss(loss, index)
            self._check_gradients(norm, index, driver)

    def _check_loss(self, loss: jt.Var, index: int) -> None:
        value = loss.item()
        if math.isfinite(value):
            return
        culprit = self._first_non_finite(index)
        raise NonFiniteLossError(
            f"the loss is {value} in {self._place(index)}; nothing was updated with it. {culprit}"
            "Look at this batch and at the learning rate, or clip gradients (gradient_clip_val)"
        )

    def _check_gradients(self, norm: jt.Var | None, index: int, driver: OptimizerDriver) -> None:
        if norm is None:
            return
        value = norm.item()
        if math.isfinite(value):
            return
        names = anomaly.non_finite_names(driver.gradients())
        raise NonFiniteGradientError(
            f"the norm of the gradients is {value} in {self._place(index)}, though the loss is "
            f"finite; nothing was updated with them. Gradients concerned: {names}. "
            f"{self._first_non_finite(index, loss_was_finite=True)}Look for a square root, "
            "logarithm or division at 0 in the loss, and at this batch"
        )

    def _first_non_finite(self, index: int, *, loss_was_finite: bool = False) -> str:
        """Run the micro-batch once more, looking at every module; a sentence, or nothing."""
        if not self.task.automatic_optimization:
            return ""  # its training step would update
        self.boundary.restore_statistics()
        self._seed()
        found = anomaly.name_first_non_finite(
            self.task,
            lambda: self._training_step(self._batch, index),
            loss_was_finite=loss_was_finite,
        )
        return f"First of all: {found}. " if found else ""

    def _place(self, index: int) -> str:
        state = self.trainer.state
        return (
            f"epoch {state.epoch}, batch {index}, at step {state.global_step}"
            f"{names_of(self._batch)}"
        )

    def _update_or_skip(self, driver: OptimizerDriver, norm: jt.Var | None) -> None:
        scaler = self._scaler
        if scaler is None:
            self._update(driver, norm)
            return
        if self._overflow:
            self.boundary.forget_forward()  # its statistics and logged values may be infinite
            driver.optimizer.zero_grad()
            scaler.overflowed()
        else:
            self._update(driver, norm)
            scaler.went_well()
        self._overflow = False
        self.trainer.record("train/loss_scale", scaler.scale, True, False, False, 1)
        self.trainer.record("train/skipped_steps", scaler.skipped, True, False, False, 1)

    def _update(self, driver: OptimizerDriver, norm: jt.Var | None) -> None:
        """Clip, update, average, lazily."""
        trainer, step = self.trainer, self.trainer.state.global_step
        driver.set_rates(step)
        self.hooks.call("on_before_optimizer_step", driver.optimizer)
        limit = trainer.gradient_clip_val
        if limit is not None:
            # Anew: a hook may have changed them.
            gradients = [g for _, g in driver.gradients()]
            if trainer.gradient_clip_algorithm == "value":
                clip_by_value(gradients, limit)
            elif norm is not None:
                clip_by_norm(gradients, norm, limit)
                trainer.record("train/grad_norm", norm, True, False, False, 1)
        self.boundary.updating = True
        with trainer.observe("optimizer_step"):
            driver.step()
        self.hooks.call("on_after_optimizer_step", driver.optimizer)

    def _reach_boundary(self) -> None:
        """Execute everything; after this, values may be read."""
        trainer = self.trainer
        with trainer.observe("synchronize"):
            jt.sync_all()
        trainer.metrics.detach()
        self.window_done, self._norm, self._batch = 0, None, None
        trainer.state.global_step += 1
        trainer.at_step_boundary = True


def loss_of(outputs: Any, task: Task) -> jt.Var:
    """The loss in what a `training_step` returned.

    Raises:
        ValueError: There is none, or it is no scalar.
    """
    loss = outputs["loss"] if isinstance(outputs, dict) else outputs
    if not isinstance(loss, jt.Var) or loss.numel() != 1:
        what = tuple(loss.shape) if isinstance(loss, jt.Var) else type(loss).__name__
        raise ValueError(
            f"{type(task).__name__}.training_step must return a scalar jt.Var or a dict with it "
            f"as 'loss', got {what}"
        )
    return loss


def names_of(batch: Any) -> str:
    """The samples' names for a message, where the batch carries them."""
    names = getattr(batch, "names", None)
    return f" (samples {', '.join(map(str, names[:8]))})" if names else ""
