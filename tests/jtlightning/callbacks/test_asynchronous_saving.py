"""`ModelCheckpoint(asynchronous=True)`: what counts when, and where errors come out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jtlightning.callbacks.model_checkpoint import ModelCheckpoint
from jtlightning.checkpoint.container import (
    Checkpoint,
    CheckpointError,
    read_checkpoint,
    verify_checkpoint,
)
from jtlightning.signals import reclaim
from tests.jtlightning.callbacks.test_model_checkpoint import (
    by_step,
    names,
    read,
    start,
    step,
    validate,
)
from tests.jtlightning.fake_trainer import FakeTrainer
from tests.jtlightning.test_resume import StopAfter, run

ROOT = Path(__file__).parents[3]


class Gate:
    """Holds a writing thread before its first byte until it is opened; may then fail it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()
        self.error: OSError | None = None
        real = os.write

        def write(descriptor: int, data: Any) -> int:
            if threading.current_thread() is not threading.main_thread():
                self.entered.set()
                assert self.opened.wait(30)
                if self.error is not None:
                    raise self.error
            return real(descriptor, data)

        monkeypatch.setattr(os, "write", write)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def settle(saver: ModelCheckpoint, gate: Gate) -> None:
    gate.opened.set()
    saver.state_dict()


def step_of(path: Path) -> int:
    return verify_checkpoint(path)["loop"]["global_step"]


@pytest.fixture
def background(tmp_path: Path) -> tuple[FakeTrainer, ModelCheckpoint]:
    """A saver that keeps the best file."""
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, by_step(monitor="val/miou", mode="max", asynchronous=True))
    return trainer, saver


def test_an_asynchronous_file_counts_once_it_is_on_the_disk(
    background: tuple[FakeTrainer, ModelCheckpoint], gate: Gate
) -> None:
    trainer, saver = background
    gate.opened.set()
    validate(trainer, saver, [0.1])
    saver.state_dict()
    gate.opened.clear()
    validate(trainer, saver, [0.2])
    assert gate.entered.wait(30)
    folder = trainer.run.checkpoints
    assert saver.best_model_path == folder / "10.ckpt"
    assert step_of(folder / "last.ckpt") == step_of(folder / "10.ckpt") == 10
    settle(saver, gate)
    assert saver.best_model_path == folder / "20.ckpt"
    assert names(trainer) == ["20.ckpt", "last.ckpt"]
    assert step_of(folder / "last.ckpt") == 20
    state = verify_checkpoint(folder / "20.ckpt")["callbacks"][saver.state_key]
    assert state["ranked"] == [["20.ckpt", 20, 0.2]]


def test_an_asynchronous_file_holds_the_state_of_its_step(
    background: tuple[FakeTrainer, ModelCheckpoint], gate: Gate
) -> None:
    trainer, saver = background
    validate(trainer, saver, [0.1])
    trainer.global_step, trainer.current_epoch = 15, 3
    settle(saver, gate)
    checkpoint = read_checkpoint(trainer.run.checkpoints / "10.ckpt")
    assert checkpoint.metadata["loop"] == {"global_step": 10}
    assert set(checkpoint.tensors["model/x"]) == {10}


def test_a_save_that_comes_early_waits_for_the_one_before(
    background: tuple[FakeTrainer, ModelCheckpoint], gate: Gate
) -> None:
    trainer, saver = background
    captured = []
    capture = trainer.capture_checkpoint
    trainer.capture_checkpoint = lambda: (
        captured.append(  # type: ignore[method-assign]
            names(trainer) if captured else []
        )
        or capture()
    )
    validate(trainer, saver, [0.1])
    threading.Timer(0.05, gate.opened.set).start()
    validate(trainer, saver, [0.2])
    assert captured == [[], ["10.ckpt", "last.ckpt"]]  # one copy of the state at a time
    saver.on_train_end(trainer, None)
    assert names(trainer) == ["20.ckpt", "last.ckpt"]


@pytest.mark.parametrize(
    "hook", [step, lambda t, s: s.on_validation_end(t, None), lambda t, s: s.on_train_end(t, None)]
)
def test_a_failed_write_is_raised_at_the_next_boundary(
    background: tuple[FakeTrainer, ModelCheckpoint], gate: Gate, hook: Any
) -> None:
    trainer, saver = background
    gate.opened.set()
    validate(trainer, saver, [0.1])
    before = saver.state_dict()
    gate.error = OSError(28, "No space left on device")
    validate(trainer, saver, [0.2])
    assert saver.state_dict() == before  # waits
    with pytest.raises(CheckpointError, match=r"20\.ckpt.*No space left.*MiB free"):
        hook(trainer, saver)
    assert names(trainer) == ["10.ckpt", "last.ckpt"]
    gate.error = None
    saver.teardown(trainer, None, "fit")


