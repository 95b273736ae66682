"""The last step boundary, kept so that an error inside the next step can be undone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jittor as jt

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer.running import Running


class Boundary:
    """What changes inside a step before its update: running statistics, counters, logged values.

    `remember` comes first in every step, `roll_back` after an error.

    Parameters and moments need no copy, as only the update changes them. The statistics are kept
    as second holders of the same Vars, which costs 0.1 us each and no memory: an update gives the
    task's holder a new Var.

    Args:
        trainer: Whose counters and metrics are meant.
        task: Whose Vars are.
    """

    def __init__(self, trainer: Running, task: Task) -> None:
        self._trainer = trainer
        trained = {id(p) for driver in trainer.drivers for p in driver.parameters()}
        self._kept = [(v, jt.Var(0.0)) for v in task.parameters() if id(v) not in trained]
        self.remember()

    def remember(self) -> None:
        """Take the present state as the one to go back to."""
        for value, kept in self._kept:
            kept.assign(value)
        state = self._trainer.state
        self._batch_in_epoch, self._validation_due = state.batch_in_epoch, state.validation_due
        self._logged = self._trainer.metrics.held
        self.updating = False  # from the update on there is no way back

    def roll_back(self) -> None:
        """Go back, unless an update has begun: then parameters may have changed already."""
        trainer = self._trainer
        if trainer.at_step_boundary or self.updating:
            return
        self.forget_forward()
        state = trainer.state
        state.batch_in_epoch, state.validation_due = self._batch_in_epoch, self._validation_due
        trainer.in_training_step = False
        trainer.at_step_boundary = True

    def forget_forward(self) -> None:
        """Undo what forward passes since the boundary did: statistics, and values logged."""
        self.restore_statistics()
        self._trainer.metrics.drop_after(self._logged)

    def restore_statistics(self) -> None:
        """Give the task the running statistics of the boundary."""
        for value, kept in self._kept:
            value.assign(kept)
