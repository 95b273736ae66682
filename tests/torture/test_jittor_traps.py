"""What Jittor does against a trainer's promises, and that the trainer keeps them.

The other traps have their tests beside what remedies them; docs/reliability.md has the list.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest

from jtlightning.callbacks.base import Callback
from jtlightning.optim import AdamW, OptimizerDriver
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of

NO_FILES = {"logger": False, "enable_checkpointing": False}


def test_a_long_accumulation_window_keeps_no_graph(tmp_path: Path) -> None:
    """Jittor holds the graph of every micro-batch until somebody asks for the gradients."""

    class LiveOperations(Callback):
        def __init__(self) -> None:
            self.counts: list[int] = []

        def on_train_batch_start(self, trainer: Any, task: Any, *_: Any) -> None:
            self.counts.append(jt.liveness_info()["lived_ops"])

    live = LiveOperations()
    trainer = make_trainer(
        tmp_path, max_epochs=2, accumulate_grad_batches=6, callbacks=[live], **NO_FILES
    )
    trainer.fit(TinyTask(), datamodule=TinyData())
    second = live.counts[6:]
    assert second[5] - second[1] <= 4, "about 80 for each micro-batch otherwise"


def test_layers_frozen_during_training_stay_frozen_through_a_validation(tmp_path: Path) -> None:
    """Jittor's train() gives back the gradient flags that it saw at the very first eval()."""

    class FreezeLater(Callback):
        def on_train_epoch_start(self, trainer: Any, task: TinyTask) -> None:
            if trainer.current_epoch == 1:
                task.model.fc1.weight.stop_grad()
                self.before = task.model.fc1.weight.numpy()

    freeze, task = FreezeLater(), TinyTask()
    trainer = make_trainer(
        tmp_path, max_epochs=3, val_check_interval=2, callbacks=[freeze], **NO_FILES
    )
    trainer.fit(task, datamodule=TinyData())
    assert task.model.fc1.weight.is_stop_grad()
    np.testing.assert_array_equal(task.model.fc1.weight.numpy(), freeze.before)


def test_dropout_is_on_in_training_and_off_in_validation(tmp_path: Path) -> None:
    """Jittor builds dropout in evaluation mode."""

    class Modes(TinyTask):
        def __init__(self) -> None:
            super().__init__()
            self.modes: dict[str, set[bool]] = {"training": set(), "validation": set()}

        def training_step(self, batch: Any, batch_idx: int) -> jt.Var:
            self.modes["training"].add(bool(self.model.drop.is_train))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.modes["validation"].add(bool(self.model.drop.is_train))
            super().validation_step(batch, batch_idx)

    task = Modes()
    assert not task.model.drop.is_train
    make_trainer(tmp_path, max_epochs=2, **NO_FILES).fit(task, datamodule=TinyData())
    assert task.modes == {"training": {True}, "validation": {False}}


def test_an_error_in_a_validation_leaves_gradients_on(tmp_path: Path) -> None:
    """no_grad is a flag of the process: left set, everything trained later would stand still."""

    class Breaks(TinyTask):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise RuntimeError("broken on purpose")

    task = Breaks()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        make_trainer(tmp_path / "a", max_epochs=1, **NO_FILES).fit(task, datamodule=TinyData())
    assert jt.flags.no_grad == 0
    assert all(module.is_training() for module in task.modules())
    task = TinyTask()
    before = parameters_of(task)
    make_trainer(tmp_path / "b", max_epochs=1, **NO_FILES).fit(task, datamodule=TinyData())
    after = parameters_of(task)
    assert all((before[name] != after[name]).any() for name in before)


def test_an_update_without_a_backward_pass_does_not_reorder_later_operations() -> None:
    """Jittor raises a KeyError from within, and leaves a flag that changes every later order."""
    weight = jt.ones(3)
    optimizer = AdamW(lr=0.1).build([{"params": [weight]}])
    driver = OptimizerDriver(optimizer, None, 10, {id(weight): "w"})
    with pytest.raises(KeyError, match="grads"):
        driver.step()
    assert jt.flags.node_order == 0


def test_a_captured_checkpoint_does_not_change_with_the_run(tmp_path: Path) -> None:
    """Jittor's optimizer.state_dict() hands out the moments themselves, which go on moving."""

    class Capture(Callback):
        def on_train_batch_end(self, trainer: Any, task: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                self.tensors = trainer.capture_checkpoint().tensors
                self.copies = {name: array.copy() for name, array in self.tensors.items()}

    capture, task = Capture(), TinyTask()
    make_trainer(tmp_path, max_epochs=2, callbacks=[capture]).fit(task, datamodule=TinyData())
    assert any(name.startswith("optimizer/") for name in capture.tensors)
    for name, array in capture.tensors.items():
        np.testing.assert_array_equal(array, capture.copies[name], err_msg=name)


def test_clipping_and_logging_leave_the_graph_of_a_step_in_one_piece(tmp_path: Path) -> None:
    """Reading a value inside a step fuses other kernels, and other last bits come out."""
    weights = []
    for arguments in (
        {"log_every_n_steps": 1, "enable_progress_bar": True},
        {"log_every_n_steps": 100, **NO_FILES},
    ):
        task = TinyTask()
        trainer = make_trainer(
            tmp_path, max_epochs=2, gradient_clip_val=0.1, callbacks=[], **arguments
        )
        task = TinyTask()  # seeded by the trainer
        trainer.fit(task, datamodule=TinyData())
        weights.append(parameters_of(task))
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name], err_msg=name)
