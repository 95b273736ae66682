"""What an error leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jtlightning.callbacks.base import Callback
from jtlightning.callbacks.ema import EMA
from jtlightning.callbacks.save_on_exception import SaveOnException
from jtlightning.checkpoint.container import read_checkpoint
from jtlightning.trainer import Trainer
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of


class FailAt(Callback):
    """Raises once `steps` are done, in the hook given."""

    def __init__(self, steps: int, hook: str, error: type[BaseException] = RuntimeError) -> None:
        self.steps, self.error = steps, error
        setattr(type(self), hook, type(self)._fail)

    def _fail(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            raise self.error("the first error")


def failing(steps: int, hook: str, error: type[BaseException] = RuntimeError) -> Callback:
    """A class of its own for each hook, as the trainer looks at classes."""
    return type("Failing", (FailAt,), {})(steps, hook, error)


def fit(
    folder: Path, *callbacks: Callback, kind: type[TinyTask] = TinyTask, **arguments: Any
) -> dict[str, Any]:
    # 7 micro-batches, windows of 2: errors fall inside a window as well.
    settings = {"max_epochs": 2, "accumulate_grad_batches": 2, "enable_checkpointing": True}
    ema = EMA(0.9)
    trainer = make_trainer(folder, callbacks=[ema, *callbacks], **{**settings, **arguments})
    task = kind()  # after the trainer, which seeds
    trainer.fit(task, datamodule=TinyData(4, 28), ckpt_path="auto")
    state = {**parameters_of(task), **trainer.drivers[0].state_tensors()}
    return {**state, **ema.state_dict()["average"], **trainer.metrics}


def saved(folder: Path, name: str = "exception") -> list[Path]:
    return sorted(folder.glob(f"*/checkpoints/{name}.ckpt"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return fit(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize(
    "hook", ["on_train_batch_start", "on_after_backward", "on_train_batch_end", "on_validation_end"]
)
def test_a_run_that_failed_continues_bit_for_bit(
    tmp_path: Path, undisturbed: dict[str, Any], hook: str
) -> None:
    steps = 4 if hook == "on_validation_end" else 3
    with pytest.raises(RuntimeError, match="the first error"):
        fit(tmp_path, failing(steps, hook), SaveOnException())
    (path,) = saved(tmp_path)
    assert read_checkpoint(path).metadata["loop"]["global_step"] == steps
    resumed = fit(tmp_path, SaveOnException())
    assert resumed.keys() == undisturbed.keys()
    for name, value in undisturbed.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_a_validation_that_failed_is_repeated_as_a_whole(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    class Failing(TinyTask):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if self.trainer.global_step == 8 and batch_idx == 0:
                self.trainer.metrics.fetch()  # as every fifty batches
                raise RuntimeError("the first error")

    with pytest.raises(RuntimeError, match="the first error"):
        fit(tmp_path, SaveOnException(), kind=Failing)
    np.testing.assert_equal(fit(tmp_path, SaveOnException()), undisturbed)


def test_the_file_has_the_name_and_folder_that_were_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        fit(
            tmp_path / "runs",
            failing(1, "on_train_batch_end"),
            SaveOnException("crash", str(tmp_path / "rescued")),
        )
    assert (tmp_path / "rescued/crash.ckpt").is_file()


def test_an_error_before_the_first_step_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the first error"):
        fit(tmp_path, failing(0, "on_train_batch_start"), SaveOnException())
    assert saved(tmp_path, "*") == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_requests_to_exit_save_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fit(tmp_path, failing(1, "on_train_batch_end", error), SaveOnException())
    assert saved(tmp_path) == []


class Unsaveable(Callback):
    def state_dict(self) -> dict[str, Any]:
        raise KeyError("the second error")


def test_a_failing_save_does_not_hide_the_first_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError, match="the first error"):
        fit(tmp_path, failing(1, "on_train_batch_end"), Unsaveable(), SaveOnException())
    assert "the second error" in caplog.text
    assert saved(tmp_path) == []


def test_checkpoints_that_are_off_stay_off(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the first error"):
        fit(
            tmp_path,
            failing(1, "on_train_batch_end"),
            SaveOnException(),
            enable_checkpointing=False,
        )
    assert saved(tmp_path) == []


@pytest.mark.parametrize("name", ["", "a/b", ".."])
def test_a_file_name_with_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="file's name alone"):
        SaveOnException(name)
