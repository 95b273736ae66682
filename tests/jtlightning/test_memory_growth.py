"""Hundreds of steps keep neither operations nor Vars; where a user's code does, it is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory import train
from jtlightning.callbacks.base import Callback
from jtlightning.callbacks.memory_guard import MemoryGrowthError, MemoryGuard
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import TinyData, TinyTask


def test_nothing_accumulates_over_hundreds_of_steps(tmp_path: Path) -> None:
    growth = train(tmp_path, 300)
    assert len(growth.mib) == 300
    assert growth.ratio(growth.operations) <= 1.05
    assert growth.ratio(growth.variables) <= 1.05
    assert growth.variables[-1] < 100  # some twenty parameters and statistics, moments, averages


class Leaking(TinyTask):
    """Keeps a Var of every micro-batch, in itself or in a metric that it owns."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.losses, self.metric = where, [], Metric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.where == "training step":
            self.losses.append(loss)
        if self.where == "metric":
            self.metric.update(loss)
        return loss


class Metric:
    """A mean over everything that it has seen."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def update(self, value: Any) -> None:
        self.values.append({"value": value})


class Predictions(Callback):
    """Collects what the steps of training and validation return."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.outputs: list[Any] = []

    def on_train_batch_end(
        self, trainer: Any, task: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        if self.where == "hook":
            self.outputs.append(outputs)

    def on_validation_batch_end(self, trainer: Any, task: Any, outputs: Any, *batch: Any) -> None:
        if self.where == "validation":
            self.outputs.append(task.model(batch[0].x))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("training step", r"Leaking\.training_step keeps 1 Var per step \(Leaking\.losses\)"),
        (
            "metric",
            r"Leaking\.training_step keeps 1 container with Var per step \(Metric\.values\)",
        ),
        ("hook", r"Predictions\.on_train_batch_end keeps 1 Var per step \(Predictions\.outputs\)"),
        ("validation", r"Predictions\.on_validation_batch_end keeps \d+ Vars"),
    ],
)
def test_a_leak_is_named_in_a_real_run(tmp_path: Path, where: str, message: str) -> None:
    trainer = make_trainer(
        tmp_path,
        max_steps=1500,
        callbacks=[Predictions(where), MemoryGuard(every_n_steps=10)],
        log_every_n_steps=10,
        logger=False,
        enable_checkpointing=False,
    )
    with pytest.raises(MemoryGrowthError, match=message):
        trainer.fit(Leaking(where), datamodule=TinyData())
    assert trainer.observers == []
