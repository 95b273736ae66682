"""An error inside a step: the run is that of the last step boundary, and can be saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jtlightning.callbacks.base import Callback
from jtlightning.trainer import NonFiniteGradientError, NonFiniteLossError
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of


class NaNGradient(jt.Function):
    """The identity, with a gradient that is NaN."""

    def execute(self, x: jt.Var) -> jt.Var:
        return x * 1

    def grad(self, grad: jt.Var) -> jt.Var:
        return grad * float("nan")


class Breaks(TinyTask):
    """Goes wrong in its sixth micro-batch: after two steps of two, in the middle of the third."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls = how, 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.calls += 1
        if self.calls != 6:
            return super().training_step(batch, batch_idx)
        if self.how == "gradient":
            loss = nn.cross_entropy_loss(NaNGradient.apply(self.model(batch.x)), batch.y)
            self.log("train/loss", loss, on_epoch=True)
            return loss
        loss = super().training_step(batch, batch_idx)
        if self.how == "error":
            raise RuntimeError("broken on purpose")
        return loss * float("nan")


class KeepAndSave(Callback):
    """Keeps the state at every boundary, and saves after the error."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, task: TinyTask, *_: Any) -> None:
        if trainer.at_step_boundary:
            self.state = parameters_of(task)

    def on_exception(self, trainer: Any, task: Any, exception: BaseException) -> None:
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("loss", NonFiniteLossError, "the loss is nan in epoch 0, batch 5, at step 2"),
        (
            "gradient",
            NonFiniteGradientError,
            "the norm of the gradients is nan in epoch 0, batch 5",
        ),
        ("error", RuntimeError, "broken on purpose"),
    ],
)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_state_is_that_of_the_last_boundary_and_continues_exactly(
    tmp_path: Path, how: str, error: type[Exception], message: str, clip: float | None
) -> None:
    settings = {"max_epochs": 1, "accumulate_grad_batches": 2, "gradient_clip_val": clip}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole_task = TinyTask()
    whole.fit(whole_task, datamodule=TinyData())

    keep = KeepAndSave(tmp_path / "saved.ckpt")
    trainer = make_trainer(tmp_path / "broken", callbacks=[keep], **settings)
    task = Breaks(how)
    with pytest.raises(error, match=message):
        trainer.fit(task, datamodule=TinyData())
    for name, array in parameters_of(task).items():  # statistics among them
        np.testing.assert_array_equal(array, keep.state[name], err_msg=name)

    resumed_task = TinyTask()
    resumed = make_trainer(tmp_path / "resumed", **settings)
    resumed.fit(resumed_task, datamodule=TinyData(), ckpt_path=tmp_path / "saved.ckpt")
    for name, array in parameters_of(whole_task).items():
        np.testing.assert_array_equal(parameters_of(resumed_task)[name], array, err_msg=name)
    assert dict(resumed.metrics) == dict(whole.metrics)


def test_no_checkpoint_can_be_had_from_inside_a_step(tmp_path: Path) -> None:
    class Save(Callback):
        def on_after_backward(self, trainer: Any, task: Any) -> None:
            trainer.save_checkpoint(tmp_path / "no.ckpt")

    with pytest.raises(RuntimeError, match="inside a step or before training"):
        make_trainer(tmp_path, callbacks=[Save()]).fit(TinyTask(), datamodule=TinyData())
    assert not (tmp_path / "no.ckpt").exists()


def test_an_error_while_updating_is_no_state_to_save(tmp_path: Path) -> None:
    class Save(Callback):
        def on_after_optimizer_step(self, trainer: Any, task: Any, optimizer: Any) -> None:
            raise RuntimeError("broken on purpose")

        def on_exception(self, trainer: Any, task: Any, exception: BaseException) -> None:
            assert not trainer.at_step_boundary

    with pytest.raises(RuntimeError, match="broken on purpose"):
        make_trainer(tmp_path, callbacks=[Save()]).fit(TinyTask(), datamodule=TinyData())


def test_observers_see_every_part_of_the_loop(tmp_path: Path) -> None:
    places: list[str] = []

    class Observer:
        def __init__(self, place: str) -> None:
            self.place = place

        def __enter__(self) -> None:
            places.append(self.place)

        def __exit__(self, *_: Any) -> None:
            pass

    class Watches(Callback):
        def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, index: int) -> None:
            if not trainer.observers:
                trainer.observers.append(Observer)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.observers.remove(Observer)

    trainer = make_trainer(tmp_path, max_steps=1, callbacks=[Watches()], logger=False)
    trainer.fit(TinyTask(), datamodule=TinyData())
    assert places == [
        *["TinyTask.training_step", "backward", "synchronize", "optimizer_step", "synchronize"],
        "Watches.on_train_batch_end",
    ]


def test_predictions_are_kept_only_where_wanted(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert len(trainer.predict(TinyTask(), datamodule=TinyData())) == 2
    assert trainer.predict(TinyTask(), datamodule=TinyData(), return_predictions=False) == []