def test_a_step_does_not_wait_for_the_write(
    background: tuple[FakeTrainer, ModelCheckpoint], gate: Gate
) -> None:
    trainer, saver = background
    validate(trainer, saver, [0.1])
    for _ in range(3):
        step(trainer, saver)
    assert gate.entered.wait(30)
    assert not list(trainer.run.checkpoints.glob("*.ckpt"))


@pytest.mark.parametrize("hook", ["on_train_end", "on_exception", "teardown"])
def test_the_end_waits_for_the_write(
    background: tuple[FakeTrainer, ModelCheckpoint], gate: Gate, hook: str
) -> None:
    trainer, saver = background
    validate(trainer, saver, [0.1])
    threading.Timer(0.05, gate.opened.set).start()
    arguments = {"on_exception": (ValueError(),), "teardown": ("fit",)}.get(hook, ())
    getattr(saver, hook)(trainer, None, *arguments)
    assert names(trainer) == ["10.ckpt", "last.ckpt"]
    assert saver.best_model_score == 0.1


def test_the_end_waits_for_the_save_of_the_last_step(
    background: tuple[FakeTrainer, ModelCheckpoint], gate: Gate
) -> None:
    trainer, saver = background
    trainer.global_step = 7
    threading.Timer(0.05, gate.opened.set).start()
    saver.on_train_end(trainer, None)
    assert step_of(trainer.run.checkpoints / "last.ckpt") == 7


def test_a_failed_write_does_not_hide_another_error(
    background: tuple[FakeTrainer, ModelCheckpoint], gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, saver = background
    gate.error = OSError(5, "Input/output error")
    validate(trainer, saver, [0.1])
    gate.opened.set()
    saver.on_exception(trainer, None, ValueError("the loss is NaN"))
    saver.teardown(trainer, None, "fit")
    assert "10.ckpt: could not be written: Input/output error" in caplog.text


def test_another_saver_s_file_does_not_name_what_is_about_to_go(
    background: tuple[FakeTrainer, ModelCheckpoint], gate: Gate
) -> None:
    trainer, saver = background
    gate.opened.set()
    validate(trainer, saver, [0.1])
    saver.state_dict()
    gate.opened.clear()
    validate(trainer, saver, [0.2])
    threading.Timer(0.05, gate.opened.set).start()
    path = trainer.run.checkpoints / "mine.ckpt"
    trainer.save_checkpoint(path)  # by a callback, while the thread writes
    assert read(path)["callbacks"][saver.state_key]["ranked"] == [["20.ckpt", 20, 0.2]]


def test_a_value_that_cannot_be_stored_is_raised_at_once(
    background: tuple[FakeTrainer, ModelCheckpoint],
) -> None:
    trainer, saver = background
    capture = trainer.capture_checkpoint

    def broken() -> Checkpoint:
        checkpoint = capture()
        checkpoint.metadata["config"] = {1, 2}
        return checkpoint

    trainer.capture_checkpoint = broken  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="config"):
        validate(trainer, saver, [0.1])
    assert saver.best_model_path is None


KILLED = """
import os, sys, threading
from pathlib import Path
from jtlightning.callbacks.model_checkpoint import ModelCheckpoint
from tests.jtlightning.callbacks.test_model_checkpoint import start, validate
from tests.jtlightning.fake_trainer import FakeTrainer

real = os.write

def write(descriptor, data):
    if len(data) == 8000 and data[0] == 20:  # the array of step 20
        real(descriptor, data[:1000])
        os.kill(os.getpid(), 9)
    return real(descriptor, data)

os.write = write
trainer = FakeTrainer(Path(sys.argv[1]))
options = {"filename": "{step}", "monitor": "val/miou", "mode": "max", "asynchronous": True}
saver = start(trainer, ModelCheckpoint(**options))
validate(trainer, saver, [0.1, 0.2])
saver.teardown(trainer, None, "fit")
"""


def test_a_kill_while_the_thread_writes_leaves_the_file_before(tmp_path: Path) -> None:
    reclaim()
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / "checkpoints"
    assert step_of(folder / "last.ckpt") == step_of(folder / "10.ckpt") == 10
    assert len(list(folder.glob(".jtl-*.tmp"))) == 1
    trainer = FakeTrainer(tmp_path)
    start(trainer, by_step(monitor="val/miou", mode="max", asynchronous=True))
    assert names(trainer) == ["10.ckpt", "last.ckpt"]


def test_a_training_saved_by_a_thread_stops_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    def saver() -> ModelCheckpoint:
        return ModelCheckpoint(every_n_train_steps=1, asynchronous=True)

    expected, _ = run(tmp_path / "undisturbed", saver())
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "stopped", StopAfter(7), saver())
    assert stopped.value.code == 143
    (last,) = (tmp_path / "stopped").glob("*/checkpoints/last.ckpt")
    assert step_of(last) == 7  # the signal waited for the thread
    resumed, trainer = run(tmp_path / "stopped", saver())
    assert trainer.global_step == 12
    for name, value in expected.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
