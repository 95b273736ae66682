"""A trainer without a loop: what callbacks may read, and a record of what they ask for."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from jtlightning.checkpoint.container import Checkpoint


class FakeMetrics(dict[str, float]):
    """Metric values by name, with those shown in the progress bar named in `shown`."""

    shown: tuple[str, ...] = ()

    def __missing__(self, name: str) -> float:
        raise KeyError(f"unknown metric {name!r}; known: {', '.join(sorted(self)) or 'none'}")

    def progress_bar(self) -> dict[str, float]:
        return {name: self[name] for name in self.shown if name in self}


class FakeRun:
    """The folder of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.pictures = path / "pictures"


class FakeTrainer:
    """Public attributes of the trainer; a test sets them and calls the hooks itself."""

    def __init__(self, path: Path) -> None:
        self.run = FakeRun(path)
        self.metrics = FakeMetrics()
        self.current_epoch = self.global_step = self.batch_idx = 0
        self.stage, self.sanity_checking = "fit", False
        self.max_epochs: int | None = 2
        self.max_steps = -1
        self.num_training_batches, self.num_val_batches = 10, 2
        self.estimated_stepping_batches, self.accumulate_grad_batches = 20, 1
        self.log_every_n_steps = 50
        self.should_log = self.at_step_boundary = True
        self.loggers: list[Any] = []
        self.callbacks: list[Any] = []
        self.optimizer: Any = None
        self.data_wait_s, self.samples_seen = 0.0, 0
        self.should_stop, self.stop_reason = False, None
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.rates = {"lr": 0.1}
        self.observers: list[Any] = []

    def observe(self, place: str) -> ExitStack:
        """What the real trainer enters around every hook and part of the loop."""
        stack = ExitStack()
        for observer in self.observers:
            stack.enter_context(observer(place))
        return stack

    def log_metrics(self, metrics: dict[str, float]) -> None:
        self.logged.append((self.global_step, dict(metrics)))

    def learning_rates(self) -> dict[str, float]:
        return dict(self.rates)

    @property
    def started_loggers(self) -> list[Any]:
        return self.loggers

    def tell_loggers(self, method: str, *args: Any, **options: Any) -> None:
        for logger in self.loggers:
            getattr(logger, method)(*args, **options)

    def stop(self, reason: str) -> None:
        self.should_stop, self.stop_reason = True, reason  # type: ignore[assignment]

    def save_checkpoint(self, path: Path, weights_only: bool = False) -> None:
        """Write the step and the callbacks' states as text, atomically like the real one."""
        states = {callback.state_key: callback.state_dict() for callback in self.callbacks}
        temporary = Path(f"{path}.writing")
        temporary.write_text(repr({"step": self.global_step, "callbacks": states}))
        temporary.replace(path)

    def capture_checkpoint(self, weights_only: bool = False) -> Checkpoint:
        """The same as a real checkpoint, with an array whose values are the step."""
        states = {callback.state_key: callback.state_dict() for callback in self.callbacks}
        metadata = {"loop": {"global_step": self.global_step}, "optimizer": {}, "callbacks": states}
        return Checkpoint({"model/x": np.full(1000, self.global_step)}, metadata)
