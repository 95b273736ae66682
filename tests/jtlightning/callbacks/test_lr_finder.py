"""The range test of the learning rate, and the run after it."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jtlightning.callbacks.base import Callback
from jtlightning.callbacks.lr_finder import LearningRateFinder
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.test_resume import StopAfter
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of


class Curve:
    """A trainer whose trial gives the losses of a function of the rate."""

    def __init__(self, folder: Path, loss: Any) -> None:
        self.run: Any = type("Run", (), {"path": folder})
        self.fast_dev_run, self.global_step, self.loss = 0, 0, loss
        self.rate: float | None = None

    def trial(self, steps: int, *, learning_rate: Any) -> list[float]:
        losses = []
        for step in range(steps):
            losses.append(self.loss(learning_rate(step)))
            if not math.isfinite(losses[-1]):
                break
        return losses

    def set_learning_rate(self, rate: float) -> None:
        self.rate = rate


def valley(rate: float) -> float:
    """Falls most steeply at 1e-3, rises beyond 0.1."""
    return 2.0 - 1.5 / (1 + (1e-3 / rate) ** 2) + (rate / 0.1) ** 4


def fit(folder: Path, *callbacks: Callback, lr: float = 0.01, **arguments: Any) -> dict[str, Any]:
    settings = {"max_epochs": 2, "accumulate_grad_batches": 2}
    trainer = make_trainer(folder, callbacks=list(callbacks), **{**settings, **arguments})
    task = TinyTask(lr)
    trainer.fit(task, datamodule=TinyData(4, 28), ckpt_path="auto")
    metrics = {k: v for k, v in trainer.metrics.items() if "loss" in k}
    return {**parameters_of(task), **trainer.drivers[0].state_tensors(), **metrics}


def finder(**options: Any) -> LearningRateFinder:
    return LearningRateFinder(
        **{"min_lr": 1e-5, "max_lr": 1.0, "num_training_steps": 20, **options}
    )


def test_the_suggestion_is_where_the_loss_falls_most_steeply(tmp_path: Path) -> None:
    callback, trainer = LearningRateFinder(1e-6, 1.0, 300), Curve(tmp_path, valley)
    callback.on_fit_start(trainer, None)
    assert trainer.rate == callback.suggestion
    # The smoothing delays the curve by about 50 of 300 steps, a factor of 10 of the rate.
    assert 1e-3 < callback.suggestion < 1.5e-2


def test_an_explosion_ends_the_curve(tmp_path: Path) -> None:
    def exploding(rate: float) -> float:
        # After the explosion a second, steeper fall, which is none to rely on.
        return 1e6 * (0.5 / rate) ** 8 if rate > 0.5 else valley(rate) if rate < 0.2 else 1e6

    callback, trainer = LearningRateFinder(1e-6, 1.0, 300), Curve(tmp_path, exploding)
    callback.on_fit_start(trainer, None)
    assert trainer.rate is not None
    assert trainer.rate < 0.2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_curve(tmp_path: Path, bad: float) -> None:
    callback = LearningRateFinder(1e-6, 1.0, 300)
    trainer = Curve(tmp_path, lambda rate: bad if rate > 0.05 else valley(rate))
    callback.on_fit_start(trainer, None)
    assert trainer.rate is not None
    assert trainer.rate < 0.05
    assert not math.isfinite(callback.losses[-1])


def test_the_curve_is_written(tmp_path: Path) -> None:
    callback = LearningRateFinder(1e-6, 0.05, 50, mode="linear", set_rate=False)
    trainer = Curve(tmp_path, valley)
    callback.on_fit_start(trainer, None)
    assert trainer.rate is None
    with (tmp_path / "lr_find.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["lr"]) for row in rows] == pytest.approx(np.linspace(1e-6, 0.05, 50))
    assert [float(row["loss"]) for row in rows] == callback.losses
    assert float(rows[0]["smoothed_loss"]) == pytest.approx(float(rows[0]["loss"]))


def test_a_loss_that_never_falls_is_an_error_where_the_rate_is_to_be_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError, match=r"20 steps from 1e-05 to 1 the loss nowhere falls"):
        finder().on_fit_start(Curve(tmp_path, lambda rate: 1.0 + rate), None)
    finder(set_rate=False).on_fit_start(Curve(tmp_path, lambda rate: 1.0 + rate), None)
    assert "nowhere falls" in caplog.text


def test_the_run_is_the_one_that_had_started_with_the_rate(tmp_path: Path) -> None:
    callback = finder()
    found = fit(tmp_path / "finder", callback, lr=0.3)
    assert callback.suggestion is not None
    np.testing.assert_equal(found, fit(tmp_path / "plain", lr=callback.suggestion))


def test_without_setting_it_the_run_is_the_one_without_a_finder(tmp_path: Path) -> None:
    found = fit(tmp_path / "finder", finder(set_rate=False))
    np.testing.assert_equal(found, fit(tmp_path / "plain"))


def test_a_resumed_run_keeps_the_rate_and_makes_no_trial(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", finder())
    with pytest.raises(SystemExit):
        fit(tmp_path / "parts", finder(), StopAfter(3))
    resumed = finder()
    np.testing.assert_equal(fit(tmp_path / "parts", resumed), whole)
    assert resumed.losses == []


def test_a_fast_run_makes_no_trial(tmp_path: Path) -> None:
    callback = finder()
    fit(tmp_path, callback, fast_dev_run=True)
    assert callback.losses == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 0.0}, "min_lr"),
        ({"min_lr": 2.0}, "min_lr"),
        ({"num_training_steps": 12}, "num_training_steps"),
        ({"mode": "log"}, "mode"),
        ({"early_stop_threshold": 1.0}, "early_stop_threshold"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finder(**options)
