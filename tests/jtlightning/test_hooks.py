"""The exact sequence of hooks: this list is the trainer's specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jtlightning.callbacks.base import Callback
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import TinyData, TinyTask

NAMES = [n for n in vars(Callback) if n.startswith("on_") or n in {"setup", "teardown"}]


def recorder(base: type, calls: list[str], label: str) -> Any:
    """A subclass of `base` that appends its hooks' names, marked with `label`, to `calls`."""

    def note(name: str) -> Any:
        def hook(self: Any, *args: Any) -> None:
            calls.append(f"{label}{name}")

        return hook

    return type("Recorder", (base,), {name: note(name) for name in NAMES})()


VALIDATION = [
    "on_validation_start",
    "on_validation_epoch_start",
    *["on_validation_batch_start", "on_validation_batch_end"] * 2,
    "on_validation_epoch_end",
    "on_validation_end",
]
SANITY = ["on_sanity_check_start", *VALIDATION, "on_sanity_check_end"]
MICRO = ["on_train_batch_start", "on_before_backward", "on_after_backward"]
UPDATE = ["on_before_optimizer_step", "on_after_optimizer_step"]
EPOCH = [
    "on_train_epoch_start",
    *[*MICRO, "on_train_batch_end"],
    *[*MICRO, *UPDATE, "on_train_batch_end"],
    *[*MICRO, *UPDATE, "on_train_batch_end"],  # the shorter last window
    *VALIDATION,
    "on_train_epoch_end",
]


def test_fit_calls_the_hooks_in_the_documented_order(tmp_path: Path) -> None:
    calls: list[str] = []
    trainer = make_trainer(
        tmp_path,
        max_epochs=2,
        limit_train_batches=3,
        accumulate_grad_batches=2,
        callbacks=[recorder(Callback, calls, "")],
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(TinyTask(), datamodule=TinyData())
    assert calls == [
        *["setup", "on_fit_start", *SANITY, "on_train_start"],
        *EPOCH,
        *EPOCH,
        *["on_train_end", "on_fit_end", "teardown"],
    ]


def test_callbacks_come_in_list_order_and_the_task_last(tmp_path: Path) -> None:
    calls: list[str] = []
    late = recorder(Callback, calls, "late.")
    late.runs_after_task = True
    callbacks = [late, recorder(Callback, calls, "first."), recorder(Callback, calls, "second.")]
    for index, callback in enumerate(callbacks):
        type(callback).state_key = f"r{index}"
    task = recorder(TinyTask, calls, "task.")
    trainer = make_trainer(
        tmp_path, fast_dev_run=True, callbacks=callbacks, logger=False, enable_checkpointing=False
    )
    trainer.fit(task, datamodule=TinyData())
    order = [c.removesuffix(".on_train_epoch_end") for c in calls if "train_epoch_end" in c]
    assert order == ["first", "second", "task", "late"]
    order = [c.removesuffix(".on_train_start") for c in calls if "on_train_start" in c]
    assert order == ["late", "first", "second", "task"]


def test_an_exception_is_announced_and_teardown_still_runs(tmp_path: Path) -> None:
    calls: list[str] = []

    class Breaks(TinyTask):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("broken on purpose")

    trainer = make_trainer(
        tmp_path,
        max_epochs=1,
        callbacks=[recorder(Callback, calls, "")],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
    )
    with pytest.raises(RuntimeError, match="broken on purpose"):
        trainer.fit(Breaks(), datamodule=TinyData())
    assert calls == [
        *["setup", "on_fit_start", "on_train_start", "on_train_epoch_start"],
        *["on_train_batch_start", "on_exception", "teardown"],
    ]


def test_test_and_predict_have_their_own_hooks(tmp_path: Path) -> None:
    for stage in ("test", "predict"):
        calls: list[str] = []
        trainer = make_trainer(
            tmp_path,
            callbacks=[recorder(Callback, calls, "")],
            logger=False,
            enable_checkpointing=False,
        )
        getattr(trainer, stage)(TinyTask(), datamodule=TinyData())
        renamed = [c.replace(f"_{stage}_", "_validation_") for c in calls]
        assert renamed == ["setup", *VALIDATION, "teardown"]


def test_a_resumed_run_loads_first_and_enters_its_epoch_in_the_middle(tmp_path: Path) -> None:
    def fit(calls: list[str], **arguments: Any) -> None:
        trainer = make_trainer(
            tmp_path,
            limit_train_batches=3,
            accumulate_grad_batches=2,
            num_sanity_val_steps=0,
            callbacks=[recorder(Callback, calls, "")],
            logger=False,
            **arguments,
        )
        trainer.fit(TinyTask(), datamodule=TinyData(), ckpt_path="auto")

    first: list[str] = []
    fit(first, max_steps=1)
    # The limit closes the epoch, with its hooks; model checkpoints come behind the recorder.
    closing = ["on_train_epoch_end", "on_save_checkpoint", "on_train_end", "on_fit_end", "teardown"]
    assert first[-5:] == closing
    resumed: list[str] = []
    fit(resumed, max_epochs=1)
    assert resumed == [
        *["setup", "on_load_checkpoint", "on_fit_start", "on_train_start", "on_train_epoch_start"],
        *[*MICRO, *UPDATE, "on_train_batch_end"],
        *VALIDATION,
        *["on_train_epoch_end", "on_save_checkpoint", "on_train_end", "on_fit_end", "teardown"],
    ]
