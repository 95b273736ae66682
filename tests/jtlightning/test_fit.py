from __future__ import annotations

from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest

from jtlightning.callbacks.base import Callback
from jtlightning.callbacks.early_stopping import EarlyStopping
from jtlightning.callbacks.ema import EMA
from jtlightning.callbacks.model_checkpoint import ModelCheckpoint
from jtlightning.checkpoint.container import read_checkpoint
from jtlightning.data.datamodule import DataModule
from jtlightning.loggers.base import Logger
from jtlightning.loggers.csv import CSVLogger
from jtlightning.optim import SGD
from jtlightning.run_directory import RunDirectory
from jtlightning.trainer import NonFiniteLossError, Trainer
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of

QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


def make_trainer(folder: Path, **arguments: Any) -> Trainer:
    return Trainer(default_root_dir=str(folder), accelerator="cpu", **{**QUIET, **arguments})


class Losses(Callback):
    """Keeps the loss of every micro-batch and the learning rates of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs.item())
        self.rates.append(trainer.learning_rates()["lr/decay"])


def test_training_lowers_the_loss_and_moves_statistics(tmp_path: Path) -> None:
    losses = Losses()
    trainer = make_trainer(tmp_path, max_epochs=30, callbacks=[losses])  # seeds the task
    task = TinyTask(lr=0.05)
    before = parameters_of(task)
    trainer.fit(task, datamodule=TinyData(batch_size=12))  # batches of 4 are too noisy
    after = parameters_of(task)
    assert np.mean(losses.losses[-6:]) < 0.5 * np.mean(losses.losses[:6])
    assert all((before[name] != after[name]).any() for name in before)
    assert trainer.global_step == 60


def test_accumulated_windows_step_like_one_large_batch(tmp_path: Path) -> None:
    class Deterministic(TinyTask):
        def on_fit_start(self) -> None:
            self.model.bn.is_train = self.model.drop.is_train = False

        def configure_optimizers(self) -> Any:
            # Not Adam, which steps alike whatever the scale of the gradient.
            trained = [p for p in self.model.parameters() if not p.is_stop_grad()]
            return SGD(lr=0.1).build([{"params": trained}])

    weights = []
    for batch_size, accumulate in ((12, 1), (4, 3)):
        task = Deterministic()
        jt.set_global_seed(0)
        for name, p in task.named_parameters():
            rng = np.random.default_rng(len(name))
            p.update(jt.array(rng.normal(size=p.shape).astype(np.float32)))
        task.model.bn.running_var.update(jt.ones(8))
        trainer = make_trainer(
            tmp_path / str(batch_size),
            max_epochs=2,
            accumulate_grad_batches=accumulate,
            logger=False,
            enable_checkpointing=False,
        )
        trainer.fit(task, datamodule=TinyData(batch_size=batch_size))
        assert trainer.global_step == 4
        weights.append(parameters_of(task))
    for name in weights[0]:
        # Sums in another order: a few float32 roundings of weights up to 8.
        np.testing.assert_allclose(weights[0][name], weights[1][name], atol=2e-5, err_msg=name)


def test_a_shorter_last_window_still_steps(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, max_epochs=1, accumulate_grad_batches=4, logger=False, enable_checkpointing=False
    )
    trainer.fit(TinyTask(), datamodule=TinyData())  # 6 micro-batches: windows of 4 and 2
    assert trainer.global_step == 2


def test_the_schedule_is_a_closed_form_of_the_step(tmp_path: Path) -> None:
    losses = Losses()
    trainer = make_trainer(
        tmp_path, max_epochs=1, callbacks=[losses], logger=False, enable_checkpointing=False
    )
    trainer.fit(TinyTask(lr=0.01), datamodule=TinyData())
    poly = [(1 - k / 6) ** 0.9 for k in range(2, 6)]
    np.testing.assert_allclose(losses.rates, 0.01 * np.array([0, 0.5, *poly]))


def test_a_small_clip_value_bounds_the_update(tmp_path: Path) -> None:
    class Norms(Callback):
        def __init__(self) -> None:
            self.norms: list[float] = []

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            grads = [g for group in trainer.optimizer.param_groups for g in group["grads"]]
            self.norms.append(float(np.sqrt(sum((g.numpy() ** 2).sum() for g in grads))))

    norms = Norms()
    trainer = make_trainer(
        tmp_path, max_steps=3, gradient_clip_val=0.01, callbacks=[norms], log_every_n_steps=1
    )
    trainer.fit(TinyTask(), datamodule=TinyData())
    np.testing.assert_allclose(norms.norms, 0.01, rtol=1e-3)
    assert trainer.metrics["train/grad_norm"] > 0.05  # before clipping


@pytest.mark.parametrize(
    ("arguments", "validations"),
    [
        ({"max_epochs": 2}, [6, 12]),
        ({"max_epochs": 1, "val_check_interval": 0.5}, [3, 6]),
        ({"max_epochs": 1, "val_check_interval": 2}, [2, 4, 6]),
        ({"max_epochs": 4, "check_val_every_n_epoch": 2}, [12, 24]),
        ({"max_epochs": 5, "check_val_every_n_epoch": [(1, 1), (2, 0), (4, 1)]}, [6, 24, 30]),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, [3, 6]),
        ({"max_epochs": 2, "limit_val_batches": 0}, []),
        ({"max_steps": 7}, [6]),
        ({"max_epochs": 1, "fast_dev_run": True}, [1]),
        ({"max_epochs": 3, "overfit_batches": 1}, [1, 2, 3]),
    ],
)
def test_limits_and_validation_cadence(
    tmp_path: Path, arguments: dict[str, Any], validations: list[int]
) -> None:
    class Steps(Callback):
        steps: list[int]

        def __init__(self) -> None:
            self.steps = []

        def on_validation_end(self, trainer: Trainer, task: Any) -> None:
            if not trainer.sanity_checking:
                self.steps.append(trainer.global_step)

    steps = Steps()
    trainer = make_trainer(
        tmp_path, callbacks=[steps], logger=False, enable_checkpointing=False, **arguments
    )
    trainer.fit(TinyTask(), datamodule=TinyData())
    assert steps.steps == validations


def test_epoch_means_are_weighted_by_batch_size(tmp_path: Path) -> None:
    class Sizes(TinyTask):
        def training_step(self, batch: Any, batch_idx: int) -> jt.Var:
            loss = super().training_step(batch, batch_idx)
            self.log("size", float(len(batch.x)), on_step=False, on_epoch=True)
            return loss

    trainer = make_trainer(tmp_path, max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(Sizes(), datamodule=TinyData(batch_size=4, train=10))
    assert trainer.metrics["size"] == pytest.approx((4 * 4 + 4 * 4 + 2 * 2) / 10)


def test_a_non_finite_loss_ends_the_run_before_the_update(tmp_path: Path) -> None:
    class Breaks(TinyTask):
        def training_step(self, batch: Any, batch_idx: int) -> jt.Var:
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if batch_idx == 2 else loss

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Trainer, task: TinyTask, *_: Any) -> None:
            self.weight = task.model.fc1.weight.numpy()

    keep, task = Keep(), Breaks()
    trainer = make_trainer(tmp_path, max_epochs=1, callbacks=[keep])
    with pytest.raises(NonFiniteLossError, match="epoch 0, batch 2, at step 2"):
        trainer.fit(task, datamodule=TinyData())
    np.testing.assert_array_equal(task.model.fc1.weight.numpy(), keep.weight)


def test_validation_leaves_modes_and_frozen_layers_as_they_were(tmp_path: Path) -> None:
    class FrozenNorm(TinyTask):
        def on_fit_start(self) -> None:
            self.model.bn.is_train = False

    task = FrozenNorm()
    task.model.fc1.weight.stop_grad()
    trainer = make_trainer(tmp_path, max_epochs=2, logger=False, enable_checkpointing=False)
    before = parameters_of(task)
    trainer.fit(task, datamodule=TinyData())
    after = parameters_of(task)
    assert task.model.fc1.weight.is_stop_grad()
    assert not task.model.bn.is_train
    assert task.model.drop.is_train
    for frozen in ("model.fc1.weight", "model.bn.running_mean"):
        np.testing.assert_array_equal(before[frozen], after[frozen])
    assert (before["model.fc2.weight"] != after["model.fc2.weight"]).any()


def test_a_plain_list_of_batches_serves_as_loader(tmp_path: Path) -> None:
    source = TinyData().train_dataloader()
    batches = list(source.batches(0))
    trainer = make_trainer(tmp_path, max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(TinyTask(), batches, batches[:1])
    assert trainer.global_step == 6


def test_predict_returns_every_batch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, logger=False, enable_checkpointing=False)
    outputs = trainer.predict(TinyTask(), datamodule=TinyData())
    assert [o.shape for o in outputs] == [(4, 3), (4, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches is 0"),
        ({"limit_val_batches": 1.5}, "limit_val_batches is 1.5"),
        ({"max_time": "2h"}, "DD:HH:MM:SS"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val is -1.0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_without_a_meaning_are_refused(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **arguments)


def test_a_validation_interval_beyond_the_epoch_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_epochs=1, val_check_interval=100)
    with pytest.raises(ValueError, match="only 6"):
        trainer.fit(TinyTask(), datamodule=TinyData())


def test_a_monitor_sees_what_the_task_logs_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    class Logs(TinyTask):
        def on_train_epoch_end(self) -> None:
            self.log("epoch/number", float(self.trainer.current_epoch))

    class NoValidation(TinyData):
        val_dataloader = DataModule.val_dataloader

    saver = ModelCheckpoint(monitor="epoch/number", mode="max")
    stopper = EarlyStopping(monitor="epoch/number", mode="min", patience=2)
    trainer = make_trainer(tmp_path, max_epochs=9, callbacks=[stopper, saver])
    trainer.fit(Logs(), datamodule=NoValidation())
    assert trainer.current_epoch == 2, "0 was best, 1 and 2 were not better"
    assert saver.best_model_score == 2.0


@pytest.mark.parametrize("method", ["log_metrics", "finish"])
def test_a_logger_that_raises_is_dropped_and_the_rest_goes_on(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("the service is gone")

    broken = type("Broken", (Logger,), {method: fails})()
    trainer = make_trainer(tmp_path, max_epochs=1, logger=[broken, CSVLogger()])
    trainer.fit(TinyTask(), datamodule=TinyData())
    assert caplog.text.count(f"Broken.{method} failed: dropped") == 1
    (path,) = tmp_path.glob("*/metrics.csv")
    assert "val/loss" in path.read_text()
    assert trainer.run is not None
    RunDirectory.reopen(trainer.run.path).release()  # given back


def test_an_error_at_the_end_leaves_nothing_open(tmp_path: Path) -> None:
    class Data(TinyData):
        def teardown(self, stage: str) -> None:
            raise RuntimeError("broken on purpose")

    task = TinyTask()
    trainer = make_trainer(tmp_path, max_steps=1)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        trainer.fit(task, datamodule=Data())
    assert task._trainer is None
    assert trainer.run is not None
    RunDirectory.reopen(trainer.run.path).release()


def test_a_second_task_is_evaluated_with_the_average_not_with_its_own_weights(
    tmp_path: Path,
) -> None:
    trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[EMA(0.5)])
    first = TinyTask()
    trainer.fit(first, datamodule=TinyData())
    expected = trainer.validate(first, datamodule=TinyData(), ckpt_path="last")
    second = TinyTask()
    assert trainer.validate(second, datamodule=TinyData(), ckpt_path="last") == expected
    raw = make_trainer(tmp_path / "raw").validate(second, datamodule=TinyData())
    assert raw != expected


def test_an_error_inside_a_validation_leaves_it_due_and_its_means_forgotten(tmp_path: Path) -> None:
    class Breaks(TinyTask):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if batch_idx == 1:
                raise RuntimeError("broken on purpose")

    class Save(Callback):
        def on_exception(self, trainer: Trainer, task: Any, exception: BaseException) -> None:
            trainer.save_checkpoint(tmp_path / "saved.ckpt")

    trainer = make_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0, callbacks=[Save()])
    with pytest.raises(RuntimeError, match="broken on purpose"):
        trainer.fit(Breaks(), datamodule=TinyData(batch_size=4))
    metadata = read_checkpoint(tmp_path / "saved.ckpt").metadata
    assert metadata["loop"]["validation_due"]
    assert "validation" not in metadata["metrics"]["sums"]
