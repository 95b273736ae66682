"""Stop and resume: the same bits as a run that was never stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jtlightning.callbacks.base import Callback
from jtlightning.callbacks.ema import EMA
from jtlightning.callbacks.model_checkpoint import ModelCheckpoint
from jtlightning.trainer import Trainer
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of

#: 7 micro-batches an epoch: windows of 2, 2, 2 and 1; validation twice an epoch.
SETTINGS = {"max_epochs": 3, "accumulate_grad_batches": 2, "val_check_interval": 4}
DATA = {"batch_size": 4, "train": 28}


class StopAfter(Callback):
    """Ends the process's part of the run as a signal would, after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.at_step_boundary and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def run(folder: Path, *callbacks: Callback, **arguments: Any) -> tuple[dict[str, Any], Trainer]:
    """The end state of a run: weights, averages, moments, newest metrics."""
    ema = EMA(decay=0.9)
    trainer = make_trainer(folder, callbacks=[ema, *callbacks], **{**SETTINGS, **arguments})
    task = TinyTask()
    trainer.fit(task, datamodule=TinyData(**DATA), ckpt_path="auto")
    state = parameters_of(task)
    state.update({f"ema/{k}": v for k, v in flatten(ema.state_dict()).items()})
    state.update(trainer.drivers[0].state_tensors())
    state.update(trainer.metrics)
    return state, trainer


def flatten(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in state.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("undisturbed"))[0]


@pytest.mark.parametrize("step", [1, 2, 3, 4, 6, 8])
def test_a_stopped_run_continues_bit_for_bit(
    tmp_path: Path, undisturbed: dict[str, Any], step: int
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, StopAfter(step))
    assert stopped.value.code == 143
    resumed, trainer = run(tmp_path)
    assert trainer.global_step == 12
    assert len(list(tmp_path.iterdir())) == 1, "the run continues in its folder"
    assert set(resumed) == set(undisturbed)
    for name in undisturbed:
        np.testing.assert_array_equal(resumed[name], undisturbed[name], err_msg=name)


def test_a_checkpoint_between_step_and_validation_still_validates(tmp_path: Path) -> None:
    """Killed after the save of a step, before the validation that was due there."""

    class Killed(BaseException):
        pass

    class KillBeforeValidation(Callback):
        def on_validation_start(self, trainer: Trainer, task: Any) -> None:
            if trainer.global_step == 2:
                raise Killed

    class Validations(Callback):
        def __init__(self) -> None:
            self.steps: list[int] = []

        def on_validation_end(self, trainer: Trainer, task: Any) -> None:
            if not trainer.sanity_checking:
                self.steps.append(trainer.global_step)

    with pytest.raises(Killed):
        run(tmp_path, KillBeforeValidation(), ModelCheckpoint(every_n_train_steps=1))
    validations = Validations()
    run(tmp_path, validations, ModelCheckpoint(every_n_train_steps=1))
    assert validations.steps == [2, 6, 10]


def test_changed_data_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, StopAfter(2))
    run(tmp_path, limit_train_batches=6)
    assert "batches per epoch 7, this run has 6" in caplog.text


def test_a_missing_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1)
    for wanted, message in (
        ("last", "no intact checkpoint.*or auto to start"),
        ("x.ckpt", "there is no file"),
        (str(tmp_path), "is a folder; give a checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.fit(TinyTask(), datamodule=TinyData(), ckpt_path=wanted)
    with pytest.raises(ValueError, match="nothing to test"):
        trainer.test(TinyTask(), datamodule=TinyData(), ckpt_path="auto")


def test_continuing_tells_from_where_and_when_nothing_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for message in ("starting from scratch", "last.ckpt, saved after step 1"):
        make_trainer(tmp_path, max_steps=1).fit(TinyTask(), datamodule=TinyData(), ckpt_path="auto")
        assert message in caplog.text
    assert "nothing is left to train after step 1 of epoch 1" in caplog.text
    (folder,) = tmp_path.iterdir()
    with pytest.raises(ValueError, match=r"is a folder; give .*/checkpoints/last\.ckpt"):
        make_trainer(tmp_path).fit(TinyTask(), datamodule=TinyData(), ckpt_path=folder)


def test_another_model_s_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    class Other(TinyTask):
        def __init__(self) -> None:
            super().__init__()
            self.extra = self.model.fc2

    make_trainer(tmp_path, max_steps=1).fit(TinyTask(), datamodule=TinyData())
    task = TinyTask()
    task.network = task.model
    del task.model
    with pytest.raises(ValueError, match=r"network\.fc1\.weight[^$]*config\.yaml"):
        make_trainer(tmp_path, max_steps=2).fit(task, datamodule=TinyData(), ckpt_path="last")


@pytest.mark.parametrize("step", [3, 4])  # inside an epoch, and at its last batch
def test_a_kill_between_save_and_log_loses_no_row(tmp_path: Path, step: int) -> None:
    class Killed(BaseException):
        pass

    class DiesBehindItsSave(ModelCheckpoint):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            super().on_train_batch_end(trainer, *args)
            if trainer.global_step == step and trainer.at_step_boundary:
                raise Killed

    def rows(folder: Path, *callbacks: Callback) -> list[str]:
        run(folder, *callbacks, log_every_n_steps=1)
        (path,) = folder.glob("*/metrics.csv")
        return path.read_text().splitlines()

    whole = rows(tmp_path / "whole", ModelCheckpoint(every_n_train_steps=1))
    with pytest.raises(Killed):
        rows(tmp_path / "parts", DiesBehindItsSave(every_n_train_steps=1))
    assert rows(tmp_path / "parts", ModelCheckpoint(every_n_train_steps=1)) == whole
