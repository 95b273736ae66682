"""Where a run is: the counters that a checkpoint holds and a resumed run continues from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Stage = Literal["fit", "validate", "test", "predict"]


@dataclass
class RunState:
    """Position of a training run, always meant at a step boundary.

    Args:
        epoch: Epoch that the position lies in, counted from 0.
        batch_in_epoch: Micro-batches of that epoch that are done.
        global_step: Optimizer steps done.
        validation_due: The validation that belongs to this position has not been run yet.
        epoch_finished: The epoch's closing hooks have been run; the next epoch comes next.
        elapsed_s: Seconds spent in training by this run, earlier processes included.
    """

    epoch: int = 0
    batch_in_epoch: int = 0
    global_step: int = 0
    validation_due: bool = False
    epoch_finished: bool = False
    elapsed_s: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The counters as JSON values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved counters; a missing one is a `KeyError` that names it."""
        for field in fields(self):
            setattr(self, field.name, state[field.name])

    def enter_next_epoch(self) -> None:
        """Move to the start of the following epoch."""
        self.epoch += 1
        self.batch_in_epoch = 0
        self.epoch_finished = False
