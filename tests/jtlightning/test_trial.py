from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jtlightning.callbacks.base import Callback
from jtlightning.callbacks.ema import EMA
from jtlightning.data.loader import Loader
from tests.jtlightning.test_fit import Losses, make_trainer
from tests.jtlightning.tiny import Points, TinyData, TinyTask, collate, parameters_of

SETTINGS = {"max_epochs": 2, "accumulate_grad_batches": 2}


class Trial(Callback):
    """Runs a trial before training and keeps what it returned."""

    def __init__(self, steps: int, **options: Any) -> None:
        self.steps, self.options = steps, options
        self.losses: list[float] = []

    def on_fit_start(self, trainer: Any, task: Any) -> None:
        self.losses = trainer.trial(self.steps, **self.options)


def end_state(folder: Path, *callbacks: Callback) -> dict[str, Any]:
    losses = Losses()
    trainer = make_trainer(folder, callbacks=[EMA(0.9), losses, *callbacks], **SETTINGS)
    task = TinyTask()
    trainer.fit(task, datamodule=TinyData())
    moments = trainer.drivers[0].state_tensors()
    state = {**parameters_of(task), **moments, **trainer.metrics, "losses": losses.losses}
    return {**state, "samples": trainer.samples_seen}


@pytest.mark.parametrize("options", [{}, {"learning_rate": lambda step: 10.0 ** (step - 4)}])
def test_a_trial_leaves_no_trace(tmp_path: Path, options: dict[str, Any]) -> None:
    trial = Trial(5, **options)
    with_trial = end_state(tmp_path / "with", trial)
    assert len(trial.losses) == 5
    assert len(set(trial.losses)) == 5, "it did train"
    without = end_state(tmp_path / "without")
    assert with_trial.keys() == without.keys()
    for name, value in without.items():
        np.testing.assert_array_equal(with_trial[name], value, err_msg=name)


def test_a_trial_takes_the_rate_that_it_is_told(tmp_path: Path) -> None:
    steady = Trial(4, learning_rate=lambda step: 1e-12)
    moving = Trial(4, learning_rate=lambda step: 1.0)
    make_trainer(tmp_path, max_steps=1, callbacks=[steady]).fit(TinyTask(), datamodule=TinyData())
    make_trainer(tmp_path, max_steps=1, callbacks=[moving]).fit(TinyTask(), datamodule=TinyData())
    assert steady.losses[0] == moving.losses[0]
    assert steady.losses[1] != moving.losses[1]


def test_a_loss_that_is_not_finite_ends_a_trial(tmp_path: Path) -> None:
    class Breaks(TinyTask):
        calls = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.calls += 1
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if self.trying and self.calls >= 3 else loss

        trying = True

        def on_fit_start(self) -> None:  # after the callback's
            self.trying = False

    trial, task = Trial(5), Breaks()
    trainer = make_trainer(tmp_path, max_epochs=1, callbacks=[trial])
    trainer.fit(task, datamodule=TinyData())
    assert len(trial.losses) == 3
    assert math.isnan(trial.losses[-1])
    assert trainer.global_step == 6


def test_another_loader_can_be_tried_and_taken(tmp_path: Path) -> None:
    class Larger(Callback):
        def on_fit_start(self, trainer: Any, task: Any) -> None:
            loader = Loader(Points(24), 8, collate=collate)
            self.losses = trainer.trial(2, loader=loader)
            trainer.replace_train_loader(loader)
            trainer.set_learning_rate(0.5)

    larger = Larger()
    trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[larger])
    trainer.fit(TinyTask(), datamodule=TinyData(batch_size=4))
    assert len(larger.losses) == 2
    assert trainer.num_training_batches == 3
    assert trainer.global_step == 6
    assert trainer.samples_seen == 48
    # PolySchedule with a warm-up of 2: the last of six steps.
    assert trainer.learning_rates()["lr/decay"] == pytest.approx(0.5 * (1 / 6) ** 0.9)
