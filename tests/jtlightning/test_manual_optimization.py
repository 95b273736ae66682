from __future__ import annotations

from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jtlightning.callbacks.base import Callback
from jtlightning.optim import SGD, AdamW, PolySchedule
from jtlightning.trainer import NonFiniteGradientError, NonFiniteLossError
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.test_resume import StopAfter
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of


class TwoOptimizers(TinyTask):
    """The first layer takes a step at every batch, the rest at every second one."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, rest = self.optimizers()
        loss = nn.cross_entropy_loss(self.model(batch.x), batch.y)
        self.manual_backward(loss, first)
        self.optimizer_step(first)
        if batch_idx % 2:
            self.manual_backward(nn.cross_entropy_loss(self.model(batch.x), batch.y), rest)
            self.optimizer_step(rest)
        self.log("train/loss", loss)

    def configure_optimizers(self) -> Any:
        layers = (self.model.fc1, self.model.fc2)
        first, rest = ([{"params": [layer.weight, layer.bias]}] for layer in layers)
        return [AdamW(lr=0.01).build(first), (AdamW(lr=0.1).build(rest), PolySchedule())]


def test_each_optimizer_updates_its_own_and_counts_its_own_updates(tmp_path: Path) -> None:
    seen: list[dict[str, np.ndarray]] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Any, task: TinyTask, *_: Any) -> None:
            seen.append(parameters_of(task))

    trainer = make_trainer(tmp_path, max_steps=2, callbacks=[Keep()])
    task = TwoOptimizers()
    start = parameters_of(task)
    trainer.fit(task, datamodule=TinyData())
    fc1, fc2, norm = "model.fc1.weight", "model.fc2.weight", "model.bn.weight"
    assert (start[fc1] != seen[0][fc1]).all()
    np.testing.assert_array_equal(start[fc2], seen[0][fc2])
    assert (seen[0][fc2] != seen[1][fc2]).any()
    np.testing.assert_array_equal(start[norm], seen[1][norm])
    assert [driver.updates for driver in trainer.drivers] == [2, 1]
    # Adam's first update moves by the learning rate; at the run's step 1 of 2 it is scheduled.
    moved = np.abs(seen[1][fc2] - seen[0][fc2] * (1 - 0.01 * 0.1 * 0.5**0.9)).max()
    assert moved == pytest.approx(0.1 * 0.5**0.9, rel=1e-3)
    assert trainer.learning_rates() == {"lr": 0.01, "lr-1": pytest.approx(0.1 * 0.5**0.9)}


def test_a_stopped_run_with_two_optimizers_continues_bit_for_bit(tmp_path: Path) -> None:
    def run(folder: Path, *callbacks: Callback) -> dict[str, np.ndarray]:
        trainer = make_trainer(folder, max_epochs=2, callbacks=list(callbacks))
        task = TwoOptimizers()
        trainer.fit(task, datamodule=TinyData(), ckpt_path="auto")
        moments = {k: v for d in trainer.drivers for k, v in d.state_tensors().items()}
        return {**parameters_of(task), **moments}

    whole = run(tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", StopAfter(5))
    parts = run(tmp_path / "parts")
    assert any(name.startswith("optimizer/1/") for name in whole)
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array, err_msg=name)


def test_nothing_is_updated_with_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    class Breaks(TwoOptimizers):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            _, rest = self.optimizers()
            loss = nn.cross_entropy_loss(self.model(batch.x), batch.y)
            self.manual_backward(loss * float("nan") if batch_idx == 1 else loss, rest)
            self.optimizer_step(rest)

    kept: list[np.ndarray] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Any, task: TinyTask, *_: Any) -> None:
            kept.append(task.model.fc2.weight.numpy())

    task = Breaks()
    trainer = make_trainer(tmp_path, max_epochs=1, callbacks=[Keep()])
    with pytest.raises(NonFiniteLossError, match="the loss is nan in epoch 0, batch 1, at step 1"):
        trainer.fit(task, datamodule=TinyData())
    np.testing.assert_array_equal(task.model.fc2.weight.numpy(), kept[0])


def test_a_bad_loss_whose_gradients_are_used_later_is_found_in_the_gradients(
    tmp_path: Path,
) -> None:
    class Adds(TwoOptimizers):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, _ = self.optimizers()
            loss = nn.cross_entropy_loss(self.model(batch.x), batch.y)
            self.manual_backward(loss * float("nan") if batch_idx == 0 else loss, first)
            if batch_idx == 1:
                self.optimizer_step(first)

    trainer = make_trainer(tmp_path, max_epochs=1)
    with pytest.raises(NonFiniteGradientError, match="epoch 0, batch 1, at step 1"):
        trainer.fit(Adds(), datamodule=TinyData())


def test_mistakes_are_said_before_training(tmp_path: Path) -> None:
    class Forgot(TwoOptimizers):
        automatic_optimization = True

    with pytest.raises(ValueError, match="returned 2 optimizers; that needs `automatic_optim"):
        make_trainer(tmp_path).fit(Forgot(), datamodule=TinyData())
    with pytest.raises(ValueError, match="accumulate_grad_batches is for automatic"):
        make_trainer(tmp_path, accumulate_grad_batches=2).fit(
            TwoOptimizers(), datamodule=TinyData()
        )

    class Foreign(TwoOptimizers):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.optimizer_step(SGD().build([{"params": [jt.ones(1)]}]))

    with pytest.raises(ValueError, match="this SGD is not one that configure_optimizers"):
        make_trainer(tmp_path).fit(Foreign(), datamodule=TinyData())
